"""A Llama-family transformer: embeddings and a KV cache in, logits out."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from .cache import KVCache
from .config import ModelConfig
from .layers import Array, Mask, attention, rms_norm, rope, rope_frequencies, rope_tables, swiglu

if TYPE_CHECKING:
    from .weights import LayerWeights, Weights

Inputs = npt.NDArray[np.integer] | npt.NDArray[np.floating] | Sequence[int]
Terms = Callable[[int, str, Array], Array]
"""The term `(layer, site, rows [N, I]) -> [N, O]` that is added to what a linear layer makes of some rows."""


class Transformer:
    """A frozen language model. One pass: `logits(hidden(embed(tokens), cache))`."""

    def __init__(
        self,
        config: ModelConfig,
        weights: Weights,
        eos_token_ids: tuple[int, ...] = (),
        fingerprint: str | None = None,
        name: str = "",
        stop_strings: tuple[str, ...] = (),
    ):
        """Keep the weights; `fingerprint` and `name` identify their checkpoint."""
        self.config, self.weights = config, weights
        self.eos_token_ids, self.stop_strings = eos_token_ids, stop_strings
        self.fingerprint, self.name = fingerprint, name
        self.vocab_size, self.hidden_size = config.vocab_size, config.hidden_size
        self.max_position_embeddings = config.max_position_embeddings
        self._frequencies = rope_frequencies(config)

    def new_cache(self, capacity: int = 16) -> KVCache:
        """Return an empty cache of this model's shape."""
        shape = self.config.num_hidden_layers, self.config.num_key_value_heads, self.config.head_dim
        return KVCache(*shape, self.weights.embedding.dtype, capacity)

    def embed(
        self,
        tokens: npt.NDArray[np.integer] | Sequence[int],  # [T]
    ) -> Array:  # [T, D]
        """Look up the input vector of each token."""
        return self.weights.embedding[np.asarray(tokens, dtype=np.int64)]

    @np.errstate(over="ignore", invalid="ignore")  # an overflow shows in the logits
    def hidden(
        self,
        inputs: Array,  # [T, D]
        cache: KVCache,
        positions: npt.NDArray[np.integer] | None = None,  # [T]
        visible: Mask | None = None,  # [T, T], or [T, S]
        adapter: Terms | None = None,
        num_adapted: int = 0,
    ) -> Array:  # [T, D]
        """Run one pass after the cached positions and return the last hidden states, ready for `logits`.

        Every row attends to all cached positions, and to the rows of this pass that `visible` marks (default: itself
        and those before it); a mask with S columns marks cached positions as well. `positions` are the rotary positions
        (default: those following the cache). A layer with a sliding window w hides keys w or more positions back. The
        rows of the pass are appended to the cache. The adapter's terms are added to the outputs of linear layers for
        the last `num_adapted` rows; the sites are query_key_value, output, gate_up and down.

        Cost: one read of the weights, plus a read of the cache.
        """
        num_rows, start = inputs.shape[0], cache.length
        if positions is None:
            positions = np.arange(start, start + num_rows)
        if visible is None:
            visible = np.tri(num_rows, dtype=np.bool_)
        if visible.shape[1] == num_rows:
            visible = np.concatenate([np.ones((num_rows, start), dtype=np.bool_), visible], axis=1)
        distance = positions[:, None] - np.concatenate([np.arange(start), positions])
        cos, sin = (table.astype(inputs.dtype) for table in rope_tables(self._frequencies, positions))

        def adapted(i: int, site: str, x: Array, y: Array) -> Array:
            if adapter is not None and num_adapted:
                y[-num_adapted:] += adapter(i, site, x[-num_adapted:])  # the other rows keep every bit
            return y

        x = inputs
        for i, layer in enumerate(self.weights.layers):
            window = self.config.window(i)
            mask = visible if window is None else visible & (distance < window)
            normed = rms_norm(x, layer.attention_norm, self.config.rms_norm_eps)
            heads = adapted(i, "query_key_value", normed, self._heads_of(normed, layer))
            queries, keys, values = self._split(heads, layer, cos, sin)
            keys, values = cache.write(i, keys, values)
            mixed = attention(queries, keys, values, None if mask.all() else mask)
            x = x + adapted(i, "output", mixed, _linear(mixed, layer.output, layer.output_bias))
            normed = rms_norm(x, layer.mlp_norm, self.config.rms_norm_eps)
            gate_up = np.concatenate([normed @ layer.gate.T, normed @ layer.up.T], axis=1)
            gate, up = np.split(adapted(i, "gate_up", normed, gate_up), 2, axis=1)
            inner = swiglu(gate, up)
            x = x + adapted(i, "down", inner, inner @ layer.down.T)
        cache.advance(num_rows)
        return rms_norm(x, self.weights.norm, self.config.rms_norm_eps)

    def logits(
        self,
        hidden: Array,  # [..., D]
    ) -> Array:  # [..., V]
        """Project hidden states to one logit per token."""
        return hidden @ self.weights.output.T

    def logits_of(
        self,
        hidden: Array,  # [..., D]
        tokens: npt.NDArray[np.integer],  # [N]
    ) -> Array:  # [..., N]
        """Project hidden states to the logits of some tokens."""
        found: Array = hidden @ self.weights.output[tokens].T
        return found

    def forward(
        self,
        inputs: Inputs,  # [T] tokens or [T, D] embeddings
        cache: KVCache | None = None,
        positions: npt.NDArray[np.integer] | None = None,  # [T]
        visible: Mask | None = None,  # [T, T], or [T, S]
    ) -> Array:  # [T, V]
        """Return the logits after every row of a pass over tokens, or over embeddings."""
        rows = np.asarray(inputs)
        if rows.ndim == 1:
            rows = self.embed(rows)
        return self.logits(self.hidden(rows, self.new_cache() if cache is None else cache, positions, visible))

    def _heads_of(
        self,
        normed: Array,  # [T, D]
        layer: LayerWeights,
    ) -> Array:  # [T, (H+2G)*E]
        """Project rows to queries, keys and values, one after the other."""
        queries = _linear(normed, layer.query, layer.query_bias)
        keys = _linear(normed, layer.key, layer.key_bias)
        return np.concatenate([queries, keys, _linear(normed, layer.value, layer.value_bias)], axis=1)

    def _split(
        self,
        heads: Array,  # [T, (H+2G)*E]
        layer: LayerWeights,
        cos: Array,  # [T, E/2]
        sin: Array,  # [T, E/2]
    ) -> tuple[Array, Array, Array]:  # [H, T, E], [G, T, E], [G, T, E]
        """Make rotated queries and keys, and values, one row of heads each."""
        num_heads, num_groups = self.config.num_attention_heads, self.config.num_key_value_heads
        rows = heads.reshape(heads.shape[0], -1, self.config.head_dim).transpose(1, 0, 2)
        queries, keys, values = np.split(rows, [num_heads, num_heads + num_groups])
        if layer.query_norm is not None and layer.key_norm is not None:
            queries = rms_norm(queries, layer.query_norm, self.config.rms_norm_eps)
            keys = rms_norm(keys, layer.key_norm, self.config.rms_norm_eps)
        return rope(queries, cos, sin), rope(keys, cos, sin), values


def _linear(x: Array, weight: Array, bias: Array | None) -> Array:  # [T, D_out]
    """Return x W^T + b, with the weight as checkpoints store it."""
    return x @ weight.T if bias is None else x @ weight.T + bias
