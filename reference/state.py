"""The state of one sequence between two cycles."""

from __future__ import annotations

from dataclasses import dataclass, replace

from .cache import KVCache
from .ending import Ending
from .record import Record


@dataclass(frozen=True)
class State:
    """A committed prefix and the cache of all of it but its last tokens, which the next pass feeds.

    A step never changes what is below `cache.length`, so it is a pure function of state and uniforms; since both its
    results and its scratch live in one cache, `copy` a state before continuing it twice.
    """

    tokens: tuple[int, ...]  # prompt and new tokens
    prompt_length: int
    cache: KVCache
    ending: Ending
    end: str | None = None  # why the text has ended, see `Ending.reason`

    @property
    def new_tokens(self) -> tuple[int, ...]:
        """The committed tokens behind the prompt."""
        return self.tokens[self.prompt_length :]

    @property
    def pending(self) -> tuple[int, ...]:
        """The committed tokens that no pass has seen yet: the prompt at first, one token later."""
        return self.tokens[self.cache.length :]

    @property
    def remaining(self) -> int:
        """How many tokens may still be committed."""
        return self.ending.max_new_tokens - (len(self.tokens) - self.prompt_length)

    def ends_with(self, token: int) -> bool:
        """Say whether one more token would end the text."""
        return self.ending.reason((*self.new_tokens, token)) is not None

    def commit(self, record: Record) -> tuple[State, Record]:
        """Append a cycle's tokens one by one until one of them ends the text; what follows it is dropped.

        The cache, which may hold rows of dropped tokens, is cut to the committed prefix, and the record with it.
        """
        count, end = self.ending.first(self.new_tokens, record.tokens)
        tokens = self.tokens + record.tokens[:count]
        self.cache.truncate(min(self.cache.length, len(tokens)))
        return replace(self, tokens=tokens, end=end), record.cut(count)

    def copy(self) -> State:
        """Return a state that can be continued independently of this one."""
        return replace(self, cache=self.cache.copy())
