"""A language model that is a table, for tests: the rows of `reference.model.table`, over a batch and its cache."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from pass_sampling.reference.model.table import TableRows, pair_codes

from ..lookahead.vectors import LookAhead
from .cache import KVCache


class TableModel(TableRows):
    """Rows are hashed from the visible pairs (position, input vector), see `row`."""

    device = torch.device("cpu")
    dtype = torch.float64

    def lookahead(self) -> LookAhead:
        """Return this table's look-ahead vectors: the unit vectors that no token uses."""
        return LookAhead(torch.eye(self.hidden_size)[self.vocab_size :])

    def new_cache(self, capacity: int = 16, batch_size: int = 1) -> KVCache:
        """Return an empty cache whose keys are the input vectors themselves."""
        return KVCache(1, 1, self.hidden_size, self.dtype, capacity, batch_size)

    def embed(
        self,
        tokens: Tensor | Sequence[Sequence[int]],  # [B, T]
    ) -> Tensor:  # [B, T, D]
        """Return the unit vector of each token."""
        return torch.eye(self.hidden_size, dtype=self.dtype)[torch.as_tensor(tokens)]

    def hidden(
        self,
        inputs: Tensor,  # [B, T, D]
        cache: KVCache,
        positions: Tensor | None = None,  # [B, T]
        visible: Tensor | None = None,  # [T, T], or [B, T, T]
    ) -> Tensor:  # [B, T, V]
        """Return each row's logits: for a table, the hidden states are the answer already."""
        num_rows = inputs.shape[1]
        cache_positions = cache.next_positions(num_rows)
        if visible is None:
            visible = torch.ones((num_rows, num_rows), dtype=torch.bool).tril()
        keys, _ = cache.write(0, inputs.unsqueeze(1), inputs.unsqueeze(1), cache_positions)
        places = torch.arange(keys.shape[2]).expand(len(inputs), -1)
        row = places - cache.lengths.unsqueeze(1)  # the row of the pass at each position
        column = row.clamp(0, num_rows - 1).unsqueeze(1).expand(-1, num_rows, -1)
        seen = visible.expand(len(inputs), -1, -1).gather(2, column)  # [B, T, S]
        in_sight = (row < 0).unsqueeze(1) | (((row >= 0) & (row < num_rows)).unsqueeze(1) & seen)
        rotary = places if positions is None else places.scatter(1, cache_positions, positions)
        known = keys[:, 0].masked_fill(~in_sight.any(dim=1).unsqueeze(2), 0.0)  # scratch may hold anything
        codes = pair_codes(known.numpy(), rotary.numpy())[:, None] * in_sight.numpy()
        cache.advance(num_rows)
        return torch.from_numpy(self.row(codes.sum(axis=-1, dtype=np.uint64)))
