"""The text itself as the drafter: what followed the last time that it said the same.

Glossary of shapes: B batch, S capacity, V vocabulary.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from pass_sampling.reference.config import check_integer

from ..model.cache import KVCache

__all__ = ["PromptLookup"]


@dataclass(frozen=True, eq=False)
class PromptLookup:
    """Drafts the token that followed the most recent earlier occurrence of the longest n-gram that ends the text.

    Asked anew for each draft, after the drafts before it. transformers takes the first occurrence, and all tokens
    after it at once; the most recent one is nearer to what the text is about.

    Source: Saxena 2023, "Prompt Lookup Decoding" (github.com/apoorvumang/prompt-lookup-decoding).
    """

    vocab_size: int
    max_ngram: int = 3
    min_ngram: int = 1
    name = "prompt lookup"
    passes_per_draft = 0
    max_position_embeddings = None

    def __post_init__(self) -> None:
        """Check the numbers."""
        check_integer("vocab_size", self.vocab_size, 1, 2**31)
        check_integer("max_ngram", self.max_ngram, 1, 2**16)
        check_integer("min_ngram", self.min_ngram, 1, self.max_ngram)

    def new_cache(self, capacity: int, batch_size: int = 1) -> None:
        """Return None: nothing is computed twice."""

    def logits(
        self,
        tokens: Tensor,  # [B, S]
        cache: KVCache | None,
        lengths: Tensor,  # [B]
        max_pending: int,
    ) -> Tensor:  # [B, V]
        """Return 0 at the token found and -inf elsewhere; everywhere, if there is none.

        Every place is given the length of the n-gram that ends there and ends the text as well; the longest wins, and
        of these the last.
        """
        size = tokens.shape[1]
        places = torch.arange(size, device=tokens.device)
        last = lengths.unsqueeze(1) - 1  # [B, 1]
        matching = places < last  # [B, S], so that a token of the text follows
        runs = torch.zeros_like(tokens)  # [B, S]
        for i in range(min(self.max_ngram, size)):
            same = tokens.roll(i, dims=1) == tokens.gather(1, (last - i).clamp(min=0))
            matching = matching & same & (places >= i)
            runs += matching
        best = torch.where(runs >= self.min_ngram, runs * size + places, -1).max(dim=1, keepdim=True)
        found = best.values >= 0  # [B, 1]
        token = tokens.gather(1, (best.indices + 1).clamp(max=size - 1))
        logits = torch.full((len(tokens), self.vocab_size), -torch.inf, dtype=torch.float64, device=tokens.device)
        return logits.scatter_(1, token.where(found, 0), torch.where(found, 0.0, -torch.inf).double())
