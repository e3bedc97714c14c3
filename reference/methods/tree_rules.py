"""Several candidates for one position: how they are drawn, and which one survives, and still exact.

A rule takes candidates, the distributions they were drawn from, each given those before it, and the target's
distribution. It accepts one of them, or says from which distribution the token is to be drawn instead; either way the
token is distributed as if it had been drawn from the target. A rule relies on how the candidates were drawn: `RULES`
has both.

Why the recursive rule does: what one candidate's acceptance leaves open is the residual distribution,
`verify.residual_probs`, with the chance of a rejection. The next candidate is verified against that distribution as the
first one was against the target.

Glossary of shapes: C candidates, V vocabulary.

K-SEQ: independent candidates for one position, all accepted with the same chance, as large as the distribution allows.

Candidates that are drawn from one distribution are often the same token, so they must not be accepted as readily as one
alone. They are verified as if the draft distribution were d times what it is, with d from 1, for one candidate, to C.

Why that keeps the distribution: a candidate is accepted as token x with the chance draft(x) min(1, target(x) / (d
draft(x))), which is min(d draft(x), target(x)) / d. If d candidates are looked at on average, x is accepted with the
probability min(d draft(x), target(x)), and the residual distribution adds the rest, as in `verify`.

Source: Sun et al. 2023, "SpecTr: Fast Speculative Decoding via Optimal Transport" (arXiv 2310.15141), Algorithm 2.

Glossary of shapes: C candidates, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from ..config import SamplingConfig
from ..model.layers import Array
from ..sampling import Probs, has_distribution, one_hot, probs_from_logits
from ..uniforms import UniformRow
from ..verify import Tokens, accept_probs, residual_probs


@dataclass(frozen=True)
class Selection:
    """The outcome at one position: which candidate was accepted, and if none, what is to be drawn instead."""

    accepted: int | None
    final_probs: Probs  # [V], the distribution of the token where none is accepted
    accept_probs: Probs  # [C], the chance of each candidate, once reached


def draw_candidates(
    logits: Array,  # [V]
    sampling: SamplingConfig,
    num_candidates: int,
    draws: UniformRow,
    index: int = 0,
    replacement: bool = False,
) -> tuple[Tokens, Probs]:  # [C], [C, V]
    """Draw candidates with the uniforms from `draft[index]` on; return the very distributions they were drawn from.

    candidate_probs[0] = the distribution of the logits; candidate_probs[c+1] = candidate_probs[c] without token c,
    renormalised

    At temperature 0 a distribution is one-hot, and nothing is left of it: next comes the likeliest token of the others,
    the limit of small temperatures. There are fewer candidates than asked for where no token is left. With replacement,
    all come from the first distribution.

    Raises:
        ValueError: the logits have no distribution, see `probs_from_logits`.

    Source: without replacement Yang et al. 2024, "Multi-Candidate Speculative Decoding" (arXiv 2401.06706).
    """
    kept = probs_from_logits(logits, sampling) > 0
    left = logits if sampling.temperature == 0 else np.where(kept, logits, -np.inf)
    tokens: list[int] = []
    distributions: list[Probs] = []
    while len(tokens) < num_candidates and has_distribution(left):
        distributions.append(probs_from_logits(left, SamplingConfig(sampling.temperature)))
        tokens.append(draws.token("draft", distributions[-1], index + len(tokens)))
        if not replacement:
            left = np.where(np.arange(left.size) == tokens[-1], -np.inf, left)
    return np.array(tokens, dtype=np.int64), np.array(distributions)


def recursive_probs(
    target_probs: Probs,  # [V]
    candidate_probs: Probs,  # [C, V]
    candidate_tokens: Tokens,  # [C]
) -> tuple[Probs, Probs]:  # [C], [V]
    """Return the chance of each candidate, once reached, and the distribution of the token if none is accepted.

    accept[c] = min(1, rest[c, x_c] / candidate_probs[c, x_c]), rest[0] = target_probs

    rest[c+1] = max(0, rest[c] - candidate_probs[c]) / sum(max(0, rest[c] - candidate_probs[c]))

    Raises:
        ValueError: a candidate has probability 0 under its distribution, so it was not drawn from it.

    Source: Yang et al. 2024 (arXiv 2401.06706); Jeon et al. 2024, "Recursive Speculative Decoding" (arXiv 2402.14160),
    as recursive rejection sampling.
    """
    rest, accept = target_probs, np.zeros(len(candidate_tokens))
    for c, probs in enumerate(candidate_probs):
        accept[c] = accept_probs(rest[None], probs[None], candidate_tokens[c : c + 1])[0]
        rest = residual_probs(rest, probs)
    return accept, rest


def verify_recursive(
    target_probs: Probs,  # [V]
    candidate_probs: Probs,  # [C, V]
    candidate_tokens: Tokens,  # [C]
    draws: UniformRow,
    index: int,
) -> Selection:
    """Accept the first candidate that passes, each against what the rejection of those before it has left."""
    return _in_turn(*recursive_probs(target_probs, candidate_probs, candidate_tokens), draws, index)


def verify_k_seq(
    target_probs: Probs,  # [V]
    candidate_probs: Probs,  # [C, V]
    candidate_tokens: Tokens,  # [C]
    draws: UniformRow,
    index: int,
) -> Selection:
    """Accept the first candidate that passes, all with the same chance for the same token."""
    return _in_turn(*k_seq_probs(target_probs, candidate_probs, candidate_tokens), draws, index)


def verify_match(
    target_probs: Probs,  # [V]
    candidate_probs: Probs,  # [C, V]
    candidate_tokens: Tokens,  # [C]
    draws: UniformRow,
    index: int,
) -> Selection:
    """Draw the token from the target with the uniform `accept[index]`; it may be one of the candidates.

    accept[c] = target_probs[x_c]

    Exact however the candidates were found: the control that a cleverer rule must beat.
    """
    token = draws.token("accept", target_probs, index)
    found = np.flatnonzero(candidate_tokens == token).tolist()
    final_probs = one_hot(token, target_probs.size)  # it has been drawn
    return Selection(found[0] if found else None, final_probs, target_probs[candidate_tokens])


def _in_turn(
    accept: Probs,  # [C]
    final_probs: Probs,  # [V]
    draws: UniformRow,
    index: int,
) -> Selection:
    """Accept the first candidate whose uniform is below its chance."""
    for c, accept_prob in enumerate(accept.tolist()):
        if draws.accept("accept", accept_prob, index + c):
            return Selection(c, final_probs, accept)
    return Selection(None, final_probs, accept)


@dataclass(frozen=True)
class CandidateRule:
    """How candidates must be drawn, with replacement or without, and how they are verified."""

    replacement: bool
    verify: Callable[[Probs, Probs, Tokens, UniformRow, int], Selection]


RULES: dict[str, CandidateRule] = {
    "without-replacement": CandidateRule(False, verify_recursive),
    "with-replacement": CandidateRule(True, verify_recursive),
    "k-seq": CandidateRule(True, verify_k_seq),
    "match": CandidateRule(False, verify_match),
}


HALVINGS = 64  # of an interval of length C - 1: more than float64 can tell apart


def k_seq_probs(
    target_probs: Probs,  # [V]
    candidate_probs: Probs,  # [C, V]
    candidate_tokens: Tokens,  # [C]
) -> tuple[Probs, Probs]:  # [C], [V]
    """Return the chance of each candidate, once reached, and the distribution of the token if none is accepted.

    accept[c] = min(1, target_probs[x_c] / (d draft_probs[x_c])), with d = `k_seq_division`

    final = max(0, target_probs - d draft_probs) / sum(max(0, target_probs - d draft_probs))

    Raises:
        ValueError: a candidate has probability 0 under its distribution, so it was not drawn from it.
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
