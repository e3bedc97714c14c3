"""The plan for compiled steps: what promises most as it is, is compiled and timed again.

Compiling takes a minute a method, so not everything that is considered can be compiled. How far drafts come does not
depend on it, what a cycle costs does: most of what stands around the passes is gone, so more drafts may pay.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

import torch

from ..compiled import Compiled
from ..methods.base import Method
from .calibration import Calibration, cycle_milliseconds
from .choice import LEAST_GAIN, Outcome, chain_outcomes, in_order
from .ways import Way, with_settings

__all__ = ["compiled_outcomes"]

MOST = 3  # ways of drafting that are compiled
TURNS = 5


@torch.inference_mode()
def compiled_outcomes(
    outcomes: Sequence[Outcome],
    plain: Method,
    ways: Sequence[Way],
    calibration: Calibration,
    prefixes: Sequence[Sequence[int]],
    report: Callable[[str], None] | None = None,
) -> list[Outcome]:
    """Return plain decoding and the best chains of drafts with what their cycles cost compiled, the fastest first.

    Each is compiled with the settings that are best for it as it is, and again with others if these promise more then;
    all that is compared has taken turns. What cannot be compiled is left out; nothing is returned if that is plain
    decoding. `report` is told what is compiled, before it is.
    """
    clock = _Clock(plain, ways, prefixes, report)
    chains = [each for each in outcomes if each.way is not None and each.candidates is None][:MOST]
    found = clock.timed([next(each for each in outcomes if each.way is None), *chains])
    if not found or found[0].way is not None:
        return []
    others = [_promising(each, found[0], ways, calibration) for each in found[1:]]
    more = [each for each in others if each is not None]
    if more:
        found = clock.timed([*found, *more])
    return in_order(_best_of_each_way(found))


@dataclass(frozen=True)
class _Clock:
    """Times methods, compiled once each; those of one call take turns."""

    plain: Method
    ways: Sequence[Way]
    prefixes: Sequence[Sequence[int]]
    report: Callable[[str], None] | None
    compiled: dict[tuple[object, ...], Compiled] = field(default_factory=dict)

    def timed(self, outcomes: Sequence[Outcome]) -> list[Outcome]:
        """Return the same with what a cycle takes, but for those that cannot be compiled."""
        methods = [self._compiled(each) for each in outcomes]
        times: list[list[float]] = [[] for _ in outcomes]
        eos = self.plain.model.eos_token_ids
        for turn in range(TURNS):
            for method, values in zip(methods, times, strict=True):
                # with the ends of real texts: what is compiled here is what a text will use
                values += cycle_milliseconds(method, self.prefixes[turn % len(self.prefixes)], eos)
        return [
            replace(each, milliseconds_per_cycle=min(values))
            for each, method, values in zip(outcomes, methods, times, strict=True)
            if method.is_native
        ]

    def _compiled(self, outcome: Outcome) -> Compiled:
        settings = outcome.num_draft, outcome.rule, outcome.groups
        key = outcome.way, *settings
        if key not in self.compiled:
            method = self.plain if outcome.way is None else with_settings(self.ways[outcome.way].method, *settings)
            self.compiled[key] = Compiled(method, report=self.report)
        return self.compiled[key]


def _promising(timed: Outcome, plain: Outcome, ways: Sequence[Way], calibration: Calibration) -> Outcome | None:
    """Return other settings of the same way, if they should be faster: where every draft costs the same."""
    assert timed.way is not None
    a_draft = (timed.milliseconds_per_cycle - plain.milliseconds_per_cycle) / timed.num_draft
    others = [
        replace(each, milliseconds_per_cycle=plain.milliseconds_per_cycle + each.num_draft * a_draft)
        for each in chain_outcomes(timed.way, ways[timed.way], calibration.ways[timed.way], calibration)
        if each.groups is None and timed.groups is None
    ]
    best = max(others, key=lambda each: each.tokens_per_second, default=timed)
    return best if best.tokens_per_second > LEAST_GAIN * timed.tokens_per_second else None


def _best_of_each_way(outcomes: Sequence[Outcome]) -> list[Outcome]:
    """Return the fastest of every way, and plain decoding."""
    best: dict[int | None, Outcome] = {}
    for each in sorted(outcomes, key=lambda outcome: outcome.tokens_per_second):
        best[each.way] = each
    return list(best.values())
