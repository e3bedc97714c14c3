"""The KV cache of a batch, and the rollback of rejected drafts.

Glossary of shapes: B batch, G key/value heads, T rows of this pass, S cache positions that are read, E head size, N
positions that are kept.
"""

from __future__ import annotations

from copy import copy

import torch
from torch import Tensor

from ..host import is_on_cpu


class KVCache:
    """Keys and values of the first `lengths[b]` positions of each row b, in arrays of fixed size.

    Positions at and beyond a row's length are scratch: a pass writes there, and `truncate` or `keep` decides afterwards
    what is kept. No row attends to scratch. The host knows `max_length`, a bound on all lengths, so that a pass need
    not read unused positions, and `equal_lengths`, whether all lengths are known to be equal to it. On the CPU the
    bound is exact. On a device a `truncate` leaves it loose, and the lengths are read back only when it has run out.

    With a fixed `kv_length` every pass reads that many positions and the host reads nothing, since the shapes of a
    captured step must not depend on the values of its tensors. `doubt` is then a number for each row of the batch that
    is finite if all of its passes and logits were.
    """

    def __init__(
        self,
        num_layers: int,
        num_kv_heads: int,
        head_dim: int,
        dtype: torch.dtype,
        capacity: int = 16,
        batch_size: int = 1,
        device: torch.device | str = "cpu",
    ):
        """Reserve zeroed room for `capacity` positions per row."""
        shape = (num_layers, batch_size, num_kv_heads, capacity, head_dim)
        self.keys = torch.zeros(shape, dtype=dtype, device=device)  # [layers, B, G, capacity, E]
        self.values = torch.zeros(shape, dtype=dtype, device=device)  # [layers, B, G, capacity, E]
        self.lengths = torch.zeros(batch_size, dtype=torch.int64, device=device)  # [B]
        self.max_length, self.equal_lengths = 0, True
        self.kv_length: int | None = None
        self.doubt: Tensor | float = 0.0  # of each row of the batch, once a pass has run
        self._order = torch.arange(capacity, device=device)
        self._rows = torch.arange(batch_size, device=device).unsqueeze(1)  # [B, 1]
        self._layers = torch.arange(num_layers, device=device).unsqueeze(1)  # [layers, 1]
        self._places: tuple[Tensor, Tensor] | None = None

    @property
    def capacity(self) -> int:
        """Number of positions per row."""
        return self.keys.shape[3]

    def next_positions(self, num_rows: int) -> Tensor:  # [B, T]
        """Return where the rows of the next pass will be written; raise ValueError beyond the capacity."""
        if self.kv_length is None and self.max_length + num_rows > self.capacity and not self._is_on_cpu:
            self.measure()
        if self.kv_length is None and self.max_length + num_rows > self.capacity:
            raise ValueError(f"capacity: found {self.capacity}, expected at least {self.max_length + num_rows}")
        if self._places is None or self._places[0] is not self.lengths or self._places[1].shape[1] != num_rows:
            places = self.lengths.unsqueeze(1) + self.order(num_rows)
            self._places = self.lengths, places  # used by a step and by its pass
        return self._places[1]

    def order(self, count: int) -> Tensor:  # [count]
        """Return the first positions in turn, of a tensor that is kept."""
        if count > len(self._order):
            self._order = torch.arange(count, device=self._order.device)
        return self._order[:count]

    def num_positions(self, num_rows: int) -> int:
        """Return how many positions a pass over `num_rows` rows reads, S."""
        return self.max_length + num_rows if self.kv_length is None else self.kv_length

    def fix(self, kv_length: int | None) -> None:
        """Let every pass read that many positions, which no row may exceed; None: as many as are cached."""
        self.kv_length, self.equal_lengths, self.doubt = kv_length, False, 0.0
        self.measure()

    def write(
        self,
        layer: int,
        keys: Tensor,  # [B, G, T, E]
        values: Tensor,  # [B, G, T, E]
        next_positions: Tensor,  # [B, T]
    ) -> tuple[Tensor, Tensor]:  # [B, G, S, E], [B, G, S, E]
        """Write one layer's rows of a pass, and return every position that some row of the batch may attend to."""
        end = self.num_positions(keys.shape[2])
        for whole, new in ((self.keys, keys), (self.values, values)):
            if self.equal_lengths:
                whole[layer, :, :, self.max_length : end] = new
            else:  # indexing the whole makes no copy
                whole[self._layers[layer], self._rows, :, next_positions] = new.transpose(1, 2)
        return self.keys[layer, :, :, :end], self.values[layer, :, :, :end]

    def advance(self, num_rows: int) -> None:
        """Count the rows that every layer has just written as cached."""
        self.lengths = self.lengths + num_rows
        self.max_length += num_rows

    def truncate(
        self,
        length: Tensor,  # [B]
    ) -> None:
        """Drop every position at or beyond each row's `length`: rejected drafts, look-ahead rows, padding.

        On the CPU, a length that is negative or more than what is cached raises ValueError.
        """
        if self._is_on_cpu and self.kv_length is None:
            before, after = self.lengths.tolist(), length.tolist()  # quicker than to compare tensors
            if after == before:
                return
            if not all(0 <= new <= old for old, new in zip(before, after, strict=True)):
                self._check_length(length)
        self.lengths, self.equal_lengths = length, False
        if self._is_on_cpu and self.kv_length is None:
            self.measure()

    def keep(
        self,
        rows: Tensor,  # [B, N]
        length: Tensor | int = 0,  # [B], or []
        count: Tensor | None = None,  # [B]
    ) -> None:
        """Keep the first `length` positions, and after them only the given ones: the rollback of a tree of drafts.

        The first `count` positions of each row are used, by default all. On the CPU, positions that do not increase, or
        are not all cached after the first `length`, raise ValueError.
        """
        length = torch.zeros_like(self.lengths) + length
        count = torch.full_like(self.lengths, rows.shape[1]) if count is None else count
        order = torch.arange(rows.shape[1], device=rows.device)
        used, places = order < count.unsqueeze(1), length.unsqueeze(1) + order
        if self._is_on_cpu and self.kv_length is None:
            self._check_length(length)
            rising = (rows.diff(dim=1, prepend=length.unsqueeze(1) - 1) > 0) & (rows < self.lengths.unsqueeze(1))
            if not bool((rising | ~used).all()):
                raise ValueError(
                    f"rows: found {rows.tolist()}, expected increasing positions from {length.tolist()} to "
                    f"{(self.lengths - 1).tolist()}"
                )
        places = places.clamp(max=self.capacity - 1)
        rows = torch.where(used, rows, places)  # the others keep their places
        for arrays in (self.keys, self.values):
            next_positions = arrays.transpose(2, 3)
            next_positions[:, self._rows, places] = next_positions[:, self._rows, rows]
        self.lengths, self.equal_lengths = length + count, False
        if self._is_on_cpu and self.kv_length is None:
            self.measure()

    def select(
        self,
        rows: Tensor,  # [N]
    ) -> KVCache:
        """Return an independent cache of the given rows of the batch."""
        return self._like(self.keys[:, rows], self.values[:, rows], self.lengths[rows])

    def copy(self) -> KVCache:
        """Return an independent cache with the same contents."""
        return self._like(self.keys.clone(), self.values.clone(), self.lengths.clone())

    def agrees(self, other: KVCache) -> bool:
        """Return whether the common rows of two caches of one sequence are the same up to rounding."""
        length = min(int(self.lengths), int(other.lengths))
        pairs = ((self.keys, other.keys), (self.values, other.values))
        return all(same(mine[..., :length, :], yours[..., :length, :]) for mine, yours in pairs)

    @staticmethod
    def stack(caches: list[KVCache]) -> KVCache:
        """Return an independent cache whose rows are those of caches of equal capacity, one after the other."""
        twin = caches[0]._like(
            torch.cat([cache.keys for cache in caches], dim=1),
            torch.cat([cache.values for cache in caches], dim=1),
            torch.cat([cache.lengths for cache in caches]),
        )
        if not twin._is_on_cpu:
            twin.max_length = max(cache.max_length for cache in caches)
            twin.equal_lengths = all(cache.equal_lengths and cache.max_length == twin.max_length for cache in caches)
        return twin

    def _like(self, keys: Tensor, values: Tensor, lengths: Tensor) -> KVCache:
        """Return a cache of other rows, with what the host knows of this one."""
        twin = copy(self)
        twin.keys, twin.values, twin.lengths, twin._places, twin.doubt = keys, values, lengths, None, 0.0
        twin._rows = torch.arange(len(lengths), device=lengths.device).unsqueeze(1)
        if twin._is_on_cpu:
            twin.measure()
        return twin

    @property
    def _is_on_cpu(self) -> bool:
        """Whether the host can read the lengths without waiting for a device."""
        return is_on_cpu(self.lengths)

    def _check_length(self, length: Tensor) -> None:
        if bool(((length < 0) | (length > self.lengths)).any()):
            raise ValueError(
                f"length: found {length.tolist()}, expected 0 to {self.lengths.tolist()}, the number of cached "
                "positions"
            )

    def measure(self) -> None:
        """Read the lengths back, which makes `max_length` exact: on a device, a synchronisation."""
        self._places = None
        if self.kv_length is not None:
            return
        lengths = self.lengths.tolist()
        self.max_length = max(lengths, default=0)
        self.equal_lengths = lengths.count(self.max_length) == len(lengths)


def same(
    mine: Tensor,  # [...]
    yours: Tensor,  # [...]
) -> bool:
    """Return whether tensors are equal up to rounding: 4096 units in the last place of the largest number."""
    largest = mine.nan_to_num(0.0, 0.0, 0.0).abs().max().item() if mine.numel() else 0.0
    return torch.allclose(mine, yours, rtol=0.0, atol=4096 * torch.finfo(mine.dtype).eps * largest, equal_nan=True)
