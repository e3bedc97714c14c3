"""What theory promises of several candidates: how often one of them is accepted, by each rule of `candidates`.

Glossary of shapes: V vocabulary.
"""

from __future__ import annotations

import numpy as np

from .candidates import RULES
from .config import check_integer
from .k_seq import k_seq_division
from .sampling import Probs
from .theory import MOST_DRAFTS, check_laws
from .verify import residual_probs


def candidate_acceptance(
    target_probs: Probs,  # [V]
    draft_probs: Probs,  # [V]
    num_candidates: int,
    rule: str = "without-replacement",
) -> float:
    """Return the chance that one of C candidates for a position is accepted.

    with-replacement: 1 - prod_c (1 - sum(min(rest[c], draft_probs))), rest[c+1] = norm(max(0, rest[c] - draft_probs))

    k-seq: 1 - r^C, r = sum(max(0, draft_probs - target_probs / d)), d = `k_seq_division`

    match: the sum of target_probs over the candidates, on average; without-replacement: see `_rejection`

    With one candidate, all but match are Leviathan's sum(min(target_probs, draft_probs)). Without replacement the sum
    runs over ordered draws, V^(C-1) of them, or as many as the draft law has tokens; at temperature 0 there is but one,
    and the chance is the target's probability of the C likeliest tokens.

    Raises:
        ValueError: rows that are not laws, an unknown rule, or no candidates.

    Source: Sun et al. 2023 (arXiv 2310.15141) for K-SEQ; Jeon et al. 2024 (arXiv 2402.14160) with replacement.
    """
    check_integer("num_candidates", num_candidates, 1, MOST_DRAFTS)
    check_laws(target_probs, draft_probs)
    if rule not in RULES:
        raise ValueError(f"rule: found {rule!r:.80}, expected one of {', '.join(sorted(RULES))}")
    if rule == "k-seq":
        division = k_seq_division(target_probs, draft_probs, num_candidates)
        return 1.0 - float(np.maximum(draft_probs - target_probs / division, 0.0).sum()) ** num_candidates
    if rule == "match":
        return _coverage(target_probs, draft_probs, num_candidates)
    if rule == "without-replacement":
        return 1.0 - _rejection(target_probs, draft_probs, num_candidates)
    rejected, rest = 1.0, target_probs
    for _ in range(num_candidates):
        rejected *= max(0.0, 1.0 - float(np.minimum(rest, draft_probs).sum()))
        rest = residual_probs(rest, draft_probs)
    return 1.0 - rejected


def _rejection(
    target_probs: Probs,  # [V]
    draft_probs: Probs,  # [V]
    num_candidates: int,
) -> float:
    """Return the chance that candidates drawn without replacement are all rejected.

    R_C(target, draft) = sum_x max(0, draft[x] - target[x]) R_(C-1)(norm(max(0, target - draft)), draft without x)
    """
    if num_candidates == 0 or not draft_probs.any():
        return 1.0
    excess, rest = np.maximum(draft_probs - target_probs, 0.0), residual_probs(target_probs, draft_probs)
    if num_candidates == 1:
        return float(excess.sum())
    return sum(
        float(excess[token]) * _rejection(rest, _without(draft_probs, token), num_candidates - 1)
        for token in np.flatnonzero(excess).tolist()
    )


def _coverage(
    target_probs: Probs,  # [V]
    draft_probs: Probs,  # [V]
    num_candidates: int,
) -> float:
    """Return the expected target probability of candidates drawn without replacement."""
    if num_candidates == 0 or not draft_probs.any():
        return 0.0
    first = float(target_probs @ draft_probs)
    if num_candidates == 1:
        return first
    return first + sum(
        float(draft_probs[token]) * _coverage(target_probs, _without(draft_probs, token), num_candidates - 1)
        for token in np.flatnonzero(draft_probs).tolist()
    )


def _without(
    probs: Probs,  # [V]
    token: int,
) -> Probs:  # [V]
    """Return a law without one of its tokens, or zeros where none is left."""
    others = np.where(np.arange(probs.size) == token, 0.0, probs)
    return others / others.sum() if others.any() else others
