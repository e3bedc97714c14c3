"""Exact output distributions by enumeration, of our methods and of other people's programs."""

from .assertion import NotExact, assert_exact, replay

__all__ = ["NotExact", "assert_exact", "replay"]
