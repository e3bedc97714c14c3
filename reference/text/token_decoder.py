"""Texts that are decoded token by token, with the part that later tokens may still change.

A decoder may change earlier text. With byte fallback, a run of byte tokens is decoded as a whole: an invalid byte turns
the whole run into U+FFFD. A `TokenDecoder` knows what each token adds, so decoding takes time in proportion to the
length of the text.

Source: the decoders ByteLevel, ByteFallback and Strip of the tokenizers library.
"""

from __future__ import annotations

from codecs import utf_8_decode
from collections.abc import Callable, Sequence
from copy import copy
from itertools import compress
from typing import NamedTuple

from .decoder import UNFINISHED, Decoder, Stops, first_stop


class Piece(NamedTuple):
    """The addition of a token to a text: characters, or bytes that form characters together with their neighbours."""

    text: str = ""
    data: bytes | None = None  # then there is no `text`
    first: str | None = None  # what the first token of a text adds; default: `text`
    is_special: bool = False  # stop strings match it, but it is not shown


class TokenDecoder(Decoder):
    """A decoder whose text is the sum of what its tokens add."""

    def __init__(self, piece: Callable[[int], Piece | None], in_runs: bool = False, strip: int = 0):
        """Decode by pieces: what each token adds, None for nothing. `strip` leading spaces are not shown.

        A run of tokens of one byte each may be decoded as a whole, to U+FFFD for each of them unless all are UTF-8;
        otherwise only invalid bytes become U+FFFD.
        """
        self.piece, self.in_runs, self.strip = piece, in_runs, strip

    def __call__(self, tokens: Sequence[int]) -> str:
        """Return the text of some tokens."""
        text = self.start().after(tokens)
        return text.news + text.rest

    def start(self, stops: Stops = (), prompt: Sequence[int] = ()) -> TokenText:
        """Return the text of no new tokens after a prompt.

        A stop string may begin in the prompt, but must end after it. Bytes that the prompt leaves unfinished belong to
        the new text.
        """
        text = TokenText(self, (), max(map(len, stops), default=1) - 1).after(prompt)
        seen = text.whole.text[len(text.whole.text) - _overlap(text.whole.text, stops) :]
        text.stops, text.kept, text.news, text.run = stops, 0, "", len(text.tail)
        text.settled = text.whole = Mark(seen, bytes(len(seen)), text.whole.strip)
        return text


class Mark(NamedTuple):
    """The end of a text, from the first character on that has not been shown."""

    text: str = ""
    visible: bytes = b""  # per character: 1, or 0 if only stop strings match it
    strip: int = 0  # leading spaces that are still to be hidden
    has_stop: bool = False  # a stop string begins where `text` ends

    def add(self, text: str, stops: Stops, num_hidden: int = 0) -> Mark:
        """Add text, the beginning of which may be hidden, up to a stop string that ends in it."""
        if self.has_stop or not text:
            return self
        strip = self.strip
        if strip and num_hidden < len(text):
            num_hidden = min(strip, len(text) - len(text.lstrip(" ")))
            strip = strip - num_hidden if num_hidden == len(text) else 0
        whole = self.text + text
        visible = self.visible + bytes(num_hidden) + b"\1" * (len(text) - num_hidden)
        cut = first_stop(whole, len(self.text), stops)
        return Mark(whole[:cut], visible[:cut], strip, cut is not None)

    def show(self, num_kept: int) -> tuple[str, Mark]:
        """Return the visible text without the last characters, and the rest."""
        cut = len(self.text) - num_kept
        shown = "".join(compress(self.text[:cut], self.visible))
        return shown, self._replace(text=self.text[cut:], visible=self.visible[cut:])


class TokenText:
    """The text of a `TokenDecoder`: a value that can be continued more than once."""

    def __init__(self, decoder: TokenDecoder, stops: Stops, kept: int):
        """Begin a text, of which at least `kept` characters are not shown."""
        self.decoder, self.stops, self.kept = decoder, stops, kept
        self.settled = self.whole = Mark(strip=decoder.strip)  # final text; text up to the last whole character
        self.tail = b""  # bytes after it
        self.run = 0  # byte tokens since `settled`
        self.is_broken = False  # whether the run is not UTF-8
        self.has_begun = False
        self.news = ""  # text that became final with the last tokens

    def after(self, tokens: Sequence[int]) -> TokenText:
        """Return the text after some more tokens."""
        text = copy(self)
        pieces = filter(None, map(self.decoder.piece, tokens))
        text.news = "".join([text._add(piece) for piece in pieces])
        return text

    @property
    def has_stop(self) -> bool:
        """Whether the text contains a stop string that ends in it."""
        return (self.settled if self.tail else self.whole).has_stop

    @property
    def rest(self) -> str:
        """The text after all news, up to the first stop string, if it ends here."""
        return self._closed().show(0)[0]

    def _closed(self) -> Mark:
        """Return the text if no more bytes follow."""
        if not self.tail:
            return self.whole
        text = UNFINISHED * self.run if self.decoder.in_runs else self.tail.decode(errors="replace")
        return self.settled.add(text, self.stops)

    def _add(self, piece: Piece) -> str:
        """Add a token; return the text that becomes final."""
        if piece.data is None:
            self._add_text(piece)
        elif self.decoder.in_runs:
            self._add_byte(piece.data)
        else:
            text, used = utf_8_decode(self.tail + piece.data, "replace", False)
            self.tail = (self.tail + piece.data)[used:]
            self.settled = self.whole = self.settled.add(text, self.stops)
        self.has_begun = self.has_begun or not piece.is_special
        if self.settled is not self.whole:
            return ""
        num_kept = 0 if self.whole.has_stop else self.kept or _overlap(self.whole.text, self.stops)
        shown, self.whole = self.whole.show(min(num_kept, len(self.whole.text)))
        self.settled = self.whole
        return shown

    def _add_text(self, piece: Piece) -> None:
        """Add characters, which end a run of bytes."""
        text, num_hidden = piece.text, len(piece.text) * piece.is_special
        if not (piece.is_special or self.has_begun or piece.first is None):
            text = text if text.endswith(piece.first) else piece.first  # then it is matched as it is shown
            num_hidden = len(text) - len(piece.first)
        self.settled = self.whole = self._closed().add(text, self.stops, num_hidden)
        self.tail, self.run, self.is_broken = b"", 0, False

    def _add_byte(self, data: bytes) -> None:
        """Add a byte to a run, which is decoded while it is UTF-8."""
        self.run += 1
        if self.is_broken:
            self.settled = self.whole = self.settled.add(UNFINISHED, self.stops)
            return
        try:
            text, used = utf_8_decode(self.tail + data, "strict", False)
        except UnicodeDecodeError:
            self.is_broken, self.tail = True, b""
            self.settled = self.whole = self.settled.add(UNFINISHED * self.run, self.stops)
        else:
            self.tail = (self.tail + data)[used:]
            self.whole = self.whole.add(text, self.stops)


def _overlap(text: str, stops: Stops) -> int:
    """Return the length of the longest beginning of a stop string, short of all of it, that `text` ends with."""
    longest = min(max(map(len, stops), default=1) - 1, len(text))
    beginnings = ((n, stop[:n]) for n in range(longest, 0, -1) for stop in stops if n < len(stop))
    return next((n for n, beginning in beginnings if text.endswith(beginning)), 0)
