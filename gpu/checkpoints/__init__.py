"""The checkpoint bundled, a small model of Python code, and what drafts for it and for SmolLM2-135M-Instruct.

README.md in this folder states their sources, licence and quality.
"""

from __future__ import annotations

from pathlib import Path

MODEL = Path(__file__).with_name("python-8m")
LOOKAHEAD = Path(__file__).with_name("python-8m-lookahead")
FUSED = Path(__file__).with_name("python-8m-lookahead-fused")
BLOCKS = Path(__file__).with_name("python-8m-blocks")
ALONE = Path(__file__).with_name("python-8m-head")
"""A sampler head that drafts without look-ahead rows."""
DRAFT_MODEL = Path(__file__).with_name("python-8m-draft")
NGRAM = Path(__file__).with_name("python-8m-ngram")
SMOLLM2_BLOCKS = Path(__file__).with_name("smollm2-135m-blocks")
SMOLLM2_HEAD = Path(__file__).with_name("smollm2-135m-head")
SMOLLM2_NGRAM = Path(__file__).with_name("smollm2-135m-ngram")
HELD_OUT = Path(__file__).with_name("held_out.txt")
"""The files of the standard library that neither has seen, one name per line."""
# None ends with a line break: the next line's indentation is part of that token.
PROMPTS = (
    'def read_lines(path):\n    """Return the lines of a text file, without their ends."""',
    'class Queue:\n    """First in, first out."""\n\n    def __init__(self, maxsize=0):',
    "import os\nimport sys\n\ndef main():\n    if len(sys.argv) < 2:",
)
"""Beginnings of texts for the bundled model."""
QUESTIONS = (
    "Translate German to English: Der Zug nach Hamburg ist heute ausgefallen, weil es in der Nacht geschneit hat.",
    "Summarize: The method sort of a list sorts it in place; the function sorted makes a new list.",
    "What causes the tides, and why are there two of them a day?",
    "A farmer has 24 sheep and sells a third of them. How many are left? Think step by step.",
    "Write a short letter to a neighbour who has looked after the garden.",
    "Name the people, places and dates in this sentence: Ada met Charles in London on 5 June 1833.",
    "Write a Python function that returns the n-th Fibonacci number.",
    "Why is the sky blue?",
)
"""Questions for models with a chat template, when a way of decoding is planned."""
