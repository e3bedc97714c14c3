"""The figures of a comparison, from the cost of every text; a text that repeats itself does not count."""

from __future__ import annotations

import statistics
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from .expectation import Expectation

__all__ = ["MOST_REPEATED", "OVERALL", "PLAIN", "Run", "by_category", "clock", "repeated_ngrams", "rows_of"]


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
    return [_row(name, options[name], runs[name], runs[PLAIN], expectations.get(name)) for name in runs]


def _row(
    name: str,
    options: Mapping[str, Any],
    runs: Sequence[Sequence[Run]],
    plain: Sequence[Sequence[Run]],
    expectation: Expectation | None,
) -> dict[str, Any]:
    texts = [run for repeat in runs for run in repeat]
    counting = [run for run in texts if run.counts]
    seconds = [sum(run.seconds for run in repeat) for repeat in runs]
    tokens = [sum(len(run.tokens) for run in repeat) for repeat in runs]
    passes = [sum(run.num_forward_passes for run in repeat) for repeat in runs]
    rates = [count / time for count, time in zip(tokens, seconds, strict=True)]
    pairs = [list(zip(*repeat, strict=True)) for repeat in zip(plain, runs, strict=True)]
    ratios = [_ratio(pair) for pair in pairs]
    fresh = [_ratio(pair) for pair in ([two for two in pair if two[1].counts] for pair in pairs) if pair]
    num_passes = sum(run.num_forward_passes for run in counting)
    tells = all(run.num_drafts is not None for run in texts)
    return {
        "method": name,
        "options": dict(options),
        "tokens_per_second": statistics.median(rates),
        "spread": [min(rates), max(rates)],
        "ratio_to_plain": statistics.median(ratios),
        "ratio_spread": [min(ratios), max(ratios)],
        "ratio_of_counting_texts": statistics.median(fresh) if fresh else None,
        "milliseconds_per_pass": statistics.median(
            1000 * time / count for time, count in zip(seconds, passes, strict=True)
        ),
        "tokens_per_forward": _share(sum(len(run.tokens) for run in counting), num_passes),
        "positions_per_forward": _share(sum(run.num_positions for run in counting), num_passes),
        "accepted_per_position": _sums([run.accepted_per_position for run in counting]) if tells else None,
        "num_drafts": sum(run.num_drafts or 0 for run in counting) if tells else None,
        "num_forward_passes": num_passes,
        "num_draft_passes": sum(run.num_draft_passes for run in counting),
        "tokens": sum(len(run.tokens) for run in counting),
        "texts": len(texts),
        "texts_that_count": len(counting),
        "repeated_8grams": statistics.fmean(repeated_ngrams(run.tokens) for run in texts),
        "expected_tokens_per_forward": None if expectation is None else expectation.tokens_per_forward,
        "expected_standard_error": None if expectation is None else expectation.standard_error,
    }


def _ratio(pairs: Sequence[tuple[Run, Run]]) -> float:
    """Return how many times as fast the second runs were as the first, per token: sampled texts may end early."""
    plain, mine = (_rate(each) for each in zip(*pairs, strict=True))
    return mine / plain


def _rate(runs: Sequence[Run]) -> float:
    return sum(len(run.tokens) for run in runs) / sum(run.seconds for run in runs)


def by_category(
    runs: Mapping[str, Sequence[Sequence[Run]]], categories: Sequence[str]
) -> dict[str, dict[str, dict[str, float]]]:
    """Return speed over plain decoding and tokens per pass of every method, by category of prompts and overall."""
    found: dict[str, dict[str, dict[str, float]]] = {}
    for category in dict.fromkeys([*categories, OVERALL]):
        places = [number for number, each in enumerate(categories) if category in (each, OVERALL)]
        found[category] = {}
        for name, repeats in runs.items():
            mine = [[repeat[number] for number in places if number < len(repeat)] for repeat in repeats]
            plain = [[repeat[number] for number in places if number < len(repeat)] for repeat in runs[PLAIN]]
            if not all(mine):
                continue
            every = [run for repeat in mine for run in repeat]
            found[category][name] = {
                "ratio_to_plain": statistics.median(
                    _rate(one) / _rate(two) for one, two in zip(mine, plain, strict=True)
                ),
                "tokens_per_forward": sum(len(each.tokens) for each in every)
                / sum(each.num_forward_passes for each in every),
            }
    return found


def _share(part: int, whole: int) -> float | None:
    return part / whole if whole else None


def _sums(counts: Sequence[tuple[int, ...]]) -> list[int]:
    """Add up counts by depth; not every text has drafted as deep."""
    depth = max(map(len, counts), default=0)
    return [sum(count[i] for count in counts if i < len(count)) for i in range(depth)]


def repeated_ngrams(tokens: Sequence[int], size: int = 8) -> float:
    """Return the share of a text's n-grams that stood in it before; 0 for a text too short to have one.

    Source: Welleck et al. 2020, "Neural Text Generation with Unlikelihood Training" (arXiv 1908.04319), Sec. 6.
    """
    ngrams = [tuple(tokens[start : start + size]) for start in range(len(tokens) - size + 1)]
    return (len(ngrams) - len(set(ngrams))) / len(ngrams) if ngrams else 0.0
