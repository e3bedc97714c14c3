"""A step written down as operations, compiled, and kept."""
