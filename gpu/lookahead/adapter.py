"""The look-ahead adapter: a low-rank term on the linear layers, at look-ahead rows only.

Text rows never meet it, so the model's own distribution is untouched, to the last bit. Rank 0, or no adapter, is PaSS.

Glossary of shapes: B batch, T rows of a pass, R rank, I inputs and O outputs of a linear layer.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from pass_sampling.reference.model.config import ModelConfig

HEADS = ("num_attention_heads", "num_key_value_heads", "head_dim")
SIZES = ("num_hidden_layers", "hidden_size", "intermediate_size", *HEADS)


@dataclass(frozen=True, eq=False)
class LowRank:
    """A term of rank R beside a linear layer: y + up (down x)."""

    down: Tensor  # [R, I]
    up: Tensor  # [O, R]

    def __call__(
        self,
        x: Tensor,  # [..., I]
    ) -> Tensor:  # [..., O]
        """Return the term alone."""
        return functional.linear(functional.linear(x, self.down), self.up)


@dataclass(frozen=True, eq=False)
class LayerAdapter:
    """The terms of one layer, beside the projections as they are fused in `weights`."""

    query_key_value: LowRank
    output: LowRank
    gate_up: LowRank
    down: LowRank


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
        """Return the term beside one linear layer, alone: what a transformer adds at its last rows."""
        term: LowRank = getattr(self.layers[layer], site)
        return term(x)

    @property
    def rank(self) -> int:
        """R."""
        return self.tensors()["0.output.down"].shape[0]

    @staticmethod
    def of(tensors: Mapping[str, Tensor]) -> Adapter:
        """Return the adapter whose tensors have these names; see `tensors`."""
        numbers = sorted({int(name.split(".")[0]) for name in tensors})
        sites = [field.name for field in fields(LayerAdapter)]
        return Adapter(
            tuple(
                LayerAdapter(
                    **{site: LowRank(tensors[f"{i}.{site}.down"], tensors[f"{i}.{site}.up"]) for site in sites}
                )
                for i in numbers
            )
        )

    def tensors(self) -> dict[str, Tensor]:
        """Return every tensor by its name: layer, place in it, and side."""
        return {
            f"{i}.{field.name}.{side}": getattr(getattr(layer, field.name), side)
            for i, layer in enumerate(self.layers)
            for field in fields(LayerAdapter)
            for side in ("down", "up")
        }

    def to(self, dtype: torch.dtype, device: torch.device | str = "cpu") -> Adapter:
        """Return the adapter in a dtype, on a device."""
        return Adapter.of({name: tensor.to(device, dtype) for name, tensor in self.tensors().items()})

    @staticmethod
    def random(config: ModelConfig, rank: int, seed: int) -> Adapter:
        """Draw an untrained adapter that changes its rows; the same in both packages."""
        generator = np.random.default_rng(seed)
        return Adapter.of(
            {
                name: torch.from_numpy(generator.standard_normal(shape) / shape[1] ** 0.5).float()
                for name, shape in tensor_shapes(sizes_of(config), rank).items()
            }
        )


def sizes_of(config: ModelConfig) -> dict[str, int]:
    """Return the sizes of a model that its adapters depend on, under config.json's names."""
    return {name: getattr(config, name) for name in SIZES}


def shapes(sizes: Mapping[str, int]) -> dict[str, tuple[int, int]]:
    """Return outputs and inputs of every linear layer that has a term, by layer and place."""
    heads = sizes["num_attention_heads"] * sizes["head_dim"]
    groups = sizes["num_key_value_heads"] * sizes["head_dim"]
    width, inner = sizes["hidden_size"], sizes["intermediate_size"]
    sites = {
        "query_key_value": (heads + 2 * groups, width),
        "output": (width, heads),
        "gate_up": (2 * inner, width),
        "down": (width, inner),
    }
    return {f"{i}.{site}": shape for i in range(sizes["num_hidden_layers"]) for site, shape in sites.items()}


def tensor_shapes(sizes: Mapping[str, int], rank: int) -> dict[str, tuple[int, int]]:
    """Return the shape of every tensor of an adapter, by its name."""
    return {
        f"{name}.{side}": shape
        for name, (num_out, num_in) in shapes(sizes).items()
        for side, shape in (("down", (rank, num_in)), ("up", (num_out, rank)))
    }
