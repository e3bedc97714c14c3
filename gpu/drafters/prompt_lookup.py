"""Prompt lookup: the drafter proposes what followed an earlier occurrence of the text's last tokens.

Glossary of shapes: B batch, S capacity.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import pad

from pass_sampling.reference.drafters.prompt_lookup import LookupSettings

from ..model.cache import KVCache
from .base import Drafter


class PromptLookup(LookupSettings, Drafter):
    """Drafts the token that followed the most recent earlier occurrence of the longest n-gram that ends the text."""

    def logits(self, tokens: Tensor, cache: KVCache | None, lengths: Tensor, max_pending: int) -> Tensor:
        """Return 0 at the token found and -inf elsewhere; everywhere, if there is none."""
        token, logit = self.best(tokens, cache, lengths, max_pending)
        logits = torch.full((len(tokens), self.vocab_size), -torch.inf, dtype=torch.float64, device=tokens.device)
        return logits.scatter_(1, token.unsqueeze(1), logit.unsqueeze(1))

    def best(self, tokens: Tensor, cache: KVCache | None, lengths: Tensor, max_pending: int) -> tuple[Tensor, Tensor]:
        """Return the token found and 0; else token 0 and -inf.

        Every place gets the length of the longest common n-gram that ends there and at the end of the text. The longest
        wins, and of these the last.
        """
        size, num = tokens.shape[1], min(self.max_ngram, tokens.shape[1])
        places = torch.arange(size, device=tokens.device)
        last = lengths.unsqueeze(1) - 1  # [B, 1]
        ends = last - places[:num].flip(0)  # [B, num], of the n-gram that ends the text
        ngram = torch.where(ends >= 0, tokens.gather(1, ends.clamp(min=0)), -2)
        windows = pad(tokens, (num - 1, 0), value=-1).unfold(1, num, 1)  # [B, S, num], those that end at each place
        same = (windows == ngram.unsqueeze(1)).flip(2).long()
        runs = same.cumprod(dim=2).sum(dim=2) * (places < last)  # [B, S], so that a token of the text follows
        best = torch.where(runs >= self.min_ngram, runs * size + places, -1).max(dim=1, keepdim=True)
        found = best.values >= 0  # [B, 1]
        token = tokens.gather(1, (best.indices + 1).clamp(max=size - 1)).where(found, 0)
        return token.squeeze(1), torch.where(found, 0.0, -torch.inf).double().squeeze(1)
