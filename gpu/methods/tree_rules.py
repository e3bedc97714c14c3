"""Rules for several candidates at one position, for the rows of a batch.

`reference.methods.tree_rules` explains why the rules are exact, and names the sources. Rows of a batch may have fewer
than C candidates, `num_candidates`; the entries after them are ignored.

Glossary of shapes: B batch, C candidates, N positions, K candidates of all of them, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from pass_sampling.reference.config import SamplingConfig
from pass_sampling.reference.methods.tree_rules import HALVINGS, CandidateRule

from ..host import constant
from ..sampling import Probs, largest_logits, one_hot, probs_from_logits
from ..uniforms import UniformRow
from ..verify import Tokens, accept_probs, residual_probs


@dataclass(frozen=True)
class Selection:
    """The outcome at one position."""

    accepted: Tensor  # [B], the index of the candidate, -1 for none
    final_probs: Probs  # [B, V], the distribution of the token if none is accepted
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
    """Draw candidates for N positions; return them, their very distributions, and which of them there are.

    Position n has `num_candidates[n]` of them. Those of the first position come first, with the uniforms from
    `draft[index]` on, then those of the next. There are fewer candidates where no token is left, and none where the
    logits have no distribution.

    candidate_probs[0] = the distribution of the logits; candidate_probs[c+1] = candidate_probs[c] without token c,
    renormalised
    """
    kept = probs_from_logits(logits, sampling) > 0
    left = logits if sampling.temperature == 0 else logits.masked_fill(~kept, float("-inf"))
    first = [index + sum(num_candidates[:place]) for place in range(len(num_candidates))]  # uniform of each position
    tokens, distributions, used, columns = [], [], [], []
    places, going = list(range(len(first))), torch.ones_like(kept[..., 0]) if active is None else active
    for c in range(max(num_candidates)):
        still = [place for place, each in enumerate(places) if num_candidates[each] > c]
        if len(still) < len(places):
            those = constant(tuple(still), left.device)
            places, left, going = [places[place] for place in still], left[:, those], going[:, those]
        going = going & largest_logits(left).isfinite()
        distributions.append(probs_from_logits(left, SamplingConfig(sampling.temperature)))
        columns += [first[place] + c for place in places]
        tokens.append(draws.tokens("draft", distributions[-1], columns[-len(places) :], going))
        used.append(going)
        if not replacement:
            left = left.scatter(2, tokens[-1].unsqueeze(2), float("-inf"))
    order = constant(tuple(sorted(range(len(columns)), key=columns.__getitem__)), logits.device)
    ordered_tokens, probs, there = (torch.cat(found, dim=1)[:, order] for found in (tokens, distributions, used))
    return ordered_tokens, probs, there


def recursive_probs(
    target_probs: Probs,  # [B, V]
    candidate_probs: Probs,  # [B, C, V]
    candidate_tokens: Tokens,  # [B, C]
    num_candidates: Tensor,  # [B]
) -> tuple[Probs, Probs]:  # [B, C], [B, V]
    """Return the chance of each candidate, once reached, and the distribution of the token if none is accepted.

    accept[c] = min(1, rest[c, x_c] / candidate_probs[c, x_c]), rest[0] = target_probs

    rest[c+1] = max(0, rest[c] - candidate_probs[c]) / sum(max(0, rest[c] - candidate_probs[c]))
    """
    rest, accept = target_probs, []
    for c in range(candidate_tokens.shape[1]):
        one = slice(c, c + 1)
        accept.append(accept_probs(rest.unsqueeze(1), candidate_probs[:, one], candidate_tokens[:, one]))
        used = (c < num_candidates).unsqueeze(1)
        rest = torch.where(used, residual_probs(rest, candidate_probs[:, c]), rest)
    return torch.cat(accept, dim=1), rest


def k_seq_probs(
    target_probs: Probs,  # [B, V]
    candidate_probs: Probs,  # [B, C, V]
    candidate_tokens: Tokens,  # [B, C]
    num_candidates: Tensor | None = None,  # [B]
) -> tuple[Probs, Probs]:  # [B, C], [B, V]
    """Return the chance of each candidate, once reached, and the distribution of the token if none is accepted.

    accept[c] = min(1, target_probs[x_c] / (d draft_probs[x_c])), with d = `k_seq_division`

    final = max(0, target_probs - d draft_probs) / sum(max(0, target_probs - d draft_probs))

    The first `num_candidates` of each row count, by default all.
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
    """Return d, which divides the chances: the mean number of candidates tried. The paper calls it rho.

    d = 1 + r + ... + r^(C-1), r = sum(max(0, draft_probs - target_probs / d)), the chance that a candidate is rejected
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


Verify = Callable[[Probs, Probs, Tokens, UniformRow, int, Tensor, Tensor], Selection]
"""Called with the target's distributions [B, V], the candidates' distributions [B, C, V], the candidates [B, C], the
step's uniforms, the index of the first uniform of the candidates, the numbers of candidates [B], and the active rows
[B]."""


def _in_turn(chances: Callable[[Probs, Probs, Tokens, Tensor], tuple[Probs, Probs]]) -> Verify:
    """Return the rule that accepts the first candidate whose uniform is below its chance."""

    def verify(
        target_probs: Probs,
        candidate_probs: Probs,
        tokens: Tokens,
        draws: UniformRow,
        index: int,
        num_candidates: Tensor,
        active: Tensor,
    ) -> Selection:
        accept, final_probs = chances(target_probs, candidate_probs, tokens, num_candidates)
        going, accepted = active, torch.full_like(num_candidates, -1)
        for c in range(accept.shape[1]):
            asked = (going & (c < num_candidates)).unsqueeze(1)
            passes = draws.accept("accept", accept[:, c : c + 1].masked_fill(~asked, float("nan")), index + c)
            accepted = torch.where(passes.squeeze(1), c, accepted)
            going = (asked & ~passes).squeeze(1)
        return Selection(accepted, final_probs, accept)

    return verify


def _match(
    target_probs: Probs,
    candidate_probs: Probs,
    tokens: Tokens,
    draws: UniformRow,
    index: int,
    num_candidates: Tensor,
    active: Tensor,
) -> Selection:
    """Draw the token from the target with the uniform `accept[index]`: accept[c] = target_probs[x_c]."""
    token = draws.token("accept", target_probs, index, active)
    places = torch.arange(tokens.shape[1], device=token.device)
    found = (tokens == token.unsqueeze(1)) & (places < (num_candidates * active).unsqueeze(1))
    accepted = torch.where(found.any(dim=1), found.long().argmax(dim=1), -1)
    final_probs = one_hot(token, target_probs.shape[1])  # it has been drawn
    return Selection(accepted, final_probs, target_probs.gather(1, tokens))


RULES: dict[str, CandidateRule] = {
    "without-replacement": CandidateRule(False, _in_turn(recursive_probs)),
    "with-replacement": CandidateRule(True, _in_turn(recursive_probs)),
    "k-seq": CandidateRule(True, _in_turn(k_seq_probs)),
    "match": CandidateRule(False, _match),
}
