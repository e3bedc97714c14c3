"""What a method refuses before it starts: tokens, settings and drafters that do not belong to the model."""

from __future__ import annotations

import operator
from collections.abc import Collection, Sequence
from typing import TYPE_CHECKING, Any

from ..config import SamplingConfig
from ..verify import RULES

if TYPE_CHECKING:
    pass


def check_prompt(prompt: Sequence[int], vocab_size: int) -> tuple[int, ...]:
    """Return the prompt as plain integers; raise ValueError unless it is a non-empty sequence of the model's tokens."""
    if len(prompt) == 0:
        raise ValueError("prompt: found no tokens, expected at least one")
    return tuple(check_token("prompt", token, vocab_size, place) for place, token in enumerate(prompt))


def check_token(name: str, token: Any, vocab_size: int, place: int | None = None) -> int:
    """Return a token id as a plain integer; raise ValueError unless it is one of the model's."""
    try:
        number = -1 if isinstance(token, bool) else operator.index(token)
    except TypeError:
        number = -1
    if not 0 <= number < vocab_size:
        where = "" if place is None else f" at place {place}"
        raise ValueError(f"{name}: found {token!r}{where}, expected a token id from 0 to {vocab_size - 1}")
    return number


def check_context(prompt_length: int, max_new_tokens: int, max_positions: int, reader: str = "the model") -> None:
    """Raise ValueError unless prompt and new tokens fit into a model's context."""
    if prompt_length + max_new_tokens > max_positions:
        raise ValueError(
            f"max_new_tokens: found a prompt of {prompt_length} tokens and {max_new_tokens} new ones, expected at most "
            f"{max_positions} together, the max_position_embeddings of {reader}"
        )


def check_settings(
    vocab_size: int,
    sampling: SamplingConfig,
    draft_sampling: SamplingConfig | None,
    rule: str,
    rules: Collection[str] = tuple(RULES),
) -> None:
    """Raise ValueError unless settings fit the vocabulary and the rule is one."""
    sampling.check(vocab_size)
    if draft_sampling is not None:
        draft_sampling.check(vocab_size)
    if rule not in rules:
        raise ValueError(f"rule: found {rule!r}, expected one of {', '.join(sorted(rules))}")
