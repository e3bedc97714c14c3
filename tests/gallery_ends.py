"""Defects of the end of a text: asked once per block instead of once per token."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from gallery_tools import Defect, Setup, Site

First = Callable[[Any, list[int], list[int]], tuple[int, bool]]


def ask(site: Site, first: First) -> None:
    """Let `first(ending, before, more)` say how much of a block is kept and whether the text ends with it.

    Drafting, which would stop at a drafted end of text, is not told of any.
    """

    def ends_with(right: Any, self: Any, tokens: Any) -> Any:
        return False if site.drafting else right(self, tokens)

    def of_one(right: Any, self: Any, before: Any, more: Any) -> Any:
        count, ended = first(self, list(before), list(more))
        return count, (self.reason([*before, *more[:count]]) if ended else None)

    def of_a_batch(right: Any, self: Any, tokens: Any, count: Any) -> Any:
        if site.drafting:
            return count, count < 0
        rows = (each.tolist() for each in (self.tokens, self.prompt_lengths, self.lengths))
        before = [row[start:end] for row, start, end in zip(*rows, strict=True)]
        blocks = [row[:some] for row, some in zip(tokens.tolist(), count.tolist(), strict=True)]
        found = [first(self.ending, old, new) if new else (0, False) for old, new in zip(before, blocks, strict=True)]
        counts, ended = zip(*found, strict=True)
        return site.xp.tensor(counts), site.xp.tensor(ended)

    state = site.state
    if site.single:
        site.wrong(state, "ends_with", ends_with)
        site.wrong(site.module("ending").Ending, "first", of_one)
    else:
        site.wrong(state, "kept", of_a_batch)


def asked_at_the_end_of_a_block(site: Site) -> None:
    def first(ending: Any, before: list[int], more: list[int]) -> tuple[int, bool]:
        return len(more), ending.reason([*before, *more]) is not None

    ask(site, first)


def length_masks_the_end(site: Site) -> None:
    def first(ending: Any, before: list[int], more: list[int]) -> tuple[int, bool]:
        if len(before) + len(more) >= ending.max_new_tokens:
            return ending.max_new_tokens - len(before), True
        for count in range(1, len(more) + 1):
            if ending.reason([*before, *more[:count]]) is not None:
                return count, True
        return len(more), False

    ask(site, first)


def longer_than_asked(site: Site) -> None:
    def first(ending: Any, before: list[int], more: list[int]) -> tuple[int, bool]:
        for count in range(1, len(more) + 1):
            if ending.reason([*before, *more[:count]]) not in (None, "length"):
                return count, True
        return len(more), len(before) + len(more) >= ending.max_new_tokens

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
        "stop strings are looked for once per block, and the tokens behind them stay",
        asked_at_the_end_of_a_block,
        Setup(eos_token_ids=(), stop_strings=("ba", "cc")),
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
