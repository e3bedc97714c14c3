"""Defects of the end of a text: asked once per block instead of once per token."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

from gallery_tools import COMMON, TABLE, Defect, Site, defects

ENDS: list[Defect] = []
defect = defects(ENDS)
LETTERS = (("a",), ("b",), ("c",))
STOPS = replace(TABLE, eos_token_ids=(), stop_strings=("ba", "cc"), pieces=LETTERS)


def draft_on(site: Site) -> None:
    """Go on drafting after a drafted end of text; what is committed is cut all the same."""

    def ends_with(right: Any, self: Any, tokens: Any) -> Any:
        return False if site.drafting else right(self, tokens)

    def num_kept(right: Any, self: Any, tokens: Any, count: Any) -> Any:
        return (count, count < 0) if site.drafting else right(self, tokens, count)

    wrong = ends_with if site.single else num_kept
    site.wrong(site.state, wrong.__name__, wrong)


def ask(site: Site, first: Callable[[Any, list[int]], tuple[int, bool]]) -> None:
    """Let `first(reading, more)` say how much of a block is kept and whether the text ends with it.

    Drafting, which would stop at a drafted end of text, is not told of any.
    """

    def of_one(right: Any, self: Any, more: Any) -> Any:
        count, ended = first(self, list(more))
        return count, (self.after(more[:count]).reason if ended else None)

    def of_a_batch(right: Any, self: Any, tokens: Any, count: Any) -> Any:
        if site.drafting:
            return right(self, tokens, count)
        rows = (each.tolist() for each in (self.tokens, self.prompt_lengths, self.lengths))
        readings = [self.ending.reading().after(row[start:end]) for row, start, end in zip(*rows, strict=True)]
        blocks = [row[:some] for row, some in zip(tokens.tolist(), count.tolist(), strict=True)]
        found = [first(old, new) if new else (0, False) for old, new in zip(readings, blocks, strict=True)]
        counts, ended = zip(*found, strict=True)
        return site.xp.tensor(counts), site.xp.tensor(ended)

    draft_on(site)
    if site.single:
        site.wrong(site.module("ending").Reading, "first", of_one)
    else:
        site.wrong(site.state, "num_kept", of_a_batch)


def _first_end(reading: Any, more: list[int], ignored: tuple[str, ...] = ()) -> int | None:
    """Return how many tokens of a block there are up to the first end of the text, if it has one."""
    counts = range(1, len(more) + 1)
    return next((count for count in counts if reading.after(more[:count]).reason not in (None, *ignored)), None)


@defect("transformers #47912", ask)
def end_of_sequence_inside_a_block(site: Site, reading: Any, more: list[int]) -> tuple[int, bool]:
    """Only a block's last token is compared with the end-of-sequence ids."""
    return len(more), reading.after(more).reason is not None


@defect("SGLang #23802, vLLM #47616", ask, case=STOPS)
def stop_string_inside_a_block(site: Site, reading: Any, more: list[int]) -> tuple[int, bool]:
    """Stop strings are looked for once per block, and the tokens after them stay."""
    return len(more), reading.after(more).reason is not None


@defect(
    COMMON,
    ask,
    case=replace(STOPS, stop_strings=("é",), pieces=(("x",), ("", b"\xc3"), ("", b"\xa9"))),
    at_least_late=1e-4,  # a whole text must be UTF-8, and is seldom when it is long
)
def stop_string_that_the_decoder_takes_back(site: Site, reading: Any, more: list[int]) -> tuple[int, bool]:
    """A stop string is looked for in the text of a block, of which the last byte turns it into U+FFFD."""
    has_stop = reading.after(more).text.has_stop
    count = _first_end(reading, more, () if has_stop else ("stop_string",))
    return (len(more), False) if count is None else (count, True)


@defect("SGLang #31599", ask)
def length_masks_the_end(site: Site, reading: Any, more: list[int]) -> tuple[int, bool]:
    """A block that reaches the length limit is not searched for an earlier end of text."""
    if reading.count + len(more) >= reading.ending.max_new_tokens:
        return reading.ending.max_new_tokens - reading.count, True
    count = _first_end(reading, more)
    return (len(more), False) if count is None else (count, True)


@defect("ferrox #311, lattice #242")
def longer_than_asked(site: Site) -> None:
    """The last block is neither shortened nor cut at the length limit."""

    def first(reading: Any, more: list[int]) -> tuple[int, bool]:
        count = _first_end(reading, more, ("length",))
        is_full = reading.count + len(more) >= reading.ending.max_new_tokens
        return (len(more), is_full) if count is None else (count, True)

    ask(site, first)
    right = site.state.remaining.fget
    remaining = property(lambda self: right(self) + (2 if site.at_work else 0))
    site.monkeypatch.setattr(site.state, "remaining", remaining)
