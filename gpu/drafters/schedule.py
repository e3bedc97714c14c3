"""Schedules: how many tokens a step drafts. See `reference.drafters.schedule` for what they may depend on.

Glossary of shapes: B batch, V vocabulary, P numbers of a pace.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from pass_sampling.reference.drafters.schedule import EntropySettings, HeuristicSettings

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
        """Return whether to draft a token after `depth` others, given the logits it would be drawn from."""
        return torch.ones(len(logits), dtype=torch.bool, device=logits.device)

    def follow(
        self,
        pace: Pace,  # [B, P]
        num_draft: int,
        num_drafted: Tensor,  # [B]
        num_accepted: Tensor,  # [B]
    ) -> Pace:  # [B, P]
        """Return the pace after a step with these numbers of drafts and accepted drafts."""
        return pace


@dataclass(frozen=True)
class Heuristic(HeuristicSettings, Schedule):
    """Draft two tokens more after a step in which all were accepted, one fewer after any other; at least one."""

    def limit(self, pace: Pace, num_draft: int) -> Tensor:
        """Return the pace."""
        return pace[:, 0].long()

    def follow(self, pace: Pace, num_draft: int, num_drafted: Tensor, num_accepted: Tensor) -> Pace:
        """Raise or lower the number."""
        all_accepted = num_accepted.unsqueeze(1) == pace
        return torch.where(all_accepted, (pace + 2.0).clamp(max=num_draft), (pace - 1.0).clamp(min=1.0))


@dataclass(frozen=True)
class EntropyBound(EntropySettings, Schedule):
    """Stop drafting where the draft distribution is so flat that its token would hardly be accepted."""

    def continues(self, pace: Pace, depth: int, logits: Tensor) -> Tensor:
        """Compare the bound with the threshold."""
        if depth == 0:
            return super().continues(pace, depth, logits)
        entropy = torch.special.entr(logits.double().softmax(dim=1)).sum(dim=1)
        bound: Tensor = 1.0 - (self.weight * entropy).sqrt()
        return bound >= pace[:, 0]

    def follow(self, pace: Pace, num_draft: int, num_drafted: Tensor, num_accepted: Tensor) -> Pace:
        """Move the share half of the way to this step's, and the threshold a little after it."""
        threshold, rate = pace.unbind(dim=1)
        rate = 0.5 * rate + 0.5 * num_accepted.double() / num_drafted
        lower = torch.where(num_accepted == num_draft, threshold, threshold - self.step)
        wanted = torch.where(rate < self.target_rate, threshold + self.step, lower)
        followed = torch.stack([0.9 * threshold + 0.1 * wanted, rate], dim=1)
        return torch.where((num_drafted > 0).unsqueeze(1), followed, pace)


SCHEDULES = {"fixed": Schedule, "heuristic": Heuristic, "entropy": EntropyBound}
