"""Where a text ends, decided token by token, and how much of an unfinished text may be shown."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from numbers import Integral
from typing import TYPE_CHECKING

from .config import check_integer

if TYPE_CHECKING:
    from .model.language_model import ModelFacts
    from .text.decoder import Decode, Decoder, Text

Criterion = Callable[[Sequence[int]], bool]
"""A pure hook that returns whether a text ends with its last token; also called with prefixes that end in drafts."""


@dataclass(frozen=True)
class Ending:
    """The ends of a text: a length, end-of-sequence tokens, stop strings in the decoded new text, a criterion.

    A text ends at the first prefix for which one of them holds. A plain `decode` reads the new tokens alone. A
    `TokenDecoder` also matches stop strings with special tokens, and reads the prompt that the text continues.
    `reading` and `written` return values that can be continued. The other methods read all tokens from the first on.
    """

    max_new_tokens: int
    eos_token_ids: Sequence[int] = ()
    stop_strings: Sequence[str] = ()
    decode: Decode | None = None  # new tokens -> text; needed for stop strings
    criterion: Criterion | None = None

    def __post_init__(self) -> None:
        """Keep plain integers and tuples.

        Raises:
            ValueError: max_new_tokens is not a positive integer, an end-of-sequence token no integer, a stop string
                empty or with an unfinished character, or there is no decoder for stop strings.
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
        if strings and self.decode is None:
            raise ValueError("stop_strings: found no decode function, expected one that turns tokens into text")
        if strings:
            self._decoder.check_stops(strings)
        object.__setattr__(self, "max_new_tokens", int(limit))
        object.__setattr__(self, "eos_token_ids", tokens)
        object.__setattr__(self, "stop_strings", strings)

    @property
    def asks_host(self) -> bool:
        """Whether the end depends on more than tokens and lengths, so that the host must read the text."""
        return bool(self.stop_strings) or self.criterion is not None

    def reading(self, prompt: Sequence[int] = ()) -> Reading:
        """Return the reading of no new tokens after a prompt."""
        return Reading(self, self.written(prompt) if self.stop_strings else None)

    def written(self, prompt: Sequence[int] = ()) -> Text:
        """Return the text of no new tokens after a prompt; raise ValueError without a decoder."""
        if self.decode is None:
            raise ValueError("decode: found None, expected a function that turns tokens into text")
        return self._decoder.start(tuple(self.stop_strings), prompt)

    @property
    def _decoder(self) -> Decoder:
        """The decoder, or one around the decode function."""
        from .text.decoder import Decoder  # most texts need none

        return self.decode if isinstance(self.decode, Decoder) else Decoder(self.decode)  # type: ignore[arg-type]

    def reason(self, new_tokens: Sequence[int], prompt: Sequence[int] = ()) -> str | None:
        """Return why a text ends with its last token: "eos", "stop_string", "criterion", "length", or None."""
        return self.reading(prompt).after(new_tokens).reason

    def first(self, before: Sequence[int], more: Sequence[int], prompt: Sequence[int] = ()) -> tuple[int, str | None]:
        """Return how many of `more` tokens to keep after `before`, and why the text ends there, if it does."""
        return self.reading(prompt).after(before).first(more)

    def text(self, new_tokens: Sequence[int], prompt: Sequence[int] = ()) -> str | None:
        """Return the text that is shown, up to the first stop string, or None without a decoder."""
        if self.decode is None:
            return None
        text = self.written(prompt).after(new_tokens)
        return text.news + text.rest


@dataclass(frozen=True)
class Reading:
    """The beginning of a text, and why it ends there; a value that can be continued more than once."""

    ending: Ending
    text: Text | None  # if there are stop strings
    count: int = 0
    tokens: tuple[int, ...] = ()  # the last one, or all of them for a criterion

    def after(self, tokens: Sequence[int]) -> Reading:
        """Return the reading after some more tokens."""
        if not tokens:
            return self
        known = (*self.tokens, *tokens) if self.ending.criterion else (tokens[-1],)
        text = None if self.text is None else self.text.after(tokens)
        return replace(self, text=text, count=self.count + len(tokens), tokens=known)

    @cached_property
    def reason(self) -> str | None:
        """Why the text ends with its last token; see `Ending.reason`."""
        ending = self.ending
        if self.tokens and self.tokens[-1] in ending.eos_token_ids:
            return "eos"
        if self.text is not None and self.text.has_stop:
            return "stop_string"
        if ending.criterion is not None and self.tokens and ending.criterion(self.tokens):
            return "criterion"
        return "length" if self.count >= ending.max_new_tokens else None

    def first(self, more: Sequence[int]) -> tuple[int, str | None]:
        """Return how many of some more tokens to keep, and why the text ends there, if it does."""
        reading = self
        for count, token in enumerate(more, 1):
            reading = reading.after((token,))
            if reading.reason is not None:
                return count, reading.reason
        return len(more), None


def ending_for(
    model: ModelFacts,
    max_new_tokens: int,
    eos_token_ids: Sequence[int] | None,
    stop_strings: Sequence[str] | None,
    decode: Decode | None,
) -> Ending:
    """Return the ends that were asked for; None means the model's own."""
    eos = model.eos_token_ids if eos_token_ids is None else eos_token_ids
    stops = model.stop_strings if stop_strings is None else stop_strings
    if stop_strings is None and stops and decode is None:
        logging.getLogger(__name__).warning(
            "stop_strings: found %r in the model's generation settings and no decode function, expected one: no text "
            "ends there",
            stops,
        )
        stops = ()
    return Ending(max_new_tokens, eos, stops, decode)
