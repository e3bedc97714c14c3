"""The prompts that methods are compared on, and places in text that no model wrote."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from ..methods import Method
from ..training.text import standard_library

CHARACTERS_PER_TOKEN = 12  # more than a token has, so that a piece is long enough
GOLDEN_RATIO = 0.6180339887498949  # its multiples without their whole parts are spread evenly


class Question(NamedTuple):
    """One line of a prompts file."""

    turns: tuple[str, ...]  # of the user, one after another; a `prompt` is one
    category: str = ""


def read_prompts(path: Path) -> list[Question]:
    """Read a JSON object on each line, with a `prompt`, or with `turns` and a `category` as in Spec-Bench.

    Empty lines are passed over, and what is something else is refused. Questions of two turns are one category, as in
    Spec-Bench's own table.

    Source: Xia et al. 2024, "Unlocking Efficiency in LLM Inference" (arXiv 2401.07851), for Spec-Bench.
    """
    try:
        lines = path.read_text(encoding="utf-8-sig").split("\n")  # other line breaks may stand in a text
    except UnicodeDecodeError:
        raise ValueError(f"--prompts: {path} is not UTF-8, expected JSON lines") from None
    except OSError as error:
        raise ValueError(f"--prompts: {path} cannot be read ({error.strerror}), expected JSON lines") from None
    prompts = []
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            entry = json.loads(line)
        except (ValueError, RecursionError):
            entry = None
        turns = entry.get("turns", [entry.get("prompt")]) if isinstance(entry, dict) else None
        if not isinstance(turns, list) or not turns or not all(isinstance(turn, str) and turn for turn in turns):
            raise ValueError(f"--prompts: line {number} of {path} has no `prompt` or `turns`, expected a JSON object")
        prompts.append(Question(tuple(turns), "multi-turn" if len(turns) > 1 else str(entry.get("category", ""))))
    if not prompts:
        raise ValueError(f"--prompts: {path} holds no prompt, expected an object with a text `prompt` per line")
    return prompts


def read_library(names: Sequence[str]) -> dict[str, str]:
    """Read those of some files of the standard library that the running Python has; some have no tests."""
    try:
        library = standard_library()
    except FileNotFoundError:  # it is an archive
        return {}
    return {name: library[name] for name in names if name in library}


def pieces(texts: Sequence[str], count: int, length: int) -> list[str]:
    """Return `count` pieces of texts, about as many from each, long enough for `length` tokens.

    Each begins at the start of a line. The beginnings are spread evenly over the texts.
    """
    size = CHARACTERS_PER_TOKEN * length
    found = []
    for number in range(count):
        text = texts[number * len(texts) // count] if count < len(texts) else texts[number % len(texts)]
        place = int((number * GOLDEN_RATIO) % 1 * max(0, len(text) - size))
        start = text.rfind("\n", 0, place) + 1
        found.append(text[start : start + size])
    return found


def prefixes_of(prompts: Sequence[Sequence[int]], count: int) -> list[list[int]]:
    """Return about `count` prefixes of prompts, of half to the whole of each, with no prompt left out."""
    each = -(-count // len(prompts))
    ends = [sorted({max(1, len(prompt) * (each + k) // (2 * each)) for k in range(1, each + 1)}) for prompt in prompts]
    return [list(prompt[:end]) for prompt, places in zip(prompts, ends, strict=True) for end in places]


def context_of(method: Method) -> int:
    """Return how many tokens the model and the drafter of a method can read."""
    room = method.model.max_position_embeddings
    return min(room, getattr(getattr(method, "drafter", None), "max_position_embeddings", None) or room)
