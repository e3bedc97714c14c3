"""The look-ahead adapter: a low-rank term on the linear layers, at look-ahead rows only.

Text rows do not pass through it, so the model's own distribution keeps every bit. Without an adapter this is PaSS.

Glossary of shapes: R rank, I inputs and O outputs of a linear layer.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from pass_sampling.reference.lookahead.adapter import (
    SIZES,
    AdapterTerms,
    LayerAdapter,
    random_tensors,
    sizes_of,
    tensor_shapes,
)
from pass_sampling.reference.model.config import ModelConfig

__all__ = ["SIZES", "Adapter", "AdapterTerms", "LayerAdapter", "LowRank", "random_tensors", "sizes_of", "tensor_shapes"]


@dataclass(frozen=True, eq=False)
class LowRank:
    """A term of rank R that is added to a linear layer: y + up (down x)."""

    down: Tensor  # [R, I]
    up: Tensor  # [O, R]

    def __call__(
        self,
        x: Tensor,  # [..., I]
    ) -> Tensor:  # [..., O]
        """Return the term, without y."""
        return functional.linear(functional.linear(x, self.down), self.up)


class Adapter(AdapterTerms):
    """The terms of all layers; sources in the reference."""

    kinds = (LowRank,)

    def to(self, dtype: torch.dtype, device: torch.device | str = "cpu") -> Adapter:
        """Return the adapter in a dtype, on a device."""
        return Adapter.of({name: tensor.to(device, dtype) for name, tensor in self.tensors().items()})

    @classmethod
    def random(cls, config: ModelConfig, rank: int, seed: int) -> Adapter:
        """Draw an untrained adapter that changes its rows; the same in both packages."""
        arrays = random_tensors(tensor_shapes(sizes_of(config), rank), seed)
        return cls.of({name: torch.from_numpy(array) for name, array in arrays.items()})
