"""Where a text ends, asked token by token, and how much of it may be shown before that is known."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from numbers import Integral

from .config import check_integer

UNFINISHED = "\ufffd"  # what decoders show for a character whose bytes are not all there yet
Decode = Callable[[Sequence[int]], str]
"""Turns new tokens into text; more tokens only add text, but for a character whose bytes are not all there yet."""
Criterion = Callable[[Sequence[int]], bool]
"""Says whether a text ends with the last of its new tokens: a pure hook, asked of prefixes that end in drafts, too."""


@dataclass(frozen=True)
class Ending:
    """The ends of a text: a length, end-of-sequence tokens, stop strings in the decoded new text, a criterion."""

    max_new_tokens: int
    eos_token_ids: Sequence[int] = ()
    stop_strings: Sequence[str] = ()
    decode: Decode | None = None  # new tokens -> text; needed for stop strings
    criterion: Criterion | None = None
    _eos: frozenset[int] = field(init=False, repr=False, compare=False, default=frozenset())

    def __post_init__(self) -> None:
        """Refuse what could never end a text, or could not be checked.

        Raises:
            ValueError: max_new_tokens is not a positive integer, an end-of-sequence token no integer, a stop string
                empty, or there is no decoder for stop strings.
        """
        limit, eos, stops = self.max_new_tokens, self.eos_token_ids, self.stop_strings
        if isinstance(limit, bool) or not isinstance(limit, Integral) or limit < 1:
            raise ValueError(f"max_new_tokens: found {limit!r}, expected a positive integer")
        if isinstance(eos, str) or not isinstance(eos, Iterable):
            raise ValueError(f"eos_token_ids: found {eos!r}, expected a sequence of token ids")
        tokens = tuple(check_integer("eos_token_ids", token, -(2**62), 2**62) for token in eos)
        strings = (stops,) if isinstance(stops, str) or not isinstance(stops, Iterable) else tuple(stops)
        if isinstance(stops, str) or not all(isinstance(stop, str) and stop for stop in strings):
            raise ValueError(f"stop_strings: found {stops!r}, expected a sequence of non-empty strings")
        if any(UNFINISHED in stop for stop in strings):
            raise ValueError(
                f"stop_strings: found {stops!r}, expected none with U+FFFD, which is an unfinished character"
            )
        if strings and self.decode is None:
            raise ValueError("stop_strings: found no decode function, expected one that turns tokens into text")
        object.__setattr__(self, "max_new_tokens", int(limit))
        object.__setattr__(self, "eos_token_ids", tokens)
        object.__setattr__(self, "_eos", frozenset(tokens))
        object.__setattr__(self, "stop_strings", strings)

    def reason(
        self,
        new_tokens: Sequence[int],
    ) -> str | None:
        """Say why a text ends with the last of these tokens: "eos", "stop_string", "criterion", "length", or None.

        Asked for every prefix in turn, so that a text ends at the first token that ends it, wherever a block of
        accepted tokens happens to stop.
        """
        reason = self._plain_reason(new_tokens)
        return "stop_string" if reason != "eos" and self._has_stop_string(new_tokens) else reason

    @property
    def asks_host(self) -> bool:
        """Whether the host has to look at a text to know its end: not for tokens and lengths."""
        return bool(self.stop_strings) or self.criterion is not None

    def first(self, before: Sequence[int], more: Sequence[int]) -> tuple[int, str | None]:
        """Return how many of `more` tokens to keep behind `before`, and why the text ends there, if it does."""
        if not more:
            return 0, None
        reason_of = self.reason if self._has_stop_string([*before, *more]) else self._plain_reason
        for count in range(1, len(more) + 1):
            reason = reason_of([*before, *more[:count]])
            if reason is not None:
                return count, reason
        return len(more), None

    def _plain_reason(self, new_tokens: Sequence[int]) -> str | None:
        """Say why a text ends, stop strings aside."""
        if new_tokens and new_tokens[-1] in self._eos:
            return "eos"
        if self.criterion is not None and new_tokens and self.criterion(new_tokens):
            return "criterion"
        return "length" if len(new_tokens) >= self.max_new_tokens else None

    def _has_stop_string(self, new_tokens: Sequence[int]) -> bool:
        """Say whether a stop string stands in the text; then it stands in every longer text as well."""
        if self.decode is None or not self.stop_strings or not new_tokens:
            return False
        text = self.decode(new_tokens)
        return any(stop in text for stop in self.stop_strings)

    def text(self, new_tokens: Sequence[int]) -> str | None:
        """Return the decoded text up to the first stop string, or None without a decoder."""
        if self.decode is None:
            return None
        text = self.decode(new_tokens)
        found = [text.find(stop) for stop in self.stop_strings if stop in text]
        return text[: min(found)] if found else text

    def safe_text(self, new_tokens: Sequence[int]) -> str:
        """Return the part of an unfinished text that later tokens cannot take back.

        Withheld are a beginning of a stop string at the end, and a character whose bytes are not all there yet.

        Raises:
            ValueError: there is no decoder.
        """
        text = self.text(new_tokens)
        if text is None:
            raise ValueError("decode: found None, expected a function that turns tokens into text")
        text = text.rstrip(UNFINISHED)
        longest = max((_overlap(text, stop) for stop in self.stop_strings), default=0)
        return text[: len(text) - longest]


def _overlap(text: str, stop: str) -> int:
    """Return the length of the longest beginning of `stop`, short of all of it, that `text` ends with."""
    return next((n for n in range(min(len(stop) - 1, len(text)), 0, -1) if text.endswith(stop[:n])), 0)
