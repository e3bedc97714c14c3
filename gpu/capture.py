"""A step captured as a CUDA graph: launched once for every cycle, with nothing asked of the host in between.

The tensors of a state stand still: a replay reads the uniforms and the state from where they were when it was captured,
and writes the state that follows to the same places. Attention reads as many slots as the longest text may need by
then; beyond that another graph takes over, which reads twice as many.

Glossary of shapes: B rows.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from .batch_record import BatchRecord
from .methods.base import Method
from .state import PER_ROW, State

__all__ = ["Captured", "Frozen", "capture", "standing"]

LEAST_SIGHT = 256  # slots
log = logging.getLogger(__name__)


@dataclass
class Frozen:
    """A state whose tensors stand still, and the step that changes them in place, at one sight."""

    method: Method
    state: State
    sight: int

    def step(
        self,
        uniforms: Tensor,  # [B, num_slots]
    ) -> BatchRecord:
        """Run one cycle in fixed shapes; the state's tensors then hold what follows."""
        caches = self.state.caches
        lengths = [cache.lengths for cache in caches]
        for cache in caches:
            cache.fix(self.sight)
        after, record = self.method.step(self.state, uniforms)
        for name in PER_ROW:
            getattr(self.state, name).copy_(getattr(after, name))
        for cache, length in zip(caches, lengths, strict=True):
            length.copy_(cache.lengths)
            cache.lengths = length
        return record


@dataclass
class Captured:
    """Graphs of one step, one for each sight."""

    method: Method
    state: State
    graphs: dict[int, tuple[Any, Tensor, BatchRecord]] = field(default_factory=dict)
    reach: int = 0  # slots that no row can have gone beyond

    def replay(
        self,
        uniforms: Tensor,  # [B, num_slots]
    ) -> BatchRecord:
        """Run one cycle; the record is a copy, as the next replay writes to the same places."""
        sight = self._sight()
        if sight not in self.graphs:
            self.graphs[sight] = self._capture(sight, uniforms)
        graph, buffer, record = self.graphs[sight]
        buffer.copy_(uniforms)
        graph.replay()
        self.reach += self.method.scratch
        return _copy(record)

    def measure(self, longest: int) -> None:
        """Note how long the longest text was when the host last looked, and that one step more is under way."""
        self.reach = longest + self.method.scratch

    def _sight(self) -> int:
        """Return how many slots to read: enough for this cycle, of few different numbers."""
        needed, sight = self.reach + self.method.scratch + 1, LEAST_SIGHT
        while sight < needed:
            sight *= 2
        return min(sight, self.state.cache.capacity)

    def _capture(self, sight: int, uniforms: Tensor) -> tuple[Any, Tensor, BatchRecord]:
        """Run the step a few times on the side, then capture it; the state is then as it was."""
        before = {name: getattr(self.state, name).clone() for name in PER_ROW}
        lengths = [cache.lengths.clone() for cache in self.state.caches]
        frozen, buffer = Frozen(self.method, self.state, sight), uniforms.clone()
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            for _ in range(3):
                frozen.step(buffer)
        torch.cuda.current_stream().wait_stream(side)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            record = frozen.step(buffer)
        for name, tensor in before.items():
            getattr(self.state, name).copy_(tensor)
        for cache, length in zip(self.state.caches, lengths, strict=True):
            cache.lengths.copy_(length)
        return graph, buffer, record


def capture(
    method: Method,
    state: State,
    uniforms: Tensor,  # [B, num_slots]
) -> Captured | None:
    """Capture a method's step on a state; None, with one warning, where that cannot be done."""
    reason = why_not(method, state)
    if reason is None:
        captured = Captured(method, standing(state))
        captured.measure(int(state.lengths.max()))
        try:
            captured.graphs[captured._sight()] = captured._capture(captured._sight(), uniforms)
            return captured
        except RuntimeError as error:
            torch.cuda.synchronize()
            reason = str(error).partition("\n")[0][:200]
    log.warning("the step runs eagerly, as it cannot be captured: %s", reason)
    return None


def why_not(method: Method, state: State) -> str | None:
    """Return why a step cannot be captured, if it cannot: the host would have to look at texts or logits."""
    if state.cache.lengths.device.type != "cuda":
        return f"it runs on {state.cache.lengths.device}, not on a GPU"
    if getattr(method, "processor", None) is not None:
        return "a processor looks at every row on the host"
    if state.ending.asks_host:
        return "the host looks at every text for its end"
    return None


def standing(state: State) -> State:
    """Return the state with tensors of its own, that nothing else writes to."""
    return replace(state, **{name: getattr(state, name).clone().contiguous() for name in PER_ROW})


def _copy(record: BatchRecord) -> BatchRecord:
    tensors: dict[str, Any] = {name: value.clone() for name, value in vars(record).items() if isinstance(value, Tensor)}
    return replace(record, **tensors)
