"""How many tokens to draft in a step: always as many, or as many as seem to pay.

Whether a token is drafted may depend only on what was known before it was drawn: on the steps before, on the drafts
before it, and on its own distribution. Then the tokens that come out keep the target's distribution whatever a schedule
does.

What a schedule remembers from step to step is a pace, a row of numbers that the state carries.

Glossary of shapes: B batch, V vocabulary, P numbers of a pace.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from pass_sampling.reference.config import check_integer

Pace = Tensor


@dataclass(frozen=True)
class Schedule:
    """Draft as many tokens as the method allows, every time. The base of those that adapt."""

    adapts = False  # within a step, to the drafts' distributions

    def start(self, num_draft: int) -> tuple[float, ...]:
        """Return the pace before the first step, of a method that drafts at most `num_draft` tokens."""
        return ()

    def limit(
        self,
        pace: Pace,  # [B, P]
        num_draft: int,
    ) -> Tensor:  # [B]
        """Return how many tokens to draft in this step at most: 1 to `num_draft`."""
        return torch.full((len(pace),), num_draft, device=pace.device)

    def continues(
        self,
        pace: Pace,  # [B, P]
        depth: int,
        logits: Tensor,  # [B, V]
    ) -> Tensor:  # [B]
        """Say whether to draft a token after `depth` others, given the logits it would be drawn from."""
        return torch.ones(len(logits), dtype=torch.bool, device=logits.device)

    def follow(
        self,
        pace: Pace,  # [B, P]
        num_draft: int,
        num_drafted: Tensor,  # [B]
        num_accepted: Tensor,  # [B]
    ) -> Pace:  # [B, P]
        """Return the pace after a step of so many drafts, of which so many were accepted."""
        return pace


@dataclass(frozen=True)
class Heuristic(Schedule):
    """Draft two tokens more after a step in which all were accepted, one fewer after any other; at least one.

    The pace is the number of tokens to draft.

    Source: transformers' `num_assistant_tokens_schedule="heuristic"`.
    """

    initial: int = 5

    def __post_init__(self) -> None:
        """Check the number."""
        check_integer("initial", self.initial, 1, 2**16)

    def start(self, num_draft: int) -> tuple[float, ...]:
        """Begin with `initial` drafts."""
        return (float(min(self.initial, num_draft)),)

    def limit(
        self,
        pace: Pace,  # [B, 1]
        num_draft: int,
    ) -> Tensor:  # [B]
        """Return the pace."""
        return pace[:, 0].long()

    def follow(
        self,
        pace: Pace,  # [B, 1]
        num_draft: int,
        num_drafted: Tensor,  # [B]
        num_accepted: Tensor,  # [B]
    ) -> Pace:  # [B, 1]
        """Raise or lower the number."""
        all_accepted = num_accepted.unsqueeze(1) == pace
        return torch.where(all_accepted, (pace + 2.0).clamp(max=num_draft), (pace - 1.0).clamp(min=1.0))


@dataclass(frozen=True)
class EntropyBound(Schedule):
    """Stop drafting where the draft distribution is so flat that its token would hardly be accepted.

    accept_rate >= 1 - sqrt(weight entropy(draft)), entropy in nats, of the logits' softmax

    A token is drafted while this bound is not below a threshold; the first one always. The threshold follows the
    share of drafts that were accepted, so that this stays near `target_rate`. The pace is threshold and share.

    Source: Agrawal et al. 2024, "AdaEDL" (arXiv 2410.18351), Algorithm 1.
    """

    adapts = True
    threshold: float = 0.4
    weight: float = 0.2
    target_rate: float = 0.9
    step: float = 0.01

    def __post_init__(self) -> None:
        """Check the numbers."""
        for name in ("threshold", "weight", "target_rate", "step"):
            value = getattr(self, name)
            if not (isinstance(value, int | float) and math.isfinite(value) and 0 <= value <= 1):
                raise ValueError(f"{name}: found {value!r:.80}, expected a number from 0 to 1")

    def start(self, num_draft: int) -> tuple[float, ...]:
        """Begin at the threshold given, as if drafts had been accepted at the rate aimed at."""
        return (self.threshold, self.target_rate)

    def continues(
        self,
        pace: Pace,  # [B, 2]
        depth: int,
        logits: Tensor,  # [B, V]
    ) -> Tensor:  # [B]
        """Compare the bound with the threshold."""
        if depth == 0:
            return super().continues(pace, depth, logits)
        entropy = torch.special.entr(logits.double().softmax(dim=1)).sum(dim=1)
        bound: Tensor = 1.0 - (self.weight * entropy).sqrt()
        return bound >= pace[:, 0]

    def follow(
        self,
        pace: Pace,  # [B, 2]
        num_draft: int,
        num_drafted: Tensor,  # [B]
        num_accepted: Tensor,  # [B]
    ) -> Pace:  # [B, 2]
        """Move the share half of the way to this step's, and the threshold a little after it."""
        threshold, rate = pace.unbind(dim=1)
        rate = 0.5 * rate + 0.5 * num_accepted.double() / num_drafted
        lower = torch.where(num_accepted == num_draft, threshold, threshold - self.step)
        wanted = torch.where(rate < self.target_rate, threshold + self.step, lower)
        followed = torch.stack([0.9 * threshold + 0.1 * wanted, rate], dim=1)
        return torch.where((num_drafted > 0).unsqueeze(1), followed, pace)


SCHEDULES = {"fixed": Schedule, "heuristic": Heuristic, "entropy": EntropyBound}
