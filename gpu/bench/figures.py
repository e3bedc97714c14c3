"""The figures of a comparison, from the cost of every text; a text that repeats itself does not count."""

from __future__ import annotations

import operator
import statistics
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import zip_longest
from typing import Any

import torch

from .expectation import Expectation

OVERALL = "overall"
PLAIN = "autoregressive"  # whom all are compared with
MOST_REPEATED = 0.2  # part of a text's 8-grams that may have stood in it before, if the text is to count


def clock(device: torch.device | str) -> float:
    """Return the seconds on the clock when a device has done what it was given."""
    if torch.device(device).type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()


@dataclass(frozen=True)
class Run:
    """One text that a method wrote, and what it cost."""

    tokens: tuple[int, ...]
    num_forward_passes: int  # of the target, the prompt's included
    num_positions: int  # rows fed through the target, the prompt's included
    num_draft_passes: int = 0  # of a drafting model
    num_drafts: int | None = None  # steps that drafted; None where the method does not tell
    accepted_per_position: tuple[int, ...] = ()
    seconds: float = 0.0

    @property
    def counts(self) -> bool:
        """Whether the text counts for tokens per pass."""
        return repeated_ngrams(self.tokens) <= MOST_REPEATED


def rows_of(
    options: Mapping[str, Mapping[str, Any]],
    runs: Mapping[str, Sequence[Sequence[Run]]],
    expectations: Mapping[str, Expectation],
) -> list[dict[str, Any]]:
    """Return the figures of every method; what a method does not tell, or no text counts for, is None.

    Tokens, passes and acceptance are those of the texts that count; times are those of all, but for
    `ratio_of_counting_texts`, which compares with plain decoding after the same prompts.
    """
    return [
        {"method": name, "options": dict(options[name])}
        | _row(runs[name], runs[PLAIN])
        | {
            "expected_tokens_per_forward": expectations[name].tokens_per_forward if name in expectations else None,
            "expected_standard_error": expectations[name].standard_error if name in expectations else None,
        }
        for name in runs
    ]


def _row(runs: Sequence[Sequence[Run]], plain: Sequence[Sequence[Run]]) -> dict[str, Any]:
    texts = [run for repeat in runs for run in repeat]
    counting = [run for run in texts if run.counts]
    rates = [rate_of(repeat) for repeat in runs]
    pairs = [list(zip(*repeat, strict=True)) for repeat in zip(plain, runs, strict=True)]
    ratios = [_ratio(pair) for pair in pairs]
    fresh = [_ratio(pair) for pair in ([two for two in pair if two[1].counts] for pair in pairs) if pair]
    num_passes = sum(run.num_forward_passes for run in counting)
    accepted = [run.accepted_per_position for run in counting]  # not every text has drafted as deep
    tells = all(run.num_drafts is not None for run in texts)
    return {
        "tokens_per_second": statistics.median(rates),
        "spread": [min(rates), max(rates)],
        "ratio_to_plain": statistics.median(ratios),
        "ratio_spread": [min(ratios), max(ratios)],
        "ratio_of_counting_texts": statistics.median(fresh) if fresh else None,
        "milliseconds_per_pass": statistics.median(
            1000 * sum(run.seconds for run in repeat) / sum(run.num_forward_passes for run in repeat) for repeat in runs
        ),
        "tokens_per_forward": sum(len(run.tokens) for run in counting) / num_passes if counting else None,
        "positions_per_forward": sum(run.num_positions for run in counting) / num_passes if counting else None,
        "accepted_per_position": [sum(by_depth) for by_depth in zip_longest(*accepted, fillvalue=0)] if tells else None,
        "num_drafts": sum(run.num_drafts or 0 for run in counting) if tells else None,
        "num_forward_passes": num_passes,
        "num_draft_passes": sum(run.num_draft_passes for run in counting),
        "tokens": sum(len(run.tokens) for run in counting),
        "texts": len(texts),
        "texts_that_count": len(counting),
        "repeated_8grams": statistics.fmean(repeated_ngrams(run.tokens) for run in texts),
    }


def _ratio(pairs: Sequence[tuple[Run, Run]]) -> float:
    """Return how many times as fast the second runs were as the first, per token: sampled texts may end early."""
    plain, mine = (rate_of(each) for each in zip(*pairs, strict=True))
    return mine / plain


def rate_of(runs: Sequence[Run]) -> float:
    """Return tokens per second."""
    return sum(len(run.tokens) for run in runs) / sum(run.seconds for run in runs)


def by_category(
    runs: Mapping[str, Sequence[Sequence[Run]]], categories: Sequence[str]
) -> dict[str, dict[str, dict[str, float]]]:
    """Return speed over plain decoding and tokens per pass of every method, by category of prompts and overall."""
    found: dict[str, dict[str, dict[str, float]]] = {}
    for category in dict.fromkeys([*categories, OVERALL]):
        places = [number for number, each in enumerate(categories) if category in (each, OVERALL)]
        chosen = {
            name: [[repeat[number] for number in places if number < len(repeat)] for repeat in repeats]
            for name, repeats in runs.items()
        }
        found[category] = {
            name: {
                "ratio_to_plain": statistics.median(
                    map(operator.truediv, map(rate_of, mine), map(rate_of, chosen[PLAIN]))
                ),
                "tokens_per_forward": sum(len(run.tokens) for repeat in mine for run in repeat)
                / sum(run.num_forward_passes for repeat in mine for run in repeat),
            }
            for name, mine in chosen.items()
            if all(mine)
        }
    return found


def repeated_ngrams(tokens: Sequence[int], size: int = 8) -> float:
    """Return the share of a text's n-grams that stood in it before; 0 for a text too short to have one.

    Source: Welleck et al. 2020, "Neural Text Generation with Unlikelihood Training" (arXiv 1908.04319), Sec. 6.
    """
    ngrams = [tuple(tokens[start : start + size]) for start in range(len(tokens) - size + 1)]
    return (len(ngrams) - len(set(ngrams))) / len(ngrams) if ngrams else 0.0
