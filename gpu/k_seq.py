"""K-SEQ: independent candidates for one position, all accepted with the same chance, as large as the law allows.

Candidates that are drawn from one law are often the same token, so they must not be accepted as readily as one alone.
They are verified as if the draft law were d times what it is, with d from 1, for one candidate, to C.

Why that keeps the law: a candidate is accepted as token x with the chance draft(x) min(1, target(x) / (d draft(x))),
which is min(d draft(x), target(x)) / d. If d candidates are looked at on average, x is accepted with the probability
min(d draft(x), target(x)), and the residual law adds the rest, as in `verify`.

Source: Sun et al. 2023, "SpecTr: Fast Speculative Decoding via Optimal Transport" (arXiv 2310.15141), Algorithm 2.

Glossary of shapes: B batch, C candidates, V vocabulary.
"""

from __future__ import annotations

import torch
from torch import Tensor

from .sampling import Probs
from .verify import Tokens, accept_probs, residual_probs

HALVINGS = 64  # of an interval of length C - 1: more than float64 can tell apart


def k_seq_probs(
    target_probs: Probs,  # [B, V]
    candidate_probs: Probs,  # [B, C, V]
    candidate_tokens: Tokens,  # [B, C]
    num_candidates: Tensor | None = None,  # [B]
) -> tuple[Probs, Probs]:  # [B, C], [B, V]
    """Return the chance of each candidate, once reached, and the law of the token if none is accepted.

    accept[c] = min(1, target_probs[x_c] / (d draft_probs[x_c])), with d = `k_seq_division`

    final = max(0, target_probs - d draft_probs) / sum(max(0, target_probs - d draft_probs))

    Of each row's candidates the first `num_candidates` are meant, by default all.
    """
    count = torch.full_like(target_probs[:, 0], candidate_tokens.shape[1]) if num_candidates is None else num_candidates
    division = k_seq_division(target_probs, candidate_probs[:, 0], count).unsqueeze(1)
    rows = target_probs.unsqueeze(1).expand_as(candidate_probs)
    accept = accept_probs(rows, division.unsqueeze(1) * candidate_probs, candidate_tokens)
    return accept, residual_probs(target_probs, division * candidate_probs[:, 0])


def k_seq_division(
    target_probs: Probs,  # [B, V]
    draft_probs: Probs,  # [B, V]
    num_candidates: Tensor,  # [B]
) -> Tensor:  # [B]
    """Return what the chances are divided by: so many candidates are looked at on average. The paper's rho.

    d = 1 + r + ... + r^(C-1), r = sum(max(0, draft_probs - target_probs / d)), the chance that a candidate is rejected

    That is r^C = 1 - d (1 - r) = sum(max(0, target_probs - d draft_probs)). The right side falls with d and the left
    side grows, so halving the interval from 1 to C finds the smallest d; and both are sums without cancellation.
    """
    low, num_candidates = torch.ones_like(target_probs[:, :1]), num_candidates.clamp(min=1).unsqueeze(1)
    high = num_candidates * low
    for _ in range(HALVINGS):
        middle = (low + high) / 2
        rejected = (draft_probs - target_probs / middle).clamp(min=0.0).sum(dim=1, keepdim=True)
        uncovered = (target_probs - middle * draft_probs).clamp(min=0.0).sum(dim=1, keepdim=True)
        too_small = uncovered > rejected**num_candidates
        low, high = torch.where(too_small, middle, low), torch.where(too_small, high, middle)
    return high.squeeze(1)
