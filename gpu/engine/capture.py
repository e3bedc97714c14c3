"""A step captured as a CUDA graph: launched once for every step, without reads by the host.

The tensors of a state keep their addresses: a replay reads the uniforms and the state there, and writes the next state
there. The shapes of a captured step depend on nothing in its tensors, so attention reads a fixed number of cache
positions. When a text may need more, a second graph reads twice as many.

Glossary of shapes: B rows.
"""

from __future__ import annotations

import functools
import logging
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from pass_sampling.reference.ending import Ending

from ..batch_record import Packed
from ..methods.base import Method
from ..methods.pass_one_call import OneCall
from ..state import PER_ROW, State
from .rows import packed

log = logging.getLogger(__name__)
LEAST_KV_LENGTH = 256  # cache positions
Launch = Callable[[], None]


class CaptureError(RuntimeError):
    """A step could not be captured; its state is as it was."""


@dataclass
class Frozen:
    """A state whose tensors keep their addresses, and the step that changes them, for one number of cache positions."""

    method: Method
    state: State
    kv_length: int

    def step(
        self,
        uniforms: Tensor,  # [B, num_uniforms]
    ) -> Packed:
        """Run one step in fixed shapes, and write the next state to the same tensors.

        If a pass was not finite for a row, the row keeps its state and gets a fault. The cause may be its own tokens or
        a masked draft: an eager step of that row alone decides.
        """
        caches = self.state.caches
        lengths = [each.lengths for each in caches]
        for each in caches:
            each.fix(self.kv_length)
        after, record = self.method.step(self.state, uniforms)
        for each in caches:
            self.state.fault.add_(each.doubt * 0.0)  # 0 or NaN
        held = self.state.fault != 0
        for each, length in zip(caches, lengths, strict=True):  # first, as they may be the state's own lengths
            torch.where(held, length, each.lengths, out=length)
            each.lengths = length
        for name in PER_ROW:
            place, new = getattr(self.state, name), getattr(after, name)
            if new is not place:
                torch.where(held.view(-1, *[1] * (place.ndim - 1)), place, new, out=place)
        return packed(record, self.state)


@functools.cache
def _pool(device: int) -> Any:
    """Return the memory that all graphs of a device share: no two of them run at a time."""
    return torch.cuda.graph_pool_handle()


def graph_of(run: Callable[[], Packed]) -> tuple[Launch, Packed]:
    """Capture `run` on the current GPU; return the replay, and the place of its record."""
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, pool=_pool(torch.cuda.current_device())):
        record = run()
    return graph.replay, record


@dataclass
class Captured:
    """Graphs of one step, one for each number of cache positions."""

    method: Method
    state: State
    make: Callable[[Callable[[], Packed]], tuple[Launch, Packed]] = graph_of
    least_kv_length: int = LEAST_KV_LENGTH
    graphs: dict[int, tuple[Launch, Tensor, Packed]] = field(default_factory=dict)
    held: list[Any] = field(default_factory=list)  # tensors that graphs read and others may free: rotations

    def replay(
        self,
        uniforms: Tensor,  # [B, num_uniforms]
        longest: int,
    ) -> Packed:
        """Run one step of texts of at most `longest` tokens, and return its record, which the next one overwrites.

        Raise CaptureError if the step cannot be captured with this number of cache positions.
        """
        kv_length = self.kv_length(longest)
        if kv_length not in self.graphs:
            self.graphs[kv_length] = self._capture(kv_length, uniforms)
        launch, buffer, record = self.graphs[kv_length]
        buffer.copy_(uniforms)
        launch()
        return record

    def kv_length(self, longest: int) -> int:
        """Return how many cache positions to read: enough for this step, and one of few different numbers."""
        kv_length = self.least_kv_length
        while kv_length < longest + self.method.scratch + 1:
            kv_length *= 2
        return min(kv_length, self.state.cache.capacity)

    def _capture(self, kv_length: int, uniforms: Tensor) -> tuple[Launch, Tensor, Packed]:
        """Run the step a few times on another stream, then capture it; restore the state, also after a failure."""
        caches, frozen, buffer = self.state.caches, Frozen(self.method, self.state, kv_length), uniforms.clone()
        before = {name: getattr(self.state, name).clone() for name in PER_ROW}
        lengths = [(cache.lengths, cache.lengths.clone()) for cache in caches]

        def restore() -> None:
            for name, tensor in before.items():
                getattr(self.state, name).copy_(tensor)
            for cache, (place, length) in zip(caches, lengths, strict=True):
                cache.lengths = place
                place.copy_(length)

        try:
            for _ in range(3):
                _on_the_side(lambda: frozen.step(buffer), uniforms.device)
                restore()
            launch, record = self.make(lambda: frozen.step(buffer))
        except (RuntimeError, ValueError, IndexError) as error:
            log.warning("the step runs eagerly, as it cannot be captured: %s", str(error).partition("\n")[0][:200])
            raise CaptureError(str(error)) from error
        finally:
            restore()
            for cache in caches:
                cache.fix(None)
        models = [self.method.model, getattr(getattr(self.method, "drafter", None), "model", None)]
        self.held += [getattr(model, "_table", None) for model in models]
        return launch, buffer, record


def capture(method: Method, state: State) -> Captured | None:
    """Prepare a method's step on a state for capture; return None, with one warning, if it cannot be captured."""
    reason = why_not(method, state.ending, state)
    if reason is None:
        return Captured(method, standing(state))
    log.warning("the step runs eagerly, as it cannot be captured: %s", reason)
    return None


def why_not(method: Method, ending: Ending, state: State | None = None) -> str | None:
    """Return why a step cannot be captured, if it cannot; what a state adds is considered if it is given."""
    if method.processor is not None:
        return "a logits processor runs on the host after every forward pass"
    if ending.asks_host:
        return "the ends of texts are checked on the host"
    if state is not None and isinstance(method, OneCall) and state.lookahead_hidden.shape[1] == 1:
        return "texts are too short to look ahead"
    if method.model.device.type != "cuda":
        return f"it runs on {method.model.device}, not on a GPU"
    return None


def standing(state: State) -> State:
    """Return the state with tensors of its own."""
    tensors: dict[str, Any] = {name: getattr(state, name).clone().contiguous() for name in PER_ROW}
    return replace(state, **tensors)


def _on_the_side(run: Callable[[], Any], device: torch.device) -> None:
    """Run something on another stream, which a capture needs before it."""
    if device.type != "cuda":
        run()
        return
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        run()
    torch.cuda.current_stream().wait_stream(side)
