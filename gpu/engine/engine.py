"""The engine: many requests through a few rows; the next request takes the row of a finished text.

A row uses the uniforms of its request, so its text does not depend on the other rows if the model's logits are the
same numbers. On a GPU the step is captured once, replayed without the host, and read one step late. `generate`
decodes through engines there, which a method keeps: one for each power of two of rows and tokens.

Glossary of shapes: B rows.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from itertools import chain
from typing import Any

import torch
from torch import Tensor

from pass_sampling.reference.config import check_context, check_integer, check_prompt
from pass_sampling.reference.ending import Ending
from pass_sampling.reference.record import Generation, NotFiniteError, Record

from ..methods.base import Method
from ..model.cache import KVCache
from ..model.transformer import Transformer
from ..state import State
from ..uniforms import STEPS_AHEAD, uniform_streams
from .capture import Captured, CaptureError, capture, why_not
from .rows import Callback, InFlightStep, Request, Row, empty_rows, free_row, generation_of, packed, put_row

MOST_ROWS = 64  # more texts take turns
LEAST_LENGTH = 256  # tokens of a prompt, and new ones


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
        """Reserve the rows, before any pass: for `num_rows` texts side by side, after prompts of at most that length.

        The step is captured if `captures`; default: on a GPU, if possible. Raise ValueError if a number is out of
        range, prompts and new tokens do not fit into the model's context, or the model is one of transformers.
        """
        check_integer("num_rows", num_rows, 1, 2**16)
        check_integer("longest_prompt", longest_prompt, 1, 2**31)
        check_integer("seed", seed, 0, 2**64 - 1)
        self.method, self.ending, self.seed, self._longest = method, ending, seed, longest_prompt
        self._rows: list[Row | None] = [None] * num_rows
        self._state = empty_rows(method, ending, num_rows, longest_prompt)
        if type(self._state.cache) is not KVCache:
            raise ValueError("method: found a model of transformers, expected this package's own, from `load_model`")
        on_device = method.model.device.type == "cuda"
        self._captures = on_device if captures is None else captures
        self._captured: Captured | None = None
        self._late: deque[InFlightStep] = deque()
        self._outbox: deque[tuple[int, Record | Generation | ValueError]] = deque()
        self._again: Request | None = None  # one whose first step raised an error
        self._is_closed = False

    def close(self) -> None:
        """Give the memory of rows and graphs back; the engine can decode nothing more."""
        self._captured, self._is_closed = None, True
        self._rows = [None] * len(self._rows)
        vars(self).pop("_state", None)  # it may be closed already

    @torch.inference_mode()
    def clear(self) -> None:
        """Give up all requests: after an error or an interruption, the next run begins with empty rows."""
        self._late.clear()
        self._outbox.clear()
        self._again = None
        for place, row in enumerate(self._rows):
            if row is not None:
                self._free(place)

    @torch.inference_mode()
    def run(self, requests: Iterable[Request], callback: Callback | None = None) -> Iterator[tuple[int, Generation]]:
        """Decode all requests; yield number and text of each as soon as it has ended.

        Requests are taken from the iterator when a row is free. `callback(number, record)` is called after every step
        of a request, as soon as the host has read it. The next `run` continues texts that are not finished when the
        iteration stops or an error is raised.

        Raise ValueError for a prompt that is empty, too long or of no tokens, and after `close`; NotFiniteError for a
        request with logits that are not finite, which is given up.
        """
        waiting = chain([] if self._again is None else [self._again], requests)
        while True:
            if self._is_closed:
                raise ValueError("the engine is closed, expected a new one")
            for place in range(len(self._rows)):
                while self._rows[place] is None and (request := next(waiting, None)) is not None:
                    self._admit(place, request)
            if any(row is not None for row in self._rows):
                with self._on_device():
                    self._late += self._step()
            done = all(row is None for row in self._rows)
            if self._late and (done or len(self._late) > int(self._captured is not None)):
                with self._on_device():
                    self._read(self._late.popleft())
            yield from self._told(callback)
            if not self._late and done:
                return

    def _on_device(self) -> AbstractContextManager[Any]:
        """Make the model's device the current one, to which streams, events and graphs belong."""
        device = self.method.model.device
        return torch.cuda.device(device) if device.type == "cuda" else nullcontext()

    def _told(self, callback: Callback | None) -> Iterator[tuple[int, Generation]]:
        """Yield the finished texts in order, and call back; nothing is lost or repeated after an error."""
        while self._outbox:
            number, news = self._outbox.popleft()
            if isinstance(news, Generation):
                yield number, news
            elif isinstance(news, ValueError):
                raise news
            elif callback is not None:
                callback(number, news)

    def _admit(self, place: int, request: Request) -> None:
        """Give a free row to a request; the first step, which reads the prompt, runs alone."""
        if len(request.prompt) > self._longest:
            found, most = len(request.prompt), self._longest
            raise ValueError(f"prompt: found {found} tokens, expected at most {most}, longest_prompt")
        self._again = None
        state = self.method.start(request.prompt, request.ending or self.ending)
        self._again = request
        with self._on_device():
            self._run_alone(place, Row(request), state)
        self._again = None

    def _run_alone(self, place: int, row: Row, state: State) -> None:
        """Run one step of a request alone; put it into the row unless its text ends there."""
        state, batch = self.method.step(state, self._uniforms(row).unsqueeze(0).to(self.method.model.device))
        ((record, row.length, ended, fault),) = InFlightStep.of([row], packed(batch, state)).read()
        if self._take(row, record, ended, fault):
            self._free(place)
        else:
            self._state = put_row(self._state, place, state)
            self._rows[place] = row

    def _step(self) -> list[InFlightStep]:
        """Run one step of all rows; return nothing if its capture fails."""
        unused = torch.zeros(self.method.num_uniforms, dtype=torch.float64)
        uniforms = torch.stack([unused if row is None else self._uniforms(row) for row in self._rows])
        uniforms = uniforms.to(self.method.model.device, non_blocking=True)
        longest = max(row.length for row in self._rows if row is not None)
        longest += self.method.scratch * len(self._late)  # by how much a text may have grown unseen
        if self._captures and self._captured is None:
            self._captured = capture(self.method, self._state)
            self._captures = self._captured is not None
            self._state = self._state if self._captured is None else self._captured.state
        if self._captured is not None:
            try:
                return [InFlightStep.of(list(self._rows), self._captured.replay(uniforms, longest), replayed=True)]
            except CaptureError:
                self._captured, self._captures = None, False
                return []
        try:
            self._state, batch = self.method.step(self._state, uniforms)
        except BaseException:  # the next run repeats the step, with the same uniforms
            self._state.keep(self._state.cached)
            self._state = replace(self._state, cached=self._state.cache.lengths)
            raise
        for cache in self._state.caches:
            cache.measure()
        return [InFlightStep.of(list(self._rows), packed(batch, self._state))]

    def _read(self, underway: InFlightStep) -> None:
        """Read the records of a step, and free the rows whose text has ended."""
        for place, (row, news) in enumerate(zip(underway.rows, underway.read(), strict=True)):
            if row is None or row is not self._rows[place]:
                continue
            record, row.length, ended, fault = news
            if fault is not None and underway.replayed:
                self._run_again(place, row)
            elif self._take(row, record, ended, fault):
                self._free(place)

    def _run_again(self, place: int, row: Row) -> None:
        """Run a step again, alone and eagerly, that was not finite in fixed shapes: the row has kept its state."""
        state = self._state.select(torch.tensor([place], device=self.method.model.device))
        for cache in state.caches:
            cache.fix(None)
        self._run_alone(place, replace(row), replace(state, fault=torch.zeros_like(state.fault)))

    def _free(self, place: int) -> None:
        self._rows[place] = None
        self._state = free_row(self._state, place)

    def _take(self, row: Row, record: Record, ended: bool, fault: str | None) -> bool:
        """Keep the record of a step; return whether the request is finished."""
        number = row.request.number
        if fault is not None:
            self._outbox.append((number, NotFiniteError(f"request {number}: {fault}")))
            return True
        row.records.append(record)
        self._outbox.append((number, record))
        if ended:
            ending = row.request.ending or self.ending
            self._outbox.append((number, generation_of(row.request.prompt, row.records, ending)))
        return ended

    def _uniforms(self, row: Row) -> Tensor:  # [num_uniforms]
        """Return the uniforms of a request's next step, after the steps that were read or are in flight."""
        step = len(row.records) + sum(row in underway.rows for underway in self._late)
        if not row.first <= step < row.first + len(row.uniforms):
            seed = self.seed if row.request.seed is None else row.request.seed
            found = uniform_streams(seed, [row.request.number], step, STEPS_AHEAD, self.method.num_uniforms)
            row.first, row.uniforms = step, found.squeeze(1)
        return row.uniforms[step - row.first]


