"""Two sources of drafts in one block: a free drafter where it is sure, else what the model itself predicts.

Prompt lookup and n-grams cost nothing and are right where the text repeats something; a head or look-ahead rows draft
the rest. A draft that nobody is sure of is not worth its row in the pass, so the block ends there.

Glossary of shapes: D' hidden state, V vocabulary.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..drafters.base import Drafter
from ..model.language_model import LanguageModel
from ..model.layers import Array
from .refinement import Memory, Refinement, RefinementFacts
from .rescoring import log_probs


@dataclass(frozen=True, eq=False)
class FreeFirstSettings(RefinementFacts):
    """The settings of `FreeFirst`, of either package."""

    drafter: Any  # free; its logits are -inf everywhere where it is not sure, see `FirstOf`
    drafts: Any  # a refinement
    least: float = 0.5  # probability of the refinement's likeliest token, from which on it drafts
    reads_drafts = True

    def __post_init__(self) -> None:
        """Refuse a drafter that runs a model, a refinement that rescores, and a probability that is none."""
        if self.drafts.are_scores:
            raise ValueError("drafts: found rescored drafts, expected a head or look-ahead rows as they are")
        if self.drafter.passes_per_draft:
            raise ValueError(f"drafter: found {self.drafter.name!r}, which runs a model, expected a free one")
        if not 0 < self.least <= 1:
            raise ValueError(f"least: found {self.least!r:.80}, expected a number above 0 and at most 1")
        for name in ("uses_lookahead", "num_memories"):
            object.__setattr__(self, name, getattr(self.drafts, name))

    def check(self, model: Any) -> None:
        """Raise ValueError if the refinement or the drafter is of another model."""
        self.drafts.check(model)
        if self.drafter.vocab_size != model.vocab_size:
            raise ValueError(f"drafter: found {self.drafter.vocab_size} tokens, expected {model.vocab_size}")

    def start(self, model: Any, lookahead_hidden: Any) -> Any:
        """Begin the refinement."""
        return self.drafts.start(model, lookahead_hidden)


@dataclass(frozen=True, eq=False)
class FreeFirst(FreeFirstSettings, Refinement):
    """Draft from a free drafter where it is sure of a token, else from a refinement, where that is sure."""

    drafter: Drafter
    drafts: Refinement

    def logits(
        self, model: LanguageModel, hidden: Array, tokens: Sequence[int], memory: Memory
    ) -> tuple[Array, Memory]:
        """Return the drafter's logits, the refinement's log-probabilities, or -inf everywhere."""
        logits, memory = self.drafts.logits(model, hidden, tokens, memory)
        row = self.drafter.logits(tokens, None)
        if row.max() == -np.inf:
            row = log_probs(logits)
            row = row if row.max() >= math.log(self.least) else np.full_like(row, -np.inf)
        return row, memory
