"""Text on a terminal while it is being accepted, each token in the colour of how it came."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from types import TracebackType
from typing import TextIO

from pass_sampling.reference.ending import Ending
from pass_sampling.reference.record import Record

__all__ = ["LEGEND", "MARKS", "SourceStream", "is_colourful", "legend"]

COLOURS = {"exact": "", "accepted": "\033[32m", "correction": "\033[31m", "bonus": "\033[36m"}
MARKS = {"exact": ("", ""), "accepted": ("[+", "+]"), "correction": ("[~", "~]"), "bonus": ("[*", "*]")}
LEGEND = {
    "exact": "from the model's own row",
    "accepted": "drafted, and accepted",
    "correction": "in place of a rejected draft",
    "bonus": "after drafts none of which was rejected",
}
DIM, RESET = "\033[2m", "\033[0m"


def is_colourful(stream: TextIO) -> bool:
    """Say whether a stream shows colours: a terminal does, unless NO_COLOR is set or TERM is dumb."""
    return stream.isatty() and not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb"


class SourceStream:
    """Prints new text as soon as later tokens cannot take it back; pass `record` as a generation's callback.

    Neighbouring tokens from the same source are marked together, so that the text stays readable. As a context, it
    closes what it has opened, so that a terminal is not left in colour where generation fails or is interrupted.
    """

    def __init__(
        self,
        ending: Ending,
        stream: TextIO | None = None,
        colourful: bool | None = None,
        plain: bool = False,
        prompt: Sequence[int] = (),
    ):
        """Print what follows a prompt to a stream (default: standard output).

        It is printed in colours, with marks in the text, or `plain`.
        """
        self._text = ending.written(prompt)
        self._stream = sys.stdout if stream is None else stream
        self._colourful = is_colourful(self._stream) if colourful is None else colourful
        self._plain = plain
        self._num_shown = 0
        self._source = self._last = ""  # of the text that is shown, and of the last token

    def __enter__(self) -> SourceStream:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is not None and not issubclass(kind, OSError):  # where the stream is not what failed
            self._switch("")
            self._stream.flush()

    def record(self, request: int, record: Record) -> None:
        """Show what a step has added."""
        for token, self._last in zip(record.tokens, record.sources, strict=True):
            self._text = self._text.after((token,))
            self._show(self._text.news)
        self._stream.flush()

    def finish(self, text: str) -> None:
        """Show the rest of a text that has ended."""
        self._show(text[self._num_shown :])
        self._switch("")
        self._stream.write("\n")
        self._stream.flush()

    def _show(self, text: str) -> None:
        if text:
            self._num_shown += len(text)
            self._switch(self._last)
            self._stream.write(text)

    def _switch(self, source: str) -> None:
        """Close the mark of the last source, open that of the next."""
        if source == self._source or self._plain:
            return
        before, after = self._source, source
        self._source = source
        if self._colourful:
            self._stream.write((RESET if before and COLOURS[before] else "") + (COLOURS[after] if after else ""))
        else:
            self._stream.write((MARKS[before][1] if before else "") + (MARKS[after][0] if after else ""))


def legend(colourful: bool) -> str:
    """Return one line that explains the colours, or the marks."""
    parts = []
    for source, meaning in LEGEND.items():
        name = f"{COLOURS[source]}{source}{RESET}" if colourful else source.join(MARKS[source])
        parts.append(f"{name} {meaning}")
    return "; ".join(parts)
