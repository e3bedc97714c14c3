"""The look-ahead adapter: a low-rank term on the linear layers, at look-ahead rows only.

Text rows do not pass through it, so the model's own distribution keeps every bit. Without an adapter this is PaSS.

Glossary of shapes: T rows of a pass, R rank, I inputs and O outputs of a linear layer.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any, ClassVar, Self

import numpy as np
import numpy.typing as npt

from ..model.config import ModelConfig
from ..model.layers import Array

HEADS = ("num_attention_heads", "num_key_value_heads", "head_dim")
SIZES = ("num_hidden_layers", "hidden_size", "intermediate_size", *HEADS)


@dataclass(frozen=True, eq=False)
class LayerAdapter:
    """The terms of one layer. Projections of the same rows share one term, as the port fuses them."""

    query_key_value: Any
    output: Any
    gate_up: Any
    down: Any


SITES = tuple(field.name for field in fields(LayerAdapter))


@dataclass(frozen=True, eq=False)
class AdapterTerms:
    """The terms of all layers, of either package."""

    layers: tuple[LayerAdapter, ...]
    kinds: ClassVar[tuple[Any]]  # the package's class of terms

    def __call__(self, layer: int, site: str, x: Any) -> Any:
        """Return the term of one linear layer, which a transformer adds at its last rows."""
        return getattr(self.layers[layer], site)(x)

    @property
    def rank(self) -> int:
        """R."""
        return int(self.tensors()["0.output.down"].shape[0])

    @classmethod
    def of(cls, tensors: Mapping[str, Any]) -> Self:
        """Return the adapter whose tensors have these names; see `tensors`."""
        layers = []
        for i in sorted({int(name.split(".")[0]) for name in tensors}):
            sides = {site: (tensors[f"{i}.{site}.down"], tensors[f"{i}.{site}.up"]) for site in SITES}
            layers.append(LayerAdapter(**{site: cls.kinds[0](*pair) for site, pair in sides.items()}))
        return cls(tuple(layers))

    def tensors(self) -> dict[str, Any]:
        """Return every tensor by its name: layer, site in it, and side."""
        return {
            f"{i}.{site}.{side}": getattr(getattr(layer, site), side)
            for i, layer in enumerate(self.layers)
            for site in SITES
            for side in ("down", "up")
        }


@dataclass(frozen=True, eq=False)
class LowRank:
    """A term of rank R that is added to a linear layer: y + up (down x)."""

    down: Array  # [R, I]
    up: Array  # [O, R]

    def __call__(
        self,
        x: Array,  # [..., I]
    ) -> Array:  # [..., O]
        """Return the term, without y."""
        return x @ self.down.T @ self.up.T


class Adapter(AdapterTerms):
    """The terms of all layers.

    Source: Samragh et al. 2025, "Your LLM Knows the Future" (arXiv 2507.11851), gated LoRA; Hu et al. 2021 (arXiv
    2106.09685) for the low rank.
    """

    kinds = (LowRank,)

    def to(self, dtype: npt.DTypeLike) -> Adapter:
        """Return the adapter in a dtype."""
        return Adapter.of({name: tensor.astype(dtype) for name, tensor in self.tensors().items()})

    @classmethod
    def random(cls, config: ModelConfig, rank: int, seed: int) -> Adapter:
        """Draw an untrained adapter that changes its rows; the same in both packages."""
        return cls.of(random_tensors(tensor_shapes(sizes_of(config), rank), seed))


def random_tensors(shapes: Mapping[str, tuple[int, int]], seed: int) -> dict[str, npt.NDArray[np.float32]]:
    """Draw untrained matrices in the order of their names."""
    generator = np.random.default_rng(seed)
    drawn = {name: generator.standard_normal(shape) / shape[1] ** 0.5 for name, shape in shapes.items()}
    return {name: array.astype(np.float32) for name, array in drawn.items()}


def sizes_of(config: ModelConfig) -> dict[str, int]:
    """Return the sizes of a model that its adapters depend on, under config.json's names."""
    return {name: getattr(config, name) for name in SIZES}


def tensor_shapes(sizes: Mapping[str, int], rank: int) -> dict[str, tuple[int, int]]:
    """Return the shape of every tensor of an adapter, by its name."""
    heads = sizes["num_attention_heads"] * sizes["head_dim"]
    groups = sizes["num_key_value_heads"] * sizes["head_dim"]
    width, inner = sizes["hidden_size"], sizes["intermediate_size"]
    layer = {  # outputs and inputs of each linear layer
        "query_key_value": (heads + 2 * groups, width),
        "output": (width, heads),
        "gate_up": (2 * inner, width),
        "down": (width, inner),
    }
    return {
        f"{i}.{site}.{side}": shape
        for i in range(sizes["num_hidden_layers"])
        for site, (num_out, num_in) in layer.items()
        for side, shape in (("down", (rank, num_in)), ("up", (num_out, rank)))
    }
