"""The checkpoint bundled: a small model of Python code, and what drafts for it, trained for it.

README.md beside this file says what they were made from, under which licence, and how good they are.
"""

from __future__ import annotations

from pathlib import Path

__all__ = ["DRAFT_MODEL", "FUSED", "HELD_OUT", "LOOKAHEAD", "MODEL", "NGRAM"]

MODEL = Path(__file__).with_name("python-8m")
LOOKAHEAD = Path(__file__).with_name("python-8m-lookahead")
FUSED = Path(__file__).with_name("python-8m-lookahead-fused")
DRAFT_MODEL = Path(__file__).with_name("python-8m-draft")
NGRAM = Path(__file__).with_name("python-8m-ngram")
HELD_OUT = Path(__file__).with_name("held_out.txt")
"""The files of the standard library that neither has seen, one name per line."""
