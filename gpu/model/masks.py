"""Attention masks: which rows and cache positions each row of a pass attends to.

Glossary of shapes: B batch, T rows of this pass, S cache positions that are read (cached and of this pass), R rows
times heads of a group, D' hidden state.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional

from .cache import KVCache


class Masks:
    """The additive masks of full and of windowed layers, each built once per pass, and only if it is needed."""

    def __init__(
        self,
        cache: KVCache,
        cache_positions: Tensor,  # [B, T]
        positions: Tensor,  # [B, T]
        visible: Tensor | None,  # [T, T], or [T, S], or [B, T, T]
        dtype: torch.dtype,
        num_heads: int = 1,
    ):
        """Describe a pass that writes to `cache_positions`.

        `visible` is true where a row attends to a row of the pass or, with S columns, to a cache position; then all
        rows of the batch have equally many cached. `num_heads` query heads of a group are computed as rows of one.
        """
        self._cache_positions, self._positions = cache_positions, positions
        self._visible, self._dtype, self._num_heads = visible, dtype, num_heads
        self._lengths, self._order = cache.lengths, cache.order
        self._num_positions = cache.num_positions(cache_positions.shape[1])
        self._sees_all = visible is None and cache_positions.shape[1] == 1 and cache.equal_lengths
        self._causal = visible is None and cache.max_length == 0 and cache.kv_length is None
        self._has_equal_lengths = cache.equal_lengths and (
            visible is None or visible.shape == (cache_positions.shape[1], cache_positions.shape[1])
        )
        self._built: dict[int | None, Tensor] = {}

    def of(self, window: int | None) -> tuple[Tensor | None, bool]:  # [B, 1, R, S]
        """Return what `attention` needs for a layer with this window: the mask, or None and whether it is causal.

        The mask is 0 where a row attends to a position, else -inf. A prompt needs no mask: nothing is cached before it,
        and a causal order needs no memory that grows with the square of its length.
        """
        if window is None and (self._sees_all or self._causal):
            return None, self._causal
        if window not in self._built:
            is_square = window is None and self._has_equal_lengths
            mask = self._last_columns() if is_square else self._additive(self._in_sight(window))
            self._built[window] = mask.repeat(1, 1, self._num_heads, 1) if self._num_heads > 1 else mask
        return self._built[window], False

    def may_leak(
        self,
        hidden: Tensor,  # [B, T, D']
        cache: KVCache,
    ) -> bool:
        """Return whether a masked key or value that is not finite may have changed a row of a pass.

        Such a change makes the row NaN, so a finite pass is right. In fixed shapes the host reads nothing, but
        `cache.doubt` is then not finite for that row of the batch.
        """
        if not (self._built or self._causal):
            return False
        wide = torch.promote_types(hidden.dtype, torch.float32)
        if cache.kv_length is not None:
            cache.doubt = cache.doubt + hidden.sum(dim=(1, 2), dtype=wide)
            return False
        return not math.isfinite(hidden.sum(dtype=wide).item())

    def _last_columns(self) -> Tensor:  # [B, 1, T, S]
        """Return the mask after equally many cached positions in every row, to all of which its rows attend."""
        (batch_size, num_rows), device = self._cache_positions.shape, self._cache_positions.device
        if self._visible is None:
            own = torch.full((num_rows, num_rows), float("-inf"), dtype=self._dtype, device=device).triu(1)
        else:
            own = self._additive(self._visible.unsqueeze(0))[0, 0]
        padded = functional.pad(own, (self._num_positions - num_rows, 0))
        return padded.expand(batch_size, 1, -1, -1)

    def _additive(self, in_sight: Tensor) -> Tensor:  # [B, 1, T, S]
        """Return 0 where a row attends to a position, and -inf elsewhere."""
        return in_sight.to(self._dtype).log().unsqueeze(1)

    def _in_sight(self, window: int | None) -> Tensor:  # [B, T, S]
        """Return which positions each row attends to."""
        batch_size, num_rows = self._cache_positions.shape
        places = self._order(self._num_positions)
        if self._visible is None:
            in_sight = places <= self._cache_positions.unsqueeze(2)
        elif self._visible.shape[-1] != num_rows:
            in_sight = self._visible.expand(batch_size, -1, -1)
        else:
            before_and_after = functional.pad(functional.pad(self._visible, (1, 0), value=True), (0, 1))
            row = places - self._lengths.unsqueeze(1)  # [B, S]: the row of the pass at each position
            column = (row + 1).clamp(0, num_rows + 1).unsqueeze(1).expand(-1, num_rows, -1)
            in_sight = before_and_after.expand(batch_size, -1, -1).gather(2, column)
        if window is None:
            return in_sight
        rotary = places.expand(batch_size, -1).scatter(1, self._cache_positions, self._positions)  # [B, S]
        return in_sight & (self._positions.unsqueeze(2) - rotary.unsqueeze(1) < window)
