"""Decoding methods side by side, in paired runs that take turns, on one model and one set of prompts.

Every method writes the same number of tokens behind every prompt. Before the first figure each has written everything
once; then, prompt by prompt, all of them write, and who begins changes from prompt to prompt and from run to run. A
speed is a ratio to plain decoding within one run, and of these the median.

Text that goes round in circles is easy to predict. So a text too much of which stood in it before does not count for
tokens per pass, and what methods yield is measured at places in text that no model wrote as well: see `expectation`.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

import torch

from .benchmarking.figures import PLAIN, Run, rows_of
from .config import check_integer
from .generation import generate
from .methods import Method

__all__ = ["PLAIN", "Contender", "Run", "Writer", "method_writer", "rows_of", "run_all"]

ENOUGH_REPEATS = 5  # paired runs behind a claim


class Writer(Protocol):
    """Continues a prompt by exactly so many tokens, with the randomness of a seed and a request."""

    def __call__(self, prompt: Sequence[int], max_new_tokens: int, seed: int, request: int) -> Run:
        """Return the text and its cost; the time is taken outside."""


@dataclass(frozen=True)
class Contender:
    """A method to be compared."""

    name: str
    write: Writer
    options: Mapping[str, Any] = field(default_factory=dict)


def method_writer(method: Method) -> Writer:
    """Return what writes with a method of this package; no token ends a text early."""

    def write(prompt: Sequence[int], max_new_tokens: int, seed: int, request: int) -> Run:
        result = generate(method, prompt, max_new_tokens, eos_token_ids=(), stop_strings=(), seed=seed, request=request)
        return Run(
            result.tokens,
            result.num_forward_passes,
            result.num_positions,
            result.num_draft_passes,
            result.num_drafts,
            result.accepted_per_position,
        )

    return write


def run_all(
    contenders: Sequence[Contender],
    prompts: Sequence[Sequence[int]],
    max_new_tokens: int,
    repeats: int,
    seed: int = 0,
    device: torch.device | str = "cpu",
    report: Callable[[int, int], None] | None = None,
    budget: float | None = None,
) -> dict[str, list[list[Run]]]:
    """Let all write behind all prompts, several times; return the runs by name, repeat and prompt.

    The first run of each is not returned: it warms up. Every repeat has uniforms of its own, the same for all.

    Under a budget of seconds the first prompt alone warms up, and only so many prompts follow as all repeats have time
    for; where the machine then turns out slower, repeats at the end are left out.

    Args:
        contenders: methods, with different names.
        prompts: token ids.
        max_new_tokens: length of every text.
        repeats: runs that are returned.
        seed: picks the uniforms.
        device: where the methods compute, which is waited for before the clock is read.
        report: called as `report(done, total)` after every text.
        budget: seconds to spend, about.

    Raises:
        ValueError: fewer than one repeat.
        RuntimeError: a method wrote another number of tokens.
    """
    check_integer("repeats", repeats, 1, 10**6)
    runs: dict[str, list[list[Run]]] = {contender.name: [] for contender in contenders}
    chosen = list(prompts)
    warming = chosen if budget is None else chosen[:1]
    done, began = 0, _clock(device)
    for repeat in range(repeats + 1):
        repeat_began = _clock(device)
        if budget is not None and repeat > 1 and repeat_began - began > budget:
            break
        for written in runs.values():
            written.append([])
        for number, prompt in enumerate(chosen if repeat else warming):
            if budget is not None and repeat == 1 and number > 0:
                each = (_clock(device) - repeat_began) / number
                if each * (number + 1) * repeats > budget:
                    chosen = chosen[:number]
                    break
            for contender in in_turn(contenders, repeat + number):
                started = _clock(device)
                run = contender.write(prompt, max_new_tokens, seed, repeat * len(prompts) + number)
                seconds = _clock(device) - started
                if len(run.tokens) != max_new_tokens:
                    raise RuntimeError(f"{contender.name} wrote {len(run.tokens)} tokens, expected {max_new_tokens}")
                runs[contender.name][-1].append(replace(run, seconds=seconds))
                done += 1
                if report is not None:
                    report(done, (repeats * len(chosen) + len(warming)) * len(contenders))
    return {name: written[1:] for name, written in runs.items()}


def in_turn(contenders: Sequence[Contender], turn: int) -> list[Contender]:
    """Return all in a circle's order; with every turn another one begins."""
    first = turn % len(contenders)
    return [*contenders[first:], *contenders[:first]]


def _clock(device: torch.device | str) -> float:
    if torch.device(device).type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()
