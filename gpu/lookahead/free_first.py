"""Two sources of drafts in one block: a free drafter where it is sure, else what the model itself predicts.

`reference.lookahead.free_first` explains it.

Glossary of shapes: B batch, D' hidden state, S capacity, V vocabulary, N tokens of the draft vocabulary.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from pass_sampling.reference.lookahead.free_first import FreeFirstSettings

from ..drafters.base import Drafter
from ..host import is_on_cpu
from ..model.language_model import LanguageModel
from ..sampling import likeliest
from .refinement import Memory, Refinement
from .rescoring import log_probs

NEVER = float("-inf")


@dataclass(frozen=True, eq=False)
class FreeFirst(FreeFirstSettings, Refinement):
    """Draft from a free drafter where it is sure of a token, else from a refinement, where that is sure."""

    drafter: Drafter
    drafts: Refinement

    def logits(
        self, model: LanguageModel, hidden: Tensor, tokens: Tensor, memory: Memory, lengths: Tensor
    ) -> tuple[Tensor, Memory]:
        """Return the drafter's logits, the refinement's log-probabilities, or -inf everywhere."""
        refined, memory = self.drafts.refined(model, hidden, tokens, memory, lengths)
        rows = self.drafter.logits(tokens, None, lengths, 1)
        free = rows.amax(dim=1, keepdim=True) > NEVER
        if is_on_cpu(free) and bool(free.all()):
            return rows, memory
        own, vocab = self._own(model, refined)
        if vocab is not None:
            own = torch.full_like(rows, NEVER).index_copy_(1, vocab, own)
        return torch.where(free, rows, own), memory

    def best(
        self, model: LanguageModel, hidden: Tensor, tokens: Tensor, memory: Memory, lengths: Tensor
    ) -> tuple[Tensor, Tensor, Memory]:
        """Return the likeliest token of these logits, and its logit, and the memory."""
        refined, memory = self.drafts.refined(model, hidden, tokens, memory, lengths)
        token, logit = self.drafter.best(tokens, None, lengths, 1)
        free = logit > NEVER
        if is_on_cpu(free) and bool(free.all()):
            return token, logit, memory
        own, vocab = self._own(model, refined)
        own_token, own_logit = likeliest(own)
        own_token = own_token if vocab is None else vocab[own_token]
        return torch.where(free, token, own_token), torch.where(free, logit, own_logit), memory

    def _own(
        self,
        model: LanguageModel,
        refined: Tensor,  # [B, D']
    ) -> tuple[Tensor, Tensor | None]:  # [B, N], [N]
        """Return the refinement's log-probabilities of the draft vocabulary where it is sure, else -inf."""
        vocab = self.drafts.draft_vocab
        own = log_probs(model.logits(refined) if vocab is None else model.logits_of(refined, vocab))
        return own.masked_fill(own.amax(dim=1, keepdim=True) < math.log(self.least), NEVER), vocab
