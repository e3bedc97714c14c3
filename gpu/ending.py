"""Where a text ends, asked token by token, and how much of it may be shown before that is known."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

Decode = Callable[[Sequence[int]], str]


@dataclass(frozen=True)
class Ending:
    """The ends of a text: a length, end-of-sequence tokens, stop strings in the decoded new text."""

    max_new_tokens: int
    eos_token_ids: tuple[int, ...] = ()
    stop_strings: tuple[str, ...] = ()
    decode: Decode | None = None  # new tokens -> text; needed for stop strings

    def __post_init__(self) -> None:
        """Refuse what could never end a text, or could not be checked.

        Raises:
            ValueError: max_new_tokens is not a positive integer, a stop string is empty, or there is no decoder.
        """
        if isinstance(self.max_new_tokens, bool) or not isinstance(self.max_new_tokens, int):
            raise ValueError(f"max_new_tokens: found {self.max_new_tokens!r}, expected a positive integer")
        if self.max_new_tokens < 1:
            raise ValueError(f"max_new_tokens: found {self.max_new_tokens}, expected a positive integer")
        if isinstance(self.stop_strings, str) or not all(self.stop_strings):
            raise ValueError(f"stop_strings: found {self.stop_strings!r}, expected a sequence of non-empty strings")
        if self.stop_strings and self.decode is None:
            raise ValueError("stop_strings: found no decode function, expected one that turns tokens into text")

    def reason(
        self,
        new_tokens: Sequence[int],
    ) -> str | None:
        """Say why a text ends with the last of these tokens: "eos", "stop_string", "length", or None if it goes on.

        Asked for every prefix in turn, so that a text ends at the first token that ends it, wherever a block of
        accepted tokens happens to stop.
        """
        if not new_tokens:
            return None
        if new_tokens[-1] in self.eos_token_ids:
            return "eos"
        if self.decode is not None and self.stop_strings:
            text = self.decode(new_tokens)
            if any(stop in text for stop in self.stop_strings):
                return "stop_string"
        return "length" if len(new_tokens) >= self.max_new_tokens else None

    def first(self, before: Sequence[int], more: Sequence[int]) -> tuple[int, str | None]:
        """Return how many of `more` tokens to keep behind `before`, and why the text ends there, if it does."""
        for count in range(1, len(more) + 1):
            reason = self.reason([*before, *more[:count]])
            if reason is not None:
                return count, reason
        return len(more), None

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
        text = text.rstrip("\ufffd")
        longest = max((_overlap(text, stop) for stop in self.stop_strings), default=0)
        return text[: len(text) - longest]


def _overlap(text: str, stop: str) -> int:
    """Return the length of the longest beginning of `stop`, short of all of it, that `text` ends with."""
    return next((n for n in range(min(len(stop) - 1, len(text)), 0, -1) if text.endswith(stop[:n])), 0)
