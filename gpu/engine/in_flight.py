"""Step results that are being copied to the host.

Glossary of shapes: B rows, C steps.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from pass_sampling.reference.record import Record

from ..batch_record import BatchRecord, Packed
from ..state import State


@dataclass(frozen=True)
class Request:
    """A prompt to continue; `number` picks its uniforms and tells it from others."""

    number: int
    prompt: Sequence[int]


@dataclass(eq=False)
class Row:
    """What the host knows of a row: its request, its length, its records, and the uniforms of some steps."""

    request: Request
    length: int = 0
    records: list[Record] = field(default_factory=list)
    first: int = 0  # the step of the first of these uniforms
    uniforms: Tensor = field(default_factory=lambda: torch.empty(0))  # [C, num_uniforms]


@dataclass(frozen=True)
class InFlightStep:
    """The records of a step, whose they are, and the flags of the state after it."""

    rows: list[Row | None]
    packed: Packed
    state: State  # of which the flags alone are read
    arrived: Any  # a CUDA event, or None where nothing travels
    replayed: bool  # by a step in fixed shapes, after which a row with a fault is run again

    @staticmethod
    def of(rows: list[Row | None], batch: BatchRecord | Packed, state: State) -> InFlightStep:
        """Send it on its way; what comes after it on the device is not waited for."""
        packed, names = batch.pack(), ("ended", "lengths", "fault", "fault_position")
        replayed = isinstance(batch, Packed)
        if state.lengths.device.type == "cpu":  # the next step may write to the same places
            copies: dict[str, Any] = {name: getattr(state, name).clone() for name in names}
            return InFlightStep(rows, packed, replace(state, **copies), None, replayed)
        flags: dict[str, Any] = {name: _sent(getattr(state, name)) for name in names}
        here: dict[str, Any] = {name: _sent(getattr(packed, name)) for name in ("integers", "floats")}
        arrived = torch.cuda.Event()
        arrived.record()
        return InFlightStep(rows, replace(packed, **here), replace(state, **flags), arrived, replayed)

    def read(self) -> list[tuple[Record, int, bool, str | None]]:
        """Wait for it; return of every row its record, its length, whether its text has ended, and what went wrong."""
        if self.arrived is not None:
            self.arrived.synchronize()
        lengths, ended = self.state.lengths.tolist(), self.state.ended.tolist()
        faults = self.state.complaints()
        return list(zip(self.packed.rows(), lengths, ended, map(faults.get, range(len(ended))), strict=True))


def _sent(tensor: Tensor) -> Tensor:  # [B, ...]
    """Return host memory that a device tensor is on its way to."""
    return torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=True).copy_(tensor, non_blocking=True)
