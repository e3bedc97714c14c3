"""What theory promises of several candidates: how often one of them is accepted, and which tree of them yields most.

Glossary of shapes: V vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from .candidates import RULES
from .config import check_integer
from .draft_tree import DraftTree, NumCandidates
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


def tree_tokens(
    accept_rates: Sequence[Sequence[float]],
    num_candidates: NumCandidates,
) -> float:
    """Return how many tokens a pass over a tree yields: the accepted drafts, and one.

    tokens = 1 + the sum over its drafts of the product of accept_rates[d][c] along the path to each

    `accept_rates[d][c]` is the chance that, behind d accepted drafts, candidate c is the one that survives. They are
    taken not to depend on which drafts these were, nor on how many candidates there are.
    """
    tree = DraftTree(num_candidates)
    reached = np.ones(tree.num_drafts + 1)
    for place, children in enumerate(tree.children):
        for rank, child in enumerate(children):
            reached[child] = reached[place] * accept_rates[int(tree.depths[place])][rank]
    return float(reached.sum())


def best_tree(
    accept_rates: Sequence[Sequence[float]],
    num_rows: int,
    rows_behind: Sequence[int] = (),
) -> NumCandidates:
    """Return the shape of the tree with most `tree_tokens`, of all whose drafts take at most so many rows in the pass.

    best[d, c, n] = max(0, max_m accept_rates[d][c] (1 + best[d+1, 0, m]) + best[d, c+1, n - rows - m])

    That is what candidates from rank c on add behind d accepted drafts, with n rows to spend, m of them below the first
    one. A draft takes one row, and one at depth d as many more as `rows_behind[d]` says: its look-ahead group.

    Raises:
        ValueError: a rate outside [0, 1], or a number of rows that is none.

    Source: Chen et al. 2024, "Sequoia" (arXiv 2402.12374), Sec. 3.1, with a rate for each depth.
    """
    check_integer("num_rows", num_rows, 0, MOST_DRAFTS)
    for rate in (rate for rates in accept_rates for rate in rates):
        if not 0 <= rate <= 1:
            raise ValueError(f"accept_rates: found {rate!r:.80}, expected numbers from 0 to 1")
    groups = [check_integer("rows_behind", rows, 0, MOST_DRAFTS) for rows in rows_behind]
    costs = [1 + sum(groups[d + 1 : d + 2]) for d in range(len(accept_rates))]  # of a draft behind d others
    spent = _spent(accept_rates, num_rows, costs)
    shape: list[int | tuple[int, ...]] = []
    level = [num_rows]  # of each place, how many rows the drafts behind it may take
    for d, cost in enumerate(costs):
        counts: list[int] = []
        below: list[int] = []
        for left in level:
            rank = 0
            while (inside := int(spent[d, rank][left])) >= 0:
                below.append(inside)
                left, rank = left - cost - inside, rank + 1
            counts.append(rank)
        if not below:
            break
        shape.append(counts[0] if len(set(counts)) == 1 else tuple(counts))
        level = below
    return tuple(shape)


def _spent(
    accept_rates: Sequence[Sequence[float]], num_rows: int, costs: list[int]
) -> dict[tuple[int, int], npt.NDArray[np.integer]]:
    """Return the m of `best_tree` for every depth, rank and number of rows; -1 where it is best to stop."""
    spent: dict[tuple[int, int], npt.NDArray[np.integer]] = {}
    below = np.zeros(num_rows + 1)
    for d, cost in reversed(list(enumerate(costs))):
        best, spent[d, len(accept_rates[d])] = np.zeros(num_rows + 1), np.full(num_rows + 1, -1)
        for c in range(len(accept_rates[d]) - 1, -1, -1):
            others, best, spent[d, c] = best, np.zeros(num_rows + 1), np.full(num_rows + 1, -1)
            for n in range(cost, num_rows + 1):
                found = accept_rates[d][c] * (1.0 + below[: n - cost + 1]) + others[n - cost :: -1]
                if found.max() > 0:
                    best[n], spent[d, c][n] = found.max(), found.argmax()
        below = best
    return spent
