"""An n-gram model with back-off as the drafter: it proposes what followed the last tokens in counted text.

It needs no pass of a model. The tables and their folder are the reference's; `NgramIndex` looks up all rows of a batch
at once.

Glossary of shapes: B batch, S capacity, V vocabulary, C lengths of contexts, P contexts of all lengths, N n-grams,
W the most n-grams of a context.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from pass_sampling.reference.drafters.ngram import ONE, NgramOrder, NgramTables

from ..model.cache import KVCache
from ..model.precision import check_device
from .base import Drafter

__all__ = ["NgramModel", "NgramOrder", "NgramTables"]


@dataclass(frozen=True, eq=False)
class NgramModel(NgramTables, Drafter):
    """Drafts from tables of n-grams: the longest known context first, which leaves the rest to the next shorter."""

    device: torch.device | str = "cpu"

    def logits(self, tokens: Tensor, cache: KVCache | None, lengths: Tensor, max_pending: int) -> Tensor:
        """Return the logarithm of the distribution after the first `lengths` tokens of each row."""
        return self._index.logits(tokens, lengths)

    @cached_property
    def _index(self) -> NgramIndex:
        """The same tables, laid out for a batch."""
        return NgramIndex(torch.from_numpy(self.unigram.copy()).to(self.device), self.orders)

    def to(self, device: torch.device | str) -> NgramModel:
        """Return the same model on another device."""
        return replace(self, device=check_device(device))

    @classmethod
    def load(cls, folder: str | os.PathLike[str], device: torch.device | str = "cpu") -> NgramModel:
        """Read the folder of an n-gram model; the errors are those of the reference."""
        return cls._read(folder, device=check_device(device))


class NgramIndex:
    """Contexts by their keys, the tokens as digits in base V + 1 from 1 on, so that lengths do not mix.

    One more entry, without n-grams, serves every unknown context. W more n-grams are padding, and masked.
    """

    def __init__(
        self,
        unigram: Tensor,  # [V]
        orders: Sequence[NgramOrder],
    ):
        """Lay out tables on the device of the unigram."""
        base, device = len(unigram) + 1, unigram.device
        contexts = np.arange(1, base)
        parts: list[tuple[npt.NDArray[Any], ...]] = []
        for order in orders:
            used = order.codes > 0  # the others only continue the tree
            counts = order.sums(used)
            known = counts > 0
            backoff, shares = 1.0 - order.totals[known] / ONE, order.codes[used].astype(np.float32) ** 2 / ONE
            parts.append((contexts[known], counts[known], backoff, order.tokens[used], shares))
            contexts = np.repeat(contexts, order.num_successors) * base + order.tokens + 1
        none = np.zeros(0, np.int32), np.zeros(0, np.float32)
        parts.append((np.array([2**63 - 1]), np.array([0]), np.array([1.0]), *none))  # for an unknown context
        keys, counts, backoff, tokens, shares = map(np.concatenate, zip(*parts, strict=True))
        widest, num_lengths = max(1, int(counts.max())), max(1, len(orders))
        arrays = keys, np.cumsum(counts) - counts, counts, backoff, np.pad(tokens, (0, widest))
        placed = [torch.from_numpy(each).to(device) for each in (*arrays, np.pad(shares, (0, widest)))]
        self.keys, self.starts, self.counts, self.backoff = placed[:4]  # each [P+1]: sorted; of the n-grams; how many
        self.tokens, self.shares = placed[4:]  # each [N+W]
        self.unigram = unigram.double() / unigram.double().sum()  # [V]
        self.log_unigram = self.unigram.log()  # [V]
        # From the tokens of a text, the last one first, to keys, the longest one first.
        powers = (base ** torch.arange(num_lengths)).repeat(num_lengths, 1).tril()
        self.powers = powers.flip(0).to(device)  # [C, C]
        self.steps = torch.arange(1, num_lengths + 1, device=device)  # [C], of each token from the end of the text
        self.window = torch.arange(widest, device=device)  # [W]

    def logits(
        self,
        tokens: Tensor,  # [B, S]
        lengths: Tensor,  # [B]
    ) -> Tensor:  # [B, V]
        """Return the logarithm of the distribution after the first `lengths` tokens of each row."""
        places = lengths.unsqueeze(1) - self.steps  # [B, C]
        digits = torch.where(places >= 0, tokens.gather(1, places.clamp(min=0)) + 1, -1)  # -1 makes a key negative
        keys = (digits.unsqueeze(1) * self.powers).sum(dim=-1)  # [B, C]
        found = torch.searchsorted(self.keys, keys)
        found = torch.where(self.keys[found] == keys, found, len(self.keys) - 1)

        backoff = self.backoff[found]  # [B, C]
        passed = backoff.cumprod(dim=1)  # what this context and all longer ones leave
        ngrams = self.starts[found].unsqueeze(-1) + self.window  # [B, C, W]
        shares = self.shares[ngrams] * (self.window < self.counts[found].unsqueeze(-1))
        shares = shares * (passed / backoff).unsqueeze(-1)  # [B, C, W]
        successors = self.tokens[ngrams].long()  # [B, C, W]

        probs = self.unigram * passed[:, -1:]  # [B, V]
        # One length at a time: a token occurs in each at most once, so the order of additions is fixed on any device.
        for i in range(successors.shape[1]):
            probs.scatter_add_(1, successors[:, i], shares[:, i])
        some = successors.flatten(1)  # logarithms of these only, not of V numbers
        return (self.log_unigram + passed[:, -1:].log()).scatter_(1, some, probs.gather(1, some).log())
