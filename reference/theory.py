"""What theory promises: acceptance, tokens per call, speed-ups, the best number of drafts.

Nothing is drawn: acceptance is measured from laws, and the rest follows. Costs are in passes of the target over one
row, the price of a token without drafts, so every speed-up is one over plain decoding.

Glossary of shapes: N places in texts, K drafts, V vocabulary.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np

from .config import check_integer
from .sampling import Probs
from .verify import residual_probs

PassCost = Callable[[int], float]  # of a pass over so many rows, in any unit; None: the same for however many
MOST_DRAFTS = 2**14


def acceptance_rate(
    target_probs: Probs,  # [N, ..., V]
    draft_probs: Probs,  # [N, ..., V]
    rule: str = "token",
    weights: Probs | None = None,  # [N, ...]
    lenience: float = 1.0,
) -> Probs:  # [...]
    """Return the chance that a draft is accepted, once reached: one number for `[N, V]`, K of them for `[N, K, V]`.

    accept_rate = E[sum_v min(target_probs[v] / lenience, draft_probs[v])], or E[sum_v target_probs[v] draft_probs[v]]

    The latter by the match rule. The mean is over places, alike unless `weights` says how often each was reached. No
    rule here is lenient: that would make the law another, `lenient_law`.

    Raises:
        ValueError: rows that are not laws, a draft never reached, another rule, or a lenience outside (0, 1].

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


def lenient_law(
    target_probs: Probs,  # [V]
    draft_probs: Probs,  # [V]
    lenience: float,
) -> Probs:  # [V]
    """Return the law of the token that comes out if the draft law is taken for `lenience` times what it is.

    law = accepted + (1 - sum(accepted)) norm(max(0, target_probs - lenience draft_probs)) <= target_probs / lenience

    Raises:
        ValueError: rows that are not laws, or a lenience outside (0, 1].

    Source: Leviathan et al. 2023, App. A.5.
    """
    accepted = _accepted(target_probs, draft_probs, lenience)
    residual = residual_probs(target_probs, lenience * draft_probs)
    return np.asarray(accepted + max(0.0, 1.0 - float(accepted.sum())) * residual)


def expected_tokens(
    accept_rate: float | Probs,  # [] or [K]
    num_draft: int,
) -> float:
    """Return how many tokens a call of the target yields: the accepted drafts, and one.

    tokens = 1 + a + a^2 + ... + a^K = (1 - a^(K+1)) / (1 - a), or 1 + a_1 + a_1 a_2 + ... + a_1 ... a_K

    One rate takes acceptance not to depend on what came before; one per draft, once reached, is exact for any model.

    Raises:
        ValueError: a rate outside [0, 1], a negative number of drafts, or rates for another number.

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
    """Return how many times as fast as plain decoding it is to draft K tokens and verify them in one pass.

    speed_up = (1 - a^(K+1)) / ((1 - a) (K draft_cost + pass_cost(K+1))), with draft_cost paid once where `one_call`

    Raises:
        ValueError: a rate outside [0, 1], a negative number of drafts, or a negative cost.

    Source: Leviathan et al. 2023, Theorem 3.8, where a pass over K+1 rows costs 1; one call: Sec. 3.6.
    """
    drafting = _check_number("draft_cost", draft_cost) * (min(num_draft, 1) if one_call else num_draft)
    return expected_tokens(accept_rate, num_draft) / (drafting + _cost(pass_cost, num_draft + 1))


def operation_increase(accept_rate: float, num_draft: int, draft_operations: float, one_call: bool = False) -> float:
    """Return how many times as many operations a token takes as in plain decoding; the target's row is the unit.

    operation_increase = (1 - a) (K draft_operations + K + 1) / (1 - a^(K+1)), spent once where `one_call`

    Raises:
        ValueError: as `speed_up`.

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
    """Return the number of drafts with the largest `speed_up`, the smallest among equals, having tried all.

    K <= a / ((1 - a) draft_cost), unless a limit is given

    Beyond, K draft_cost + 1 > 1 / (1 - a) > tokens: slower than without drafts, if no pass costs less than one row's.

    Raises:
        ValueError: as `speed_up`, or no limit is given and none follows, or one beyond 2^14.

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
    """Return how many times as fast as plain decoding PaSS is; without a `pass_cost`, these are its tokens per pass.

    speed_up = (2 + E[accepted]) / (pass_cost(1 + L) + pass_cost(1 + K)), or (1 + E[accepted]) / pass_cost((1+L) (1+K))

    The latter with `one_call`: each verified row has L look-ahead rows of its own. E[accepted]: `expected_tokens` - 1.

    Raises:
        ValueError: K above L, more accepted than K, a negative number or cost.

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
    """Return the probability that each token is drafted and accepted, if every row is a law."""
    if not 0 < lenience <= 1:
        raise ValueError(f"lenience: found {lenience!r:.80}, expected a number above 0 and at most 1")
    check_laws(target_probs, draft_probs)
    with np.errstate(over="ignore"):
        return np.asarray(np.minimum(target_probs / lenience, draft_probs))


def check_laws(
    target_probs: Probs,  # [..., V]
    draft_probs: Probs,  # [..., V]
) -> None:
    """Raise ValueError unless both are laws, row by row, of one shape."""
    if not target_probs.size or target_probs.shape != draft_probs.shape:
        raise ValueError(f"draft_probs: found shape {draft_probs.shape}, expected {target_probs.shape}, and some rows")
    for name, probs in (("target_probs", target_probs), ("draft_probs", draft_probs)):
        least, total = probs.min(axis=-1), probs.sum(axis=-1)
        wrong = ~((least >= 0) & (np.abs(total - 1.0) < 1e-9))  # V 2^-52 for a V of 4 million
        for row in map(tuple, np.argwhere(wrong).tolist()):
            found = f"{name}{list(row) or ''}: found numbers from {least[row]} with sum {total[row]}"
            raise ValueError(f"{found}, expected probabilities with sum 1")
