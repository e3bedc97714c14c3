"""Defects of the end of a text: asked once per block instead of once per token."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from gallery_tools import COMMON, Defect, Setup, Site

First = Callable[[Any, list[int]], tuple[int, bool]]


def ask(site: Site, first: First) -> None:
    """Let `first(reading, more)` say how much of a block is kept and whether the text ends with it.

    Drafting, which would stop at a drafted end of text, is not told of any.
    """

    def ends_with(right: Any, self: Any, tokens: Any) -> Any:
        return False if site.drafting else right(self, tokens)

    def of_one(right: Any, self: Any, more: Any) -> Any:
        count, ended = first(self, list(more))
        return count, (self.after(more[:count]).reason if ended else None)

    def of_a_batch(right: Any, self: Any, tokens: Any, count: Any) -> Any:
        if site.drafting:
            return count, count < 0
        rows = (each.tolist() for each in (self.tokens, self.prompt_lengths, self.lengths))
        readings = [self.ending.reading().after(row[start:end]) for row, start, end in zip(*rows, strict=True)]
        blocks = [row[:some] for row, some in zip(tokens.tolist(), count.tolist(), strict=True)]
        found = [first(old, new) if new else (0, False) for old, new in zip(readings, blocks, strict=True)]
        counts, ended = zip(*found, strict=True)
        return site.xp.tensor(counts), site.xp.tensor(ended)

    state = site.state
    if site.single:
        site.wrong(state, "ends_with", ends_with)
        site.wrong(site.module("ending").Reading, "first", of_one)
    else:
        site.wrong(state, "num_kept", of_a_batch)


def asked_at_the_end_of_a_block(site: Site) -> None:
    def first(reading: Any, more: list[int]) -> tuple[int, bool]:
        return len(more), reading.after(more).reason is not None

    ask(site, first)


def sought_in_the_text_of_the_block(site: Site) -> None:
    def first(reading: Any, more: list[int]) -> tuple[int, bool]:
        has_stop = reading.after(more).text.has_stop
        for count in range(1, len(more) + 1):
            reason = reading.after(more[:count]).reason
            if reason is not None and (has_stop or reason != "stop_string"):
                return count, True
        return len(more), False

    ask(site, first)


def length_masks_the_end(site: Site) -> None:
    def first(reading: Any, more: list[int]) -> tuple[int, bool]:
        if reading.count + len(more) >= reading.ending.max_new_tokens:
            return reading.ending.max_new_tokens - reading.count, True
        for count in range(1, len(more) + 1):
            if reading.after(more[:count]).reason is not None:
                return count, True
        return len(more), False

    ask(site, first)


def longer_than_asked(site: Site) -> None:
    def first(reading: Any, more: list[int]) -> tuple[int, bool]:
        for count in range(1, len(more) + 1):
            if reading.after(more[:count]).reason not in (None, "length"):
                return count, True
        return len(more), reading.count + len(more) >= reading.ending.max_new_tokens

    ask(site, first)
    state = site.state
    right = state.remaining.fget
    site.set(state, "remaining", property(lambda self: right(self) + (2 if site.at_work else 0)))


ENDS = (
    Defect(
        "end of sequence inside a block",
        "transformers #47912",
        "only a block's last token is compared with the end-of-sequence ids",
        asked_at_the_end_of_a_block,
    ),
    Defect(
        "stop string inside a block",
        "SGLang #23802, vLLM #47616",
        "stop strings are looked for once per block, and the tokens after them stay",
        asked_at_the_end_of_a_block,
        Setup(eos_token_ids=(), stop_strings=("ba", "cc")),
    ),
    Defect(
        "stop string that the decoder takes back",
        COMMON,
        "a stop string is looked for in the text of a block, of which the last byte turns it into U+FFFD",
        sought_in_the_text_of_the_block,
        Setup(eos_token_ids=(), stop_strings=("é",), pieces=(b"\xc3", b"\xa9", b"c")),
        at_least_late=1e-4,  # a whole text must be UTF-8, and is seldom when it is long
    ),
    Defect(
        "length masks the end",
        "SGLang #31599",
        "a block that reaches the length limit is not searched for an earlier end of text",
        length_masks_the_end,
    ),
    Defect(
        "longer than asked",
        "ferrox #311, lattice #242",
        "the last block is neither shortened nor cut at the length limit",
        longer_than_asked,
    ),
)
