"""An n-gram model with back-off as the drafter: it proposes what followed the last tokens in counted text.

It needs no pass of a model. The tables and their folder are the reference's, the look-up is `ngram_index`.

Glossary of shapes: B batch, S capacity, V vocabulary.
"""

from __future__ import annotations

import os
from dataclasses import dataclass, replace
from functools import cached_property

import torch
from torch import Tensor

from pass_sampling.reference.drafters.ngram import NgramOrder, NgramTables

from ..model.cache import KVCache
from ..model.precision import check_device
from .base import Drafter
from .ngram_index import NgramIndex

__all__ = ["NgramModel", "NgramOrder", "NgramTables"]


@dataclass(frozen=True, eq=False)
class NgramModel(NgramTables, Drafter):
    """Drafts from tables of n-grams: the longest known context first, which leaves the rest to the next shorter."""

    device: torch.device | str = "cpu"

    def __post_init__(self) -> None:
        """Hold the tables on the host; see `NgramTables`."""
        if isinstance(self.unigram, Tensor):
            object.__setattr__(self, "unigram", self.unigram.numpy(force=True))
        super().__post_init__()

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
        """Read the folder of an n-gram model.

        Raises:
            FileNotFoundError: the folder or one of its files is missing.
            ValueError: a file is damaged, or was made for another version of this package.
        """
        return cls._read(folder, device=check_device(device))
