"""The look-ahead adapter: a low-rank term on the linear layers, at look-ahead rows only.

Text rows do not pass through it, so the model's own distribution keeps every bit. Without an adapter this is PaSS.

Glossary of shapes: T rows of a pass, R rank, I inputs and O outputs of a linear layer.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Self

import numpy as np
import numpy.typing as npt

from ..model.config import ModelConfig
from ..model.layers import Array

HEADS = ("num_attention_heads", "num_key_value_heads", "head_dim")
SIZES = ("num_hidden_layers", "hidden_size", "intermediate_size", *HEADS)


@dataclass(frozen=True, eq=False)
class Part:
    """Trained matrices by their names, of either package: those of an adapter or of a head."""

    matrices: Mapping[str, Any]
    uses_lookahead: bool = True  # of a head; if not, every draft starts from the last text row's hidden state


class ArrayPart(Part):
    """A part in arrays of NumPy."""

    def to(self, dtype: npt.DTypeLike) -> Self:
        """Return the part in a dtype."""
        return replace(self, matrices={name: matrix.astype(dtype) for name, matrix in self.matrices.items()})


class AdapterTerms(Part):
    """The matrices of all layers, of either package, by layer, site and side: `0.output.down` and `0.output.up`.

    A site is a linear layer, or several of the same rows, which share one term as the port fuses them.
    """

    @property
    def rank(self) -> int:
        """R."""
        return int(self.matrices["0.output.down"].shape[0])


class Adapter(AdapterTerms, ArrayPart):
    """A term of rank R that is added to the output y of each linear layer: y + up (down x).

    Source: Samragh et al. 2025, "Your LLM Knows the Future" (arXiv 2507.11851), gated LoRA; Hu et al. 2021 (arXiv
    2106.09685) for the low rank.
    """

    def __call__(
        self,
        layer: int,
        site: str,
        x: Array,  # [..., I]
    ) -> Array:  # [..., O]
        """Return the term of some rows, without y."""
        down, up = (self.matrices[f"{layer}.{site}.{side}"] for side in ("down", "up"))
        found: Array = x @ down.T @ up.T
        return found

    @classmethod
    def random(cls, config: ModelConfig, rank: int, seed: int) -> Adapter:
        """Draw an untrained adapter that changes its rows; the same in both packages."""
        return cls(random_tensors(tensor_shapes(sizes_of(config), rank), seed))


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
