"""What is on disk: folders read without trust, and written whole or not at all."""
