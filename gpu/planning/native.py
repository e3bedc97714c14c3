"""The plan for compiled steps: what promises most as it is, is compiled and timed again.

Compiling takes a minute a method, so not everything that is considered can be compiled. How far drafts come does not
depend on it, what a cycle costs does: most of what stands around the passes is gone.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

import torch

from ..compiled import Compiled
from ..methods.base import Method
from .calibration import cycle_milliseconds
from .choice import Outcome, in_order
from .ways import Way, with_settings

__all__ = ["compiled_outcomes"]

MOST = 3  # ways of drafting that are compiled
TURNS = 5


@torch.inference_mode()
def compiled_outcomes(
    outcomes: Sequence[Outcome],
    plain: Method,
    ways: Sequence[Way],
    prefixes: Sequence[Sequence[int]],
    report: Callable[[str], None] | None = None,
) -> list[Outcome]:
    """Return plain decoding and the best chains of drafts with what their cycles cost compiled, the fastest first.

    What cannot be compiled is left out; nothing is returned if that is plain decoding. `report` is told what is
    compiled, before it is.
    """
    chains = [each for each in outcomes if each.way is not None and each.candidates is None]
    found = [next(each for each in outcomes if each.way is None), *chains[:MOST]]
    methods = [Compiled(_method(each, plain, ways), report=report) for each in found]
    times: list[list[float]] = [[] for _ in found]
    for turn in range(TURNS):
        for method, values in zip(methods, times, strict=True):
            values += cycle_milliseconds(method, prefixes[turn % len(prefixes)])
    if not methods[0].is_native:
        return []
    return in_order(
        replace(each, milliseconds_per_cycle=min(values))
        for each, method, values in zip(found, methods, times, strict=True)
        if method.is_native
    )


def _method(outcome: Outcome, plain: Method, ways: Sequence[Way]) -> Method:
    if outcome.way is None:
        return plain
    return with_settings(ways[outcome.way].method, outcome.num_draft, outcome.rule, outcome.groups)
