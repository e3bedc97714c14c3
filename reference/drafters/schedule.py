"""Schedules: how many tokens a step drafts.

Whether a token is drafted may depend only on what is known before it is drawn: the steps before, the drafts before it,
and its own distribution. Then the text keeps the target's distribution under every schedule. The state carries a pace,
the numbers that a schedule remembers from step to step.

Glossary of shapes: V vocabulary.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from ..config import check_integer
from ..model.layers import Array

Pace = tuple[float, ...]


@dataclass(frozen=True)
class Schedule:
    """Draft as many tokens as the method allows, every time. The base of those that adapt."""

    adapts = False  # within a step, to the drafts' distributions

    def start(self, num_draft: int) -> Pace:
        """Return the pace before the first step, of a method that drafts at most `num_draft` tokens."""
        return ()

    def limit(self, pace: Pace, num_draft: int) -> int:
        """Return how many tokens to draft in this step at most: 1 to `num_draft`."""
        return num_draft

    def continues(
        self,
        pace: Pace,
        depth: int,
        logits: Array,  # [V]
    ) -> bool:
        """Return whether to draft a token after `depth` others, given the logits it would be drawn from."""
        return True

    def follow(self, pace: Pace, num_draft: int, num_drafted: int, num_accepted: int) -> Pace:
        """Return the pace after a step with these numbers of drafts and accepted drafts."""
        return pace


@dataclass(frozen=True)
class HeuristicSettings:
    """The settings of `Heuristic`, in both packages."""

    initial: int = 5

    def __post_init__(self) -> None:
        check_integer("initial", self.initial, 1, 2**16)

    def start(self, num_draft: int) -> tuple[float, ...]:
        """Begin with `initial` drafts."""
        return (float(min(self.initial, num_draft)),)


@dataclass(frozen=True)
class Heuristic(HeuristicSettings, Schedule):
    """Draft two tokens more after a step in which all were accepted, one fewer after any other; at least one.

    The pace is the number of tokens to draft.

    Source: transformers' `num_assistant_tokens_schedule="heuristic"`.
    """

    def limit(self, pace: Pace, num_draft: int) -> int:
        """Return the pace."""
        return int(pace[0])

    def follow(self, pace: Pace, num_draft: int, num_drafted: int, num_accepted: int) -> Pace:
        """Raise or lower the number."""
        return (min(pace[0] + 2.0, num_draft) if num_accepted == pace[0] else max(pace[0] - 1.0, 1.0),)


@dataclass(frozen=True)
class EntropySettings:
    """The settings of `EntropyBound`, in both packages."""

    threshold: float = 0.4
    weight: float = 0.2
    target_rate: float = 0.9
    step: float = 0.01
    adapts = True

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            if not (isinstance(value, int | float) and math.isfinite(value) and 0 <= value <= 1):
                raise ValueError(f"{name}: found {value!r:.80}, expected a number from 0 to 1")

    def start(self, num_draft: int) -> tuple[float, ...]:
        """Begin at the given threshold, as if drafts had been accepted at the target rate."""
        return (self.threshold, self.target_rate)


@dataclass(frozen=True)
class EntropyBound(EntropySettings, Schedule):
    """Stop drafting where the draft distribution is so flat that its token would hardly be accepted.

    accept_rate >= 1 - sqrt(weight entropy(draft)), entropy in nats, of the logits' softmax

    A token is drafted while this bound is not below a threshold; the first one always. The threshold follows the
    share of accepted drafts, so that this stays near `target_rate`. The pace is threshold and share.

    Source: Agrawal et al. 2024, "AdaEDL" (arXiv 2410.18351), Algorithm 1.
    """

    def continues(self, pace: Pace, depth: int, logits: Array) -> bool:
        """Compare the bound with the threshold."""
        if depth == 0:
            return True
        probs = np.exp(logits.astype(np.float64) - logits.max())
        probs /= probs.sum()
        entropy = -np.sum(probs[probs > 0] * np.log(probs[probs > 0]))
        return bool(1.0 - np.sqrt(self.weight * max(entropy, 0.0)) >= pace[0])

    def follow(self, pace: Pace, num_draft: int, num_drafted: int, num_accepted: int) -> Pace:
        """Move the share half of the way to this step's, and the threshold a little after it."""
        threshold, rate = pace
        if num_drafted == 0:
            return pace
        rate = 0.5 * rate + 0.5 * num_accepted / num_drafted
        if rate < self.target_rate:
            wanted = threshold + self.step
        else:
            wanted = threshold - self.step * (num_accepted != num_draft)
        return (0.9 * threshold + 0.1 * wanted, rate)


SCHEDULES = {"fixed": Schedule, "heuristic": Heuristic, "entropy": EntropyBound}
