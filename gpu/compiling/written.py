"""A step written down: the operations that it runs on the tensors of a state, without the Python around them.

What a step asks the host cannot be written down, so its shapes are fixed, as for a capture on a GPU: they depend on
nothing that is in its tensors.

Glossary of shapes: B rows.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, NamedTuple, TypeVar

import torch
from torch import Tensor
from torch.fx import GraphModule
from torch.fx.experimental.proxy_tensor import make_fx

from ..batch_record import Choices, Packed
from ..memory import Memory, check_memory
from ..methods.base import Method
from ..shortlist import Shortlists
from ..state import PER_ROW, State
from .states import in_tensors, shapes_of
from .twins import twin_of

__all__ = ["AGAIN", "GOES_ON", "LARGEST", "ORDER", "Layout", "Written", "inputs_of", "write_down"]

Value = TypeVar("Value", State, Packed)
NOTHING = torch.empty(0)
ORDER = ("said", "uniforms", "eos", *PER_ROW)
"""What a written step is given, and then keys, values and lengths of each cache."""
GOES_ON, NEWS, AGAIN = range(3)
"""What a written step says: that all texts go on, that one has ended or has no law, or that the step is not valid, as
laws would not fit into short lists, or as what it was given are no uniforms. Then nothing that counts has changed."""
LARGEST = 2**29  # bytes of weights: every package holds them once more, and larger models gain less


@dataclass(frozen=True)
class Layout:
    """What the numbers that come out of a written step are, in order."""

    changed: tuple[str, ...]  # tensors of the state that the step replaces; the caches' lengths follow
    num_caches: int
    lasts: bool  # whether its own results are of the shapes that it is for
    packed: Packed  # the record, whose integers and floats come next
    choices: tuple[int, ...] | None  # slots of the choices, if traced: edges, outcome and activity of each come last

    @cached_property
    def followed(self) -> tuple[tuple[int, int], ...]:
        """Which inputs of the next cycle are which outputs."""
        lengths = [len(ORDER) + 3 * cache + 2 for cache in range(self.num_caches)]
        places = [*map(ORDER.index, self.changed), *lengths]
        return tuple((place, i) for i, place in enumerate(places))

    def follow(self, inputs: list[Tensor], outputs: Sequence[Tensor]) -> None:
        """Make the inputs of a cycle, whose cached rows have been written in place, those of the next one."""
        for place, output in self.followed:
            inputs[place] = outputs[output]

    def state(self, before: State, inputs: Sequence[Tensor]) -> State:
        """Return the state that some inputs are, which has come from one before: whose caches are moved on."""
        tensors: dict[str, Any] = {name: inputs[ORDER.index(name)] for name in self.changed}
        for cache, lengths in zip(before.caches, inputs[len(ORDER) + 2 :: 3], strict=True):
            cache.lengths = lengths
            cache.measure()
        return _changed(before, **tensors, cached=before.cache.lengths, max_pending=1, draft_pending=2)

    def record(self, outputs: Sequence[Tensor]) -> Packed:
        """Return the record of a cycle."""
        integers, floats, *rest = outputs[len(self.followed) :]
        found, choices = iter(rest), None
        if self.choices is not None:
            choices = tuple(Choices(slot, next(found), next(found), next(found)) for slot in self.choices)
        return _changed(self.packed, integers=integers, floats=floats, choices=choices)


def _changed(value: Value, **fields: Any) -> Value:
    """Do as `dataclasses.replace` does, in a fraction of its time: behind native code Python is not in the caches."""
    twin: Value = object.__new__(type(value))
    vars(twin).update(vars(value), **fields)
    return twin


def inputs_of(
    state: State,
    said: Tensor,  # [1]
    uniforms: Tensor,  # [B, num_slots]
) -> list[Tensor]:
    """Return everything that a step reads and that is not the method's own, in the order of a written step.

    What it says it writes to `said`: where the host has looked once, it looks again without asking PyTorch.
    """
    of_state = [getattr(state, name) for name in ORDER[2:]]
    cached = [tensor for cache in state.caches for tensor in (cache.keys, cache.values, cache.lengths)]
    return [tensor.contiguous() for tensor in (said, uniforms, *of_state, *cached)]


class Written(NamedTuple):
    """A step's operations, inputs of the shapes that they are for, and what comes out."""

    graph: GraphModule
    examples: list[Tensor]
    layout: Layout


