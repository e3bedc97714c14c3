"""What a method refuses before it starts: prompts and tokens that the model does not have."""

from __future__ import annotations

import operator
from collections.abc import Sequence
from typing import Any


def check_prompt(prompt: Sequence[int], vocab_size: int) -> tuple[int, ...]:
    """Return the prompt as plain integers; raise ValueError unless it is a non-empty sequence of the model's tokens."""
    if len(prompt) == 0:
        raise ValueError("prompt: found no tokens, expected at least one")
    return tuple(check_token("prompt", token, vocab_size, f" at place {i}") for i, token in enumerate(prompt))


def check_token(name: str, token: Any, vocab_size: int, place: str = "") -> int:
    """Return a token id as a plain integer; raise ValueError unless it is one of the model's."""
    try:
        number = -1 if isinstance(token, bool) else operator.index(token)
    except TypeError:
        number = -1
    if not 0 <= number < vocab_size:
        raise ValueError(f"{name}: found {token!r}{place}, expected a token id from 0 to {vocab_size - 1}")
    return number


def check_context(prompt_length: int, max_new_tokens: int, max_positions: int) -> None:
    """Raise ValueError unless prompt and new tokens fit into the model's context."""
    if prompt_length + max_new_tokens > max_positions:
        raise ValueError(
            f"max_new_tokens: found a prompt of {prompt_length} tokens and {max_new_tokens} new ones, expected at most "
            f"{max_positions} together, the model's max_position_embeddings"
        )
