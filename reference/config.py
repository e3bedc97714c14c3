"""Settings of sampling: frozen, and checked when they are made."""

from __future__ import annotations

import math
from dataclasses import dataclass
from numbers import Integral, Real

__all__ = ["SamplingConfig", "check_integer", "set_integer", "set_number"]


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
        if not _is_number(self.top_p) or not 0 < self.top_p <= 1:
            raise ValueError(f"top_p: found {self.top_p!r:.80}, expected a number above 0 and at most 1")
        object.__setattr__(self, "top_p", float(self.top_p))

    def check(self, vocab_size: int) -> None:
        """Refuse a top-k above the vocabulary.

        Raises:
            ValueError: `top_k` is larger than `vocab_size`.
        """
        if self.top_k > vocab_size:
            raise ValueError(f"top_k: found {self.top_k}, expected at most the vocabulary size {vocab_size}")


def check_integer(name: str, value: object, low: int, high: int) -> int:
    """Return an integer that lies between two limits, both included.

    Raises:
        ValueError: the value is no integer, or lies outside.
    """
    if not isinstance(value, Integral) or isinstance(value, bool) or not low <= int(value) <= high:
        raise ValueError(f"{name}: found {value!r:.80}, expected an integer from {low} to {high}")
    return int(value)


def _is_number(value: object) -> bool:
    return isinstance(value, Real) and not isinstance(value, bool)


def set_integer(settings: object, name: str, low: int, high: int) -> None:
    """Check a field of frozen settings, and keep it as a plain integer; see `check_integer`."""
    object.__setattr__(settings, name, check_integer(name, getattr(settings, name), low, high))


def set_number(settings: object, name: str, above: float | None = None, at_least: float | None = None) -> None:
    """Check that a field of frozen settings is a finite number within its limits, and keep it as a float."""
    value = getattr(settings, name)
    wanted = f"above {above:g}" if above is not None else f"of at least {at_least:g}"
    low = above if above is not None else at_least
    if not _is_number(value) or not _fits(value, low) or (above is not None and value <= above):
        raise ValueError(f"{name}: found {value!r:.80}, expected a finite number {wanted}")
    object.__setattr__(settings, name, float(value))


def _fits(value: float, low: float | None) -> bool:
    try:
        return math.isfinite(value) and (low is None or value >= low)
    except OverflowError:
        return False
