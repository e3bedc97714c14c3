"""Decoding methods side by side, in paired runs that take turns, on one model and one set of prompts.

Every method writes the same number of tokens after every prompt. Before the first figure each has written everything
once; then, prompt by prompt, all of them write, and who begins changes from prompt to prompt and from run to run. A
speed is a ratio to plain decoding within one run, and of these the median.

Text that goes round in circles is easy to predict. So a text too much of which stood in it before does not count for
tokens per pass, and what methods yield is measured at places in text that no model wrote as well: see `expectation`.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

import torch

from pass_sampling.reference.config import check_integer

from ..generation import generate
from ..methods import Method
from .figures import PLAIN, Run, clock, rows_of

__all__ = ["PLAIN", "Entry", "Run", "Runner", "method_writer", "rows_of", "run_all", "spare_threads"]

ENOUGH_REPEATS = 5  # paired runs after a claim
WARMING_TOKENS = 8  # of the texts that warm up under a budget
Runs = dict[str, list[list[Run]]]
"""What was written, by name, repeat and prompt."""


class Runner(Protocol):
    """Continues a prompt by exactly so many tokens, with the randomness of a seed and a request."""

    def __call__(self, prompt: Sequence[int], max_new_tokens: int, seed: int, request: int) -> Run:
        """Return the text and its cost; the time is taken outside."""


@dataclass(frozen=True)
class Entry:
    """A method to be compared."""

    name: str
    write: Runner
    options: Mapping[str, Any] = field(default_factory=dict)


def method_writer(method: Method, eos_token_ids: Sequence[int] = ()) -> Runner:
    """Return what writes with a method of this package; by default no token ends a text early."""

    def write(prompt: Sequence[int], max_new_tokens: int, seed: int, request: int) -> Run:
        result = generate(
            method, prompt, max_new_tokens, eos_token_ids=eos_token_ids, stop_strings=(), seed=seed, request=request
        )
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
    contenders: Sequence[Entry],
    prompts: Sequence[Sequence[int]],
    max_new_tokens: int,
    repeats: int,
    seed: int = 0,
    device: torch.device | str = "cpu",
    report: Callable[[int, int, Runs], None] | None = None,
    budget: float | None = None,
    may_end: bool = False,
) -> Runs:
    """Let all write after all prompts, several times; return the runs by name, repeat and prompt.

    The first run of each is not returned: it warms up. Every repeat has uniforms of its own, the same for all.

    Under a budget of seconds a few tokens after the first prompt warm up. What they cost says how long texts can be
    for every repeat to have one, and the first repeat says how many prompts there is time for; where the machine then
    turns out slower, repeats at the end are left out.

    Args:
        contenders: methods, with different names.
        prompts: token ids.
        max_new_tokens: length of every text.
        repeats: runs that are returned.
        seed: picks the uniforms.
        device: where the methods compute, which is waited for before the clock is read.
        report: called as `report(done, total, runs)` after every text, with the runs of all prompts that all have
            continued so far.
        budget: seconds to spend, about.
        may_end: whether a text may be shorter, because a token has ended it.

    Raises:
        ValueError: fewer than one repeat.
        RuntimeError: a method wrote another number of tokens.
    """
    check_integer("repeats", repeats, 1, 10**6)
    began, done, chosen = clock(device), 0, len(prompts)
    turns: list[list[dict[str, Run]]] = []  # by repeat and prompt

    def turn(repeat: int, number: int, length: int) -> dict[str, Run]:
        nonlocal done
        written = {}
        for entry in in_turn(contenders, repeat + number):
            started = clock(device)
            run = entry.write(prompts[number], length, seed, repeat * len(prompts) + number)
            written[entry.name] = replace(run, seconds=clock(device) - started)
            if len(run.tokens) > length or (len(run.tokens) < length and not may_end):
                raise RuntimeError(f"{entry.name} wrote {len(run.tokens)} tokens, expected {length}")
            done += 1
            if report is not None:
                warming = len(prompts) if budget is None else 2
                report(done, (repeats * chosen + warming) * len(contenders), _by_name(contenders, turns))
        return written

    if budget is None:
        for number in range(len(prompts)):
            turn(0, number, max_new_tokens)
    else:
        few = min(WARMING_TOKENS, max_new_tokens)
        turn(0, 0, few)
        each = sum(run.seconds for run in turn(0, 0, few).values()) / few
        affordable = int((budget - (clock(device) - began)) / (repeats * each))
        max_new_tokens = min(max_new_tokens, max(few, affordable))
    for repeat in range(1, repeats + 1):
        repeat_began = clock(device)
        if budget is not None and repeat > 1 and repeat_began - began > budget:
            break
        turns.append([])
        for number in range(len(prompts)):
            if budget is not None and repeat == 1 and number > 0:
                now = clock(device)
                if repeat_began - began + (now - repeat_began) / number * (number + 1) * repeats > budget:
                    chosen = number
            if number == chosen:
                break
            turns[-1].append(turn(repeat, number, max_new_tokens))
    return _by_name(contenders, turns)


def _by_name(contenders: Sequence[Entry], turns: Sequence[Sequence[Mapping[str, Run]]]) -> Runs:
    """Return the runs by name, repeat and prompt, without a repeat that has only begun."""
    return {each.name: [[turn[each.name] for turn in repeat] for repeat in turns if repeat] for each in contenders}


def in_turn(contenders: Sequence[Entry], turn: int) -> list[Entry]:
    """Return all in a circle's order; with every turn another one begins."""
    first = turn % len(contenders)
    return [*contenders[first:], *contenders[:first]]


def spare_threads(device: str) -> None:
    """Compute on the cores that are free, unless OMP_NUM_THREADS is set: on busy cores threads wait for one another."""
    if device == "cpu" and "OMP_NUM_THREADS" not in os.environ and hasattr(os, "getloadavg"):
        free = (os.cpu_count() or 1) - round(os.getloadavg()[0])
        torch.set_num_threads(max(1, min(torch.get_num_threads(), free)))
