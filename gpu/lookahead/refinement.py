"""Refinements: functions that make a draft's logits from its look-ahead row and the tokens before the draft.

A look-ahead row alone gives a distribution that does not depend on the tokens between the text and the draft.

Glossary of shapes: B batch, L look-ahead rows, D' hidden state, S capacity, V vocabulary, N tokens of the draft
vocabulary.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from pass_sampling.reference.lookahead.refinement import HeadSettings, NgramSettings

from ..drafters.ngram import NgramModel
from ..model.language_model import LanguageModel
from ..sampling import compared_logits
from .head import SamplerHead
from .vectors import LookAhead

Memory = tuple[Tensor, ...]
"""What a refinement carries from one draft to the next: tensors with a row for each row of the batch."""


class Refinement:
    """Makes the logits of drafts, one after another; the base takes the look-ahead rows as they are.

    `memory` is what a refinement carries from one draft to the next.
    """

    @property
    def uses_lookahead(self) -> bool:
        """Whether it needs look-ahead rows; if not, it takes the last text row's hidden state in place of each."""
        return True

    def check(self, model: LanguageModel) -> None:
        """Raise ValueError unless it fits a model."""

    def start(
        self,
        model: LanguageModel,
        lookahead_hidden: Tensor,  # [B, L+1, D']
    ) -> Memory:
        """Return the memory before the first draft, from the hidden states of the last text row and those ahead."""
        return ()

    def logits(
        self,
        model: LanguageModel,
        hidden: Tensor,  # [B, D']
        tokens: Tensor,  # [B, S]
        memory: Memory,
        lengths: Tensor,  # [B]
    ) -> tuple[Tensor, Memory]:  # [B, V]
        """Return the logits of drafts from their look-ahead rows, after the first `lengths` tokens, and the memory."""
        return model.logits(hidden), ()


@dataclass(frozen=True)
class Unrefined(Refinement):
    """Take the look-ahead rows as they are: PaSS."""


@dataclass(frozen=True, eq=False)
class HeadRefinement(HeadSettings, Refinement):
    """Refine by a trained sampler head.

    A draft is scored over all tokens, or over the `draft_vocab_size` likeliest by the look-ahead row itself. The others
    then have the logit -inf, and the cost of a draft's logits does not grow with the vocabulary.
    """

    head: SamplerHead

    def start(
        self,
        model: LanguageModel,
        lookahead_hidden: Tensor,  # [B, L+1, D']
    ) -> Memory:
        """Begin the head's state, and choose the tokens of every draft; one projection serves all drafts."""
        state = self.head.start(lookahead_hidden[:, 0])
        if self.draft_vocab_size is None:
            return (state,)
        rows = lookahead_hidden[:, 1:] if self.uses_lookahead else lookahead_hidden[:, :1]
        tokens = _likeliest(model.logits(rows), self.draft_vocab_size)
        return state, tokens.expand(-1, lookahead_hidden.shape[1] - 1, -1)

    def logits(
        self,
        model: LanguageModel,
        hidden: Tensor,  # [B, D']
        tokens: Tensor,  # [B, S]
        memory: Memory,
        lengths: Tensor,  # [B]
    ) -> tuple[Tensor, Memory]:  # [B, V]
        """Refine the row's hidden state by the last token and the head's state."""
        last = tokens.gather(1, lengths.unsqueeze(1) - 1)
        refined, state = self.head.step(hidden, model.embed(last)[:, 0], memory[0])
        if self.draft_vocab_size is None:
            return model.logits(refined), (state,)
        here, ahead = memory[1][:, 0], memory[1][:, 1:]
        found = model.logits_of(refined, here)
        logits = found.new_full((len(found), model.vocab_size), float("-inf")).scatter(1, here, found)
        return logits, (state, ahead)


@dataclass(frozen=True, eq=False)
class NgramRefinement(NgramSettings, Refinement):
    """Refine by an n-gram model, free of training.

    log draft(x | before) = log lookahead(x) + weight (log ngram(x | before) - log unigram(x)), up to a constant

    Source: Kim et al. 2024 (arXiv 2404.09221), for drafts rescored by an n-gram model; the distribution over all tokens
    is ours.
    """

    ngram: NgramModel

    def logits(
        self,
        model: LanguageModel,
        hidden: Tensor,  # [B, D']
        tokens: Tensor,  # [B, S]
        memory: Memory,
        lengths: Tensor,  # [B]
    ) -> tuple[Tensor, Memory]:  # [B, V]
        """Rescore the row's logits."""
        gained = self.ngram.logits(tokens, None, lengths, 1) - self._log_unigram
        return model.logits(hidden) + self.weight * gained, ()

    @cached_property
    def _log_unigram(self) -> Tensor:  # [V]
        return self.ngram.unigram.double().log()


def refinement_of(lookahead: LookAhead, dtype: torch.dtype, device: torch.device | str = "cpu") -> Refinement:
    """Return the refinement that was trained with look-ahead vectors, if any, in a model's dtype, on its device."""
    return Unrefined() if lookahead.head is None else HeadRefinement(lookahead.head.to(dtype, device))


def _likeliest(
    logits: Tensor,  # [..., V]
    number: int,
) -> Tensor:  # [..., N]
    """Return the tokens of largest logit in each row, the lowest ids among equals, in the order of their ids."""
    logits = compared_logits(logits)
    size, last = logits.shape[-1], logits.topk(number, dim=-1).values[..., -1:]
    lowest_first = torch.arange(size, 0, -1, device=logits.device)
    order = torch.where(logits > last, size + lowest_first, torch.where(logits == last, lowest_first, 0))
    return order.topk(number, dim=-1).indices.sort(dim=-1).values
