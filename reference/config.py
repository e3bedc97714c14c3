"""Settings of sampling, and the checks of arguments that both packages make before anything is computed."""

from __future__ import annotations

import math
import operator
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from numbers import Integral, Real
from typing import Any


@dataclass(frozen=True)
class SamplingConfig:
    """How logits become probabilities: temperature first, then top-k, then top-p."""

    temperature: float = 1.0  # 0 means the likeliest token, always
    top_k: int = 0  # 0 means off
    top_p: float = 1.0  # 1 means off

    def __post_init__(self) -> None:
        """Refuse settings that define no distribution."""
        set_number(self, "temperature", at_least=0.0)
        set_integer(self, "top_k", 0, 2**26)
        if not 0 < _number(self.top_p) <= 1:
            raise ValueError(f"top_p: found {self.top_p!r:.80}, expected a number above 0 and at most 1")
        object.__setattr__(self, "top_p", float(self.top_p))

    def check(self, vocab_size: int) -> None:
        """Raise ValueError if top-k is larger than the vocabulary."""
        if self.top_k > vocab_size:
            raise ValueError(f"top_k: found {self.top_k}, expected at most the vocabulary size {vocab_size}")


def check_integer(name: str, value: object, low: int, high: int) -> int:
    """Return an integer between two limits, both included; raise ValueError for everything else."""
    if not isinstance(value, Integral) or isinstance(value, bool) or not low <= int(value) <= high:
        raise ValueError(f"{name}: found {value!r:.80}, expected an integer from {low} to {high}")
    return int(value)


def _number(value: object) -> float:
    """Return a number as a float, and NaN for everything that is not a finite number."""
    try:
        number = float(value) if isinstance(value, Real) and not isinstance(value, bool) else math.nan
    except OverflowError:
        return math.nan
    return number if math.isfinite(number) else math.nan


def set_integer(settings: object, name: str, low: int, high: int) -> None:
    """Check a field of frozen settings, and keep it as a plain integer; see `check_integer`."""
    object.__setattr__(settings, name, check_integer(name, getattr(settings, name), low, high))


def set_number(settings: object, name: str, above: float | None = None, at_least: float = 0.0) -> None:
    """Check that a field of frozen settings is a finite number within its limits, and keep it as a float."""
    value = getattr(settings, name)
    number = _number(value)
    if not (number > above if above is not None else number >= at_least):
        wanted = f"above {above:g}" if above is not None else f"of at least {at_least:g}"
        raise ValueError(f"{name}: found {value!r:.80}, expected a finite number {wanted}")
    object.__setattr__(settings, name, number)


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
    vocab_size: int, sampling: SamplingConfig, draft_sampling: SamplingConfig | None, rule: str, rules: Collection[str]
) -> None:
    """Raise ValueError unless the settings fit the vocabulary and the rule is one of `rules`."""
    sampling.check(vocab_size)
    if draft_sampling is not None:
        draft_sampling.check(vocab_size)
    if rule not in rules:
        raise ValueError(f"rule: found {rule!r}, expected one of {', '.join(sorted(rules))}")
