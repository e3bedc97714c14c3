"""The equations of a Llama-family transformer, one function each.

Glossary of shapes: T rows of this pass, S visible rows (cached and of this pass), D model width, H query heads,
G key/value heads (G divides H), E head size, F mlp width.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from .config import ModelConfig

Array = npt.NDArray[np.floating]
Mask = npt.NDArray[np.bool_]


def rms_norm(
    x: Array,  # [..., D]
    weight: Array,  # [D]
    eps: float,
) -> Array:  # [..., D]
    """Scale each vector to root mean square 1, then by a learned weight.

    y = x / sqrt(mean(x^2) + eps) * weight

    Source: Zhang and Sennrich 2019 (arXiv 1910.07467), Eq. 4.
    """
    with np.errstate(over="ignore"):  # the square of a huge vector is inf, and the vector becomes 0
        mean_square = np.mean(x * x, axis=-1, keepdims=True)
    return np.asarray(x / np.sqrt(mean_square + eps) * weight, dtype=x.dtype)


def rope_frequencies(config: ModelConfig) -> Array:  # [E/2]
    """Return the angular frequency of each rotated pair, in radians per position, float64.

    frequency[i] = theta^(-2i/E), then stretched: "linear" divides all by a factor; "llama3" divides only the slow
    ones, whose wavelength exceeds the original context, and interpolates linearly in the number of turns between.

    Source: Su et al. 2021 (arXiv 2104.09864), Sec. 3.2.2; Chen et al. 2023 (arXiv 2306.15595) for "linear"; the
    Llama 3.1 release for "llama3".
    """
    exponents = np.arange(0, config.head_dim, 2, dtype=np.float64) / config.head_dim
    frequencies = config.rope_theta**-exponents
    scaling = config.rope_scaling
    if scaling is None:
        return frequencies
    if scaling.rope_type == "linear":
        return np.asarray(frequencies / scaling.factor)
    turns = scaling.original_max_position_embeddings * frequencies / (2 * np.pi)
    kept = (turns - scaling.low_freq_factor) / (scaling.high_freq_factor - scaling.low_freq_factor)
    kept = np.clip(kept, 0.0, 1.0)  # 0 for slow frequencies, 1 for fast ones
    return np.asarray(kept * frequencies + (1.0 - kept) * frequencies / scaling.factor)


def rope_tables(
    frequencies: Array,  # [E/2]
    positions: npt.NDArray[np.integer],  # [T]
) -> tuple[Array, Array]:  # [T, E/2], [T, E/2]
    """Return cosine and sine of every angle, position times frequency, in float64."""
    angles = positions[:, None].astype(np.float64) * frequencies
    return np.cos(angles), np.sin(angles)


def rope(
    x: Array,  # [heads, T, E]
    cos: Array,  # [T, E/2]
    sin: Array,  # [T, E/2]
) -> Array:  # [heads, T, E]
    """Rotate the pair (x[i], x[i + E/2]) of every head by its angle.

    (a, b) -> (a cos - b sin, b cos + a sin)

    Source: Su et al. 2021, Eq. 34, in the half-split layout that Hugging Face checkpoints are stored for.
    """
    first, second = np.split(x, 2, axis=-1)
    return np.concatenate([first * cos - second * sin, second * cos + first * sin], axis=-1)


def attention(
    queries: Array,  # [H, T, E]
    keys: Array,  # [G, S, E]
    values: Array,  # [G, S, E]
    visible: Mask | None,  # [T, S]
) -> Array:  # [T, H*E]
    """Mix the visible values, each query head reading the key/value head of its group.

    out = softmax(q k^T / sqrt(E), over visible keys) v

    `visible=None` means that every row attends to every key. Each row must attend to at least one key. No bit of a row
    depends on the keys and values that it does not attend to, which may be NaN.

    Source: Vaswani et al. 2017, Eq. 1; Ainslie et al. 2023 (arXiv 2305.13245) for the groups.
    """
    num_heads, num_rows, head_dim = queries.shape
    num_groups = keys.shape[0]
    grouped = queries.reshape(num_groups, -1, head_dim)  # the heads of a group are neighbours
    scores = grouped @ keys.transpose(0, 2, 1) / np.sqrt(head_dim).astype(queries.dtype)
    scores = scores.reshape(num_groups, num_heads // num_groups, num_rows, -1)
    if visible is not None:
        scores = np.where(visible, scores, -np.inf)
    weights = np.exp(scores - scores.max(axis=-1, keepdims=True))
    weights /= weights.sum(axis=-1, keepdims=True)
    weights = weights.reshape(num_groups, -1, keys.shape[1]).astype(queries.dtype, copy=False)
    mixed = weights @ values
    finite = np.asarray(np.isfinite(values).all(axis=(0, 2)))  # [S]
    if visible is not None and not finite.all():  # 0 times NaN is NaN
        without = weights @ np.where(finite[:, None], values, 0.0)
        touched = np.tile((visible & ~finite).any(axis=1), num_heads // num_groups)
        mixed = np.where(touched[:, None], mixed, without)
    by_head: Array = mixed.reshape(num_heads, num_rows, head_dim)
    return by_head.transpose(1, 0, 2).reshape(num_rows, -1)


def swiglu(
    gate: Array,  # [T, F]
    up: Array,  # [T, F]
) -> Array:  # [T, F]
    """Gate one projection by the sigmoid-weighted other.

    y = gate * sigmoid(gate) * up

    Source: Shazeer 2020 (arXiv 2002.05202), Eq. 6.
    """
    with np.errstate(over="ignore"):  # exp overflows to inf for very negative gates, and 1 / inf is the right 0
        return np.asarray(gate / (1.0 + np.exp(-gate)) * up, dtype=gate.dtype)
