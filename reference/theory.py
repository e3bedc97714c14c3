"""Predictions of theory: acceptance, tokens per call, speed-ups, and the best number or tree of drafts.

Acceptance follows from distributions, without draws. Costs are in passes of the target over one row, the cost of a
token without drafts, so every speed-up is relative to plain decoding. Every function raises ValueError for arguments
outside their ranges: rows that are not distributions, rates outside [0, 1], negative costs and numbers.

Glossary of shapes: N places in texts, K drafts, V vocabulary.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import cache

import numpy as np

from .config import check_integer
from .methods.tree_rules import RULES, k_seq_division
from .methods.tree_shape import DraftTree, NumCandidates
from .sampling import Probs
from .verify import residual_probs

PassCost = Callable[[int], float]  # of a pass over so many rows, in any unit; None: the same for any number
MOST_DRAFTS = 2**14


def acceptance_rate(
    target_probs: Probs,  # [N, ..., V]
    draft_probs: Probs,  # [N, ..., V]
    rule: str = "token",
    weights: Probs | None = None,  # [N, ...]
    lenience: float = 1.0,
) -> Probs:  # [...]
    """Return the probability that a draft is accepted, once reached: a number for `[N, V]`, K of them for `[N, K, V]`.

    accept_rate = E[sum_v min(target_probs[v] / lenience, draft_probs[v])], or E[sum_v target_probs[v] draft_probs[v]]

    The latter is the match rule's. The mean is over places; `weights` is how often each was reached (default: equally
    often). With a lenience below 1 the text has another distribution, `lenient_distribution`.

    Source: Leviathan et al. 2023 (arXiv 2211.17192), Corollary 3.6, App. A.5; match: Stern et al. 2018, Sec. 3.
    """
    if rule not in ("match", "token") or (rule == "match" and lenience != 1):
        raise ValueError(f"rule: found {rule!r:.80} with lenience {lenience}, expected token, or match with 1")
    accepted = _accepted(target_probs, draft_probs, lenience)
    overlap = (target_probs * draft_probs if rule == "match" else accepted).sum(axis=-1)
    weights = np.ones_like(overlap) if weights is None else weights
    if np.shape(weights) != overlap.shape or not (np.min(weights) >= 0 and np.all(np.sum(weights, axis=0) > 0)):
        raise ValueError(f"weights: found {weights!s:.80}, expected numbers from 0, one per row, some above per draft")
    return np.minimum(1.0, np.average(overlap, axis=0, weights=weights))


def lenient_distribution(
    target_probs: Probs,  # [V]
    draft_probs: Probs,  # [V]
    lenience: float,
) -> Probs:  # [V]
    """Return the distribution of the token if the draft distribution is multiplied by `lenience`.

    distribution = accepted + (1 - sum(accepted)) norm(max(0, target_probs - lenience draft_probs)) <= target_probs /
    lenience

    Source: Leviathan et al. 2023, App. A.5.
    """
    accepted = _accepted(target_probs, draft_probs, lenience)
    residual = residual_probs(target_probs, lenience * draft_probs)
    return np.asarray(accepted + max(0.0, 1.0 - float(accepted.sum())) * residual)


def expected_tokens(
    accept_rate: float | Probs,  # [] or [K]
    num_draft: int,
) -> float:
    """Return the expected tokens of a call of the target: the accepted drafts, and one.

    tokens = 1 + a + a^2 + ... + a^K = (1 - a^(K+1)) / (1 - a), or 1 + a_1 + a_1 a_2 + ... + a_1 ... a_K

    One rate assumes that acceptance does not depend on earlier tokens; one per draft, once reached, is always exact.

    Source: Leviathan et al. 2023, Eq. 1.
    """
    check_integer("num_draft", num_draft, 0, MOST_DRAFTS)
    if np.shape(accept_rate) not in ((), (num_draft,)):
        raise ValueError(f"accept_rate: found shape {np.shape(accept_rate)}, expected one rate, or {num_draft}")
    for rate in np.ravel(accept_rate).tolist():
        _check_number("accept_rate", rate, 1.0)
    return 1.0 + float(np.cumprod(np.broadcast_to(accept_rate, num_draft)).sum())


def speed_up(
    accept_rate: float, num_draft: int, draft_cost: float, pass_cost: PassCost | None = None, one_call: bool = False
) -> float:
    """Return the speed of drafting K tokens and verifying them in one pass, relative to plain decoding.

    speed_up = (1 - a^(K+1)) / ((1 - a) (K draft_cost + pass_cost(K+1))), with draft_cost paid once where `one_call`

    Source: Leviathan et al. 2023, Theorem 3.8, where a pass over K+1 rows costs 1; one call: Sec. 3.6.
    """
    drafting = _check_number("draft_cost", draft_cost) * (min(num_draft, 1) if one_call else num_draft)
    return expected_tokens(accept_rate, num_draft) / (drafting + _cost(pass_cost, num_draft + 1))


def operation_increase(accept_rate: float, num_draft: int, draft_operations: float, one_call: bool = False) -> float:
    """Return the operations per token, relative to plain decoding; the unit is the target's row.

    operation_increase = (1 - a) (K draft_operations + K + 1) / (1 - a^(K+1)), spent once where `one_call`

    Source: Leviathan et al. 2023, Theorem 3.11.
    """
    _check_number("draft_operations", draft_operations)
    return 1.0 / speed_up(accept_rate, num_draft, draft_operations, float, one_call)


def optimal_num_draft(
    accept_rate: float,
    draft_cost: float,
    pass_cost: PassCost | None = None,
    one_call: bool = False,
    max_num_draft: int | None = None,
) -> int:
    """Return the number of drafts with the largest `speed_up`, the smallest among equals; all are tried.

    K <= a / ((1 - a) draft_cost), unless a limit is given

    Beyond, K draft_cost + 1 > 1 / (1 - a) > tokens: slower than without drafts, if no pass costs less than one row's.

    Source: Leviathan et al. 2023, Sec. 3.5.
    """
    rate, cost = _check_number("accept_rate", accept_rate, 1.0), _check_number("draft_cost", draft_cost)
    if max_num_draft is None:
        slope = 0.0 if one_call else (1.0 - rate) * cost
        bound = rate / slope if slope > 0 else math.inf if rate > 0 else 0.0
        max_num_draft = math.floor(bound) if bound < math.inf else None
    tried = range(check_integer("max_num_draft", max_num_draft, 0, MOST_DRAFTS) + 1)
    return max(tried, key=lambda num_draft: speed_up(rate, num_draft, cost, pass_cost, one_call))


def lookahead_speed_up(
    num_accepted: float, num_lookahead: int, num_draft: int, pass_cost: PassCost | None = None, one_call: bool = False
) -> float:
    """Return the speed of PaSS relative to plain decoding; without a `pass_cost`, its tokens per pass.

    speed_up = (2 + E[accepted]) / (pass_cost(1 + L) + pass_cost(1 + K)), or (1 + E[accepted]) / pass_cost((1+L) (1+K))

    The latter with `one_call`: each verified row has L look-ahead rows of its own. E[accepted]: `expected_tokens` - 1.

    Source: Monea et al. 2023 (arXiv 2311.13581), Sec. 3; in one call: Lin et al. 2024 (arXiv 2401.12522).
    """
    check_integer("num_draft", num_draft, 0, check_integer("num_lookahead", num_lookahead, 0, MOST_DRAFTS))
    accepted = _check_number("num_accepted", num_accepted, num_draft)
    if one_call:
        return (1.0 + accepted) / _cost(pass_cost, (1 + num_lookahead) * (1 + num_draft))
    return (2.0 + accepted) / (_cost(pass_cost, 1 + num_lookahead) + _cost(pass_cost, 1 + num_draft))


def _check_number(name: str, value: float, most: float = math.inf) -> float:
    if not isinstance(value, int | float | np.number) or not 0 <= value <= most or not math.isfinite(value):
        raise ValueError(f"{name}: found {value!r:.80}, expected a finite number from 0 to {most:g}")
    return float(value)


def _cost(pass_cost: PassCost | None, num_rows: int) -> float:
    """Return what a pass costs, in passes over one row."""
    costs = [1.0 if pass_cost is None else pass_cost(rows) for rows in (1, num_rows)]
    if not all(0 < cost < math.inf for cost in costs):
        raise ValueError(f"pass_cost: found {costs} for 1 and {num_rows} rows, expected finite numbers above 0")
    return costs[1] / costs[0]


def _accepted(target_probs: Probs, draft_probs: Probs, lenience: float) -> Probs:
    """Return the probability that each token is drafted and accepted, if every row is a distribution."""
    if not 0 < lenience <= 1:
        raise ValueError(f"lenience: found {lenience!r:.80}, expected a number above 0 and at most 1")
    check_distributions(target_probs, draft_probs)
    with np.errstate(over="ignore"):
        return np.asarray(np.minimum(target_probs / lenience, draft_probs))


def check_distributions(
    target_probs: Probs,  # [..., V]
    draft_probs: Probs,  # [..., V]
) -> None:
    """Raise ValueError unless both are distributions, row by row, of one shape."""
    if not target_probs.size or target_probs.shape != draft_probs.shape:
        raise ValueError(f"draft_probs: found shape {draft_probs.shape}, expected {target_probs.shape}, and some rows")
    for name, probs in (("target_probs", target_probs), ("draft_probs", draft_probs)):
        least, total = probs.min(axis=-1), probs.sum(axis=-1)
        wrong = ~((least >= 0) & (np.abs(total - 1.0) < 1e-9))  # V 2^-52 for a V of 4 million
        for row in map(tuple, np.argwhere(wrong).tolist()):
            found = f"{name}{list(row) or ''}: found numbers from {least[row]} with sum {total[row]}"
            raise ValueError(f"{found}, expected probabilities with sum 1")


def candidate_acceptance(
    target_probs: Probs,  # [V]
    draft_probs: Probs,  # [V]
    num_candidates: int,
    rule: str = "without-replacement",
) -> float:
    """Return the probability that one of C candidates for a position is accepted.

    with-replacement: 1 - prod_c (1 - sum(min(rest[c], draft_probs))), rest[c+1] = norm(max(0, rest[c] - draft_probs))

    k-seq: 1 - r^C, r = sum(max(0, draft_probs - target_probs / d)), d = `k_seq_division`

    match: the sum of target_probs over the candidates, on average; without-replacement: see `_rejection`

    With one candidate, all but match are Leviathan's sum(min(target_probs, draft_probs)). Without replacement the sum
    has a term for each of the V^(C-1) ordered draws of tokens with a draft probability above 0.

    Source: Sun et al. 2023 (arXiv 2310.15141) for K-SEQ; Jeon et al. 2024 (arXiv 2402.14160) with replacement.
    """
    check_integer("num_candidates", num_candidates, 1, MOST_DRAFTS)
    check_distributions(target_probs, draft_probs)
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


def _rejection(target_probs: Probs, draft_probs: Probs, num_candidates: int) -> float:
    """Return the probability that candidates drawn without replacement are all rejected.

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


