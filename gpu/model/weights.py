"""The tensors of a model, fused for speed, and the table of the checkpoint tensors that fill them.

Glossary of shapes: V vocabulary, D model, H heads, G kv-heads, E head size, F mlp.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch

from pass_sampling.reference.model import weights as reference
from pass_sampling.reference.model.config import ModelConfig


@dataclass(frozen=True, eq=False)
class LayerWeights:
    """The tensors of one layer; a linear layer computes `x @ weight.T`."""

    attention_norm: torch.Tensor  # [D]
    query_key_value: torch.Tensor  # [(H+2G)*E, D], rows of query, then key, then value
    output: torch.Tensor  # [D, H*E]
    mlp_norm: torch.Tensor  # [D]
    gate_up: torch.Tensor  # [2F, D], rows of gate, then up
    down: torch.Tensor  # [D, F]
    query_key_value_bias: torch.Tensor | None = None  # [(H+2G)*E]
    output_bias: torch.Tensor | None = None  # [D]
    query_key_norm: torch.Tensor | None = None  # [H+G, E], the query norm H times, the key norm G times


@dataclass(frozen=True, eq=False)
class Weights:
    """All tensors of a model."""

    embedding: torch.Tensor  # [V, D]
    layers: tuple[LayerWeights, ...]
    norm: torch.Tensor  # [D]
    output: torch.Tensor  # [V, D], the very tensor `embedding` when the two are tied

    @staticmethod
    def random(
        config: ModelConfig, seed: int, dtype: torch.dtype = torch.float64, device: torch.device | str = "cpu"
    ) -> Weights:
        """Draw the numbers of the reference: one NumPy generator, in the order of `weight_table`."""
        generator = np.random.default_rng(seed)
        weights = allocate(config, dtype, device)
        for entry in weight_table(config):
            drawn = reference.draw(config, entry.name, entry.shape, generator)
            destination(weights, entry).copy_(torch.from_numpy(drawn))
        return weights


class TensorEntry(NamedTuple):
    """One tensor of a checkpoint: its name and shape there, and the rows of the field that it fills here."""

    name: str
    shape: tuple[int, ...]
    layer: int | None  # None: a field of Weights itself
    field: str
    first_row: int = 0
    num_rows: int = 0  # rows of the field that are filled; 0 means all


def weight_table(config: ModelConfig) -> Iterator[TensorEntry]:
    """Yield every tensor of a Hugging Face checkpoint of this shape: those of the reference, in fused fields."""
    heads, kv_heads, mlp = config.num_attention_heads, config.num_key_value_heads, config.intermediate_size
    fused = {"gate": ("gate_up", 0, mlp), "up": ("gate_up", mlp, mlp)}
    for field, first, count in (("query", 0, heads), ("key", heads, kv_heads), ("value", heads + kv_heads, kv_heads)):
        rows = first * config.head_dim, count * config.head_dim
        fused[field] = ("query_key_value", *rows)
        fused[field + "_bias"] = ("query_key_value_bias", *rows)
        fused[field + "_norm"] = ("query_key_norm", first, count)
    for name, shape, layer, field in reference.weight_table(config):
        yield TensorEntry(name, shape, layer, *fused.get(field, (field,)))


def allocate(config: ModelConfig, dtype: torch.dtype = torch.float64, device: torch.device | str = "cpu") -> Weights:
    """Return tensors of the right shapes whose contents are still to be written."""
    top: dict[str, tuple[int, ...]] = {}
    layers: list[dict[str, tuple[int, ...]]] = [{} for _ in range(config.num_hidden_layers)]
    for entry in weight_table(config):
        shapes = top if entry.layer is None else layers[entry.layer]
        rows = entry.first_row + entry.num_rows or entry.shape[0]
        columns = entry.shape if entry.field == "query_key_norm" else entry.shape[1:]
        shapes[entry.field] = (rows, *columns)

    def empty(shapes: dict[str, tuple[int, ...]]) -> dict[str, Any]:
        return {field: torch.empty(shape, dtype=dtype, device=device) for field, shape in shapes.items()}

    fields = empty(top)
    fields.setdefault("output", fields["embedding"])
    return Weights(layers=tuple(LayerWeights(**empty(shapes)) for shapes in layers), **fields)


def destination(weights: Weights, entry: TensorEntry) -> torch.Tensor:  # [...]
    """Return the rows that a checkpoint tensor fills; a norm of [E] fills each of its rows."""
    tensor: torch.Tensor = getattr(weights if entry.layer is None else weights.layers[entry.layer], entry.field)
    return tensor.narrow(0, entry.first_row, entry.num_rows) if entry.num_rows else tensor
