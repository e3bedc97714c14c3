"""Refinements: functions that make a draft's logits from its look-ahead row and the tokens before the draft.

A look-ahead row alone gives a distribution that does not depend on the tokens between the text and the draft.

Glossary of shapes: L look-ahead rows, D' hidden state, V vocabulary, N tokens of the draft vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from ..model.language_model import LanguageModel
from ..model.layers import Array
from .head import BlockHeads, SamplerHead
from .vectors import LookAhead

Memory = tuple[npt.NDArray[Any], ...]
"""The memory of a refinement from one draft to the next."""


class RefinementFacts:
    """The facts about a refinement that are not arrays, for both packages.

    A small `draft_vocab` makes a draft cheap: its
    logits are those of N rows of the output projection, and no other token is drafted.

    Source: Zhao et al. 2025 (arXiv 2502.14856), for drafts among the most frequent tokens of the vocabulary.
    """

    draft_vocab: Any | None = None  # [N], in the order of their ids; None: all tokens
    are_scores: bool = False  # whether logits are scores to add to others; if not, their log-probabilities are
    reads_drafts: bool = False  # whether a draft's logits depend on the drafts before it
    uses_lookahead: bool = True  # if not, the last text row's hidden state is in the place of each look-ahead row
    num_memories: int = 0  # the length of the memory

    def check(self, model: Any) -> None:
        """Raise ValueError unless it fits a model."""


class Refinement(RefinementFacts):
    """Makes the logits of drafts, one after another; the base takes the look-ahead rows as they are."""

    def start(
        self,
        model: LanguageModel,
        lookahead_hidden: Array,  # [L+1, D']
    ) -> Memory:
        """Return the memory before the first draft, from the hidden states of the last text row and those ahead."""
        return ()

    def logits(
        self,
        model: LanguageModel,
        hidden: Array,  # [D']
        tokens: Sequence[int],
        memory: Memory,
    ) -> tuple[Array, Memory]:  # [V]
        """Return the logits of a draft from its look-ahead row, after all tokens before it, and the next memory."""
        return self.projected(model, hidden), ()

    def projected(
        self,
        model: LanguageModel,
        hidden: Array,  # [D']
    ) -> Array:  # [V]
        """Project a draft's hidden state to its logits: -inf outside the draft vocabulary."""
        if self.draft_vocab is None:
            return model.logits(hidden)
        logits = np.full(model.vocab_size, -np.inf, dtype=hidden.dtype)
        logits[self.draft_vocab] = model.logits_of(hidden, self.draft_vocab)
        return logits


@dataclass(frozen=True, eq=False)
class Unrefined(Refinement):
    """Take the look-ahead rows as they are: PaSS."""

    draft_vocab: Any = None  # [N]


@dataclass(frozen=True, eq=False)
class HeadSettings(RefinementFacts):
    """The settings of `HeadRefinement`, of either package."""

    head: Any
    draft_vocab: Any = None
    num_memories = 1  # the head's state

    def __post_init__(self) -> None:
        """Need what the head needs."""
        for name in ("reads_drafts", "uses_lookahead"):
            object.__setattr__(self, name, getattr(self.head, name))

    def check(self, model: Any) -> None:
        """Raise ValueError if a model's hidden states have another width."""
        found, config = self.head.hidden_size, getattr(model, "config", None)
        if config is not None and found != config.hidden_size:
            raise ValueError(f"the sampler head reads hidden states of width {found}, expected {config.hidden_size}")


@dataclass(frozen=True, eq=False)
class HeadRefinement(HeadSettings, Refinement):
    """Refine by a trained sampler head, or by block heads."""

    head: SamplerHead | BlockHeads

    def start(self, model: LanguageModel, lookahead_hidden: Array) -> Memory:
        """Begin the head's state."""
        return (self.head.start(lookahead_hidden[0]),)

    def logits(
        self, model: LanguageModel, hidden: Array, tokens: Sequence[int], memory: Memory
    ) -> tuple[Array, Memory]:
        """Refine the row's hidden state by the last token and the head's state."""
        refined, state = self.head.step(hidden, model.embed(tokens[-1:])[0], memory[0])
        return self.projected(model, refined), (state,)


def refinement_of(lookahead: LookAhead, dtype: npt.DTypeLike) -> Refinement:
    """Return the refinement that was trained with look-ahead vectors, if any, in a model's dtype."""
    if lookahead.head is None:
        return Unrefined(lookahead.draft_vocab)
    return HeadRefinement(lookahead.head.to(dtype), lookahead.draft_vocab)
