"""The rows of an engine: requests that come and go, and step results that are being copied to the host.

Glossary of shapes: B rows, C steps.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from pass_sampling.reference.ending import Ending
from pass_sampling.reference.record import Generation, Record

from ..batch_record import BatchRecord, Packed
from ..methods.base import Method
from ..methods.pass_one_call import OneCall
from ..model.transformer import Transformer
from ..state import PER_ROW, State, complaints_of

Callback = Callable[[int, Record], None]
"""Called as `callback(request, record)` after every step of a request: `record.tokens` are new in its text."""


@dataclass(frozen=True)
class Request:
    """A prompt to continue; `number` picks its uniforms and tells it from others."""

    number: int
    prompt: Sequence[int]
    ending: Ending | None = None  # default: the engine's
    seed: int | None = None  # default: the engine's


@dataclass(eq=False)
class Row:
    """The host's data of a row: its request, its length, its records, and the uniforms of some steps."""

    request: Request
    length: int = 0
    records: list[Record] = field(default_factory=list)
    first: int = 0  # the step of the first of these uniforms
    uniforms: Tensor = field(default_factory=lambda: torch.empty(0))  # [C, num_uniforms]


@dataclass(frozen=True)
class InFlightStep:
    """The records of a step, their rows, and the flags of the state after it: two tensors, on their way to the host."""

    rows: list[Row | None]
    packed: Packed  # see `packed`
    arrived: Any  # a CUDA event, or None on the CPU
    replayed: bool  # by a step in fixed shapes, after which a row with a fault is run again

    @staticmethod
    def of(rows: list[Row | None], packed: Packed, replayed: bool = False) -> InFlightStep:
        """Begin to copy the results of a step, which the next one may overwrite, without waiting for the device."""
        sent, arrived = replace(packed, integers=_sent(packed.integers), floats=_sent(packed.floats)), None
        if packed.integers.device.type == "cuda":
            arrived = torch.cuda.Event()
            arrived.record()
        return InFlightStep(rows, sent, arrived, replayed)

    def read(self) -> list[tuple[Record, int, bool, str | None]]:
        """Wait for the copies; return the record, the length, the end and the fault of every row."""
        if self.arrived is not None:
            self.arrived.synchronize()
        integers, floats = self.packed.integers, self.packed.floats
        records = self.packed.rows()
        ended, lengths, positions = integers[:, -3:].unbind(1)
        faults = complaints_of(floats[:, -1].tolist(), positions.tolist())
        said = map(faults.get, range(len(records)))
        return list(zip(records, lengths.tolist(), ended.bool().tolist(), said, strict=True))


def packed(record: BatchRecord, state: State) -> Packed:
    """Pack a record with four more columns about the state after it: ended, length, fault and position of the fault."""
    return record.pack((state.ended.long(), state.lengths, state.fault_position), (state.fault,))


def _sent(tensor: Tensor) -> Tensor:  # [B, ...]
    pinned = tensor.device.type == "cuda"
    return torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=pinned).copy_(tensor, non_blocking=True)


def generation_of(prompt: Sequence[int], records: Sequence[Record], ending: Ending) -> Generation:
    """Return the generation that the records of an ended text make."""
    tokens = tuple(token for record in records for token in record.tokens)
    end = ending.reason(tokens, prompt)
    if end is None:
        raise RuntimeError(f"a row left the batch after {len(tokens)} tokens, before its text had ended")
    return Generation(tuple(map(int, prompt)), tokens, end, tuple(records), ending.text(tokens, prompt))


def empty_rows(method: Method, ending: Ending, num_rows: int, longest_prompt: int) -> State:
    """Return a state whose rows have all ended, with room for prompts of at most `longest_prompt` tokens."""
    state = method.start_batch([[0] * longest_prompt] * num_rows, ending)
    one = torch.ones_like(state.lengths)  # every row needs a last token
    lookahead_hidden = state.lookahead_hidden
    if isinstance(method, OneCall) and isinstance(method.model, Transformer):
        lookahead_hidden = method.vectors.new_zeros((num_rows, len(method.vectors) + 1, method.model.hidden_size))
    return replace(
        state,
        lookahead_hidden=lookahead_hidden,
        lengths=one,
        prompt_lengths=one.clone(),
        limits=one + ending.max_new_tokens,
        ended=torch.ones_like(state.ended),
        max_pending=1,
        draft_pending=method.draft_pending,  # as after every step but the first
    )


def put_row(state: State, place: int, first: State) -> State:
    """Put a text into a row, in place; return the state, whose other rows are unchanged.

    If `lookahead_hidden` had no room yet, all rows get some.
    """
    lookahead_hidden = state.lookahead_hidden.contiguous()
    if first.lookahead_hidden.shape[1] > lookahead_hidden.shape[1]:
        lookahead_hidden = first.lookahead_hidden.new_zeros((len(lookahead_hidden), *first.lookahead_hidden.shape[1:]))
    pending = max(state.draft_pending, first.draft_pending)
    readings = (*state.readings[:place], *first.readings, *state.readings[place + 1 :])
    state = replace(state, lookahead_hidden=lookahead_hidden, draft_pending=pending, readings=readings)
    for name in PER_ROW:
        mine, yours = getattr(state, name)[place], getattr(first, name)[0]
        if mine.shape[1:] == yours.shape[1:]:  # not if it had no room yet
            (mine if mine.ndim == 0 else mine[: len(yours)]).copy_(yours)
    for cache, other in zip(state.caches, first.caches, strict=True):
        cached = (torch.arange(other.capacity, device=other.lengths.device) < other.lengths).unsqueeze(1)
        for here, there in ((cache.keys, other.keys), (cache.values, other.values)):
            here[:, place] = 0.0
            here[:, place, :, : other.capacity] = torch.where(cached, there[:, 0], 0.0)
        cache.lengths[place] = other.lengths[0]
        cache.measure()
    return state


def free_row(state: State, place: int) -> State:
    """Empty a row, in place; return the state. The row keeps stepping until the next text is put into it."""
    state = replace(state, lookahead_hidden=state.lookahead_hidden.contiguous())
    for name in PER_ROW:
        getattr(state, name)[place] = name in ("lengths", "prompt_lengths", "ended")  # one token, no more
    for cache in state.caches:
        cache.keys[:, place] = cache.values[:, place] = 0.0
        cache.lengths[place] = 0
        cache.measure()
    return state
