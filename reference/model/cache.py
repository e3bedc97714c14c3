"""The KV cache, and the rollback of rejected drafts.

Glossary of shapes: G key/value heads, T rows of this pass, S cache positions that are read, E head size, N positions
that are kept.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from .layers import Array


class KVCache:
    """Keys and values of the first `length` positions, one pair of arrays per layer.

    Positions at and beyond `length` are scratch: a pass writes there, and `truncate` or `keep` decides afterwards what
    is kept. A position below `length` never changes, so states may be continued from it. Two continuations of one state
    share the scratch, so all but one need a `copy`.
    """

    def __init__(self, num_layers: int, num_kv_heads: int, head_dim: int, dtype: npt.DTypeLike, capacity: int = 16):
        """Reserve room for `capacity` positions; the room doubles when it runs out."""
        shape = (num_layers, num_kv_heads, capacity, head_dim)
        self.keys = np.zeros(shape, dtype)  # [layers, G, capacity, E]
        self.values = np.zeros(shape, dtype)  # [layers, G, capacity, E]
        self.length = 0

    @property
    def capacity(self) -> int:
        """Number of positions that fit before the arrays grow."""
        return self.keys.shape[2]

    def write(
        self,
        layer: int,
        keys: Array,  # [G, T, E]
        values: Array,  # [G, T, E]
    ) -> tuple[Array, Array]:  # [G, S, E], [G, S, E]
        """Write one layer's rows of a pass after the cached ones, and return all positions that a row may attend to."""
        end = self.length + keys.shape[1]
        if end > self.capacity:
            self._grow(end)
        self.keys[layer, :, self.length : end] = keys
        self.values[layer, :, self.length : end] = values
        return self.keys[layer, :, :end], self.values[layer, :, :end]

    def advance(self, num_rows: int) -> None:
        """Count the rows that every layer has just written as cached."""
        self.length += num_rows

    def truncate(self, length: int) -> None:
        """Drop every cached position at or beyond `length`: the rollback of rejected drafts and of look-ahead rows."""
        self._check_length(length)
        self.length = length

    def keep(
        self,
        rows: npt.NDArray[np.integer],  # [N]
        length: int = 0,
    ) -> None:
        """Keep the first `length` positions, and after them only the given ones: the rollback of a tree of drafts.

        The given positions increase, and are all cached after the first `length`; otherwise raise ValueError.
        """
        self._check_length(length)
        if rows.size and (rows[0] < length or rows[-1] >= self.length or np.any(np.diff(rows) <= 0)):
            raise ValueError(
                f"rows: found {rows.tolist()}, expected increasing positions from {length} to {self.length - 1}"
            )
        self.length = length + rows.size
        self.keys[:, :, length : self.length] = self.keys[:, :, rows]
        self.values[:, :, length : self.length] = self.values[:, :, rows]

    def copy(self) -> KVCache:
        """Return an independent cache with the same contents."""
        twin = object.__new__(KVCache)
        twin.keys, twin.values, twin.length = self.keys.copy(), self.values.copy(), self.length
        return twin

    def agrees(self, other: KVCache) -> bool:
        """Return whether the common rows of two caches are the same up to rounding."""
        length = min(self.length, other.length)
        pairs = ((self.keys, other.keys), (self.values, other.values))
        return all(same(mine[:, :, :length], yours[:, :, :length]) for mine, yours in pairs)

    def _check_length(self, length: int) -> None:
        if not 0 <= length <= self.length:
            raise ValueError(f"length: found {length}, expected 0 to {self.length}, the number of cached positions")

    def _grow(self, needed: int) -> None:
        extra = max(needed, 2 * self.capacity) - self.capacity
        padding = ((0, 0), (0, 0), (0, extra), (0, 0))
        self.keys, self.values = np.pad(self.keys, padding), np.pad(self.values, padding)


def same(
    mine: Array,  # [...]
    yours: Array,  # [...]
) -> bool:
    """Return whether arrays are equal up to rounding: 4096 units in the last place of the largest number."""
    tolerance = 4096 * np.finfo(mine.dtype).eps * np.abs(mine[np.isfinite(mine)]).max(initial=0.0)
    return np.allclose(mine, yours, rtol=0.0, atol=tolerance, equal_nan=True)
