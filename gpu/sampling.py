"""From logits to probability distributions, and from distributions and uniforms to tokens, in float64.

The rules and their sources are those of `reference.sampling`, for rows of any number of axes.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn.functional import pad

from pass_sampling.reference.config import SamplingConfig

from .host import is_on_cpu

Probs = Tensor
TOP_P_TOLERANCE = 2.0**-24
TIES = 6  # tokens that are picked beyond top-k
PART = 512  # numbers that are summed one after the other
Processor = Callable[[tuple[int, ...], Tensor], Tensor]
"""A pure hook `(prefix, logits [V]) -> logits [V]`; see `reference.sampling.Processor`."""


def probs_from_logits(
    logits: Tensor,  # [..., V]
    sampling: SamplingConfig,
    largest: Tensor | None = None,  # [...], `largest_logits` if known
) -> Probs:  # [..., V]
    """Return the distributions that the settings make of rows of logits, in the order temperature, top-k, top-p.

    A row whose `largest_logits` is not finite has no distribution; its result must not be used.
    """
    if sampling.temperature == 0:
        return one_hot(likeliest(logits)[0], logits.shape[-1])
    largest = (largest_logits(logits) if largest is None else largest).unsqueeze(-1)
    if 0 < sampling.top_k < logits.shape[-1]:
        probs = _top_k_probs(logits, compared_logits(logits), largest, sampling)
    else:
        probs = _scaled(logits, largest, sampling).softmax(dim=-1)
    return probs if sampling.top_p >= 1 else _restrict_to_top_p(probs, compared_logits(logits), sampling.top_p)


def _scaled(logits: Tensor, largest: Tensor, sampling: SamplingConfig) -> Tensor:
    """Return logits over the temperature, in float64."""
    wide = logits.double()
    return wide if sampling.temperature == 1 else (wide - largest) / sampling.temperature


def _top_k_probs(logits: Tensor, compared: Tensor, largest: Tensor, sampling: SamplingConfig) -> Probs:  # [..., V]
    """Keep the k likeliest tokens, and those tied with the last of them.

    On a CPU the kept tokens are picked first, because float64 over all V takes a tenth of a pass. If more are tied
    than were picked, all V are computed; on a GPU this check would synchronise.
    """
    k, on_cpu = sampling.top_k, is_on_cpu(logits)
    found, tokens = compared.topk(min(k + TIES, logits.shape[-1]) if on_cpu else k, dim=-1)
    least = found[..., k - 1, None]
    if on_cpu:
        kept = _scaled(logits.gather(-1, tokens), largest, sampling).masked_fill(found < least, float("-inf"))
        few = torch.zeros_like(logits, dtype=torch.float64).scatter_(-1, tokens, kept.softmax(dim=-1))
        tied = found[..., -1:] >= least
        if not bool(tied.any()):
            return few
    probs = torch.where(compared < least, float("-inf"), _scaled(logits, largest, sampling)).softmax(dim=-1)
    return torch.where(tied, probs, few) if on_cpu else probs


def compared_logits(
    logits: Tensor,  # [..., V]
) -> Tensor:  # [..., V]
    """Return logits as filters compare them: float64 rounded to float32 (and near 0 to multiples of 2^-40)."""
    if logits.dtype != torch.float64:
        return logits
    return ((logits * 2.0**40).round() * 2.0**-40).float()


def likeliest(
    logits: Tensor,  # [..., V]
) -> tuple[Tensor, Tensor]:  # [...], [...]
    """Return each row's likeliest token, the first among equals, and `largest_logits`."""
    if logits.dtype == torch.float64:
        return compared_logits(logits).argmax(dim=-1), largest_logits(logits)
    largest, token = logits.max(dim=-1)  # on a CPU in bfloat16, argmax takes four times as long
    return token, largest


def largest_logits(
    logits: Tensor,  # [..., V]
) -> Tensor:  # [...]
    """Return each row's largest logit: finite iff the row has a distribution; NaN, +inf and all -inf are faults."""
    return logits.amax(dim=-1)


def _restrict_to_top_p(probs: Probs, compared: Tensor, top_p: float) -> Probs:  # [..., V]
    """Keep the smallest set, likeliest first and lower ids first among equals, whose mass reaches top_p."""
    order = compared.sort(dim=-1, descending=True, stable=True).indices
    ordered = probs.gather(-1, order)
    mass_before = pad(ordered.cumsum(dim=-1)[..., :-1], (1, 0))
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
    """
    edges = probs.cumsum(dim=-1) if is_on_cpu(probs) else _sum_in_parts(probs)
    # In a row without a distribution no edge is below the last, so token 0 is drawn, and ignored.
    return torch.where(edges < edges[..., -1:].clamp(max=1.0), edges, 1.0)


def _sum_in_parts(
    probs: Probs,  # [..., V]
) -> Probs:  # [..., V]
    """Return running sums, added up in parallel parts; a GPU's own scan of one row uses one of its processors.

    A sum below the one before it would make cells overlap. So within a part sums never decrease, and none is above the
    sum at the beginning of the next part.
    """
    inner = pad(probs, (0, -probs.shape[-1] % PART)).unflatten(-1, (-1, PART)).cumsum(dim=-1).cummax(dim=-1).values
    ends = inner[..., -1].cumsum(dim=-1).cummax(dim=-1).values  # [..., parts]
    before = pad(ends[..., :-1], (1, 0)).unsqueeze(-1)
    return torch.minimum(inner + before, ends.unsqueeze(-1)).flatten(-2)[..., : probs.shape[-1]]


def draw(
    edges: Probs,  # [..., V]
    uniform: Tensor,  # [...]
) -> Tensor:  # [...]
    """Draw tokens by inverting the cumulative distribution: the cell that holds `uniform`, half-open."""
    return torch.searchsorted(edges, uniform.unsqueeze(-1).contiguous(), right=True).squeeze(-1)
