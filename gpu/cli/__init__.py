"""The command line, one file per command; only these files print."""
