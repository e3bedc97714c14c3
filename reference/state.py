"""The state of one sequence between two cycles."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from .cache import KVCache
from .ending import Ending
from .record import Record


@dataclass(frozen=True)
class State:
    """A committed prefix and the cache of all of it but its last tokens, which the next pass feeds.

    A step never changes a cached row below `cached`, so it is a pure function of state and uniforms. Its results and
    its scratch live in the one cache, though: to continue a state twice, `copy` it first. A state whose cache another
    step has moved on is refused.
    """

    tokens: tuple[int, ...]  # prompt and new tokens
    prompt_length: int
    cache: KVCache
    ending: Ending
    cached: int = 0  # length of the cache
    end: str | None = None  # why the text has ended, see `Ending.reason`

    @property
    def new_tokens(self) -> tuple[int, ...]:
        """The committed tokens behind the prompt."""
        return self.tokens[self.prompt_length :]

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
        """Say whether the text would end with the last of some more tokens."""
        return self.ending.reason((*self.new_tokens, *tokens)) is not None

    def commit(self, record: Record) -> tuple[State, Record]:
        """Append a cycle's tokens one by one until one of them ends the text; what follows it is dropped.

        The cache, which may hold rows of dropped tokens, is cut to the committed prefix, and the record with it.
        """
        count, end = self.ending.first(self.new_tokens, record.tokens)
        tokens = self.tokens + record.tokens[:count]
        self.cache.truncate(min(self.cache.length, len(tokens)))
        return replace(self, tokens=tokens, cached=self.cache.length, end=end), record.cut(count)

    def agrees(self, other: State) -> bool:
        """Say whether two states have the same future: the same tokens and, up to rounding, the same cached rows.

        Rounding is 4096 units in the last place of the largest cached number; in 16 bits that is no bound at all.
        """
        if (self.tokens, self.cached, self.end) != (other.tokens, other.cached, other.end):
            return False
        for mine, yours in ((self.cache.keys, other.cache.keys), (self.cache.values, other.cache.values)):
            mine, yours = mine[:, :, : self.cached], yours[:, :, : self.cached]
            tolerance = 4096 * np.finfo(mine.dtype).eps * np.abs(mine).max(initial=0.0)
            if not np.all(np.abs(mine - yours) <= tolerance):
                return False
        return True

    def copy(self) -> State:
        """Return a state that can be continued independently of this one."""
        return replace(self, cache=self.cache.copy())