def _coverage(target_probs: Probs, draft_probs: Probs, num_candidates: int) -> float:
    """Return the expected target probability of candidates drawn without replacement."""
    if num_candidates == 0 or not draft_probs.any():
        return 0.0
    others = sum(
        float(draft_probs[token]) * _coverage(target_probs, _without(draft_probs, token), num_candidates - 1)
        for token in (np.flatnonzero(draft_probs).tolist() if num_candidates > 1 else ())
    )
    return float(target_probs @ draft_probs) + others


def _without(probs: Probs, token: int) -> Probs:
    """Return a distribution without one of its tokens, or zeros if none is left."""
    others = np.where(np.arange(probs.size) == token, 0.0, probs)
    return others / others.sum() if others.any() else others


def tree_tokens(accept_rates: Sequence[Sequence[float]], num_candidates: NumCandidates) -> float:
    """Return the expected tokens of a pass over a tree: the accepted drafts, and one.

    tokens = 1 + the sum over its drafts of the product of accept_rates[d][c] along the path to each

    `accept_rates[d][c]` is the probability that candidate c is accepted after d accepted drafts. It is assumed not to
    depend on these drafts, nor on the number of candidates.
    """
    tree = DraftTree(num_candidates)
    reached = np.ones(tree.num_drafts + 1)
    for place, children in enumerate(tree.children):
        for rank, child in enumerate(children):
            reached[child] = reached[place] * accept_rates[int(tree.depths[place])][rank]
    return float(reached.sum())


