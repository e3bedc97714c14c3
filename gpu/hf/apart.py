"""A pass of transformers in which rows are not finite, and rows that do not attend to them are right.

Glossary of shapes: G key/value heads, T rows of the pass, S slots (cached and of the pass), E size of a key, E_v of a
value, D' hidden state.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from transformers import DynamicCache

__all__ = ["Apart"]


class Apart(DynamicCache):
    """A cache that stores keys and values that are not finite as zeros, for one pass over another cache's layers.

    A masked NaN would change every row, as 0 times NaN is NaN. Rows that attend to one become NaN afterwards.
    """

    def __init__(self, cache: DynamicCache):
        """Take over the layers of a cache."""
        vars(self).update(vars(cache))
        self.overflowed: list[Tensor] = []  # of each layer, [1, T]

    def update(
        self,
        key_states: Tensor,  # [1, G, T, E]
        value_states: Tensor,  # [1, G, T, E_v]
        *args: Any,
        **named: Any,
    ) -> tuple[Tensor, Tensor]:  # [1, G, S, E], [1, G, S, E_v]
        """Cache one layer's rows of the pass."""
        finite = [each.isfinite().all(dim=-1).all(dim=1) for each in (key_states, value_states)]
        self.overflowed.append(~(finite[0] & finite[1]))
        keys, values = (each.nan_to_num(0.0, 0.0, 0.0) for each in (key_states, value_states))
        return super().update(keys, values, *args, **named)

    def spoil(
        self,
        hidden: Tensor,  # [1, T, D']
        visible: Tensor | None,  # [T, T], or [T, S]
    ) -> Tensor:  # [1, T, D']
        """Return the rows of the pass, NaN for those that attend to keys or values that were not finite."""
        num_rows = hidden.shape[1]
        if visible is None:
            visible = torch.ones((num_rows, num_rows), dtype=torch.bool, device=hidden.device).tril()
        overflowed = torch.stack([each.to(hidden.device) for each in self.overflowed]).any(dim=0)
        return hidden.masked_fill((visible[:, -num_rows:] & overflowed).any(dim=1).unsqueeze(1), float("nan"))
