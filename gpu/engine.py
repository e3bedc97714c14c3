"""The engine: many requests through a few rows, each at its own pace, a finished row taken by the next request.

What decodes is the method's own step. A row's uniforms are its request's, cycle by cycle, so its text does not depend
on what is decoded beside it. On a GPU the step is captured once, replayed without the host, and read one step late; on
a CPU it runs as it is.

Glossary of shapes: B rows, S capacity.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from .batch_record import BatchRecord, Packed
from .capture import Captured, capture
from .config import check_integer
from .ending import Ending
from .methods.base import Method
from .record import Generation, Record
from .rows import empty_rows, put_row
from .state import State
from .tape import tape

__all__ = ["Engine", "Request"]

CYCLES_AHEAD = 16  # whose uniforms are made together
Callback = Callable[[int, Record], None]


@dataclass(frozen=True)
class Request:
    """A prompt to continue; `number` picks its uniforms and tells it from others."""

    number: int
    prompt: Sequence[int]


@dataclass
class _Row:
    """What the host knows of a row: whose it is, what came of it, and its uniforms."""

    request: Request
    cycle: int = 0
    records: list[Record] = field(default_factory=list)
    ahead: deque[Tensor] = field(default_factory=deque)


@dataclass(frozen=True)
class _Underway:
    """What a cycle has made of the rows, on its way to the host."""

    rows: list[_Row | None]
    packed: Packed
    state: State  # its flags alone
    arrived: Any  # a CUDA event, or None where nothing travels

    @staticmethod
    def of(rows: list[_Row | None], batch: BatchRecord, state: State) -> _Underway:
        """Send it on its way; what comes after on the device is not waited for."""
        packed = batch.pack()
        if state.lengths.device.type == "cpu":
            return _Underway(rows, packed, state, None)
        names = ("ended", "lengths", "fault", "fault_position")
        flags: dict[str, Any] = {name: _sent(getattr(state, name)) for name in names}
        here: dict[str, Any] = {name: _sent(getattr(packed, name)) for name in ("integers", "floats")}
        arrived = torch.cuda.Event()
        arrived.record()
        return _Underway(rows, replace(packed, **here), replace(state, **flags), arrived)

    def read(self) -> tuple[list[Record], list[bool], int]:
        """Wait for it; return the records, which texts have ended, and the length of the longest.

        Raises:
            ValueError: some row's logits were not finite.
        """
        if self.arrived is not None:
            self.arrived.synchronize()
        self.state.raise_fault()
        return self.packed.rows(), self.state.ended.tolist(), max(self.state.lengths.tolist())


def _sent(
    tensor: Tensor,  # [B, ...]
) -> Tensor:  # [B, ...]
    """Return host memory that a device tensor is on its way to."""
    return torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=True).copy_(tensor, non_blocking=True)


class Engine:
    """Decodes requests with one method; all of them end alike."""

    def __init__(
        self,
        method: Method,
        ending: Ending,
        num_rows: int = 8,
        longest_prompt: int = 256,
        seed: int = 0,
        captures: bool | None = None,
    ):
        """Reserve the rows. Nothing of the model is run yet.

        Args:
            method: how to decode, over which model, with which sampling settings.
            ending: where every text ends.
            num_rows: texts that are decoded side by side, B.
            longest_prompt: tokens of a prompt at most.
            seed: picks the tape of uniforms.
            captures: whether to capture the step; default: on a GPU, where it can be.

        Raises:
            ValueError: a number is out of range, or prompts and new tokens do not fit into the model's context.
        """
        check_integer("num_rows", num_rows, 1, 2**16)
        check_integer("longest_prompt", longest_prompt, 1, 2**31)
        check_integer("seed", seed, 0, 2**64 - 1)
        self.method = method
        self.ending = ending
        self.seed = seed
        self._longest = longest_prompt
        self._rows: list[_Row | None] = [None] * num_rows
        self._state = empty_rows(method, ending, num_rows, longest_prompt)
        on_device = method.model.device.type == "cuda"
        self._captures = on_device if captures is None else captures
        self._captured: Captured | None = None

    @torch.inference_mode()
    def run(self, requests: Iterable[Request], callback: Callback | None = None) -> Iterator[tuple[int, Generation]]:
        """Decode all requests; yield number and text of each as soon as it has ended.

        Requests are taken from the iterator when a row is free. `callback(number, record)` is called after every cycle
        of a request, as soon as the host has read it.

        Raises:
            ValueError: a prompt is empty, too long or holds no tokens, or the model's logits are not finite.
        """
        waiting, late = iter(requests), deque[_Underway]()
        while True:
            yield from self._admit(waiting, callback)
            if any(row is not None for row in self._rows):
                late.append(self._step())
            if late and (len(late) > self._lateness or all(row is None for row in self._rows)):
                yield from self._read(late.popleft(), callback)
            elif not late:
                return

    @property
    def _lateness(self) -> int:
        """How many steps are under way before the host reads what came of the first."""
        return int(self._captured is not None)

    def _admit(self, waiting: Iterator[Request], callback: Callback | None) -> Iterator[tuple[int, Generation]]:
        """Give free rows to requests; the first cycle, which reads the prompt, runs alone."""
        for place, row in enumerate(self._rows):
            while row is None and (request := next(waiting, None)) is not None:
                row = _Row(request)
                if len(request.prompt) > self._longest:
                    raise ValueError(
                        f"prompt: found {len(request.prompt)} tokens, expected at most {self._longest}, longest_prompt"
                    )
                first = self.method.start(request.prompt, self.ending)
                first, batch = self.method.step(first, self._uniforms(row).unsqueeze(0))
                first.raise_fault()
                (record,) = batch.rows()
                row.records.append(record)
                if callback is not None:
                    callback(request.number, record)
                if bool(first.ended):
                    yield request.number, self._generation(row)
                    row = None
                else:
                    self._state = put_row(self._state, place, first)
                    self._rows[place] = row

    def _step(self) -> _Underway:
        """Run one cycle of all rows."""
        unused = torch.zeros(self.method.num_slots, dtype=torch.float64)
        uniforms = torch.stack([unused if row is None else self._uniforms(row) for row in self._rows])
        uniforms = uniforms.to(self.method.model.device, non_blocking=True)
        if self._captures and self._captured is None:
            self._captured = capture(self.method, self._state, uniforms)
            self._captures = self._captured is not None
            self._state = self._state if self._captured is None else self._captured.state
        if self._captured is None:
            self._state, batch = self.method.step(self._state, uniforms)
            self._state.cache.measure()
        else:
            batch = self._captured.replay(uniforms)
        return _Underway.of(list(self._rows), batch, self._state)

    def _read(self, underway: _Underway, callback: Callback | None) -> Iterator[tuple[int, Generation]]:
        """Read what came of a cycle, and free the rows whose text has ended."""
        records, ended, longest = underway.read()
        if self._captured is not None:
            self._captured.measure(longest)
        for place, (row, record, over) in enumerate(zip(underway.rows, records, ended, strict=True)):
            if row is None or row is not self._rows[place]:
                continue
            row.records.append(record)
            if callback is not None:
                callback(row.request.number, record)
            if over:
                self._rows[place] = None
                yield row.request.number, self._generation(row)

    def _uniforms(self, row: _Row) -> Tensor:  # [num_slots]
        """Return the next cycle's uniforms of a row's request."""
        if not row.ahead:
            cycles = range(row.cycle, row.cycle + CYCLES_AHEAD)
            row.ahead.extend(tape(self.seed, row.request.number, cycle, self.method.num_slots) for cycle in cycles)
        row.cycle += 1
        return row.ahead.popleft()

    def _generation(self, row: _Row) -> Generation:
        tokens = tuple(token for record in row.records for token in record.tokens)
        end = self.ending.reason(tokens)
        if end is None:
            raise RuntimeError(f"a row was given back after {len(tokens)} tokens, before its text had ended")
        prompt = tuple(map(int, row.request.prompt))
        return Generation(prompt, tokens, end, tuple(row.records), self.ending.text(tokens))
