"""The look-ahead adapter: a low-rank term on the linear layers, at look-ahead rows only.

Text rows do not pass through it, so the model's own distribution keeps every bit. Without an adapter this is PaSS.

Glossary of shapes: B batch, T rows of a pass, R rank, I inputs and O outputs of a linear layer.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from pass_sampling.reference.lookahead.adapter import SIZES, sizes_of, tensor_shapes
from pass_sampling.reference.model.config import ModelConfig

__all__ = ["SIZES", "Adapter", "LayerAdapter", "LowRank", "sizes_of", "tensor_shapes"]


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


@dataclass(frozen=True, eq=False)
class LayerAdapter:
    """The terms of one layer. Projections of the same rows share one term, as `weights` fuses them."""

    query_key_value: LowRank
    output: LowRank
    gate_up: LowRank
    down: LowRank


SITES = tuple(field.name for field in fields(LayerAdapter))


@dataclass(frozen=True, eq=False)
class Adapter:
    """The terms of all layers.

    Source: Samragh et al. 2025, "Your LLM Knows the Future" (arXiv 2507.11851), gated LoRA; Hu et al. 2021 (arXiv
    2106.09685) for the low rank.
    """

    layers: tuple[LayerAdapter, ...]

    def __call__(
        self,
        layer: int,
        site: str,
        x: Tensor,  # [..., I]
    ) -> Tensor:  # [..., O]
        """Return the term of one linear layer, which a transformer adds at its last rows."""
        term: LowRank = getattr(self.layers[layer], site)
        return term(x)

    @property
    def rank(self) -> int:
        """R."""
        return self.tensors()["0.output.down"].shape[0]

    @staticmethod
    def of(tensors: Mapping[str, Tensor]) -> Adapter:
        """Return the adapter whose tensors have these names; see `tensors`."""
        layers = []
        for i in sorted({int(name.split(".")[0]) for name in tensors}):
            terms = {site: LowRank(tensors[f"{i}.{site}.down"], tensors[f"{i}.{site}.up"]) for site in SITES}
            layers.append(LayerAdapter(**terms))
        return Adapter(tuple(layers))

    def tensors(self) -> dict[str, Tensor]:
        """Return every tensor by its name: layer, site in it, and side."""
        return {
            f"{i}.{site}.{side}": getattr(getattr(layer, site), side)
            for i, layer in enumerate(self.layers)
            for site in SITES
            for side in ("down", "up")
        }

    def to(self, dtype: torch.dtype, device: torch.device | str = "cpu") -> Adapter:
        """Return the adapter in a dtype, on a device."""
        return Adapter.of({name: tensor.to(device, dtype) for name, tensor in self.tensors().items()})

    @staticmethod
    def random(config: ModelConfig, rank: int, seed: int) -> Adapter:
        """Draw an untrained adapter that changes its rows; the same in both packages."""
        generator, shapes = np.random.default_rng(seed), tensor_shapes(sizes_of(config), rank)
        return Adapter.of(
            {
                name: torch.from_numpy(generator.standard_normal(shape) / shape[1] ** 0.5).float()
                for name, shape in shapes.items()
            }
        )
