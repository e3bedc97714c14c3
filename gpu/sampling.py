"""From logits to probability distributions, and from distributions and uniforms to tokens. All of it in float64."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from pass_sampling.reference.config import SamplingConfig

Probs = Tensor
TOP_P_TOLERANCE = 2.0**-24
"""A mass that is below top-p by no more than this has reached it: the precision of the logits that filters compare."""
Processor = Callable[[tuple[int, ...], Tensor], Tensor]
"""A pure hook `(prefix, logits [V]) -> logits [V]`: penalties, bans, min-p. It runs before temperature, in float64.

It is asked about prefixes that end in drafts, too, but never about one after which the text has ended.
"""


def probs_from_logits(
    logits: Tensor,  # [..., V]
    sampling: SamplingConfig,
) -> Probs:  # [..., V]
    """Return the distributions that the settings make of rows of logits, in the order temperature, top-k, top-p.

    probs = softmax(logits / temperature), restricted to top-k, renormalised, restricted to top-p, renormalised

    Temperature 0 is the one-hot distribution at the largest logit, the lowest id among equals. Top-k keeps every
    token whose logit is at least the k-th largest, so ties survive together. What is larger or equal is decided in
    float32, see `compared_logits`. -inf is a mask. Rows that are not finite in the sense of `largest_logits` have no
    distribution; what comes out for them must not be used.
    """
    compared = compared_logits(logits)
    if sampling.temperature == 0:
        return one_hot(compared.argmax(dim=-1), logits.shape[-1])
    scaled = logits.double()
    if sampling.temperature != 1:
        scaled = (scaled - logits.amax(dim=-1, keepdim=True)) / sampling.temperature
    if 0 < sampling.top_k < logits.shape[-1]:
        kth_largest = compared.topk(sampling.top_k, dim=-1).values[..., -1:]
        scaled = torch.where(compared < kth_largest, float("-inf"), scaled)
    probs = scaled.softmax(dim=-1)
    return probs if sampling.top_p >= 1 else _restrict_to_top_p(probs, compared, sampling.top_p)


def compared_logits(
    logits: Tensor,  # [..., V]
) -> Tensor:  # [..., V]
    """Return logits as filters compare them: float64 rounded to float32 (and near 0 to multiples of 2^-40).

    Logits that are equal on paper differ by rounding, in float64 by some 1e-15, and in a pass over more rows by other
    amounts. A comparison would turn that into a difference of order 1. Rounded logits are equal, unless a midpoint
    between two roundings lies between them. Logits of narrower dtypes are compared as they are.
    """
    if logits.dtype != torch.float64:
        return logits
    return ((logits * 2.0**40).round() * 2.0**-40).float()


def largest_logits(
    logits: Tensor,  # [..., V]
) -> Tensor:  # [...]
    """Return each row's largest logit: finite iff the row has a distribution; NaN, +inf and all -inf are faults."""
    return logits.amax(dim=-1)


def _restrict_to_top_p(
    probs: Probs,  # [..., V]
    compared: Tensor,  # [..., V]
    top_p: float,
) -> Probs:  # [..., V]
    """Keep the smallest set, likeliest first and lower ids first among equals, whose mass reaches top_p.

    The order is that of the logits as they are compared, and a mass within `TOP_P_TOLERANCE` below top_p has reached
    it. So sets that are equal on paper stay equal in floating point, in passes over any number of rows.

    Source: Holtzman et al. 2020 (arXiv 1904.09751), Sec. 3.1.
    """
    order = compared.sort(dim=-1, descending=True, stable=True).indices
    ordered = probs.gather(-1, order)
    mass_before = torch.nn.functional.pad(ordered.cumsum(dim=-1)[..., :-1], (1, 0))
    dropped = mass_before >= max(top_p - TOP_P_TOLERANCE, 2.0**-53)
    restricted = torch.zeros_like(probs).scatter(-1, order, ordered.masked_fill(dropped, 0.0))
    return restricted / restricted.sum(dim=-1, keepdim=True)


def one_hot(
    token: Tensor,  # [...]
    vocab_size: int,
) -> Probs:  # [..., V]
    """Return the distribution that gives one token probability 1."""
    probs = torch.zeros((*token.shape, vocab_size), dtype=torch.float64, device=token.device)
    return probs.scatter(-1, token.unsqueeze(-1), 1.0)


def cell_edges(
    probs: Probs,  # [..., V]
) -> Probs:  # [..., V]
    """Return the upper edge of each token's cell in [0, 1), in token-id order.

    edge[i] = probs[0] + ... + probs[i], and exactly 1 from the last token on whose cell is not empty

    Token i is drawn by the uniforms in [edge[i-1], edge[i]): a token of probability 0 has no cell, and every uniform
    below 1 falls into one, however the sum was rounded.
    """
    edges = probs.cumsum(dim=-1)
    if edges.device.type != "cpu":  # parallel sums may step back by an ulp, which would make cells overlap
        edges = edges.cummax(dim=-1).values
    inside = edges < edges[..., -1:]  # nothing is, in a row without a distribution: then token 0 is drawn, and ignored
    return edges.masked_fill_(~inside, 1.0).clamp_(max=1.0)


def draw(
    edges: Probs,  # [..., V]
    uniform: Tensor,  # [...]
) -> Tensor:  # [...]
    """Draw tokens by inverting the cumulative distribution: the cell that holds `uniform`, half-open."""
    return torch.searchsorted(edges, uniform.unsqueeze(-1).contiguous(), right=True).squeeze(-1)
