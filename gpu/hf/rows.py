"""Caches of transformers for a batch of which every row has its own pass, and the masks of such a pass.

Masks are additive and of floating point, one per kind of layer: eager attention would take a boolean one for numbers.

Glossary of shapes: B batch, N rows of the batch that are kept, T rows of the pass, S cache positions that are read.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import DynamicCache

from ..model.cache import KVCache, same


class RowCache:
    """One row's cache of transformers; positions are dropped before the next pass, not at once.

    A layer with a sliding window keeps no more than its window, so it is told to record the past: then the last pass
    can be undone, but none before it.
    """

    def __init__(self, cache: Any):
        self.cache = cache
        self.held = self._before = 0  # positions, now and before the last pass
        for layer in cache.layers:
            if hasattr(layer, "activate_past_recording"):
                layer.activate_past_recording()

    def settle(self, length: int) -> None:
        """Drop the positions from `length` on; raise ValueError if a layer does not remember that far back."""
        if self.held == 0:
            return
        if length < self._before and any(hasattr(layer, "record_past") for layer in self.cache.layers):
            raise ValueError(
                f"length: found {length}, expected at least {self._before}: a sliding window forgets the rest"
            )
        self.cache.crop(length - self.held)
        self.held = self._before = length

    def grow(self, num_rows: int) -> None:
        """Count the rows that a pass has just added."""
        self._before = self.held
        self.held += num_rows

    def agrees(self, other: RowCache, length: int) -> bool:
        """Return whether two caches are equal, up to rounding, in what both still hold of `length` positions."""
        self.settle(length)
        other.settle(length)
        pairs = []
        for layer, twin in zip(self.cache.layers, other.cache.layers, strict=True):
            if isinstance(getattr(layer, "keys", None), Tensor) and layer.keys.numel():
                pairs += [(layer.keys, twin.keys), (layer.values, twin.values)]
        held = [min(mine.shape[-2], yours.shape[-2]) for mine, yours in pairs]
        return all(same(a[..., -n:, :], b[..., -n:, :]) for n, (a, b) in zip(held, pairs, strict=True))


class RowCaches(KVCache):
    """A cache for the methods of this package, over one of transformers per row."""

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
        raise ValueError("rows: found a tree of drafts over a model of transformers, expected one draft after another")

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
        """Return whether the caches of one sequence are equal up to rounding; those of different lengths are not."""
        lengths = self.lengths.tolist()
        if not isinstance(other, RowCaches) or lengths != other.lengths.tolist():
            return False
        pairs = zip(self.rows, other.rows, lengths, strict=True)
        return all(mine.agrees(yours, length) for mine, yours, length in pairs)

    @staticmethod
    def stack(caches: Sequence[KVCache]) -> RowCaches:
        """Return independent caches whose rows are those of others of equal capacity, one after the other."""
        rows = [copy.deepcopy(row) for cache in caches for row in row_caches(cache).rows]  # one may be there twice
        return RowCaches(rows, torch.cat([cache.lengths for cache in caches]), caches[0].capacity)


def row_caches(cache: KVCache) -> RowCaches:
    """Return the cache if it is one of these; raise ValueError otherwise."""
    if not isinstance(cache, RowCaches):
        raise ValueError(f"cache: found a {type(cache).__name__}, expected one that the model's new_cache has made")
    return cache


def row_masks(
    config: Any,
    cache: Any,
    length: int,
    positions: Tensor,  # [T]
    visible: Tensor | None,  # [T, T], or [T, S]
    dtype: torch.dtype,
) -> Tensor | dict[str, Tensor]:  # [1, 1, T, S]
    """Return the mask of a pass after `length` cached positions; if layers differ, a mask for each kind.

    Every row attends to what is cached, and to the rows of the pass in `visible` (default: a chain). With S columns
    `visible` also covers cached positions. A layer with a window w hides keys w or more positions back.
    """
    num_rows = len(positions)
    if visible is None:
        visible = torch.ones((num_rows, num_rows), dtype=torch.bool, device=positions.device).tril()
    if visible.shape[1] == num_rows:
        visible = torch.cat([visible.new_ones((num_rows, length)), visible], dim=1)
    places = torch.cat([torch.arange(length, device=positions.device), positions])  # [S]
    layers = DynamicCache(config=config).layers
    names = getattr(config, "layer_types", None) or ["attention"] * len(layers)
    masks: dict[str, Tensor] = {}
    for place, (name, layer) in enumerate(zip(names, layers, strict=False)):
        if name in masks:
            continue
        seen, window = visible, getattr(layer, "sliding_window", None)
        if window is not None:
            seen = seen & (positions.unsqueeze(1) - places < window)
        if place < len(cache.layers):
            size, first = cache.layers[place].get_mask_sizes(num_rows)
            seen = seen[:, first : first + size]
        mask = torch.zeros(seen.shape, dtype=dtype, device=seen.device)
        masks[name] = mask.masked_fill(~seen, torch.finfo(dtype).min)[None, None]
    return masks if len(masks) > 1 else next(iter(masks.values()))
