"""Several candidates for one position: how they are drawn, and which one survives, and still exact.

A rule takes candidates, the distributions they were drawn from, each given those before it, and the target's
distribution. It accepts one of them, or says from which distribution the token is to be drawn instead; either way the
token is distributed as if it had been drawn from the target. A rule relies on how the candidates were drawn: `RULES`
has both.

Rows of a batch may have fewer than C candidates, `num_candidates`; what stands after is ignored.

Glossary of shapes: B batch, C candidates, N positions, K candidates of all of them, V vocabulary.

K-SEQ: independent candidates for one position, all accepted with the same chance, as large as the distribution allows.

Candidates that are drawn from one distribution are often the same token, so they must not be accepted as readily as one
alone. They are verified as if the draft distribution were d times what it is, with d from 1, for one candidate, to C.

Why that keeps the distribution: a candidate is accepted as token x with the chance draft(x) min(1, target(x) / (d
draft(x))), which is min(d draft(x), target(x)) / d. If d candidates are looked at on average, x is accepted with the
probability min(d draft(x), target(x)), and the residual distribution adds the rest, as in `verify`.

Source: Sun et al. 2023, "SpecTr: Fast Speculative Decoding via Optimal Transport" (arXiv 2310.15141), Algorithm 2.

Glossary of shapes: B batch, C candidates, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from pass_sampling.reference.config import SamplingConfig

from ..sampling import Probs, largest_logits, one_hot, probs_from_logits
from ..uniforms import UniformRow
from ..verify import Tokens, accept_probs, residual_probs


@dataclass(frozen=True)
class Selection:
    """The outcome at one position: which candidate was accepted, and if none, what is to be drawn instead."""

    accepted: Tensor  # [B], -1 for none
    final_probs: Probs  # [B, V], the distribution of the token where none is accepted
    accept_probs: Probs  # [B, C], the chance of each candidate, once reached


def draw_candidates(
    logits: Tensor,  # [B, N, V]
    sampling: SamplingConfig,
    num_candidates: Sequence[int],
    draws: UniformRow,
    index: int = 0,
    replacement: bool = False,
    active: Tensor | None = None,  # [B, N]
) -> tuple[Tokens, Probs, Tensor]:  # [B, K], [B, K, V], [B, K]
    """Draw candidates for N positions, so many for each; return their very distributions, and which of them there are.

    Those of the first position come first, with the uniforms from `draft[index]` on, then those of the next.

    candidate_probs[0] = the distribution of the logits; candidate_probs[c+1] = candidate_probs[c] without token c,
    renormalised

    At temperature 0 a distribution is one-hot, and nothing is left of it: next comes the likeliest token of the others,
    the limit of small temperatures. There are fewer candidates than asked for where no token is left, and none where
    the logits have no distribution. With replacement, all come from the first distribution.

    Source: without replacement Yang et al. 2024, "Multi-Candidate Speculative Decoding" (arXiv 2401.06706).
    """
    kept = probs_from_logits(logits, sampling) > 0
    left = logits if sampling.temperature == 0 else logits.masked_fill(~kept, float("-inf"))
    first = [index + sum(num_candidates[:place]) for place in range(len(num_candidates))]  # uniform of each position
    tokens, distributions, used, columns = [], [], [], []
    places, going = list(range(len(first))), torch.ones_like(kept[..., 0]) if active is None else active
    for c in range(max(num_candidates)):
        still = [place for place, each in enumerate(places) if num_candidates[each] > c]
        if len(still) < len(places):
            places, left, going = [places[place] for place in still], left[:, still], going[:, still]
        going = going & largest_logits(left).isfinite()
        distributions.append(probs_from_logits(left, SamplingConfig(sampling.temperature)))
        columns += [first[place] + c for place in places]
        tokens.append(draws.tokens_at("draft", distributions[-1], columns[-len(places) :], going))
        used.append(going)
        if not replacement:
            left = left.scatter(2, tokens[-1].unsqueeze(2), float("-inf"))
    order = sorted(range(len(columns)), key=columns.__getitem__)
    return tuple(torch.cat(found, dim=1)[:, order] for found in (tokens, distributions, used))  # type: ignore[return-value]  # three of them


def recursive_probs(
    target_probs: Probs,  # [B, V]
    candidate_probs: Probs,  # [B, C, V]
    candidate_tokens: Tokens,  # [B, C]
    num_candidates: Tensor,  # [B]
) -> tuple[Probs, Probs]:  # [B, C], [B, V]
    """Return the chance of each candidate, once reached, and the distribution of the token if none is accepted.

    accept[c] = min(1, rest[c, x_c] / candidate_probs[c, x_c]), rest[0] = target_probs

    rest[c+1] = max(0, rest[c] - candidate_probs[c]) / sum(max(0, rest[c] - candidate_probs[c]))

    Source: Yang et al. 2024 (arXiv 2401.06706); Jeon et al. 2024, "Recursive Speculative Decoding" (arXiv 2402.14160),
    as recursive rejection sampling.
    """
    rest, accept = target_probs, []
    for c in range(candidate_tokens.shape[1]):
        one = slice(c, c + 1)
        accept.append(accept_probs(rest.unsqueeze(1), candidate_probs[:, one], candidate_tokens[:, one]))
        used = (c < num_candidates).unsqueeze(1)
        rest = torch.where(used, residual_probs(rest, candidate_probs[:, c]), rest)
    return torch.cat(accept, dim=1), rest


def verify_recursive(
    target_probs: Probs,  # [B, V]
    candidate_probs: Probs,  # [B, C, V]
    candidate_tokens: Tokens,  # [B, C]
    draws: UniformRow,
    index: int,
    num_candidates: Tensor,  # [B]
    active: Tensor,  # [B]
) -> Selection:
    """Accept the first candidate that passes, each against what the rejection of those before it has left."""
    accept, final_probs = recursive_probs(target_probs, candidate_probs, candidate_tokens, num_candidates)
    return _in_turn(accept, final_probs, draws, index, num_candidates, active)


def verify_k_seq(
    target_probs: Probs,  # [B, V]
    candidate_probs: Probs,  # [B, C, V]
    candidate_tokens: Tokens,  # [B, C]
    draws: UniformRow,
    index: int,
    num_candidates: Tensor,  # [B]
    active: Tensor,  # [B]
) -> Selection:
    """Accept the first candidate that passes, all with the same chance for the same token."""
    accept, final_probs = k_seq_probs(target_probs, candidate_probs, candidate_tokens, num_candidates)
    return _in_turn(accept, final_probs, draws, index, num_candidates, active)


def verify_match(
    target_probs: Probs,  # [B, V]
    candidate_probs: Probs,  # [B, C, V]
    candidate_tokens: Tokens,  # [B, C]
    draws: UniformRow,
    index: int,
    num_candidates: Tensor,  # [B]
    active: Tensor,  # [B]
) -> Selection:
    """Draw the token from the target with the uniform `accept[index]`; it may be one of the candidates.

    accept[c] = target_probs[x_c]

    Exact however the candidates were found: the control that a cleverer rule must beat.
    """
    token = draws.token("accept", target_probs, index, active)
    places = torch.arange(candidate_tokens.shape[1], device=token.device)
    found = (candidate_tokens == token.unsqueeze(1)) & (places < (num_candidates * active).unsqueeze(1))
    accepted = torch.where(found.any(dim=1), found.long().argmax(dim=1), -1)
    final_probs = one_hot(token, target_probs.shape[1])  # it has been drawn
    return Selection(accepted, final_probs, target_probs.gather(1, candidate_tokens))


def _in_turn(
    accept: Probs,  # [B, C]
    final_probs: Probs,  # [B, V]
    draws: UniformRow,
    index: int,
    num_candidates: Tensor,  # [B]
    active: Tensor,  # [B]
) -> Selection:
    """Accept the first candidate whose uniform is below its chance."""
    going, accepted = active, torch.full_like(num_candidates, -1)
    for c in range(accept.shape[1]):
        asked = going & (c < num_candidates)
        passes = draws.accept("accept", accept[:, c : c + 1].masked_fill(~asked.unsqueeze(1), float("nan")), index + c)
        accepted = torch.where(passes.squeeze(1), c, accepted)
        going = asked & ~passes.squeeze(1)
    return Selection(accepted, final_probs, accept)


@dataclass(frozen=True)
class CandidateRule:
    """How candidates must be drawn, with replacement or without, and how they are verified."""

    replacement: bool
    verify: Callable[[Probs, Probs, Tokens, UniformRow, int, Tensor, Tensor], Selection]


RULES: dict[str, CandidateRule] = {
    "without-replacement": CandidateRule(False, verify_recursive),
    "with-replacement": CandidateRule(True, verify_recursive),
    "k-seq": CandidateRule(True, verify_k_seq),
    "match": CandidateRule(False, verify_match),
}


HALVINGS = 64  # of an interval of length C - 1: more than float64 can tell apart


def k_seq_probs(
    target_probs: Probs,  # [B, V]
    candidate_probs: Probs,  # [B, C, V]
    candidate_tokens: Tokens,  # [B, C]
    num_candidates: Tensor | None = None,  # [B]
) -> tuple[Probs, Probs]:  # [B, C], [B, V]
    """Return the chance of each candidate, once reached, and the distribution of the token if none is accepted.

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