# --- The engines of a method, which `generate` and `generate_batch` decode through on a GPU ---


def takes(method: Method, ending: Ending) -> bool:
    """Return whether an engine would capture a method's steps, so that it pays."""
    return isinstance(method.model, Transformer) and why_not(method, ending) is None


def close_engines(method: Method) -> None:
    """Give back the memory of all engines that a method keeps."""
    for engine in _engines_of(method).values():
        engine.close()
    _engines_of(method).clear()


def decode_through_engine(
    method: Method,
    prompts: Sequence[Sequence[int]],
    requests: Sequence[int],
    ending: Ending,
    seed: int,
    callback: Callback | None = None,
) -> tuple[list[Generation | None], dict[int, str]]:
    """Return the texts, and the faults of those that are None, by place; requests name the uniforms.

    Raise ValueError, before anything is decoded, for a prompt that is empty, too long or of no tokens.
    """
    for prompt in prompts:
        room = method.model.max_position_embeddings
        check_context(len(check_prompt(prompt, method.model.vocab_size)), ending.max_new_tokens, room)
    texts: list[Generation | None] = [None] * len(prompts)
    faults: dict[int, str] = {}
    places = {request: place for place, request in enumerate(requests)}
    engine = _engine_for(method, ending, len(prompts), max(map(len, prompts)))
    asked = (Request(request, prompt, ending, seed) for request, prompt in zip(requests, prompts, strict=True))
    try:
        while None in [text for place, text in enumerate(texts) if place not in faults]:
            try:
                for number, text in engine.run(asked, callback):
                    texts[places[number]] = text
            except NotFiniteError as error:
                request, _, said = str(error).removeprefix("request ").partition(": ")
                faults[places[int(request)]] = said
    finally:
        engine.clear()
    return texts, faults


