"""The state of one sequence between two steps.

Glossary of shapes: L look-ahead vectors, D' hidden state.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from .ending import Ending, Reading
from .model.cache import KVCache, same
from .model.layers import Array
from .record import Record


@dataclass(frozen=True)
class State:
    """One sequence between two steps: the committed tokens, and the cache of all but the last of them.

    A step never changes a cached row below `cached`, so it is a pure function of state and uniforms. Its results and
    its scratch share the one cache, so `copy` a state to continue it twice. A drafter's cache only saves work: it may
    hold any prefix.
    """

    tokens: tuple[int, ...]  # prompt and new tokens
    prompt_length: int
    cache: KVCache
    ending: Ending
    reading: Reading  # of the new tokens
    cached: int = 0  # length of the cache
    end: str | None = None  # why the text has ended, see `Ending.reason`
    draft_cache: KVCache | None = None
    pace: tuple[float, ...] = ()  # the memory of the schedule of draft lengths
    lookahead_hidden: Array | None = None  # [L+1, D'] the last text row's hidden state, and its look-ahead group's

    @property
    def new_tokens(self) -> tuple[int, ...]:
        """The committed tokens after the prompt."""
        return self.tokens[self.prompt_length :]

    @property
    def key(self) -> tuple[tuple[int, ...], tuple[float, ...], bool]:
        """What the future of two states after one prompt depends on."""
        return self.new_tokens, self.pace, self.lookahead_hidden is not None

    @property
    def pending(self) -> tuple[int, ...]:
        """The committed tokens that no pass has read yet; raise ValueError if a step has advanced the cache already."""
        if self.cache.length != self.cached:
            raise ValueError("state: found a cache that a step has moved on already, expected a copy to continue twice")
        return self.tokens[self.cached :]

    @property
    def remaining(self) -> int:
        """How many tokens may still be committed."""
        return self.ending.max_new_tokens - (len(self.tokens) - self.prompt_length)

    @property
    def caches(self) -> tuple[KVCache, ...]:
        """The model's cache, and the drafter's if it has one."""
        return (self.cache,) if self.draft_cache is None else (self.cache, self.draft_cache)

    def ends_with(self, tokens: Sequence[int]) -> bool:
        """Return whether the text would end within some more tokens."""
        return self.reading.first(tokens)[1] is not None

    def keep(self, length: int) -> None:
        """Cut the caches to the first `length` tokens: the rollback of rejected drafts."""
        for cache in self.caches:
            cache.truncate(min(cache.length, length))

    def commit(self, record: Record, valid_length: int | None = None) -> tuple[State, Record]:
        """Append a step's tokens one by one until one of them ends the text; drop the others.

        The record and the caches are cut to the committed prefix. `valid_length` is the length of the caches before
        rejected drafts and look-ahead rows, if there are any.
        """
        count, end = self.reading.first(record.tokens)
        tokens, reading = self.tokens + record.tokens[:count], self.reading.after(record.tokens[:count])
        self.keep(len(tokens) if valid_length is None else min(len(tokens), valid_length))
        return replace(self, tokens=tokens, reading=reading, cached=self.cache.length, end=end), record.cut(count)

    def agrees(self, other: State) -> bool:
        """Return whether two states have the same future: the same tokens and, up to rounding, the same cached rows."""
        if (self.key, self.tokens, self.cached, self.end) != (other.key, other.tokens, other.cached, other.end):
            return False
        mine, yours = self.lookahead_hidden, other.lookahead_hidden
        if mine is not None and yours is not None and not same(mine, yours):
            return False
        return all(cache.agrees(others) for cache, others in zip(self.caches, other.caches, strict=True))

    def copy(self) -> State:
        """Return a state that can be continued independently of this one."""
        draft_cache = None if self.draft_cache is None else self.draft_cache.copy()
        return replace(self, cache=self.cache.copy(), draft_cache=draft_cache)
