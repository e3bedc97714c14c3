"""A method whose step is compiled: on a CPU, a cycle is then one call of native code instead of hundreds of operations.

It is the method's own step, written down once for each shape of its tensors and compiled by PyTorch's compiler. Its law
is the target's, its tokens are those of the method wherever rounding does not decide, and what cannot be compiled runs
as it is.

Glossary of shapes: B rows.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any
from weakref import ref

import torch
from torch import Tensor

from .batch_record import BatchRecord, Packed
from .compiling.compilers import COMPILERS, has_compiler
from .compiling.packages import Call, compiled_package
from .compiling.prompts import read_prompts
from .compiling.recent import Made, Tally
from .compiling.states import shapes_of
from .compiling.twins import twin_of
from .compiling.written import AGAIN, GOES_ON, ORDER, Layout, inputs_of, write_down
from .config import SamplingConfig
from .ending import Ending
from .fixed_shapes import LEAST_SIGHT, needs_host, sight_for, why_not_fixed
from .methods.base import Method
from .methods.language_model import LanguageModel
from .record import Record
from .sampling import Processor
from .state import State
from .table import TableModel
from .tape import Slots, check_uniforms
from .transformer import Transformer

__all__ = ["Compiled"]

log = logging.getLogger(__name__)


@dataclass(frozen=True, eq=False)
class Compiled(Method):
    """Another method, compiled.

    The prompt is read by a pass that is not, but for its last token. Each number of rows, and each doubling of the text
    beyond `least_sight` tokens, is compiled for itself, for a minute or so, and kept in the user's cache folder.
    """

    method: Method
    least_sight: int = LEAST_SIGHT  # slots that attention reads at least
    report: Callable[[str], None] | None = None  # is told what is compiled, before it is
    made: Made | None = field(default=None, init=False, repr=False)
    tally: Tally = field(default_factory=Tally, init=False, repr=False)
    warned: set[str] = field(default_factory=set, init=False, repr=False)
    code: dict[Any, tuple[Call, Layout] | None] = field(default_factory=dict, init=False, repr=False)

    model: LanguageModel = field(init=False, repr=False)
    sampling: SamplingConfig = field(init=False, repr=False)
    processor: Processor | None = field(init=False, repr=False)

    def __post_init__(self) -> None:
        """Take over what people ask a method for."""
        for name in ("model", "sampling", "processor"):
            object.__setattr__(self, name, getattr(self.method, name, None))

    @property
    def slots(self) -> Slots:
        """The method's uniforms."""
        return self.method.slots

    @property
    def is_native(self) -> bool:
        """Whether there has been native code for every step so far."""
        return bool(self.code) and None not in self.code.values()

    @property
    def scratch(self) -> int:
        """Slots that a pass may need beyond the longest text."""
        return self.method.scratch

    def start_batch(self, prompts: Sequence[Sequence[int]], ending: Ending) -> State:
        """Return the state before the first cycle, with room for a power of two of tokens: so shapes are few."""
        method = twin_of(self.method, least_room=self.least_sight) if self._unfit is None else self.method
        return method.start_batch(prompts, ending)

    def step(
        self,
        state: State,
        uniforms: Tensor,  # [B, num_slots]
        trace: bool = False,
    ) -> tuple[State, BatchRecord | Packed]:
        """Run one cycle: by native code, where there is some for it.

        Before the first one the prompt is read, by a pass of its own, which its record counts.
        """
        state, (record,) = self.steps(state, uniforms.unsqueeze(0), trace)
        return state, record

    def steps(
        self,
        state: State,
        uniforms: Tensor,  # [C, B, num_slots]
        trace: bool = False,
    ) -> tuple[State, list[BatchRecord | Packed]]:
        """Run some of C cycles, one call of native code behind another: all, if no text ends and there is room.

        Where a step is not compiled, or is not valid, it is one.
        """
        uniforms = uniforms.double().contiguous()  # native code does not look at either
        made = self.made
        if made is not None and made.fits(state, uniforms[0], trace):
            state.check_fresh()
            return self._run(made, state, uniforms)
        reason = self._unfit or needs_host(self.method, state)
        if reason is not None:
            self._warn(reason)
            return self.method.steps(state, uniforms, trace)
        if uniforms.shape[1:] != (len(state.lengths), self.num_slots):  # native code would read beyond them
            check_uniforms(uniforms[0], self.num_slots)
            raise ValueError(
                f"uniforms: found {uniforms.shape[1]} rows, expected {len(state.lengths)}, one for each text"
            )
        state.check_fresh()
        if state.cache.extent:
            fits = state.max_pending == 1  # not where some texts have begun and others have not
            return (self._steps if fits else self.method.steps)(state, uniforms, trace)
        check_uniforms(uniforms[0], self.num_slots)  # later, native code looks
        state, read, draft_passes = read_prompts(self.method, state)
        state, (record, *others) = self._steps(state, uniforms, trace)
        return state, [record.pack().counting(read, draft_passes), *others]

    def run(self, states: Sequence[State], uniforms: Any) -> list[tuple[State, Record]]:  # [len(states), num_slots]
        """Step copies of many states one after another: there is native code for few numbers of rows."""
        found: list[tuple[State, Record]] = []
        for state, row in zip(states, torch.as_tensor(uniforms), strict=True):
            found += super().run([state], row.unsqueeze(0))
        return found

    def _steps(
        self,
        state: State,
        uniforms: Tensor,  # [C, B, num_slots]
        trace: bool,
    ) -> tuple[State, list[BatchRecord | Packed]]:
        found = self._compiled(state, trace)
        if found is None:
            return self.method.steps(state, uniforms, trace)
        longest = self._sight(state) - self.scratch - 1
        return self._run(Made(*found, trace, uniforms.shape[1:], longest, lambda: None), state, uniforms)

    def _run(
        self,
        made: Made,
        state: State,
        uniforms: Tensor,  # [C, B, num_slots]
    ) -> tuple[State, list[BatchRecord | Packed]]:
        """Run native code, and nothing between cycles, up to one that is not valid: if that is the first, as it is."""
        layout, longest = made.layout, max(cache.extent for cache in state.caches)
        most = 1 + (made.longest - longest) // layout.packed.width if layout.lasts else 1
        said = torch.full((1,), GOES_ON)
        inputs, look = inputs_of(state, said, uniforms[0]), said.numpy().data
        found: list[list[Tensor]] = []
        for each in uniforms[:most].unbind():
            inputs[ORDER.index("uniforms")] = each
            outputs = made.call(*inputs)
            if look[0] == AGAIN:
                break
            layout.follow(inputs, outputs)
            found.append(outputs)
            if look[0] != GOES_ON:
                break
        self.tally.cycles += len(found) or 1
        if not found:
            self.tally.count_again()
            object.__setattr__(self, "made", None)
            state, record = self.method.step(state, uniforms[0], made.trace)
            return state, [record]
        state = layout.state(state, inputs)
        object.__setattr__(self, "made", made._replace(state=ref(state)) if layout.lasts else None)
        return state, [layout.record(outputs) for outputs in found]

    def _sight(self, state: State) -> int:
        longest = max(cache.extent for cache in state.caches)
        return sight_for(longest + self.scratch + 1, self.least_sight, state.cache.capacity)

    def _compiled(self, state: State, trace: bool) -> tuple[Call, Layout] | None:
        """Return native code for a state of such shapes; None where there is none."""
        sight, lists = self._sight(state), self.tally.makes_lists
        key = (sight, trace, lists, *shapes_of(state))
        if key not in self.code:
            self.code[key] = self._compile(state, sight, trace, lists)
        return self.code[key]

    def _compile(self, state: State, sight: int, trace: bool, lists: bool) -> tuple[Call, Layout] | None:
        reason = why_not_fixed(self.method, state)
        if reason is None:
            try:
                written = write_down(self.method, state, sight, trace, lists)
                what = f"{type(self.method).__name__} for texts of up to {sight} tokens"
                log.info("compiling %s", what)
                call = compiled_package(written.graph, written.examples, lambda: self.report and self.report(what))
                return call, written.layout
            except Exception as error:  # a compiler has many ways to fail, and none may cost a text
                reason = f"{type(error).__name__}: {str(error).strip().partition(chr(10))[0][:200]}"
        self._warn(reason)
        return None

    def _warn(self, reason: str) -> None:
        """Say once why a step is not compiled."""
        if reason not in self.warned:
            self.warned.add(reason)
            log.warning("the step runs as it is, as it cannot be compiled: %s", reason)

    @cached_property
    def _unfit(self) -> str | None:
        """Why no step of this method can be compiled here, if so."""
        if self.model.device.type != "cpu":
            return f"it runs on {self.model.device}, where steps are captured"
        if not isinstance(self.model, Transformer | TableModel):
            return "its model is one of transformers"
        if not has_compiler():
            return f"there is no C++ compiler, expected one of {', '.join(COMPILERS)}"
        return None
