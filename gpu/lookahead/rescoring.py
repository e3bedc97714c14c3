"""Rescoring: a lattice of the likeliest tokens of each draft, scored again by something that reads the drafts before.

`reference.lookahead.rescoring` explains it and names its source.

Glossary of shapes: B batch, L look-ahead rows, D' hidden state, S capacity, V vocabulary.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from pass_sampling.reference.lookahead.rescoring import HEAD_WEIGHT, NGRAM_WEIGHT, RescoredSettings

from ..drafters.ngram import NgramModel
from ..model.language_model import LanguageModel
from .refinement import Memory, Refinement, Unrefined

__all__ = ["HEAD_WEIGHT", "NGRAM_WEIGHT", "NgramScores", "Rescored", "log_probs", "ngram_refinement"]


@dataclass(frozen=True, eq=False)
class NgramScores(Refinement):
    """How much likelier an n-gram model makes a token than it is on its own: log ngram(x | before) - log unigram(x)."""

    ngram: NgramModel
    are_scores = True

    def check(self, model: LanguageModel) -> None:
        """Raise ValueError unless the n-grams are of the model's vocabulary."""
        self.ngram.check(model)

    def logits(
        self, model: LanguageModel, hidden: Tensor, tokens: Tensor, memory: Memory, lengths: Tensor
    ) -> tuple[Tensor, Memory]:
        """Return the scores after the tokens."""
        return self.ngram.logits(tokens, None, lengths, 1) - self._log_unigram, ()

    @cached_property
    def _log_unigram(self) -> Tensor:  # [V]
        return torch.from_numpy(self.ngram.log_unigram).to(self.ngram.device)


@dataclass(frozen=True, eq=False)
class Rescored(RescoredSettings, Refinement):
    """Rescore drafts in a lattice.

    score(x | before) = log drafts(x) + weight rescorer(x | before), and -inf outside the lattice
    """

    drafts: Refinement
    rescorer: Refinement | None

    def logits(
        self, model: LanguageModel, hidden: Tensor, tokens: Tensor, memory: Memory, lengths: Tensor
    ) -> tuple[Tensor, Memory]:
        """Rescore drafts' logits."""
        cut = self.drafts.num_memories
        logits, kept = self.drafts.logits(model, hidden, tokens, memory[:cut], lengths)
        if self.width is not None:
            least = logits.topk(self.width, dim=-1).values[..., -1:]
            logits = logits.masked_fill(logits < least, float("-inf"))
        if self.rescorer is None:
            return log_probs(logits), kept
        scores, more = self.rescorer.logits(model, hidden, tokens, memory[cut:], lengths)
        scores = scores if self.rescorer.are_scores else log_probs(scores)
        return log_probs(logits) + self.weight * scores, kept + more


def ngram_refinement(ngram: NgramModel, weight: float = NGRAM_WEIGHT) -> Rescored:
    """Return the refinement of look-ahead rows by n-grams, over all tokens."""
    return Rescored(Unrefined(), NgramScores(ngram), weight)


def log_probs(
    logits: Tensor,  # [..., V]
) -> Tensor:  # [..., V]
    """Return the logarithms of the distributions of rows of logits, in float64; NaN if a row has none."""
    return logits.double().log_softmax(dim=-1)
