"""The look-ahead adapter: a low-rank term on the linear layers, at look-ahead rows only.

Text rows do not pass through it, so the model's own distribution keeps every bit. Without an adapter this is PaSS.

Glossary of shapes: R rank, I inputs and O outputs of a linear layer.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from pass_sampling.reference.lookahead.adapter import SIZES, AdapterTerms, random_tensors, sizes_of, tensor_shapes
from pass_sampling.reference.model.config import ModelConfig

__all__ = ["SIZES", "Adapter", "AdapterTerms", "random_tensors", "sizes_of", "tensor_shapes"]


class Adapter(AdapterTerms):
    """A term of rank R that is added to the output y of each linear layer: y + up (down x)."""

    def __call__(
        self,
        layer: int,
        site: str,
        x: Tensor,  # [..., I]
    ) -> Tensor:  # [..., O]
        """Return the term of some rows, without y."""
        down, up = (self.matrices[f"{layer}.{site}.{side}"] for side in ("down", "up"))
        return functional.linear(functional.linear(x, down), up)

    def to(self, dtype: torch.dtype, device: torch.device | str = "cpu") -> Adapter:
        """Return the adapter in a dtype, on a device."""
        return Adapter.of({name: tensor.to(device, dtype) for name, tensor in self.tensors().items()})

    @classmethod
    def random(cls, config: ModelConfig, rank: int, seed: int) -> Adapter:
        """Draw an untrained adapter that changes its rows; the same in both packages."""
        arrays = random_tensors(tensor_shapes(sizes_of(config), rank), seed)
        return cls.of({name: torch.from_numpy(array) for name, array in arrays.items()})
