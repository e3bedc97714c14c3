"""Texts of unknown decoders, which are decoded from the beginning each time."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Protocol

Decode = Callable[[Sequence[int]], str]
"""Turns the new tokens of a text into the text."""
Stops = tuple[str, ...]
UNFINISHED = "\ufffd"  # what decoders show for bytes that are no character


class Text(Protocol):
    """The beginning of a text: a value that can be continued more than once."""

    @property
    def news(self) -> str:
        """The text that the last tokens have added and no later token changes."""

    @property
    def rest(self) -> str:
        """The text after all news, up to the first stop string, if it ends here."""

    @property
    def has_stop(self) -> bool:
        """Whether the text contains a stop string that ends in it."""

    def after(self, tokens: Sequence[int]) -> Text:
        """Return the text after some more tokens."""


class Decoder:
    """An unknown decoder."""

    def __init__(self, decode: Decode, matched: Decode | None = None):
        """Decode with a function of the new tokens alone.

        If there is a second function, in which stop strings are found, both are given the prompt as well: `matched`
        keeps the special tokens that `decode` leaves out.
        """
        self._decode, self._matched = decode, matched

    def __call__(self, tokens: Sequence[int]) -> str:
        """Return the text of some tokens."""
        return self._decode(tokens)

    def check_stops(self, stops: Stops) -> None:
        """Raise ValueError for a stop string with an unfinished character."""
        if any(UNFINISHED in stop for stop in stops):
            raise ValueError(
                f"stop_strings: found {stops!r}, expected none with U+FFFD, which is an unfinished character"
            )

    def start(self, stops: Stops = (), prompt: Sequence[int] = ()) -> Text:
        """Return the text of no new tokens after a prompt."""
        if self._matched is None:
            return WholeText(self._decode, self._decode, stops, ())
        return WholeText(self._decode, self._matched, stops, tuple(prompt))


@dataclass(frozen=True)
class WholeText:
    """The text of a plain `Decoder`: all of it may still change."""

    decode: Decode
    matched: Decode
    stops: Stops
    prompt: tuple[int, ...]
    tokens: tuple[int, ...] = ()
    news = ""

    def after(self, tokens: Sequence[int]) -> WholeText:
        """Return the text after some more tokens; it is decoded when it is read."""
        return replace(self, tokens=(*self.tokens, *tokens))

    @cached_property
    def has_stop(self) -> bool:
        """Whether the text contains a stop string."""
        return bool(self.tokens and self.stops) and self._first_stop()[0] is not None

    @property
    def rest(self) -> str:
        """The text up to the first stop string."""
        if not self.has_stop:
            return self._shown(len(self.tokens))
        cut, whole = self._first_stop()
        if self.matched is self.decode:
            return whole[:cut]
        beginnings = ((n, self._continued(self.matched, n)[1]) for n in reversed(range(len(self.tokens))))
        count, beginning = next((each for each in beginnings if whole[:cut].startswith(each[1])), (0, whole))
        shown, longer = self._shown(count), self._shown(count + 1)
        return shown if longer == shown else shown + whole[len(beginning) : cut]

    def _first_stop(self) -> tuple[int | None, str]:
        """Return where the first stop string begins in the matched text, and that text."""
        start, text = self._continued(self.matched, len(self.tokens))
        return first_stop(text, start, self.stops), text

    def _shown(self, count: int) -> str:
        """Return what is shown of the first tokens."""
        start, text = self._continued(self.decode, count)
        return text[start:]

    def _continued(self, decode: Decode, count: int) -> tuple[int, str]:
        """Return the text of the first tokens, and where it begins if the prompt's text is in front of it."""
        head = decode(self.prompt) if self.prompt else ""
        text = decode((*self.prompt, *self.tokens[:count]))
        return (len(head), text) if text.startswith(head) else (0, decode(self.tokens[:count]))


def first_stop(text: str, start: int, stops: Stops) -> int | None:
    """Return where the first of the stop strings begins that end after `start` characters, if one does."""
    found = [text.find(stop, max(0, start - len(stop) + 1)) for stop in stops]
    return min((place for place in found if place >= 0), default=None)
