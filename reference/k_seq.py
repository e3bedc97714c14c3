"""K-SEQ: independent candidates for one position, all accepted with the same chance, as large as the law allows.

Candidates that are drawn from one law are often the same token, so they must not be accepted as readily as one alone.
They are verified as if the draft law were d times what it is, with d from 1, for one candidate, to C.

Why that keeps the law: a candidate is accepted as token x with the chance draft(x) min(1, target(x) / (d draft(x))),
which is min(d draft(x), target(x)) / d. If d candidates are looked at on average, x is accepted with the probability
min(d draft(x), target(x)), and the residual law adds the rest, as in `verify`.

Source: Sun et al. 2023, "SpecTr: Fast Speculative Decoding via Optimal Transport" (arXiv 2310.15141), Algorithm 2.

Glossary of shapes: C candidates, V vocabulary.
"""

from __future__ import annotations

import numpy as np

from .sampling import Probs
from .verify import Tokens, accept_probs, residual_probs

HALVINGS = 64  # of an interval of length C - 1: more than float64 can tell apart


def k_seq_probs(
    target_probs: Probs,  # [V]
    candidate_probs: Probs,  # [C, V]
    candidate_tokens: Tokens,  # [C]
) -> tuple[Probs, Probs]:  # [C], [V]
    """Return the chance of each candidate, once reached, and the law of the token if none is accepted.

    accept[c] = min(1, target_probs[x_c] / (d draft_probs[x_c])), with d = `k_seq_division`

    final = max(0, target_probs - d draft_probs) / sum(max(0, target_probs - d draft_probs))

    Raises:
        ValueError: a candidate has probability 0 under its law, so it was not drawn from it.
    """
    division = k_seq_division(target_probs, candidate_probs[0], len(candidate_tokens))
    rows = np.broadcast_to(target_probs, candidate_probs.shape)
    accept = accept_probs(rows, division * candidate_probs, candidate_tokens)
    return accept, residual_probs(target_probs, division * candidate_probs[0])


def k_seq_division(
    target_probs: Probs,  # [V]
    draft_probs: Probs,  # [V]
    num_candidates: int,
) -> float:
    """Return what the chances are divided by: so many candidates are looked at on average. The paper's rho.

    d = 1 + r + ... + r^(C-1), r = sum(max(0, draft_probs - target_probs / d)), the chance that a candidate is rejected

    That is r^C = 1 - d (1 - r) = sum(max(0, target_probs - d draft_probs)). The right side falls with d and the left
    side grows, so halving the interval from 1 to C finds the smallest d; and both are sums without cancellation.
    """
    low, high = 1.0, float(num_candidates)
    for _ in range(HALVINGS):
        middle = (low + high) / 2
        rejected = np.maximum(draft_probs - target_probs / middle, 0.0).sum()
        if np.maximum(target_probs - middle * draft_probs, 0.0).sum() > rejected**num_candidates:
            low = middle
        else:
            high = middle
    return high
