"""A Llama-family transformer over a batch: embeddings and a KV cache in, logits out."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torch.nn import functional
from torch.utils.weak import WeakTensorKeyDictionary

from pass_sampling.reference.model.config import ModelConfig

from ..host import is_on_cpu
from .cache import KVCache
from .layers import attention, attention_apart, rms_norm, rope_frequencies, rope_tables, rotate, rotation, swiglu
from .linear import linears_of, rows_of
from .masks import Masks
from .memory import cache_bytes, check_memory, pass_bytes
from .weights import LayerWeights, Weights

LONG = 512  # rows of a pass whose memory is worth asking for
Inputs = Tensor | Sequence[Sequence[int]]
Terms = Callable[[int, str, Tensor], Tensor]
"""The term `(layer, site, rows [B, N, I]) -> [B, N, O]` that is added to what a linear layer makes of some rows."""


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
        if self.device.type == "cuda":  # it plans anew for every shape, and steps change theirs
            torch.backends.cuda.enable_cudnn_sdp(False)
        self._frequencies = rope_frequencies(config).to(self.device)
        self._table = self._rotation(torch.arange(0, device=self.device))  # by positions
        self._linears, self._output = linears_of(weights)
        self._some = WeakTensorKeyDictionary()  # linear layers to the logits of some tokens, by their tensor

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return self.weights.embedding.device

    @property
    def dtype(self) -> torch.dtype:
        """The dtype that the model computes in."""
        return self.weights.embedding.dtype

    def new_cache(self, capacity: int = 16, batch_size: int = 1) -> KVCache:
        """Return an empty cache of this model's shape; raise ValueError if it does not fit into the free memory."""
        check_memory(self.device, cache=cache_bytes(self.config, self.dtype, capacity, batch_size))
        if self.device.type == "cuda":
            capacity = -(-capacity // 16) * 16  # else every layer pads its mask
        if capacity > len(self._table):
            self._table = self._rotation(torch.arange(capacity, device=self.device))
        shape = self.config.num_hidden_layers, self.config.num_key_value_heads, self.config.head_dim
        return KVCache(*shape, self.dtype, capacity, batch_size, self.device)

    def embed(
        self,
        tokens: Tensor | Sequence[Sequence[int]],  # [B, T]
    ) -> Tensor:  # [B, T, D]
        """Look up the input vector of each token."""
        return functional.embedding(torch.as_tensor(tokens, device=self.device), self.weights.embedding)

    def hidden(
        self,
        inputs: Tensor,  # [B, T, D]
        cache: KVCache,
        positions: Tensor | None = None,  # [B, T]
        visible: Tensor | None = None,  # [T, T], or [T, S], or [B, T, T]
        adapter: Terms | None = None,
        num_adapted: int = 0,
    ) -> Tensor:  # [B, T, D]
        """Run one pass after the cached positions and return the last hidden states, ready for `logits`.

        The arguments are those of the reference. If a row is not finite, a masked key or value may be the reason: then
        the pass is run again with `attention_apart`.
        """
        if inputs.shape[1] > LONG:
            num_rows = inputs.shape[0] * inputs.shape[1]
            check_memory(self.device, workspace=pass_bytes(self.config, self.dtype, num_rows))
        cache_positions = cache.next_positions(inputs.shape[1])
        rotary = cache_positions if positions is None else positions
        rotations = self._rotations(rotary, positions is None or cache.kv_length is not None)  # never beyond the cache
        share = self.config.num_attention_heads // self.config.num_key_value_heads
        masks = Masks(cache, cache_positions, rotary, visible, inputs.dtype, share)

        def adapted(i: int, site: str, x: Tensor, y: Tensor) -> Tensor:
            if adapter is None or num_adapted == 0:
                return y
            if num_adapted == y.shape[1]:
                return y + adapter(i, site, x)
            y[:, -num_adapted:] += adapter(i, site, x[:, -num_adapted:])  # the other rows keep every bit
            return y

        eps = self.config.rms_norm_eps
        for attend in (attention, attention_apart):
            x = inputs
            for i, (layer, linear) in enumerate(zip(self.weights.layers, self._linears, strict=True)):
                normed = rms_norm(x, layer.attention_norm, eps)
                heads = adapted(i, "query_key_value", normed, linear.query_key_value(normed))
                queries, keys, values = self._split(heads, layer, *rotations)
                keys, values = cache.write(i, keys, values, cache_positions)
                mixed = attend(queries, keys, values, *masks.of(self.config.window(i)))
                x = x + adapted(i, "output", mixed, linear.output(mixed))
                normed = rms_norm(x, layer.mlp_norm, eps)
                gate_up = adapted(i, "gate_up", normed, linear.gate_up(normed))
                inner = swiglu(*gate_up.chunk(2, dim=-1))
                x = x + adapted(i, "down", inner, linear.down(inner))
            x = rms_norm(x, self.weights.norm, eps)
            if not masks.may_leak(x, cache):
                break
        cache.advance(inputs.shape[1])
        return x

    def logits(
        self,
        hidden: Tensor,  # [..., D]
    ) -> Tensor:  # [..., V]
        """Project hidden states to one logit per token."""
        return self._output(hidden)

    def logits_of(
        self,
        hidden: Tensor,  # [..., D]
        tokens: Tensor,  # [N]
    ) -> Tensor:  # [..., N]
        """Project hidden states to the logits of some tokens, reading no other rows of the projection.

        Those rows are copied once, and kept for as long as the tensor of tokens is.
        """
        if tokens not in self._some:
            self._some[tokens] = rows_of(self.weights.output, tokens)
        found: Tensor = self._some[tokens](hidden)
        return found

    def forward(
        self,
        inputs: Inputs,  # [B, T] tokens or [B, T, D] embeddings
        cache: KVCache | None = None,
        positions: Tensor | None = None,  # [B, T]
        visible: Tensor | None = None,  # [T, T], or [T, S]
    ) -> Tensor:  # [B, T, V]
        """Return the logits after every row of a pass over tokens, or over embeddings."""
        rows = torch.as_tensor(inputs, device=self.device)
        if rows.ndim == 2:
            rows = self.embed(rows)
        if cache is None:
            cache = self.new_cache(rows.shape[1], rows.shape[0])
        return self.logits(self.hidden(rows, cache, positions, visible))

    def _split(
        self,
        heads: Tensor,  # [B, T, (H+2G)*E]
        layer: LayerWeights,
        kept: Tensor,  # [B, 1, T, E]
        exchanged: Tensor,  # [B, 1, T, E]
    ) -> tuple[Tensor, Tensor, Tensor]:  # [B, H, T, E], [B, G, T, E], [B, G, T, E]
        """Make rotated queries and keys, and values, of one projection."""
        config = self.config
        num_heads, num_groups = config.num_attention_heads, config.num_key_value_heads
        heads = heads.unflatten(-1, (-1, config.head_dim)).transpose(1, 2)
        rotated, values = heads.split([num_heads + num_groups, num_groups], dim=1)
        if layer.query_key_norm is not None:
            rotated = functional.rms_norm(rotated, (config.head_dim,), None, config.rms_norm_eps)
            rotated = rotated * layer.query_key_norm.unsqueeze(1)
        queries, keys = rotate(rotated, kept, exchanged).split([num_heads, num_groups], dim=1)
        return queries, keys, values

    def _rotations(self, places: Tensor, known: bool) -> tuple[Tensor, ...]:  # [B, 1, T, E], [B, 1, T, E]
        """Return the rotations of the heads of every row: looked up if the places are known to be in the table."""
        known = known or (is_on_cpu(places) and int(places.max()) < len(self._table))
        return (self._table[places] if known else self._rotation(places)).unsqueeze(1).unbind(3)

    def _rotation(self, positions: Tensor) -> Tensor:  # [..., 2, E]
        """Return the rotations of heads at some positions, rounded once to the model's dtype."""
        return torch.stack(rotation(*rope_tables(self._frequencies, positions)), dim=-2).to(self.dtype)
