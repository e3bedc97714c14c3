"""The arrays of a model, and the table of the checkpoint tensors that fill them.

Glossary of shapes: V vocabulary, D model, H heads, G kv-heads, E head size, F mlp.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from .config import ModelConfig

Array = npt.NDArray[Any]


@dataclass(frozen=True, eq=False)
class LayerWeights:
    """The arrays of one layer; a linear layer computes `x @ weight.T`."""

    attention_norm: Array  # [D]
    query: Array  # [H*E, D]
    key: Array  # [G*E, D]
    value: Array  # [G*E, D]
    output: Array  # [D, H*E]
    mlp_norm: Array  # [D]
    gate: Array  # [F, D]
    up: Array  # [F, D]
    down: Array  # [D, F]
    query_bias: Array | None = None  # [H*E]
    key_bias: Array | None = None  # [G*E]
    value_bias: Array | None = None  # [G*E]
    output_bias: Array | None = None  # [D]
    query_norm: Array | None = None  # [E]
    key_norm: Array | None = None  # [E]


@dataclass(frozen=True, eq=False)
class Weights:
    """All arrays of a model."""

    embedding: Array  # [V, D]
    layers: tuple[LayerWeights, ...]
    norm: Array  # [D]
    output: Array  # [V, D], the very array `embedding` when the two are tied

    @staticmethod
    def random(config: ModelConfig, seed: int, dtype: npt.DTypeLike = np.float64) -> Weights:
        """Draw weights for which logits are of order 1 and differ from row to row.

        The numbers are the same in both packages: one NumPy generator, drawn in the order of `weight_table`.
        """
        generator = np.random.default_rng(seed)
        weights = allocate(config, dtype)
        for entry in weight_table(config):
            destination(weights, entry)[...] = draw(config, entry.name, entry.shape, generator)
        return weights


class TensorEntry(NamedTuple):
    """One tensor of a checkpoint: its name and shape there, and the field that it fills here."""

    name: str
    shape: tuple[int, ...]
    layer: int | None  # None: a field of Weights itself
    field: str


def weight_table(config: ModelConfig) -> Iterator[TensorEntry]:
    """Yield every tensor of a Hugging Face checkpoint of this shape; a tied output projection is the embedding."""
    vocabulary, model, mlp = config.vocab_size, config.hidden_size, config.intermediate_size
    queries, keys = config.num_attention_heads * config.head_dim, config.num_key_value_heads * config.head_dim
    yield TensorEntry("model.embed_tokens.weight", (vocabulary, model), None, "embedding")
    for layer in range(config.num_hidden_layers):
        prefix = f"model.layers.{layer}."
        yield TensorEntry(prefix + "input_layernorm.weight", (model,), layer, "attention_norm")
        for field, rows in (("query", queries), ("key", keys), ("value", keys)):
            name = f"{prefix}self_attn.{field[0]}_"
            yield TensorEntry(name + "proj.weight", (rows, model), layer, field)
            if config.attention_bias:
                yield TensorEntry(name + "proj.bias", (rows,), layer, field + "_bias")
            if config.query_key_norm and field != "value":
                yield TensorEntry(name + "norm.weight", (config.head_dim,), layer, field + "_norm")
        yield TensorEntry(prefix + "self_attn.o_proj.weight", (model, queries), layer, "output")
        if config.attention_output_bias:
            yield TensorEntry(prefix + "self_attn.o_proj.bias", (model,), layer, "output_bias")
        yield TensorEntry(prefix + "post_attention_layernorm.weight", (model,), layer, "mlp_norm")
        yield TensorEntry(prefix + "mlp.gate_proj.weight", (mlp, model), layer, "gate")
        yield TensorEntry(prefix + "mlp.up_proj.weight", (mlp, model), layer, "up")
        yield TensorEntry(prefix + "mlp.down_proj.weight", (model, mlp), layer, "down")
    yield TensorEntry("model.norm.weight", (model,), None, "norm")
    if not config.tie_word_embeddings:
        yield TensorEntry("lm_head.weight", (vocabulary, model), None, "output")


def allocate(config: ModelConfig, dtype: npt.DTypeLike = np.float64) -> Weights:
    """Return arrays of the right shapes whose contents are still to be written."""
    top: dict[str, Array] = {}
    layers: list[dict[str, Array]] = [{} for _ in range(config.num_hidden_layers)]
    for entry in weight_table(config):
        fields = top if entry.layer is None else layers[entry.layer]
        fields[entry.field] = np.empty(entry.shape, dtype)
    top.setdefault("output", top["embedding"])
    return Weights(layers=tuple(LayerWeights(**fields) for fields in layers), **top)


def destination(weights: Weights, entry: TensorEntry) -> Array:  # [...]
    """Return the array that a checkpoint tensor fills."""
    array: Array = getattr(weights if entry.layer is None else weights.layers[entry.layer], entry.field)
    return array


def draw(
    config: ModelConfig, name: str, shape: tuple[int, ...], generator: np.random.Generator
) -> npt.NDArray[np.float64]:  # [...]
    """Draw a tensor in float64: norms near 1, small biases, projections that keep the size of an input."""
    normal: npt.NDArray[np.float64] = generator.standard_normal(shape)
    if name.endswith("norm.weight"):
        return 1.0 + 0.1 * normal
    if name.endswith(".bias"):
        return 0.1 * normal
    if name == "model.embed_tokens.weight" and not config.tie_word_embeddings:
        return normal
    return normal / math.sqrt(shape[-1])


def check_dtype(dtype: Any) -> np.dtype[Any]:
    """Return the NumPy dtype, given as one or by name; raise ValueError if no model can be loaded in it."""
    try:
        name = dtype if isinstance(dtype, str) else np.dtype(dtype).name
    except TypeError:
        name = str(dtype)
    if name not in ("float64", "float32"):
        raise ValueError(f"dtype: found {name:.80}, expected float64 or float32")
    return np.dtype(name)
