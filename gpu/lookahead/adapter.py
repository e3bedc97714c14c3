"""The look-ahead adapter: a low-rank term on the linear layers, at look-ahead rows only.

Text rows do not pass through it, so the model's own distribution keeps every bit. Without an adapter this is PaSS.

Glossary of shapes: R rank, I inputs and O outputs of a linear layer.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Self

import torch
from torch import Tensor
from torch.nn import functional

from pass_sampling.reference.lookahead.adapter import SIZES, AdapterTerms, Part, random_tensors, sizes_of, tensor_shapes
from pass_sampling.reference.model.config import ModelConfig

__all__ = ["SIZES", "Adapter", "ArrayPart"]


class ArrayPart(Part):
    """A part in tensors of PyTorch."""

    def to(self, dtype: torch.dtype, device: torch.device | str = "cpu") -> Self:
        """Return the part in a dtype, on a device."""
        return replace(self, matrices={name: matrix.to(device, dtype) for name, matrix in self.matrices.items()})

    @classmethod
    def drawn(cls, shapes: Mapping[str, tuple[int, int]], seed: int, uses_lookahead: bool = True) -> Self:
        """Return an untrained part with the numbers of the reference."""
        arrays = random_tensors(shapes, seed)
        return cls({name: torch.from_numpy(array) for name, array in arrays.items()}, uses_lookahead)


class Adapter(AdapterTerms, ArrayPart):
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

    @classmethod
    def random(cls, config: ModelConfig, rank: int, seed: int) -> Adapter:
        """Draw an untrained adapter that changes its rows; the same in both packages."""
        return cls.drawn(tensor_shapes(sizes_of(config), rank), seed)
