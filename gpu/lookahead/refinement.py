"""Refinements: functions that make a draft's logits from its look-ahead row and the tokens before the draft.

A look-ahead row alone gives a distribution that does not depend on the tokens between the text and the draft.

Glossary of shapes: B batch, L look-ahead rows, D' hidden state, S capacity, V vocabulary, N tokens of the draft
vocabulary.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from pass_sampling.reference.lookahead.refinement import HeadSettings, RefinementFacts

from ..model.language_model import LanguageModel
from ..sampling import likeliest
from .head import BlockHeads, SamplerHead
from .vectors import LookAhead

Memory = tuple[Tensor, ...]
"""The memory of a refinement from one draft to the next: tensors with a row for each row of the batch."""


class Refinement(RefinementFacts):
    """Makes the logits of drafts, one after another; the base takes the look-ahead rows as they are."""

    def apart(
        self,
        lookahead_hidden: Tensor,  # [B, L+1, D']
    ) -> Tensor:  # [B, L, D']
        """Return the hidden states of all drafts, where none reads those before it."""
        return lookahead_hidden[:, 1:]

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
        refined, memory = self.refined(model, hidden, tokens, memory, lengths)
        return self.projected(model, refined), memory

    def best(
        self,
        model: LanguageModel,
        hidden: Tensor,  # [B, D']
        tokens: Tensor,  # [B, S]
        memory: Memory,
        lengths: Tensor,  # [B]
    ) -> tuple[Tensor, Tensor, Memory]:  # [B], [B]
        """Return the likeliest token of these logits, its logit, and the memory."""
        logits, memory = self.logits(model, hidden, tokens, memory, lengths)
        return *likeliest(logits), memory

    def refined(
        self,
        model: LanguageModel,
        hidden: Tensor,  # [B, D']
        tokens: Tensor,  # [B, S]
        memory: Memory,
        lengths: Tensor,  # [B]
    ) -> tuple[Tensor, Memory]:  # [B, D']
        """Return the hidden states that these logits are projected from, and the memory."""
        return hidden, ()

    def projected(
        self,
        model: LanguageModel,
        hidden: Tensor,  # [..., D']
    ) -> Tensor:  # [..., V]
        """Project drafts' hidden states to their logits."""
        return draft_logits(model, hidden, self.draft_vocab)


@dataclass(frozen=True, eq=False)
class Unrefined(Refinement):
    """Take the look-ahead rows as they are: PaSS."""

    draft_vocab: Tensor | None = None  # [N]


@dataclass(frozen=True, eq=False)
class HeadRefinement(HeadSettings, Refinement):
    """Refine by a trained sampler head, or by block heads."""

    head: SamplerHead | BlockHeads

    def apart(self, lookahead_hidden: Tensor) -> Tensor:
        """Run block heads on the last text row."""
        found: Tensor = self.head.start(lookahead_hidden[:, 0])
        return found

    def start(self, model: LanguageModel, lookahead_hidden: Tensor) -> Memory:
        """Begin the head's state."""
        return (self.head.start(lookahead_hidden[:, 0]),)

    def refined(
        self, model: LanguageModel, hidden: Tensor, tokens: Tensor, memory: Memory, lengths: Tensor
    ) -> tuple[Tensor, Memory]:
        """Refine the row's hidden state by the last token and the head's state."""
        last = tokens.gather(1, lengths.unsqueeze(1) - 1)
        refined, state = self.head.step(hidden, model.embed(last)[:, 0], memory[0])
        return refined, (state,)


def draft_logits(
    model: LanguageModel,
    hidden: Tensor,  # [..., D']
    draft_vocab: Tensor | None,  # [N]
) -> Tensor:  # [..., V]
    """Project drafts' hidden states to their logits: -inf outside the draft vocabulary."""
    if draft_vocab is None:
        return model.logits(hidden)
    some = model.logits_of(hidden, draft_vocab)
    logits = some.new_full((*some.shape[:-1], model.vocab_size), float("-inf"))
    return logits.index_copy_(-1, draft_vocab, some)


def refinement_of(lookahead: LookAhead, dtype: torch.dtype, device: torch.device | str = "cpu") -> Refinement:
    """Return the refinement that was trained with look-ahead vectors, if any, in a model's dtype, on its device."""
    draft_vocab = None if lookahead.draft_vocab is None else lookahead.draft_vocab.to(device)
    if lookahead.head is None:
        return Unrefined(draft_vocab)
    return HeadRefinement(lookahead.head.to(dtype, device), draft_vocab)
