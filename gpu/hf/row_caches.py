"""The caches of a batch of which every row has its own pass: transformers' cache per row, and how it is rolled back.

Glossary of shapes: B batch, N rows of the batch that are kept.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from ..cache import KVCache, same


class RowCache:
    """One row's cache of transformers; what is dropped of it is dropped before the next pass, not at once.

    A layer with a sliding window remembers no more than its window, so it is told to record the past: what the last
    pass has added, and pushed out, can be undone. Nothing before that pass can.
    """

    def __init__(self, cache: Any, held: int = 0):
        """Take over a cache that holds so many positions."""
        self.cache = cache
        self.held = held
        self._before = held  # what it held before the last pass
        for layer in cache.layers:
            if hasattr(layer, "activate_past_recording"):
                layer.activate_past_recording()

    def settle(self, length: int) -> None:
        """Drop what stands at or beyond `length`.

        Raises:
            ValueError: a layer does not remember that far back.
        """
        if self.held == 0:
            return
        if length < self._before and any(hasattr(layer, "record_past") for layer in self.cache.layers):
            raise ValueError(
                f"length: found {length}, expected at least {self._before}, what was cached before the last pass: a "
                "sliding window remembers no more"
            )
        self.cache.crop(length - self.held)
        self.held = self._before = length

    def grow(self, num_rows: int) -> None:
        """Count the rows that a pass has just added."""
        self._before = self.held
        self.held += num_rows

    def release(self, length: int) -> Any:
        """Return the cache cut to `length`, as `generate` hands it out: without a memory of what was dropped."""
        self.settle(length)
        for layer in self.cache.layers:
            if hasattr(layer, "record_past"):
                layer.record_past = False
        return self.cache

    def agrees(self, other: RowCache, length: int) -> bool:
        """Say whether two caches hold the same, up to rounding, in what both still know of `length` positions."""
        self.settle(length)
        other.settle(length)
        return all(
            same(*(keys[..., -_common(layer, twin) :, :] for keys in (getattr(layer, name), getattr(twin, name))))
            for layer, twin in zip(self.cache.layers, other.cache.layers, strict=True)
            for name in ("keys", "values")
            if isinstance(getattr(layer, name, None), Tensor) and layer.keys.numel()
        )


def _common(layer: Any, twin: Any) -> int:
    return int(min(layer.keys.shape[-2], twin.keys.shape[-2]))


class RowCaches(KVCache):
    """What a method asks of a cache, over one of transformers per row."""

    def __init__(
        self,
        rows: Sequence[RowCache],
        lengths: Tensor,  # [B]
        capacity: int,
    ):
        """Hold the caches of rows of which the first `lengths` positions count."""
        super().__init__(0, 1, 1, torch.float32, capacity, len(rows), lengths.device)  # no layers of its own
        self.rows = list(rows)
        self.lengths = lengths
        self.measure()

    def keep(
        self,
        rows: Tensor,  # [B, N]
        length: Tensor | int = 0,  # [B], or []
        count: Tensor | None = None,  # [B]
    ) -> None:
        """Refuse to keep the path through a tree of drafts."""
        raise ValueError(
            "rows: found a tree of drafts over a model of transformers, expected drafts one behind another, as "
            "PaSS and SpeculativeSampling make them"
        )

    def select(
        self,
        rows: Tensor,  # [N]
    ) -> RowCaches:
        """Return independent caches of the given rows of the batch."""
        return RowCaches([copy.deepcopy(self.rows[row]) for row in rows.tolist()], self.lengths[rows], self.capacity)

    def copy(self) -> RowCaches:
        """Return independent caches with the same contents."""
        return RowCaches([copy.deepcopy(row) for row in self.rows], self.lengths.clone(), self.capacity)

    def agrees(self, other: KVCache) -> bool:
        """Say whether the caches of one sequence are the same up to rounding; those of different lengths are not."""
        if not isinstance(other, RowCaches) or self.lengths.tolist() != other.lengths.tolist():
            return False
        return all(
            mine.agrees(yours, length)
            for mine, yours, length in zip(self.rows, other.rows, self.lengths.tolist(), strict=True)
        )

    @staticmethod
    def stack(caches: Sequence[KVCache]) -> RowCaches:
        """Return independent caches whose rows are those of others of equal capacity, one after the other."""
        rows = [copy.deepcopy(row) for cache in caches for row in row_caches(cache).rows]  # one may stand there twice
        return RowCaches(rows, torch.cat([cache.lengths for cache in caches]), caches[0].capacity)


def row_caches(cache: KVCache) -> RowCaches:
    """Return the cache if it is one of these; raise ValueError otherwise."""
    if not isinstance(cache, RowCaches):
        raise ValueError(f"cache: found a {type(cache).__name__}, expected one that the model's new_cache has made")
    return cache