def best_tree(accept_rates: Sequence[Sequence[float]], num_rows: int, rows_behind: Sequence[int] = ()) -> NumCandidates:
    """Return the shape of the tree with most `tree_tokens`, of all whose drafts take at most `num_rows` rows.

    best[d, c, n] = max(0, max_m accept_rates[d][c] (1 + best[d+1, 0, m]) + best[d, c+1, n - rows - m])

    best[d, c, n] are the tokens that candidates from rank c on add after d accepted drafts with n rows, m of which are
    below the first one. A draft takes one row, and at depth d another `rows_behind[d]` for its look-ahead group.

    Source: Chen et al. 2024, "Sequoia" (arXiv 2402.12374), Sec. 3.1, with a rate for each depth.
    """
    check_integer("num_rows", num_rows, 0, MOST_DRAFTS)
    for rate in (rate for rates in accept_rates for rate in rates):
        if not 0 <= rate <= 1:
            raise ValueError(f"accept_rates: found {rate!r:.80}, expected numbers from 0 to 1")
    groups = [check_integer("rows_behind", rows, 0, MOST_DRAFTS) for rows in rows_behind]
    costs = [1 + sum(groups[d + 1 : d + 2]) for d in range(len(accept_rates))]  # of a draft after d others

    @cache
    def best(d: int, c: int, n: int) -> tuple[float, int]:
        """Return best[d, c, n] and its m; m is -1 where it is best to stop."""
        if d == len(costs) or c == len(accept_rates[d]):
            return 0.0, -1
        rate, left = accept_rates[d][c], n - costs[d]
        found = [rate * (1.0 + best(d + 1, 0, m)[0]) + best(d, c + 1, left - m)[0] for m in range(left + 1)]
        return (max(found), found.index(max(found))) if any(found) else (0.0, -1)

    shape: list[int | tuple[int, ...]] = []
    level = [num_rows]  # of each place, how many rows the drafts after it may take
    for d, cost in enumerate(costs):
        counts: list[int] = []
        below: list[int] = []
        for left in level:
            rank = 0
            while (inside := best(d, rank, left)[1]) >= 0:
                below.append(inside)
                left, rank = left - cost - inside, rank + 1
            counts.append(rank)
        if not below:
            break
        shape.append(counts[0] if len(set(counts)) == 1 else tuple(counts))
        level = below
    return tuple(shape)
