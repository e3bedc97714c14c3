"""What both trainings stand on: text from disk, a run that survives a kill, progress on the terminal."""
