"""What a compiled method remembers from step to step: what made the newest state, and how often lists were too short.

Glossary of shapes: B rows.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import NamedTuple

from torch import Tensor

from ..state import State
from .packages import Call
from .written import Layout

__all__ = ["Made", "Tally"]

SELDOM, OF_THE_LAST = 16, 64  # cycles that may have to be run again


class Made(NamedTuple):
    """What made the newest state, and makes the next one as well, while there is room: found without looking."""

    call: Call
    layout: Layout
    trace: bool
    shape: tuple[int, ...]  # of the uniforms
    longest: int  # tokens of a text that it can step
    state: Callable[[], State | None]

    def fits(
        self,
        state: State,
        uniforms: Tensor,  # [B, num_slots]
        trace: bool,
    ) -> bool:
        """Say whether the same code steps this state."""
        if self.state() is not state or trace != self.trace or uniforms.shape != self.shape:
            return False
        return all(cache.extent <= self.longest for cache in state.caches)


@dataclass
class Tally:
    """How often steps had to be run again, as lists were too short: where that is often, these are given up."""

    makes_lists: bool = True
    cycles: int = 0
    again: deque[int] = field(default_factory=lambda: deque(maxlen=SELDOM + 1))  # the last cycles that were

    def count_again(self) -> None:
        """Count a cycle that was run again."""
        self.again.append(self.cycles)
        if len(self.again) > SELDOM and self.cycles - self.again[0] < OF_THE_LAST:
            self.makes_lists = False
