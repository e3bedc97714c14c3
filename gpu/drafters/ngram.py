"""An n-gram model with back-off as the drafter: it proposes what followed the last tokens in counted text.

It needs no pass of a model. The tables and their folder are the reference's, the look-up is `ngram_index`.

Glossary of shapes: B batch, S capacity, V vocabulary.
"""

from __future__ import annotations

import os
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from pass_sampling.reference.drafters.ngram import NgramOrder, NgramTables

from ..model.cache import KVCache
from ..model.precision import check_device
from .ngram_index import NgramIndex, build_index

__all__ = ["NgramModel", "NgramOrder", "NgramTables"]


@dataclass(frozen=True, eq=False)
class NgramModel(NgramTables):
    """Drafts from tables of n-grams: the longest known context first, which leaves the rest to the next shorter."""

    unigram: Tensor  # [V], in proportion to probs(v)

    def __post_init__(self) -> None:
        """Check the tables.

        Raises:
            ValueError: they make no distribution, or no tree.
        """
        object.__setattr__(self, "unigram", torch.as_tensor(self.unigram).detach().to(torch.float32, copy=True))
        self._check_tables()

    def _unigram_on_host(self) -> npt.NDArray[np.float32]:
        return self.unigram.numpy(force=True)

    def new_cache(self, capacity: int, batch_size: int = 1) -> None:
        """Return None: nothing is computed twice."""

    def logits(
        self,
        tokens: Tensor,  # [B, S]
        cache: KVCache | None,
        lengths: Tensor,  # [B]
        max_pending: int,
    ) -> Tensor:  # [B, V]
        """Return the logarithm of the distribution after the first `lengths` tokens of each row."""
        return self._index.logits(tokens, lengths)

    @cached_property
    def _index(self) -> NgramIndex:
        """The same tables, laid out for a batch."""
        return build_index(self.unigram, self.orders)

    def to(self, device: torch.device | str) -> NgramModel:
        """Return the same model on another device."""
        return replace(self, unigram=self.unigram.to(check_device(device)))

    @classmethod
    def load(cls, folder: str | os.PathLike[str], device: torch.device | str = "cpu") -> NgramModel:
        """Read the folder of an n-gram model.

        Raises:
            FileNotFoundError: the folder or one of its files is missing.
            ValueError: a file is damaged, or was made for another version of this package.
        """
        device = check_device(device)
        return cls._read(folder, lambda unigram: torch.from_numpy(unigram).to(device))
