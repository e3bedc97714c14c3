"""Several free drafters in turn: the first that is sure of a token proposes it; see `reference.drafters.first_of`."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from pass_sampling.reference.drafters.first_of import FirstOfSettings

from ..host import is_on_cpu
from ..model.cache import KVCache
from .base import Drafter


class FirstOf(FirstOfSettings, Drafter):
    """Drafts from the first drafter whose likeliest token has a probability of at least `least`."""

    drafters: tuple[Drafter, ...]

    def logits(self, tokens: Tensor, cache: KVCache | None, lengths: Tensor, max_pending: int) -> Tensor:
        """Return the logits of the first drafter that is sure; -inf everywhere, if none is."""
        found = torch.full((len(tokens), self.vocab_size), -torch.inf, dtype=torch.float64, device=tokens.device)
        taken = torch.zeros_like(lengths, dtype=torch.bool).unsqueeze(1)
        for drafter in self.drafters:
            rows = drafter.logits(tokens, None, lengths, max_pending)
            sure = ~taken & (rows.amax(dim=1, keepdim=True) >= math.log(self.least))
            found, taken = torch.where(sure, rows.double(), found), taken | sure
            if is_on_cpu(taken) and bool(taken.all()):
                break
        return found

    def best(self, tokens: Tensor, cache: KVCache | None, lengths: Tensor, max_pending: int) -> tuple[Tensor, Tensor]:
        """Return the likeliest token of the first drafter that is sure, and its logit; -inf, if none is."""
        found, logit = torch.zeros_like(lengths), torch.full_like(lengths, -torch.inf, dtype=torch.float64)
        for drafter in self.drafters:
            token, largest = drafter.best(tokens, None, lengths, max_pending)
            takes = (logit == -torch.inf) & (largest >= math.log(self.least))
            found, logit = torch.where(takes, token, found), torch.where(takes, largest.double(), logit)
            if is_on_cpu(logit) and bool(logit.isfinite().all()):
                break
        return found, logit
