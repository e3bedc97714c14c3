"""How drafts from look-ahead rows learn of one another: they are drawn left to right, each law given the tokens before.

A look-ahead row alone gives the law of a token given the text, whatever stands between. A refinement turns it into a
law given the tokens between as well.

Glossary of shapes: B batch, D' hidden state, F width of a head, S capacity, V vocabulary.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any, Protocol

import torch
from torch import Tensor

from .drafters.ngram import NgramModel
from .lookahead import LookAhead
from .sampler_head import SamplerHead

if TYPE_CHECKING:
    from .methods.language_model import LanguageModel


class Refinement(Protocol):
    """Makes the logits of drafts, one after another; `memory` is what it carries from one to the next."""

    @property
    def alone(self) -> bool:
        """Whether it needs no look-ahead rows: the last text row's hidden state stands for each of them."""

    def check(self, model: LanguageModel) -> None:
        """Refuse a model that it does not fit."""

    def start(
        self,
        real_hidden: Tensor,  # [B, D']
    ) -> Any:
        """Return the memory before the first draft, from the hidden state of the last text row."""

    def logits(
        self,
        model: LanguageModel,
        hidden: Tensor,  # [B, D']
        tokens: Tensor,  # [B, S]
        memory: Any,
        lengths: Tensor,  # [B]
    ) -> tuple[Tensor, Any]:  # [B, V]
        """Return the logits of drafts from their look-ahead rows, behind the first `lengths` tokens, and the memory."""


@dataclass(frozen=True)
class Unrefined:
    """Take the look-ahead rows as they are: PaSS."""

    alone = False

    def check(self, model: LanguageModel) -> None:
        """Fit every model."""

    def start(
        self,
        real_hidden: Tensor,  # [B, D']
    ) -> None:
        """Remember nothing."""

    def logits(
        self,
        model: LanguageModel,
        hidden: Tensor,  # [B, D']
        tokens: Tensor,  # [B, S]
        memory: None,
        lengths: Tensor,  # [B]
    ) -> tuple[Tensor, None]:  # [B, V]
        """Return the row's own logits."""
        return model.logits(hidden), None


@dataclass(frozen=True, eq=False)
class HeadRefinement:
    """Refine by a trained sampler head."""

    head: SamplerHead

    @property
    def alone(self) -> bool:
        """Whether the head was trained without look-ahead rows."""
        return self.head.alone

    def check(self, model: LanguageModel) -> None:
        """Refuse a model whose hidden states have another width.

        Raises:
            ValueError: they have.
        """
        found, config = self.head.first.shape[1], getattr(model, "config", None)
        if config is not None and found != config.hidden_size:
            raise ValueError(f"the sampler head reads hidden states of width {found}, expected {config.hidden_size}")

    def start(
        self,
        real_hidden: Tensor,  # [B, D']
    ) -> Tensor:  # [B, F]
        """Begin the head's state."""
        return self.head.start(real_hidden)

    def logits(
        self,
        model: LanguageModel,
        hidden: Tensor,  # [B, D']
        tokens: Tensor,  # [B, S]
        memory: Tensor,  # [B, F]
        lengths: Tensor,  # [B]
    ) -> tuple[Tensor, Tensor]:  # [B, V], [B, F]
        """Add what follows from the last token and the head's state to the row's hidden state."""
        last = tokens.gather(1, lengths.unsqueeze(1) - 1)
        refined, memory = self.head.step(hidden, model.embed(last)[:, 0], memory)
        return model.logits(refined), memory


@dataclass(frozen=True, eq=False)
class NgramRefinement:
    """Refine by an n-gram model, free of training.

    log draft(x | before) = log lookahead(x) + weight (log ngram(x | before) - log unigram(x)), up to a constant

    Source: Kim et al. 2024 (arXiv 2404.09221), for drafts rescored by an n-gram model; as a law of all tokens, ours.
    """

    ngram: NgramModel
    weight: float = 0.85  # tuned at places of held-out text, see docs/beyond.md
    alone = False

    def __post_init__(self) -> None:
        """Check the weight."""
        if not (isinstance(self.weight, int | float) and math.isfinite(self.weight)):
            raise ValueError(f"weight: found {self.weight!r:.80}, expected a finite number")

    def check(self, model: LanguageModel) -> None:
        """Refuse a model of another vocabulary.

        Raises:
            ValueError: its size differs.
        """
        self.ngram.check(model)

    def start(
        self,
        real_hidden: Tensor,  # [B, D']
    ) -> None:
        """Remember nothing: the tokens say it all."""

    def logits(
        self,
        model: LanguageModel,
        hidden: Tensor,  # [B, D']
        tokens: Tensor,  # [B, S]
        memory: None,
        lengths: Tensor,  # [B]
    ) -> tuple[Tensor, None]:  # [B, V]
        """Rescore the row's logits."""
        gained = self.ngram.logits(tokens, None, lengths, 1) - self._log_unigram
        return model.logits(hidden) + self.weight * gained, None

    @cached_property
    def _log_unigram(self) -> Tensor:  # [V]
        return self.ngram.unigram.double().log()


def refinement_of(lookahead: LookAhead, dtype: torch.dtype, device: torch.device | str = "cpu") -> Refinement:
    """Return the refinement that was trained with look-ahead vectors, if any, in a model's dtype, on its device."""
    return Unrefined() if lookahead.head is None else HeadRefinement(lookahead.head.to(dtype, device))