def write_down(method: Method, state: State, sight: int, trace: bool, lists: bool = True) -> Written:
    """Write down a method's step on states like one, with short lists of tokens where its settings allow it.

    Before, the step is run once on a copy, so that whatever it makes once and keeps is there.

    Raises:
        ValueError: its weights are too large to be held twice.
        Exception: of many kinds, where a step asks the host.
    """
    uniforms = torch.zeros((len(state.lengths), method.num_slots), dtype=torch.float64)
    again = state.copy()
    for cache in again.caches:
        cache.fix(sight)
    _step(method, again, uniforms, trace)
    layouts: list[Layout] = []

    def step(*inputs: Tensor) -> list[Tensor]:
        said, uniforms, eos, *rest = inputs
        before = in_tensors(state, dict(zip(PER_ROW, rest, strict=False)), rest[len(PER_ROW) :], sight)
        stepped = twin_of(method, shortlists=Shortlists.of(method)) if lists else method
        outputs, layout, says = _step(stepped, replace(before, eos=eos), uniforms, trace)
        said.copy_(says)
        layouts.append(layout)
        return outputs

    with torch.inference_mode(False), torch.no_grad():
        said = torch.zeros(1, dtype=torch.int64)
        examples = [torch.zeros_like(tensor) for tensor in inputs_of(state, said, uniforms)]
        graph = make_fx(step, tracing_mode="fake", _allow_non_fake_inputs=True)(*examples)
        _hold_constants(graph)
    return Written(graph, examples, layouts[-1])


def _step(
    method: Method,
    before: State,
    uniforms: Tensor,  # [B, num_slots]
    trace: bool,
) -> tuple[list[Tensor], Layout, Tensor]:
    after, record = method.step(before, uniforms, trace)
    again = ~((uniforms >= 0) & (uniforms < 1)).all()
    if method.shortlists is not None:
        again = again | method.shortlists.some_too_short()
    news = (after.ended & ~before.ended).any() | (after.fault != 0).any()
    says = torch.where(again, AGAIN, torch.where(news, NEWS, GOES_ON))
    changed = tuple(name for name in PER_ROW if getattr(after, name) is not getattr(before, name))
    packed = record.pack()
    outputs = [*(getattr(after, name) for name in changed), *(cache.lengths for cache in after.caches)]
    outputs += [packed.integers, packed.floats]
    outputs += [each for choice in packed.choices or () for each in (choice.edges, choice.outcome, choice.active)]
    outputs = [each.contiguous() for each in outputs]  # as inputs are: native code does not look how they lie
    slots = None if packed.choices is None else tuple(choice.slot for choice in packed.choices)
    nothing = replace(packed, integers=NOTHING, floats=NOTHING, choices=None)
    return outputs, Layout(changed, len(after.caches), shapes_of(after) == shapes_of(before), nothing, slots), says


def _hold_constants(graph: GraphModule) -> None:
    """Make buffers of the weights and tables that operations name: only such are known to be constant."""
    constants = {node.target: getattr(graph, node.target) for node in graph.graph.nodes if node.op == "get_attr"}
    size = sum(tensor.nbytes for tensor in constants.values())
    if size > LARGEST:
        raise ValueError(f"found {size / 2**30:.1f} GB of weights, expected at most {LARGEST / 2**30:.1f}")
    check_memory(Memory(weights=4 * size), torch.device("cpu"))  # while it is compiled
    names: dict[str, str] = {}
    for node in graph.graph.nodes:
        if node.op == "get_attr":
            if node.target not in names:
                names[node.target] = f"held_{len(names)}"
                graph.register_buffer(names[node.target], getattr(graph, node.target).detach().clone())
            node.target = names[node.target]
    for name in names:
        delattr(graph, name)
    graph.recompile()
