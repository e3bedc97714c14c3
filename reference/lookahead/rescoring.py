"""Rescoring: a lattice of the likeliest tokens of each draft, scored again by something that reads the drafts before.

Drafts that are made apart from one another, by block heads or from look-ahead rows, often do not go together: a token
comes twice, or half of one phrase follows half of another. A small autoregressive model repairs this at little cost.

Source: Kim et al. 2024, "Exploring and Improving Drafts in Blockwise Parallel Decoding" (arXiv 2404.09221).

Glossary of shapes: N blocks, K drafts of a block, C tokens of a draft's lattice, L look-ahead rows, D' hidden state,
V vocabulary.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from ..config import check_integer
from ..drafters.ngram import NgramModel
from ..model.language_model import LanguageModel
from ..model.layers import Array
from ..sampling import Probs, has_distribution
from .refinement import HeadSettings, Memory, Refinement, RefinementFacts, Unrefined

NGRAM_WEIGHT = 0.85  # tuned on held-out text, see docs/beyond.md
HEAD_WEIGHT = 1.0


@dataclass(frozen=True, eq=False)
class NgramScores(Refinement):
    """How much likelier an n-gram model makes a token than it is on its own: log ngram(x | before) - log unigram(x)."""

    ngram: NgramModel
    are_scores = True

    def check(self, model: LanguageModel) -> None:
        """Raise ValueError unless the n-grams are of the model's vocabulary."""
        self.ngram.check(model)

    def logits(
        self, model: LanguageModel, hidden: Array, tokens: Sequence[int], memory: Memory
    ) -> tuple[Array, Memory]:
        """Return the scores after the tokens."""
        return self.ngram.logits(tokens, None) - self.ngram.log_unigram, ()


@dataclass(frozen=True, eq=False)
class RescoredSettings(RefinementFacts):
    """The settings of `Rescored`, of either package."""

    drafts: Any  # a refinement, whose drafts are rescored
    rescorer: Any  # a refinement, whose logits depend on the drafts before; None: nothing but the lattice
    weight: float = NGRAM_WEIGHT
    width: int | None = None  # C; None: all tokens
    reads_drafts = are_scores = True

    def __post_init__(self) -> None:
        """Raise ValueError for numbers out of range, and if only one of the refinements needs look-ahead rows."""
        if not (isinstance(self.weight, int | float) and math.isfinite(self.weight)):
            raise ValueError(f"weight: found {self.weight!r:.80}, expected a finite number")
        if self.width is not None:
            check_integer("width", self.width, 1, 2**31)
        if isinstance(self.rescorer, HeadSettings) and self.rescorer.uses_lookahead != self.drafts.uses_lookahead:
            raise ValueError("rescorer: found a head for other hidden states, expected one trained alone, for heads")
        parts = [each for each in (self.drafts, self.rescorer) if each is not None]
        object.__setattr__(self, "uses_lookahead", self.drafts.uses_lookahead)
        object.__setattr__(self, "num_memories", sum(each.num_memories for each in parts))

    def check(self, model: Any) -> None:
        """Raise ValueError if a part is of another model, or the lattice is wider than the vocabulary."""
        for part in (self.drafts, self.rescorer):
            if part is not None:
                part.check(model)
        if self.width is not None and self.width > model.vocab_size:
            raise ValueError(f"width: found a lattice of {self.width} tokens, expected at most {model.vocab_size}")

    def start(self, model: Any, lookahead_hidden: Any) -> Any:
        """Begin both."""
        begun = self.drafts.start(model, lookahead_hidden)
        return begun if self.rescorer is None else begun + self.rescorer.start(model, lookahead_hidden)


@dataclass(frozen=True, eq=False)
class Rescored(RescoredSettings, Refinement):
    """Rescore drafts in a lattice.

    score(x | before) = log drafts(x) + weight rescorer(x | before), and -inf outside the lattice

    Here `drafts` is a distribution over the lattice, and `rescorer` the score of `NgramScores`, or the log-probability
    of a sampler head.

    Source: Kim et al. 2024 (arXiv 2404.09221), Sec. 5, for local rescoring; there it picks the likeliest token of the
    lattice, here it is a distribution, so that a draft can be drawn from it.
    """

    drafts: Refinement
    rescorer: Refinement | None

    def logits(
        self, model: LanguageModel, hidden: Array, tokens: Sequence[int], memory: Memory
    ) -> tuple[Array, Memory]:
        """Rescore a draft's logits."""
        cut = self.drafts.num_memories
        logits, kept = self.drafts.logits(model, hidden, tokens, memory[:cut])
        if self.width is not None:
            least = np.partition(logits, -self.width)[-self.width]
            logits = np.where(logits < least, -np.inf, logits)
        if self.rescorer is None:
            return log_probs(logits), kept
        scores, more = self.rescorer.logits(model, hidden, tokens, memory[cut:])
        scores = scores if self.rescorer.are_scores else log_probs(scores)
        return log_probs(logits) + self.weight * scores, kept + more


def ngram_refinement(ngram: NgramModel, weight: float = NGRAM_WEIGHT) -> Rescored:
    """Return the refinement of look-ahead rows by n-grams, over all tokens."""
    return Rescored(Unrefined(), NgramScores(ngram), weight)


def log_probs(
    logits: Array,  # [V]
) -> Array:  # [V]
    """Return the logarithms of the distribution of some logits, in float64; logits that have none stay as they are."""
    logits = logits.astype(np.float64)
    if not has_distribution(logits):
        return logits
    shifted = logits - logits.max()
    found: Array = shifted - np.log(np.exp(shifted).sum())
    return found


def lattice(
    logits: Array,  # [K, V]
    width: int,
) -> npt.NDArray[np.int64]:  # [K, C]
    """Return the likeliest tokens of each draft, the likeliest first, and lower ids first among equals."""
    return np.argsort(-logits, axis=-1, kind="stable")[:, :width]


def oracle_lengths(
    lattices: npt.NDArray[np.int64],  # [N, K, C]
    continuations: npt.NDArray[np.int64],  # [N, K]
) -> npt.NDArray[np.int64]:  # [N]
    """Return how many drafts the best path of each lattice gets accepted if the model's text is `continuations`.

    Source: Kim et al. 2024, the oracle over the top-k lattice.
    """
    found = (lattices == continuations[:, :, None]).any(axis=2)
    return np.asarray(np.logical_and.accumulate(found, axis=1).sum(axis=1))


def repetition(
    drafts: npt.NDArray[np.int64],  # [N, K]
) -> float:
    """Return the share of drafts that repeat the draft before them."""
    return float((drafts[:, 1:] == drafts[:, :-1]).mean())


def confidence(
    probs: Probs,  # [N, K, V]
) -> tuple[Probs, Probs]:  # [K], [K]
    """Return the mean probability of the likeliest token, and the mean entropy in nats, by the number of the draft."""
    logs = np.log(np.where(probs > 0, probs, 1.0))
    return probs.max(axis=2).mean(axis=0), -(probs * logs).sum(axis=2).mean(axis=0)
