"""Exact output distributions by enumeration, of our methods and of other people's programs."""
