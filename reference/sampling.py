"""From logits to a probability distribution, and from a distribution and a uniform to a token, in float64."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import numpy.typing as npt

from .config import SamplingConfig
from .model.layers import Array
from .record import NotFiniteError

Probs = npt.NDArray[np.float64]
TOP_P_TOLERANCE = 2.0**-24
"""A mass that is below top-p by no more than this has reached it: the precision of the compared logits."""
Processor = Callable[[tuple[int, ...], Array], Array]
"""A pure hook `(prefix, logits [V]) -> logits [V]`: penalties, bans, min-p. It runs before temperature, in float64.

It is also called with prefixes that end in drafts, but never with one after which the text has ended.
"""


def has_distribution(
    logits: Array,  # [V]
) -> bool:
    """Return whether a row of logits makes a distribution: no NaN, no +inf, and not all of it -inf."""
    return bool(np.isfinite(logits.max()))


def probs_from_logits(
    logits: Array,  # [V]
    sampling: SamplingConfig,
    where: str = "logits",
) -> Probs:  # [V]
    """Return the distribution that the settings make of a row of logits, in the order temperature, top-k, top-p.

    probs = softmax(logits / temperature), restricted to top-k, renormalised, restricted to top-p, renormalised

    Temperature 0 is the one-hot distribution at the largest logit, the lowest id among equals. Top-k keeps every token
    whose logit is at least the k-th largest, so ties survive together. Logits are compared in float32, see
    `compared_logits`. -inf is a mask.

    Raises:
        NotFiniteError: a logit is NaN or +inf, or all are -inf; the message starts with `where`.
    """
    largest = logits.max()
    if not has_distribution(logits):
        raise NotFiniteError(f"{where}: the largest logit is {largest}, expected a finite number")
    compared = compared_logits(logits)
    if sampling.temperature == 0:
        return one_hot(int(np.argmax(compared)), logits.size)
    with np.errstate(over="ignore"):  # a logit too far below the largest has probability 0
        scaled = (logits.astype(np.float64) - np.float64(largest)) / sampling.temperature
    if 0 < sampling.top_k < logits.size:
        kth_largest = np.partition(compared, -sampling.top_k)[-sampling.top_k]
        scaled = np.where(compared >= kth_largest, scaled, -np.inf)
    probs = np.exp(scaled)
    probs /= probs.sum()
    return probs if sampling.top_p >= 1 else _restrict_to_top_p(probs, compared, sampling.top_p)


def compared_logits(
    logits: Array,  # [..., V]
) -> Array:  # [..., V]
    """Return logits as filters compare them: float64 rounded to float32 (and near 0 to multiples of 2^-40).

    Logits that are equal on paper differ by rounding: in float64 by some 1e-15, and by other amounts in a pass over
    more rows. A comparison would turn that into a difference of order 1. Rounded logits are equal, unless a midpoint
    between two roundings separates them. Logits of narrower dtypes are compared as they are.
    """
    if logits.dtype != np.float64:
        return logits
    with np.errstate(over="ignore"):  # larger logits become infinite, and equal
        rounded: Array = np.rint(logits * 2.0**40) * 2.0**-40
        return rounded.astype(np.float32)


def _restrict_to_top_p(probs: Probs, compared: Array, top_p: float) -> Probs:  # [V]
    """Keep the smallest set, likeliest first and lower ids first among equals, whose mass reaches top_p.

    The order is that of the compared logits, and a mass within `TOP_P_TOLERANCE` below top_p has reached it. So sets
    that are equal on paper stay equal in floating point, in passes over any number of rows.

    Source: Holtzman et al. 2020 (arXiv 1904.09751), Sec. 3.1.
    """
    order = np.argsort(-compared, kind="stable")
    mass_before = np.concatenate([[0.0], np.cumsum(probs[order])[:-1]])
    kept = order[mass_before < max(top_p - TOP_P_TOLERANCE, 2.0**-53)]
    restricted = np.zeros_like(probs)
    restricted[kept] = probs[kept]
    return np.asarray(restricted / restricted.sum())


def one_hot(token: int, vocab_size: int) -> Probs:  # [V]
    """Return the distribution that gives one token probability 1."""
    probs = np.zeros(vocab_size)
    probs[token] = 1.0
    return probs


def cell_edges(
    probs: Probs,  # [V]
) -> Probs:  # [V]
    """Return the upper edge of each token's cell in [0, 1), in token-id order.

    edge[i] = probs[0] + ... + probs[i], and exactly 1 from the last token on whose cell is not empty

    Token i is drawn by the uniforms in [edge[i-1], edge[i]). A token of probability 0 has no cell, and every uniform
    below 1 is in some cell, however the sum was rounded.
    """
    edges = np.cumsum(probs)
    edges[np.searchsorted(edges, edges[-1]) :] = 1.0
    return np.minimum(edges, 1.0)


def draw(
    edges: Probs,  # [V]
    uniform: float,
) -> int:
    """Draw a token by inverting the cumulative distribution: the cell that holds `uniform`, half-open."""
    return int(np.searchsorted(edges, uniform, side="right"))
