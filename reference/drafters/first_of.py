"""Several free drafters in turn: the first that is sure of a token proposes it.

Prompt lookup drafts repetitions of the text, n-grams what similar texts have in common. A step without drafts costs
less than a pass over drafts that are rejected, so a drafter that is not sure proposes nothing.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from ..model.cache import KVCache
from ..model.layers import Array
from .base import Drafter


@dataclass(frozen=True, eq=False)
class FirstOfSettings:
    """The settings of `FirstOf`, of either package; the drafters' logits must be log-probabilities."""

    drafters: tuple[Any, ...]
    least: float = 0.3  # probability of a drafter's likeliest token, from which on it is sure

    vocab_size: int = field(init=False)
    name: str = field(init=False)

    def __post_init__(self) -> None:
        name, sizes = ", then ".join(each.name for each in self.drafters), {each.vocab_size for each in self.drafters}
        if len(sizes) != 1 or any(drafter.passes_per_draft for drafter in self.drafters):
            raise ValueError(f"drafters: found {name or 'none'!r}, expected free ones over one vocabulary")
        if not 0 < self.least <= 1:
            raise ValueError(f"least: found {self.least!r:.80}, expected a number above 0 and at most 1")
        object.__setattr__(self, "vocab_size", sizes.pop())
        object.__setattr__(self, "name", name)


class FirstOf(FirstOfSettings, Drafter):
    """Drafts from the first drafter whose likeliest token has a probability of at least `least`.

    Source: Stewart et al. 2024, "The N-Grammys" (arXiv 2411.03786), for n-grams of the context before n-grams of the
    model; the threshold is ours.
    """

    drafters: tuple[Drafter, ...]

    def logits(self, tokens: Sequence[int], cache: KVCache | None) -> Array:
        """Return the logits of the first drafter that is sure; -inf everywhere, if none is."""
        for drafter in self.drafters:
            row = drafter.logits(tokens, None)
            if row.max() >= math.log(self.least):
                return row
        return np.full(self.vocab_size, -np.inf)
