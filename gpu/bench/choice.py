"""Which way of drafting is the fastest, from what steps cost and how far their drafts come.

Glossary of shapes: K drafts, R numbers of accepted drafts, from none to all.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import combinations

import numpy as np
import numpy.typing as npt

from ..methods import FusedPaSS
from ..methods.tree_shape import DraftTree, NumCandidates
from .calibration import Calibration, Measured
from .ways import Candidate

__all__ = ["Prediction", "best_outcomes", "chain_outcomes", "group_share", "in_order"]

Array = npt.NDArray[np.float64]
MOST = 8  # drafts up to which all sets of groups are tried; beyond, those after the fewest accepted drafts
TREE_RULE = "without-replacement"
LEAST_GAIN = 1.02  # over plain decoding: less is within the noise of a calibration


@dataclass(frozen=True)
class Prediction:
    """What is expected of one way with certain settings; way None is plain decoding."""

    way: int | None
    num_draft: int
    rule: str
    groups: tuple[int, ...] | None
    tokens_per_step: float
    milliseconds_per_step: float
    candidates: NumCandidates | None = None  # of a tree

    @property
    def tokens_per_second(self) -> float:
        """Tokens of one text."""
        return 1000 * self.tokens_per_step / self.milliseconds_per_step


def best_outcomes(calibration: Calibration, ways: Sequence[Candidate]) -> list[Prediction]:
    """Return the best settings of every way, as a chain and as a tree, and plain decoding; see `in_order`."""
    found = [Prediction(None, 0, "", None, 1.0, calibration.plain_milliseconds)]
    for place, (way, measured) in enumerate(zip(ways, calibration.ways, strict=True)):
        for outcomes in (list(chain_outcomes(place, way, measured, calibration)), _trees(place, measured)):
            if outcomes:
                found.append(max(outcomes, key=lambda outcome: outcome.tokens_per_second))
    return in_order(found)


def in_order(outcomes: Iterable[Prediction]) -> list[Prediction]:
    """Return plain decoding and others, the fastest first; what is hardly faster than plain stands after it."""
    gain = {True: LEAST_GAIN, False: 1.0}  # that plain decoding is given
    return sorted(outcomes, key=lambda outcome: -outcome.tokens_per_second * gain[outcome.way is None])


def chain_outcomes(place: int, way: Candidate, measured: Measured, calibration: Calibration) -> Iterator[Prediction]:
    """Expect something of every number of drafts, rule, and every choice of groups that can go on for ever."""
    for depth, milliseconds in measured.milliseconds.items():
        part = (depth - 1) / max(1, measured.most - 1)
        token = np.array(measured.survival[:depth])
        gained = part * (np.array(measured.block_survival[:depth]) - token)
        choices = {"token": (token, milliseconds)}
        if depth > 1:
            choices["block"] = token + np.maximum(gained, 0), milliseconds + part * measured.block_milliseconds
        for rule, (survival, each) in choices.items():
            tokens = 1.0 + measured.num_exact + float(survival.sum())
            yield Prediction(place, depth, rule, None, tokens, each)
            if isinstance(way.method, FusedPaSS) and way.method.refinement.uses_lookahead:
                yield from _with_groups(place, rule, survival, each, calibration)


def _trees(place: int, measured: Measured) -> list[Prediction]:
    """Expect of every tree what was measured of it."""
    return [
        Prediction(place, DraftTree(tree.shape).num_drafts, TREE_RULE, None, tree.tokens, tree.milliseconds, tree.shape)
        for tree in measured.trees
    ]


def _with_groups(
    place: int,
    rule: str,
    survival: Array,  # [K]
    milliseconds: float,
    calibration: Calibration,
) -> Iterator[Prediction]:
    """Leave groups out, but never the one after no draft: without it drafting would end."""
    depth = len(survival)
    everywhere = _pass_cost(calibration, (depth + 1) ** 2)
    bare = calibration.plain_milliseconds + _pass_cost(calibration, 1 + depth) - _pass_cost(calibration, 1)
    sets = (
        [rest for size in range(depth) for rest in combinations(range(1, depth + 1), size)]
        if depth <= MOST
        else [tuple(range(1, last + 1)) for last in range(depth)]
    )
    for rest in sets:
        groups = (0, *rest)
        share = group_share(survival, groups)
        drafting = milliseconds + _pass_cost(calibration, 1 + depth + len(groups) * depth) - everywhere
        drafting = max(drafting, bare)  # what was measured beyond the last rows may be too steep
        tokens = 1.0 + share * float(survival.sum())
        yield Prediction(place, depth, rule, groups, tokens, share * drafting + (1.0 - share) * bare)


def group_share(
    survival: Array,  # [K]
    groups: tuple[int, ...],
) -> float:
    """Return in which share of steps there are drafts, where groups hang after some numbers of accepted ones only.

    A step without drafts accepts none, and the group after none drafts for the next.

    share = hangs share + (1 - share), where hangs is the chance that a step of drafts ends where a group hangs
    """
    reached = np.concatenate([[1.0], survival, [0.0]])
    ends = reached[:-1] - reached[1:]  # [R], the chance that exactly so many are accepted
    hangs = float(ends[list(groups)].sum())
    return 1.0 / (2.0 - hangs)


def _pass_cost(calibration: Calibration, num_rows: int) -> float:
    """Return the milliseconds of a pass: on straight lines between those that were measured, and beyond the last."""
    rows, times = (list(each) for each in zip(*sorted(calibration.pass_milliseconds.items()), strict=True))
    if num_rows <= rows[-1] or len(rows) == 1:
        return float(np.interp(num_rows, rows, times))
    return float(times[-1] + (num_rows - rows[-1]) * (times[-1] - times[-2]) / (rows[-1] - rows[-2]))
