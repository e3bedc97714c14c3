"""The equations of a Llama-family transformer, one function each, over a batch.

Glossary of shapes: B batch, T rows of this pass, S cache positions that are read (cached and of this pass), D model
width, H query heads, G key/value heads (G divides H), E head size, F mlp width.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional

from pass_sampling.reference.model.config import ModelConfig, RopeScaling


def rms_norm(
    x: Tensor,  # [..., D]
    weight: Tensor,  # [D]
    eps: float,
) -> Tensor:  # [..., D]
    """Scale each vector to root mean square 1, then by a learned weight.

    y = x / sqrt(mean(x^2) + eps) * weight

    In 16-bit dtypes the mean is taken in float32.

    Source: Zhang and Sennrich 2019 (arXiv 1910.07467), Eq. 4.
    """
    return functional.rms_norm(x, (x.shape[-1],), weight, eps)


def rope_frequencies(config: ModelConfig) -> Tensor:  # [E/2]
    """Return the angular frequency of each rotated pair, in radians per position, float64.

    frequency[i] = theta^(-2i/E), then stretched: "linear" divides all by a factor; "llama3" divides only the slow
    ones, whose wavelength exceeds the original context, and blends in between.

    Source: Su et al. 2021 (arXiv 2104.09864), Sec. 3.2.2; Chen et al. 2023 (arXiv 2306.15595) for "linear"; the
    Llama 3.1 release for "llama3".
    """
    exponents = torch.arange(0, config.head_dim, 2, dtype=torch.float64) / config.head_dim
    frequencies = config.rope_theta**-exponents
    scaling = config.rope_scaling
    if scaling is None:
        return frequencies
    if scaling.rope_type == "linear":
        return frequencies / scaling.factor
    return _stretch_slow_frequencies(frequencies, scaling)


def _stretch_slow_frequencies(
    frequencies: Tensor,  # [E/2]
    scaling: RopeScaling,
) -> Tensor:  # [E/2]
    """Divide slow frequencies by the factor, keep fast ones, interpolate linearly in the number of turns between."""
    turns = scaling.original_max_position_embeddings * frequencies / (2 * math.pi)
    kept = (turns - scaling.low_freq_factor) / (scaling.high_freq_factor - scaling.low_freq_factor)
    kept = kept.clamp(0.0, 1.0)
    return kept * frequencies + (1.0 - kept) * frequencies / scaling.factor


def rope_tables(
    frequencies: Tensor,  # [E/2]
    positions: Tensor,  # [...]
) -> tuple[Tensor, Tensor]:  # [..., E/2], [..., E/2]
    """Return cosine and sine of every angle, position times frequency, in float64."""
    angles = positions.unsqueeze(-1).double() * frequencies
    return angles.cos(), angles.sin()


def rope(
    x: Tensor,  # [B, heads, T, E]
    cos: Tensor,  # [B, 1, T, E/2]
    sin: Tensor,  # [B, 1, T, E/2]
) -> Tensor:  # [B, heads, T, E]
    """Rotate the pair (x[i], x[i + E/2]) of every head by its angle.

    (a, b) -> (a cos - b sin, b cos + a sin)

    Source: Su et al. 2021, Eq. 34, in the half-split layout that Hugging Face checkpoints are stored for.
    """
    return rotate(x, *rotation(cos, sin))


def rotation(
    cos: Tensor,  # [..., E/2]
    sin: Tensor,  # [..., E/2]
) -> tuple[Tensor, Tensor]:  # [..., E], [..., E]
    """Return what both halves of a head are multiplied by, and what the halves in exchanged places are."""
    return torch.cat([cos, cos], dim=-1), torch.cat([-sin, sin], dim=-1)


def rotate(
    x: Tensor,  # [B, heads, T, E]
    kept: Tensor,  # [B, 1, T, E]
    exchanged: Tensor,  # [B, 1, T, E]
) -> Tensor:  # [B, heads, T, E]
    """Apply a `rotation`: `rope` in half as many operations, with the same bits."""
    return x * kept + x.roll(x.shape[-1] // 2, -1) * exchanged


def attention(
    queries: Tensor,  # [B, H, T, E]
    keys: Tensor,  # [B, G, S, E]
    values: Tensor,  # [B, G, S, E]
    visible: Tensor | None,  # [B, 1, T, S], or [B, 1, R, S]
    causal: bool = False,
) -> Tensor:  # [B, T, H*E]
    """Mix the values in sight, each query head reading the key/value head of its group.

    out = softmax(q k^T / sqrt(E) + visible) v

    `visible` is added to the scores: 0 where a row sees a key, -inf where it does not; None means that every row sees
    every key or, if `causal`, the keys of its own row and of those before it. Each row must see at least one key. The
    heads of a group are computed as R = H T / G rows of one head, so that its keys are read once for all of them;
    `visible` may be laid out for these already.

    Source: Vaswani et al. 2017, Eq. 1; Ainslie et al. 2023 (arXiv 2305.13245) for the groups.
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
    and inf - inf are NaN. So rows that attend to none that may overflow are computed with zeros in place of these.
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
    """Gate one projection by the sigmoid-weighted other.

    y = gate * sigmoid(gate) * up

    Source: Shazeer 2020 (arXiv 2002.05202), Eq. 6.
    """
    return functional.silu(gate) * up
