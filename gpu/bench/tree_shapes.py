"""Trees for a plan: how often a candidate of each rank is the one accepted, the shapes that follow, what they cost.

Glossary of shapes: D depths, C candidates.
"""

from __future__ import annotations

import heapq
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from pass_sampling.reference.record import Record

from ..methods.tree_shape import NumCandidates
from .expectation import reach_of

__all__ = ["BUDGETS", "WIDEST", "best_shapes", "rank_rates"]

BUDGETS = (4, 8, 16, 32)  # drafts of the trees that are tried
WIDEST = (4, 3, 2, 1, 1, 1)  # the tree that rates are measured with
Path = tuple[int, ...]  # of a draft: the rank of each candidate on its way


def rank_rates(records: Sequence[Record], rule: str) -> list[list[float]]:  # [D, C]
    """Return how often the candidate of each rank is the one accepted, once its place is reached.

    A later candidate is never said to be accepted more often than the one before it.
    """
    accepted: dict[tuple[int, int], float] = {}
    reached: dict[tuple[int, int], float] = {}
    for record in records:
        reach, paths = reach_of(record, rule), paths_of(record)
        for place, path in enumerate(paths):
            key = len(path) - 1, path[-1]
            parent = record.draft_parents[place]
            accepted[key] = accepted.get(key, 0.0) + reach[place]
            reached[key] = reached.get(key, 0.0) + (reach[parent] if parent >= 0 else 1.0)
    rates: list[list[float]] = []
    for depth in range(max((depth for depth, _ in reached), default=-1) + 1):
        ranks = range(sum(key[0] == depth for key in reached))
        found = [accepted[depth, rank] / reached[depth, rank] if reached[depth, rank] else 0.0 for rank in ranks]
        rates.append(np.minimum.accumulate(found).tolist())
    return rates


def paths_of(record: Record) -> list[Path]:
    """Return the path of every draft of a tree."""
    paths: list[Path] = []
    for place, parent in enumerate(record.draft_parents):
        rank = record.draft_parents[:place].count(parent)
        paths.append((*(paths[parent] if parent >= 0 else ()), rank))
    return paths


def best_shapes(
    rates: Sequence[Sequence[float]],  # [D, C]
    budgets: Iterable[int] = BUDGETS,
) -> list[tuple[NumCandidates, float]]:
    """Return the best tree of each number of drafts, and the tokens it yields; none twice.

    tokens = 1 + the sum over its drafts of the product of rates along the path to each

    As no draft is reached more often than the one before or beside it, the best are those that are reached most often.

    Source: Chen et al. 2024, "Sequoia" (arXiv 2402.12374), Sec. 3.1, where every draft costs as much.
    """
    chosen: list[Path] = []
    tokens = 1.0
    found: dict[NumCandidates, float] = {}
    waiting: list[tuple[float, Path]] = []

    def offer(path: Path, parent_reach: float) -> None:
        depth, rank = len(path) - 1, path[-1]
        if depth < len(rates) and rank < len(rates[depth]) and parent_reach * rates[depth][rank] > 0:
            heapq.heappush(waiting, (-parent_reach * rates[depth][rank], path))

    reach: dict[Path, float] = {(): 1.0}
    offer((0,), 1.0)
    for budget in sorted(budgets):
        while waiting and len(chosen) < budget:
            negative, path = heapq.heappop(waiting)
            reach[path] = -negative
            tokens += -negative
            chosen.append(path)
            offer((*path, 0), reach[path])
            offer((*path[:-1], path[-1] + 1), reach[path[:-1]])
        if chosen:
            found.setdefault(_shape(chosen), tokens)
    return list(found.items())


def _shape(paths: Sequence[Path]) -> NumCandidates:
    """Return the shape of the tree of some paths: for each depth how many drafts stand after each place."""
    levels: list[list[Path]] = [[()]]
    shape: list[Any] = []
    while below := sorted(path for path in paths if len(path) == len(levels)):
        counts = [sum(path[:-1] == place for path in below) for place in levels[-1]]
        shape.append(counts[0] if len(set(counts)) == 1 else tuple(counts))
        levels.append(below)
    return tuple(shape)
