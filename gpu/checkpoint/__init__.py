"""Folders on disk, into tensors."""
