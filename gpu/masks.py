"""Who sees whom in one pass.

Glossary of shapes: B batch, T rows of this pass, S slots in sight (cached and of this pass).
"""

from __future__ import annotations

import torch
from torch import Tensor

from .cache import KVCache


class Masks:
    """The additive masks of full and of windowed layers, each built once per pass, and only if one is needed."""

    def __init__(
        self,
        cache: KVCache,
        slots: Tensor,  # [B, T]
        positions: Tensor,  # [B, T]
        visible: Tensor | None,  # [T, T], or [T, S], or [B, T, T]
        dtype: torch.dtype,
    ):
        """Describe a pass that writes to `slots`; `visible` says which rows of it see which, default: a chain.

        Over S columns it says so of every slot in sight; then all rows of the batch have as many cached.
        """
        self._slots = slots
        self._positions = positions
        self._visible = visible
        self._dtype = dtype
        self._lengths = cache.lengths
        self._num_slots = cache.extent + slots.shape[1]
        self._all_seen = visible is None and slots.shape[1] == 1 and cache.level
        self._causal = visible is None and cache.extent == 0
        self._built: dict[int | None, Tensor] = {}

    def of(self, window: int | None) -> tuple[Tensor | None, bool]:  # [B, 1, T, S]
        """Return what `attention` needs for a layer with this window: the mask, or None and whether it is causal.

        The mask is 0 where a row sees a slot and -inf where not. A prompt needs none: nothing is cached before it, and
        a causal order needs no memory that grows with the square of its length.
        """
        if window is None and (self._all_seen or self._causal):
            return None, self._causal
        if window not in self._built:
            in_sight = self._in_sight(window)
            mask = torch.zeros(in_sight.shape, dtype=self._dtype, device=in_sight.device)
            self._built[window] = mask.masked_fill(~in_sight, float("-inf")).unsqueeze(1)
        return self._built[window], False

    def _in_sight(self, window: int | None) -> Tensor:  # [B, T, S]
        """Say which slots each row sees."""
        batch_size, num_rows = self._slots.shape
        places = torch.arange(self._num_slots, device=self._slots.device)  # [S]
        if self._visible is None:
            in_sight = places <= self._slots.unsqueeze(2)
        elif self._visible.shape[-1] != num_rows:
            in_sight = self._visible.expand(batch_size, -1, -1)
        else:
            row = places - self._lengths.unsqueeze(1)  # [B, S]: which row of the pass a slot holds
            inside = (row >= 0) & (row < num_rows)
            column = row.clamp(0, num_rows - 1).unsqueeze(1).expand(-1, num_rows, -1)
            seen = self._visible.expand(batch_size, -1, -1).gather(2, column)
            in_sight = (row < 0).unsqueeze(1) | (inside.unsqueeze(1) & seen)
        if window is None:
            return in_sight
        standing = places.expand(batch_size, -1).scatter(1, self._slots, self._positions)  # [B, S]
        return in_sight & (self._positions.unsqueeze(2) - standing.unsqueeze(1) < window)
