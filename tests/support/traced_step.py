"""A step as a graph of tensor operations, without the Python around them: what a compiler can take.

A traced step cannot ask the host anything, so its shapes are fixed, as for a capture on a GPU.

Glossary of shapes: B rows.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from copy import copy
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.fx import GraphModule
from torch.fx.experimental.proxy_tensor import make_fx

from pass_sampling.gpu.batch_record import Packed
from pass_sampling.gpu.methods.base import Method
from pass_sampling.gpu.model.cache import KVCache
from pass_sampling.gpu.state import PER_ROW, State

__all__ = ["Layout", "TracedStep", "inputs_of", "trace_step"]

ORDER = ("uniforms", "eos", *PER_ROW)
"""The inputs of a traced step; keys, values and lengths of each cache follow."""


@dataclass(frozen=True)
class Layout:
    """What the outputs of a traced step are, in order."""

    changed: tuple[str, ...]  # tensors of the state that the step replaces; the caches' lengths follow
    packed: Packed  # the shape of the record, whose integers and floats come last

    def state(self, before: State, outputs: Sequence[Tensor]) -> State:
        """Return the state after a step; keys and values were written in place."""
        tensors: dict[str, Any] = dict(zip(self.changed, outputs, strict=False))
        for cache, lengths in zip(before.caches, outputs[len(self.changed) :], strict=False):
            cache.lengths = lengths
            cache.measure()
        return replace(before, **tensors, cached=before.cache.lengths, max_pending=1, draft_pending=2)

    def record(self, outputs: Sequence[Tensor]) -> Packed:
        """Return the record of a step."""
        return replace(self.packed, integers=outputs[-2], floats=outputs[-1])


class TracedStep(NamedTuple):
    """A step's operations, inputs of the shapes that they are for, and what comes out."""

    graph: GraphModule
    examples: list[Tensor]
    layout: Layout


def inputs_of(
    state: State,
    uniforms: Tensor,  # [B, num_uniforms]
) -> list[Tensor]:
    """Return everything that a step reads and that is not the method's own, in the order of a traced step."""
    cached = [tensor for cache in state.caches for tensor in (cache.keys, cache.values, cache.lengths)]
    return [uniforms.double(), *(getattr(state, name) for name in ORDER[1:]), *cached]


def trace_step(method: Method, state: State, kv_length: int) -> TracedStep:
    """Trace a method's step on states like one, whose attention reads `kv_length` positions of the cache.

    Before, the step is run once on a copy, so that whatever it makes once and keeps is there.

    Raises:
        Exception: of many kinds, where a step asks the host.
    """
    uniforms = torch.zeros((len(state.lengths), method.num_uniforms), dtype=torch.float64)
    again = state.copy()
    for cache in again.caches:
        cache.fix(kv_length)
    method.step(again, uniforms)
    layouts: list[Layout] = []

    def step(*inputs: Tensor) -> list[Tensor]:
        uniforms, eos, *rest = inputs
        rows, cached = dict(zip(PER_ROW, rest, strict=False)), rest[len(PER_ROW) :]
        before = replace(_in_tensors(state, rows, cached, kv_length), eos=eos)
        after, record = method.step(before, uniforms)
        packed = record.pack()
        changed = tuple(name for name in PER_ROW if getattr(after, name) is not getattr(before, name))
        layouts.append(Layout(changed, replace(packed, integers=torch.empty(0), floats=torch.empty(0))))
        lengths = [cache.lengths for cache in after.caches]
        return [*(getattr(after, name) for name in changed), *lengths, packed.integers, packed.floats]

    with torch.inference_mode(False), torch.no_grad():
        examples = [torch.zeros_like(tensor) for tensor in inputs_of(state, uniforms)]
        graph = make_fx(step, tracing_mode="fake", _allow_non_fake_inputs=True)(*examples)
    return TracedStep(graph, examples, layouts[-1])


def _in_tensors(state: State, rows: Mapping[str, Tensor], cached: Sequence[Tensor], kv_length: int) -> State:
    """Return a state of the same kind in other tensors: those of rows by name, then three of each cache."""
    caches = [_cache_in(cache, kv_length, *cached[3 * i : 3 * i + 3]) for i, cache in enumerate(state.caches)]
    tensors: dict[str, Any] = dict(rows)
    draft_cache = caches[1] if len(caches) > 1 else None
    return replace(state, cache=caches[0], cached=caches[0].lengths, draft_cache=draft_cache, **tensors)


def _cache_in(
    cache: KVCache,
    kv_length: int,
    keys: Tensor,  # [layers, B, G, capacity, E]
    values: Tensor,  # [layers, B, G, capacity, E]
    lengths: Tensor,  # [B]
) -> KVCache:
    twin = copy(cache)
    twin.keys, twin.values, twin.lengths = keys, values, lengths
    twin.fix(kv_length)
    return twin
