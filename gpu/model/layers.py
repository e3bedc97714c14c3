"""The equations of a Llama-family transformer, one function each, over a batch; sources: `reference.model.layers`.

Glossary of shapes: B batch, T rows of this pass, S cache positions that are read (cached and of this pass), D model
width, H query heads, G key/value heads (G divides H), E head size, F mlp width.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from pass_sampling.reference.model import layers as reference
from pass_sampling.reference.model.config import ModelConfig


def rms_norm(
    x: Tensor,  # [..., D]
    weight: Tensor,  # [D]
    eps: float,
) -> Tensor:  # [..., D]
    """Scale each vector to root mean square 1, then by a learned weight; in 16-bit dtypes the mean is float32."""
    return functional.rms_norm(x, (x.shape[-1],), weight, eps)


def rope_frequencies(config: ModelConfig) -> Tensor:  # [E/2]
    """Return the angular frequency of each rotated pair, in radians per position, float64: the reference's numbers."""
    return torch.from_numpy(reference.rope_frequencies(config))


def rope_tables(
    frequencies: Tensor,  # [E/2]
    positions: Tensor,  # [...]
) -> tuple[Tensor, Tensor]:  # [..., E/2], [..., E/2]
    """Return cosine and sine of every angle, position times frequency, in float64."""
    angles = positions.unsqueeze(-1).double() * frequencies
    return angles.cos(), angles.sin()


def rotation(
    cos: Tensor,  # [..., E/2]
    sin: Tensor,  # [..., E/2]
) -> tuple[Tensor, Tensor]:  # [..., E], [..., E]
    """Return the factors of a head, and the factors of the head with its halves exchanged."""
    return torch.cat([cos, cos], dim=-1), torch.cat([-sin, sin], dim=-1)


def rotate(
    x: Tensor,  # [B, heads, T, E]
    kept: Tensor,  # [B, 1, T, E]
    exchanged: Tensor,  # [B, 1, T, E]
) -> Tensor:  # [B, heads, T, E]
    """Rotate the pair (x[i], x[i + E/2]) of every head by its angle, with the factors of a `rotation`."""
    return x * kept + x.roll(x.shape[-1] // 2, -1) * exchanged


def attention(
    queries: Tensor,  # [B, H, T, E]
    keys: Tensor,  # [B, G, S, E]
    values: Tensor,  # [B, G, S, E]
    visible: Tensor | None,  # [B, 1, T, S], or [B, 1, R, S]
    causal: bool = False,
) -> Tensor:  # [B, T, H*E]
    """Mix the visible values, each query head reading the key/value head of its group.

    out = softmax(q k^T / sqrt(E) + visible) v

    `visible` is added to the scores: 0 where a row attends to a key, else -inf. None means that every row attends to
    every key or, if `causal`, to the keys of its own row and of those before it. Each row must attend to at least one
    key. The heads of a group are computed as R = H T / G rows of one head, so that its keys are read once for all of
    them; `visible` may have these R rows already.
    """
    shape = queries.shape
    if not causal:
        queries = queries.reshape(shape[0], keys.shape[1], -1, shape[3])
        if visible is not None and visible.shape[2] != queries.shape[2]:
            visible = visible.repeat(1, 1, queries.shape[2] // visible.shape[2], 1)
    mixed = functional.scaled_dot_product_attention(
        queries, keys, values, attn_mask=visible, is_causal=causal, enable_gqa=True
    )
    return mixed.view(shape).transpose(1, 2).flatten(2)


def attention_apart(
    queries: Tensor,  # [B, H, T, E]
    keys: Tensor,  # [B, G, S, E]
    values: Tensor,  # [B, G, S, E]
    visible: Tensor | None,  # [B, 1, T, S], or [B, 1, R, S]
    causal: bool = False,
) -> Tensor:  # [B, T, H*E]
    """Compute `attention` where keys, values or scores may overflow.

    No bit of a row depends on keys and values that it does not attend to. A mask gives them weight 0, but 0 times NaN
    and inf - inf are NaN. So rows that attend to no such key are computed with zeros in its place.
    """
    num_rows, num_uniforms = queries.shape[2], keys.shape[2]
    seen = torch.ones((1, num_rows, num_uniforms), dtype=torch.bool, device=keys.device).tril(num_uniforms - num_rows)
    if visible is not None:
        seen = visible[:, 0, :num_rows] == 0
    wide = torch.promote_types(keys.dtype, torch.float32)  # what scores are summed in
    bound = keys.abs().sum(dim=3, dtype=wide) * queries.nan_to_num(0.0, 0.0, 0.0).abs().max()  # on every score
    overflowed = ~(bound.isfinite() & values.isfinite().all(dim=3)).all(dim=1)  # [B, S]
    zeroed = [each.masked_fill(overflowed[:, None, :, None], 0.0) for each in (keys, values)]
    without = attention(queries, zeroed[0], zeroed[1], visible, causal)
    touched = (seen & overflowed.unsqueeze(1)).any(dim=2, keepdim=True)
    return torch.where(touched, attention(queries, keys, values, visible, causal), without)


def swiglu(
    gate: Tensor,  # [..., F]
    up: Tensor,  # [..., F]
) -> Tensor:  # [..., F]
    """Gate one projection by the sigmoid-weighted other."""
    return functional.silu(gate) * up
