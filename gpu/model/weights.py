"""The tensors of a model, fused for speed, and the table that says which checkpoint tensor is which.

Glossary of shapes: V vocabulary, D model, H heads, G kv-heads, E head size, F mlp.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch

from pass_sampling.reference.model.config import ModelConfig

Array = npt.NDArray[Any]


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
        config: ModelConfig,
        seed: int,
        dtype: torch.dtype = torch.float64,
        device: torch.device | str = "cpu",
    ) -> Weights:
        """Draw the numbers of the reference: one NumPy generator, in the order of `weight_table`."""
        generator = np.random.default_rng(seed)
        weights = allocate(config, dtype, device)
        for entry in weight_table(config):
            destination(weights, entry).copy_(torch.from_numpy(_draw(config, entry, generator)))
        return weights


class TensorEntry(NamedTuple):
    """One tensor of a checkpoint: its name and shape there, and the rows of the field that it fills here."""

    name: str
    shape: tuple[int, ...]
    layer: int | None  # None: a field of Weights itself
    field: str
    first_row: int = 0
    num_rows: int = 0  # rows of the field that are filled, where that is not all of them


def weight_table(config: ModelConfig) -> Iterator[TensorEntry]:
    """Yield every tensor of a Hugging Face checkpoint of this shape; a tied output projection is the embedding."""
    vocabulary, model, mlp = config.vocab_size, config.hidden_size, config.intermediate_size
    heads, kv_heads, head_dim = config.num_attention_heads, config.num_key_value_heads, config.head_dim
    yield TensorEntry("model.embed_tokens.weight", (vocabulary, model), None, "embedding")
    for layer in range(config.num_hidden_layers):
        prefix = f"model.layers.{layer}."
        yield TensorEntry(prefix + "input_layernorm.weight", (model,), layer, "attention_norm")
        for letter, first, count in (("q", 0, heads), ("k", heads, kv_heads), ("v", heads + kv_heads, kv_heads)):
            name = f"{prefix}self_attn.{letter}_"
            row, rows, field = first * head_dim, count * head_dim, "query_key_value"
            yield TensorEntry(name + "proj.weight", (rows, model), layer, field, row, rows)
            if config.attention_bias:
                yield TensorEntry(name + "proj.bias", (rows,), layer, field + "_bias", row, rows)
            if config.query_key_norm and letter != "v":
                yield TensorEntry(name + "norm.weight", (head_dim,), layer, "query_key_norm", first, count)
        yield TensorEntry(prefix + "self_attn.o_proj.weight", (model, heads * head_dim), layer, "output")
        if config.attention_output_bias:
            yield TensorEntry(prefix + "self_attn.o_proj.bias", (model,), layer, "output_bias")
        yield TensorEntry(prefix + "post_attention_layernorm.weight", (model,), layer, "mlp_norm")
        yield TensorEntry(prefix + "mlp.gate_proj.weight", (mlp, model), layer, "gate_up", 0, mlp)
        yield TensorEntry(prefix + "mlp.up_proj.weight", (mlp, model), layer, "gate_up", mlp, mlp)
        yield TensorEntry(prefix + "mlp.down_proj.weight", (model, mlp), layer, "down")
    yield TensorEntry("model.norm.weight", (model,), None, "norm")
    if not config.tie_word_embeddings:
        yield TensorEntry("lm_head.weight", (vocabulary, model), None, "output")


def allocate(
    config: ModelConfig,
    dtype: torch.dtype = torch.float64,
    device: torch.device | str = "cpu",
) -> Weights:
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


def _draw(config: ModelConfig, entry: TensorEntry, generator: np.random.Generator) -> Array:
    """Draw one tensor in float64."""
    normal: Array = generator.standard_normal(entry.shape)
    if entry.name.endswith("norm.weight"):
        return 1.0 + 0.1 * normal
    if entry.name.endswith(".bias"):
        return 0.1 * normal
    if entry.field == "embedding" and not config.tie_word_embeddings:
        return normal
    return normal / math.sqrt(entry.shape[-1])
