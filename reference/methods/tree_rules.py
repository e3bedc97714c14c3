"""Rules for several candidates at one position: how they are drawn, and which of them is accepted.

A rule takes candidates, the distribution of each given those before it, and the target's distribution. It accepts one
candidate, or returns the distribution of the token that replaces them all. Either way the token has the target's
distribution. A rule depends on how the candidates were drawn, so an entry of `RULES` states both.

The recursive rule is exact because a rejection leaves the residual distribution open (`verify.residual_probs`, with the
probability of the rejection). The next candidate is verified against the residual, as the first one was against the
target.

K-SEQ verifies independent candidates, which are often the same token, so each is accepted less readily than a single
draft. All have the same chance, as if the draft distribution were d times as large, with d from 1 to C. Token x is
accepted with the chance draft(x) min(1, target(x) / (d draft(x))) = min(d draft(x), target(x)) / d. If d candidates are
tried on average, x is accepted with the probability min(d draft(x), target(x)), and the residual adds the rest, as in
`verify`. So K-SEQ is exact.

Source: Yang et al. 2024, "Multi-Candidate Speculative Decoding" (arXiv 2401.06706); Jeon et al. 2024, "Recursive
Speculative Decoding" (arXiv 2402.14160), as recursive rejection sampling; Sun et al. 2023, "SpecTr: Fast Speculative
Decoding via Optimal Transport" (arXiv 2310.15141), Algorithm 2, for K-SEQ.

Glossary of shapes: C candidates, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..config import SamplingConfig
from ..model.layers import Array
from ..sampling import Probs, has_distribution, one_hot, probs_from_logits
from ..uniforms import UniformRow
from ..verify import Tokens, accept_probs, residual_probs


@dataclass(frozen=True)
class Selection:
    """The outcome at one position."""

    accepted: int | None  # the index of the candidate
    final_probs: Probs  # [V], the distribution of the token if none is accepted
    accept_probs: Probs  # [C], the chance of each candidate, once reached


def draw_candidates(
    logits: Array,  # [V]
    sampling: SamplingConfig,
    num_candidates: int,
    draws: UniformRow,
    index: int = 0,
    replacement: bool = False,
) -> tuple[Tokens, Probs]:  # [C], [C, V]
    """Draw candidates with the uniforms from `draft[index]` on; return the distributions they were drawn from.

    candidate_probs[0] = the distribution of the logits; candidate_probs[c+1] = candidate_probs[c] without token c,
    renormalised

    At temperature 0 a distribution is one-hot, so the next candidate is the likeliest of the other tokens, the limit of
    small temperatures. There are fewer candidates where no token is left. With replacement, all come from the first
    distribution. Logits without a distribution raise ValueError.
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
    """
    rest, accept = target_probs, np.zeros(len(candidate_tokens))
    for c, probs in enumerate(candidate_probs):
        accept[c] = accept_probs(rest[None], probs[None], candidate_tokens[c : c + 1])[0]
        rest = residual_probs(rest, probs)
    return accept, rest


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
    """Return d, which divides the chances: the mean number of candidates tried. The paper calls it rho.

    d = 1 + r + ... + r^(C-1), r = sum(max(0, draft_probs - target_probs / d)), the chance that a candidate is rejected

    So r^C = 1 - d (1 - r) = sum(max(0, target_probs - d draft_probs)). The right side falls with d and the left side
    grows, so halving the interval from 1 to C finds the smallest d. Both sides are sums without cancellation.
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


Verify = Callable[[Probs, Probs, Tokens, UniformRow, int], Selection]
"""Called with the target's distribution [V], the candidates' distributions [C, V], the candidates [C], the step's
uniforms, and the index of the first uniform of the candidates."""


def _in_turn(chances: Callable[[Probs, Probs, Tokens], tuple[Probs, Probs]]) -> Verify:
    """Return the rule that accepts the first candidate whose uniform is below its chance."""

    def verify(target_probs: Probs, candidate_probs: Probs, tokens: Tokens, draws: UniformRow, index: int) -> Selection:
        accept, final_probs = chances(target_probs, candidate_probs, tokens)
        for c, accept_prob in enumerate(accept.tolist()):
            if draws.accept("accept", accept_prob, index + c):
                return Selection(c, final_probs, accept)
        return Selection(None, final_probs, accept)

    return verify


def _match(target_probs: Probs, candidate_probs: Probs, tokens: Tokens, draws: UniformRow, index: int) -> Selection:
    """Draw the token from the target with the uniform `accept[index]`: accept[c] = target_probs[x_c].

    This is exact however the candidates were found. Other rules are compared with it.
    """
    token = draws.token("accept", target_probs, index)
    found = np.flatnonzero(tokens == token).tolist()
    final_probs = one_hot(token, target_probs.size)  # it has been drawn
    return Selection(found[0] if found else None, final_probs, target_probs[tokens])


@dataclass(frozen=True)
class CandidateRule:
    """How candidates must be drawn, with replacement or without, and how they are verified; of either package."""

    replacement: bool
    verify: Any  # `Verify`


RULES: dict[str, CandidateRule] = {
    "without-replacement": CandidateRule(False, _in_turn(recursive_probs)),
    "with-replacement": CandidateRule(True, _in_turn(recursive_probs)),
    "k-seq": CandidateRule(True, _in_turn(k_seq_probs)),
    "match": CandidateRule(False, _match),
}
