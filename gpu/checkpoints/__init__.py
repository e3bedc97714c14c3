"""The checkpoint bundled: a small model of Python code, and what drafts for it, trained for it.

README.md beside this file says what they were made from, under which licence, and how good they are.
"""

from __future__ import annotations

from pathlib import Path

__all__ = ["DRAFT_MODEL", "FUSED", "HELD_OUT", "LOOKAHEAD", "MODEL", "NGRAM", "PROMPTS"]

MODEL = Path(__file__).with_name("python-8m")
LOOKAHEAD = Path(__file__).with_name("python-8m-lookahead")
FUSED = Path(__file__).with_name("python-8m-lookahead-fused")
DRAFT_MODEL = Path(__file__).with_name("python-8m-draft")
NGRAM = Path(__file__).with_name("python-8m-ngram")
HELD_OUT = Path(__file__).with_name("held_out.txt")
"""The files of the standard library that neither has seen, one name per line."""
# None ends with a line break: the next line's indentation is part of that token.
PROMPTS = (
    'def read_lines(path):\n    """Return the lines of a text file, without their ends."""',
    'class Queue:\n    """First in, first out."""\n\n    def __init__(self, maxsize=0):',
    "import os\nimport sys\n\ndef main():\n    if len(sys.argv) < 2:",
)
"""Beginnings of texts for the bundled model."""
