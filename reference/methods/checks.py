"""What a method refuses before it starts: tokens, settings and drafters that do not belong to the model."""

from __future__ import annotations

import operator
from collections.abc import Collection, Sequence
from typing import Any

from ..config import SamplingConfig, check_integer
from ..verify import RULES


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


def check_drafter(model: Any, drafter: Any, num_draft: int) -> None:
    """Raise ValueError unless the drafter drafts tokens of the model, and a number of them."""
    check_integer("num_draft", num_draft, 0, 2**16)
    if drafter.vocab_size != model.vocab_size:
        raise ValueError(
            f"drafter: found {drafter.name!r} with a vocabulary of {drafter.vocab_size}, expected {model.vocab_size} "
            f"as in the model {model.name!r}"
        )


def check_drafter_context(drafter: Any, prompt_length: int, max_new_tokens: int) -> None:
    """Raise ValueError unless prompt and new tokens fit into the drafter's context, if it has one."""
    if drafter.max_position_embeddings is not None:
        reader = f"the drafter {drafter.name!r}"
        check_context(prompt_length, max_new_tokens, drafter.max_position_embeddings, reader)


def check_lenience(lenience: float, rule: str) -> None:
    """Raise ValueError unless it is a number in (0, 1], and 1 for another rule than token."""
    if not 0 < lenience <= 1:
        raise ValueError(f"lenience: found {lenience!r:.80}, expected a number above 0 and at most 1")
    if lenience < 1 and rule != "token":
        raise ValueError(f"lenience: found {lenience} with the rule {rule!r}, expected the rule 'token'")


def check_groups(groups: tuple[int, ...] | None, num_lookahead: int) -> None:
    """Raise ValueError unless look-ahead groups hang behind numbers of drafts that there can be, each once."""
    if groups is not None and (len(set(groups)) < len(groups) or not set(groups) <= set(range(num_lookahead + 1))):
        raise ValueError(f"groups: found {groups!r:.80}, expected different numbers of drafts, 0 to {num_lookahead}")