def _engines_of(method: Method) -> dict[tuple[object, ...], Engine]:
    engines: dict[tuple[object, ...], Engine] = vars(method).setdefault("_engines", {})
    return engines


def _engine_for(method: Method, ending: Ending, num_texts: int, longest_prompt: int) -> Engine:
    """Return an engine with enough rows and room, the one that is kept for their kind."""
    contexts = [method.model, getattr(method, "drafter", None)]
    room = min(each for model in contexts if (each := getattr(model, "max_position_embeddings", None)) is not None)
    rows = _power_of_two(min(num_texts, MOST_ROWS))
    new_tokens = min(_power_of_two(max(ending.max_new_tokens, LEAST_LENGTH)), room - 1)
    longest = min(_power_of_two(max(longest_prompt, LEAST_LENGTH)), room - new_tokens)
    if longest < longest_prompt:  # the context has no room for both powers
        longest, new_tokens = longest_prompt, room - longest_prompt
    key = (rows, longest, new_tokens, ending.eos_token_ids)
    engines = _engines_of(method)
    if key not in engines:
        engines[key] = Engine(method, Ending(new_tokens, ending.eos_token_ids), rows, longest)
    return engines[key]


def _power_of_two(number: int) -> int:
    return 1 << (number - 1).bit_length()
