"""The state of one sequence between two steps.

Glossary of shapes: L look-ahead vectors, D' hidden state.

The loop: repeat a method's step until the text ends.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from .ending import Ending, Reading
from .model.cache import KVCache, same
from .model.layers import Array
from .record import Generation, NotFiniteError, Record
from .uniforms import uniform_stream

if TYPE_CHECKING:
    from .methods.base import Method
    from .text.decoder import Decode


@dataclass(frozen=True)
class State:
    """A committed prefix and the cache of all of it but its last tokens, which the next pass feeds.

    A step never changes a cached row below `cached`, so it is a pure function of state and uniforms. Its results and
    its scratch live in the one cache, though: to continue a state twice, `copy` it first. A state whose cache another
    step has moved on is refused.

    A drafter's cache lies beside, of which any prefix will do: it only saves work. `pace` is what the schedule of draft
    lengths remembers, and `lookahead_hidden` what the last pass has computed for the next drafts.
    """

    tokens: tuple[int, ...]  # prompt and new tokens
    prompt_length: int
    cache: KVCache
    ending: Ending
    reading: Reading  # of the new tokens
    cached: int = 0  # length of the cache
    end: str | None = None  # why the text has ended, see `Ending.reason`
    draft_cache: KVCache | None = None
    pace: tuple[float, ...] = ()
    lookahead_hidden: Array | None = None  # [L+1, D'] the last text row's hidden state, and its look-ahead group's

    @property
    def new_tokens(self) -> tuple[int, ...]:
        """The committed tokens after the prompt."""
        return self.tokens[self.prompt_length :]

    @property
    def key(self) -> tuple[tuple[int, ...], tuple[float, ...], bool]:
        """What the future depends on, of two states after one prompt."""
        return self.new_tokens, self.pace, self.lookahead_hidden is not None

    @property
    def pending(self) -> tuple[int, ...]:
        """The committed tokens that no pass has seen yet: the prompt at first, one token later.

        Raises:
            ValueError: a step has continued this state already, in the same cache.
        """
        if self.cache.length != self.cached:
            raise ValueError("state: found a cache that a step has moved on already, expected a copy to continue twice")
        return self.tokens[self.cached :]

    @property
    def remaining(self) -> int:
        """How many tokens may still be committed."""
        return self.ending.max_new_tokens - (len(self.tokens) - self.prompt_length)

    def ends_with(self, tokens: Sequence[int]) -> bool:
        """Say whether the text would end within some more tokens."""
        return self.reading.first(tokens)[1] is not None

    def keep(self, length: int) -> None:
        """Cut the caches to the first `length` tokens: the rollback of rejected drafts."""
        for cache in self.caches:
            cache.truncate(min(cache.length, length))

    def commit(self, record: Record, valid_length: int | None = None) -> tuple[State, Record]:
        """Append a step's tokens one by one until one of them ends the text; what follows it is dropped.

        The caches, which may hold rows of dropped tokens, are cut to the committed prefix, and the record with them.
        If given, `valid_length` is how much of them is true at most: after it stand rejected drafts and look-ahead
        rows.
        """
        count, end = self.reading.first(record.tokens)
        tokens, reading = self.tokens + record.tokens[:count], self.reading.after(record.tokens[:count])
        self.keep(len(tokens) if valid_length is None else min(len(tokens), valid_length))
        return replace(self, tokens=tokens, reading=reading, cached=self.cache.length, end=end), record.cut(count)

    def agrees(self, other: State) -> bool:
        """Say whether two states have the same future: the same tokens and, up to rounding, the same cached rows."""
        if (self.key, self.tokens, self.cached, self.end) != (other.key, other.tokens, other.cached, other.end):
            return False
        if (
            self.lookahead_hidden is not None
            and other.lookahead_hidden is not None
            and not same(self.lookahead_hidden, other.lookahead_hidden)
        ):
            return False
        return all(cache.agrees(others) for cache, others in zip(self.caches, other.caches, strict=True))

    @property
    def caches(self) -> tuple[KVCache, ...]:
        """The model's cache, and the drafter's if it has one."""
        return (self.cache,) if self.draft_cache is None else (self.cache, self.draft_cache)

    def copy(self) -> State:
        """Return a state that can be continued independently of this one."""
        draft_cache = None if self.draft_cache is None else self.draft_cache.copy()
        return replace(self, cache=self.cache.copy(), draft_cache=draft_cache)


Callback = Callable[[int, Record], None]
"""Called as `callback(request, record)` after every step of a request: `record.tokens` are new in its text."""


def generate(
    method: Method,
    prompt: Sequence[int],
    max_new_tokens: int,
    eos_token_ids: Sequence[int] | None = None,
    stop_strings: Sequence[str] | None = None,
    decode: Decode | None = None,
    seed: int = 0,
    request: int = 0,
    trace: bool = False,
    callback: Callback | None = None,
) -> Generation:
    """Continue a prompt until it ends: exactly at a length, an end-of-sequence token or a stop string.

    The same seed and request number give the same uniforms, whatever else is generated beside it, and so the same
    text as far as the model's logits are the same numbers. Where drafts are verified, another `max_new_tokens` may
    change the text from the last steps of the shorter one on: fewer drafts fit before its end.

    Args:
        method: how to decode, over which model, with which sampling settings.
        prompt: token ids, at least one.
        max_new_tokens: tokens to generate at most.
        eos_token_ids: tokens that end the text; default: the model's own.
        stop_strings: strings that end the text once they stand in the decoded new tokens; default: the model's own
            where there is `decode`, else none, and the log says so.
        decode: turns new tokens into text; needed for stop strings.
        seed: selects the stream of uniforms.
        request: number of this request; requests of one seed share no uniform.
        trace: keep in every record the distributions that the uniforms were compared with.
        callback: called with the record of every step, as soon as its tokens are committed.

    Raises:
        ValueError: an argument is out of range.
        NotFiniteError: the model's logits are not finite.
    """
    state = method.start(prompt, _ending(method, max_new_tokens, eos_token_ids, stop_strings, decode))
    records: list[Record] = []
    while state.end is None:
        uniforms = uniform_stream(seed, request, len(records), method.num_uniforms)
        state, record = method.step(state, uniforms, trace)
        records.append(record)
        if callback is not None:
            callback(request, record)
    text = state.ending.text(state.new_tokens, prompt)
    return Generation(tuple(map(int, prompt)), state.new_tokens, state.end, tuple(records), text)


def generate_batch(
    method: Method,
    prompts: Sequence[Sequence[int]],
    max_new_tokens: int,
    eos_token_ids: Sequence[int] | None = None,
    stop_strings: Sequence[str] | None = None,
    decode: Decode | None = None,
    seed: int = 0,
    trace: bool = False,
    callback: Callback | None = None,
) -> list[Generation]:
    """Continue many prompts; prompt i is request i, see `generate` for seeds and `max_new_tokens`.

    A request fails where the model's logits are not finite. The others are completed before the error is raised.

    Raises:
        ValueError: an argument is out of range.
        NotFiniteError: requests failed. The message names them, and `generations` holds the texts of the others.
    """
    found: list[Generation | None] = []
    faults: list[str] = []
    for i, prompt in enumerate(prompts):
        try:
            found.append(
                generate(method, prompt, max_new_tokens, eos_token_ids, stop_strings, decode, seed, i, trace, callback)
            )
        except NotFiniteError as fault:
            found.append(None)
            faults.append(f"request {i}: {fault}")
    if faults:
        raise NotFiniteError("; ".join(faults), found)
    return [each for each in found if each is not None]


def _ending(
    method: Method,
    max_new_tokens: int,
    eos_token_ids: Sequence[int] | None,
    stop_strings: Sequence[str] | None,
    decode: Decode | None,
) -> Ending:
    """Return the ends of a text: those that were asked for, or else the model's own."""
    eos = method.model.eos_token_ids if eos_token_ids is None else eos_token_ids
    stops = method.model.stop_strings if stop_strings is None else stop_strings
    if stop_strings is None and stops and decode is None:
        logging.getLogger(__name__).warning(
            "stop_strings: found %r in the model's generation settings and no decode function, expected one: no text "
            "ends there",
            stops,
        )
        stops = ()
    return Ending(max_new_tokens, eos, stops, decode)
