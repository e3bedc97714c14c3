"""The report of a comparison: its settings and figures, remarks, and the table as text."""

from __future__ import annotations

import os
import platform
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from importlib.metadata import version
from itertools import zip_longest
from statistics import fmean, median
from typing import Any

import torch

from ..model.precision import processor_name
from ..model.transformer import Transformer
from .expectation import Expectation
from .plan import Plan
from .runs import MOST_REPEATED, Entry, Run, Runs, repeated_ngrams

OVERALL, PLAIN = "overall", "autoregressive"  # whom all are compared with
ENOUGH_REPEATS = 5  # paired runs after a claim
STEADY = 1.5  # how far apart the speeds of plain decoding may be


def machine(device: torch.device) -> dict[str, Any]:
    """Return what machine the figures were measured on."""
    return {
        "system": platform.system(),
        "architecture": platform.machine(),
        "processor": torch.cuda.get_device_name(device) if device.type == "cuda" else processor_name(),
        "device": str(device),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "load": os.getloadavg()[0] if hasattr(os, "getloadavg") else None,  # what else ran in the minute before
    }


def versions() -> dict[str, str]:
    """Return the versions of Python and of the packages that compute."""
    packages = ("pass-sampling", "torch", "transformers", "numpy")
    return {"python": platform.python_version()} | {name: version(name) for name in packages}


def rate_of(runs: Sequence[Run]) -> float:
    """Return tokens per second."""
    return sum(len(run.tokens) for run in runs) / sum(run.seconds for run in runs)


def row_of(runs: Sequence[Sequence[Run]], plain: Sequence[Sequence[Run]]) -> dict[str, Any]:
    """Return the figures of a method beside plain decoding; what it does not tell, or no text counts for, is None.

    Tokens, passes and acceptance are those of the texts that count; times are those of all, except
    `ratio_of_counting_texts`, which compares with plain decoding after the same prompts.
    """
    texts = [run for repeat in runs for run in repeat]
    counting = [run for run in texts if run.counts]
    rates = [rate_of(repeat) for repeat in runs]
    ratios = [mine / rate_of(other) for mine, other in zip(rates, plain, strict=True)]
    pairs = [[two for two in zip(*repeat, strict=True) if two[0].counts] for repeat in zip(runs, plain, strict=True)]
    fresh = [rate_of([mine for mine, _ in pair]) / rate_of([other for _, other in pair]) for pair in pairs if pair]
    num_passes = sum(run.num_forward_passes for run in counting)
    accepted = [run.accepted_per_position for run in counting]  # not every text has drafted as deep
    tells = all(run.num_drafts is not None for run in texts)
    passes = [1000 * sum(run.seconds for run in each) / sum(run.num_forward_passes for run in each) for each in runs]
    return {
        "tokens_per_second": median(rates),
        "spread": [min(rates), max(rates)],
        "ratio_to_plain": median(ratios),
        "ratio_spread": [min(ratios), max(ratios)],
        "ratio_of_counting_texts": median(fresh) if fresh else None,
        "milliseconds_per_pass": median(passes),
        "tokens_per_forward": sum(len(run.tokens) for run in counting) / num_passes if counting else None,
        "positions_per_forward": sum(run.num_positions for run in counting) / num_passes if counting else None,
        "accepted_per_position": [sum(by_depth) for by_depth in zip_longest(*accepted, fillvalue=0)] if tells else None,
        "num_drafts": sum(run.num_drafts or 0 for run in counting) if tells else None,
        "num_forward_passes": num_passes,
        "num_draft_passes": sum(run.num_draft_passes for run in counting),
        "tokens": sum(len(run.tokens) for run in counting),
        "texts": len(texts),
        "texts_that_count": len(counting),
        "repeated_8grams": fmean(repeated_ngrams(run.tokens) for run in texts),
    }


def by_category(runs: Runs, categories: Sequence[str]) -> dict[str, dict[str, dict[str, float]]]:
    """Return speed over plain decoding and tokens per pass of every method, by category of prompts and overall."""
    found: dict[str, dict[str, dict[str, float]]] = {}
    for category in dict.fromkeys([*categories, OVERALL]):
        places = [number for number, each in enumerate(categories) if category in (each, OVERALL)]
        chosen = {
            name: [[repeat[number] for number in places if number < len(repeat)] for repeat in repeats]
            for name, repeats in runs.items()
        }
        for name, mine in chosen.items():
            if all(mine):
                ratios = [rate_of(each) / rate_of(other) for each, other in zip(mine, chosen[PLAIN], strict=True)]
                texts = [run for repeat in mine for run in repeat]
                tokens, passes = sum(len(run.tokens) for run in texts), sum(run.num_forward_passes for run in texts)
                figures = {"ratio_to_plain": median(ratios), "tokens_per_forward": tokens / passes}
                found.setdefault(category, {})[name] = figures
    return found


@dataclass
class Comparison:
    """The settings and results of a comparison, complete or stopped."""

    asked: Mapping[str, Any]  # sampling, sizes, options of drafts, the source of the texts
    model: Transformer
    prompts: Sequence[Sequence[int]]
    places: Sequence[Sequence[int]]  # prefixes at which an expectation is taken
    entries: Sequence[Entry]
    left_out: Mapping[str, str]
    plan: Plan | None
    categories: Sequence[str] = ()  # of the prompts, if they have some
    runs: Runs = field(default_factory=dict)
    expectations: dict[str, Expectation] = field(default_factory=dict)
    is_partial: bool = True

    def __post_init__(self) -> None:
        self.where = machine(self.model.device)  # before it is busy

    def result(self) -> dict[str, Any]:
        """Return all of it as plain values."""
        rows = []
        for entry in self.entries:
            expected = self.expectations.get(entry.name, Expectation(None, None))
            row: dict[str, Any] = {"method": entry.name, "options": dict(entry.options)}
            row |= row_of(self.runs[entry.name], self.runs[PLAIN])
            row["expected_tokens_per_forward"], row["expected_standard_error"] = expected
            rows.append(row)
        settings = self._settings()
        settings["notes"] = notes_of(rows, settings)
        result = {"machine": self.where, "versions": versions(), "settings": settings, "rows": rows}
        if any(self.categories):
            result["categories"] = by_category(self.runs, self.categories)
        if self.plan is not None:
            (planned,) = [row for row in rows if row["method"] == "planned"]
            expected_of = self.plan.prediction
            settings["notes"].append(
                f"planned is {self.plan.options.method}: {expected_of['ratio_to_plain']:.2f} times plain decoding was "
                f"predicted, and {expected_of['tokens_per_step']:.2f} tokens a step; it was "
                f"{planned['ratio_to_plain']:.2f} times"
            )
            result["plan"] = self.plan.to_json()
        return result

    def _settings(self) -> dict[str, Any]:
        """Return what was compared, down to the tokens of the prompts, and what is less than was asked for."""
        asked, runs = self.asked, self.runs[PLAIN]
        return {
            "model": self.model.name,
            "fingerprint": self.model.fingerprint,
            "dtype": str(self.model.dtype).removeprefix("torch."),
            **{name: asked[name] for name in ("temperature", "top_k", "top_p", "seed", "quick", "decode")},
            "max_new_tokens": asked["max_new_tokens"],
            "end": "or until the model ends it" if asked["chat"] else "no token ends a text early",
            "repeats": len(runs),
            "enough_repeats": len(runs) >= ENOUGH_REPEATS,
            "partial": self.is_partial,
            "prompts": {"source": asked["source"], "lengths": list(map(len, self.prompts[: len(runs[0])]))},
            "places": {"source": asked["source"], "count": len(self.places), "uniform_streams": asked["num_streams"]},
            "left_out": dict(self.left_out),
        }


def notes_of(rows: Sequence[Mapping[str, Any]], settings: Mapping[str, Any]) -> list[str]:
    """Return remarks that belong beside the figures."""
    notes = ["partial: this comparison was not finished"] if settings["partial"] else []
    notes += [f"{name} is left out: {reason}" for name, reason in settings["left_out"].items()]
    if lossy := [row["method"] for row in rows if any(name.startswith("lossy_") for name in row["options"])]:
        notes.append(f"LOSSY, with another distribution than plain decoding: {', '.join(lossy)}")
    if not settings["enough_repeats"]:
        notes.append(f"too few paired runs for a claim: {settings['repeats']}, expected at least {ENOUGH_REPEATS}")
    if any(row["texts_that_count"] < row["texts"] for row in rows):
        left = ", ".join(f"{row['method']} {row['texts_that_count']}" for row in rows)
        notes.append(
            f"texts with more than {MOST_REPEATED:.0%} repeated 8-grams count for speeds alone, which they raise; of "
            f"{rows[0]['texts']} texts these are left: {left}"
        )
    slowest, fastest = rows[0]["spread"]
    if fastest > STEADY * slowest:
        notes.append(
            f"unsteady: plain decoding itself was {fastest / slowest:.1f} times as fast in one run as in another, so "
            "the speeds are uncertain; tokens per pass do not depend on the load of the machine"
        )
    return notes


def table_lines(result: Mapping[str, Any]) -> list[str]:
    """Return the figures as lines, after what they were measured on and before the remarks."""
    settings, where = result["settings"], result["machine"]
    prompts, places = settings["prompts"], settings["places"]
    load = "" if where["load"] is None else f", load before {where['load']:.1f}"
    lines = [
        f"{settings['model']}, {settings['dtype']} on {where['device']}: {where['processor']}, {where['cores']} cores, "
        f"threads {where['threads']}{load}",
        f"prompts: {len(prompts['lengths'])} ({prompts['source']}); new tokens: {settings['max_new_tokens']} each, "
        f"{settings['end']}; temperature {settings['temperature']:g}, top-k {settings['top_k']}, top-p "
        f"{settings['top_p']:g}; seed {settings['seed']}",
        f"medians of {settings['repeats']} paired runs that take turns; held out: expected at "
        f"{places['count']} places, {places['uniform_streams']} uniform streams each; repeated: share of "
        "8-grams that occurred earlier in their text; accepted: by depth",
        "",
        f"{'':28}{'tokens':>8}{'lowest to':>12}{'times plain':>14}{'ms per':>8}{'tokens per pass':>24}{'rows per':>10}"
        f"{'drafter':>9}{'re-':>7}",
        f"{'':28}{'per s':>8}{'highest':>12}{'all':>7}{'fresh':>7}{'pass':>8}{'written':>9}{'held out':>15}{'pass':>10}"
        f"{'passes':>9}{'peated':>7}  accepted",
    ]
    for row in result["rows"]:
        low, high = row["spread"]
        error, passes, drafts = row["expected_standard_error"], row["num_forward_passes"], row["num_drafts"]
        expected = _figure(row["expected_tokens_per_forward"]) + ("" if error is None else f" ± {error:.2f}")
        accepted = [f" {count / drafts:.2f}" for count in row["accepted_per_position"][:8]] if drafts else []
        lines.append(
            f"{row['method']:28}{row['tokens_per_second']:8.0f}{f'{low:.0f}-{high:.0f}':>12}{row['ratio_to_plain']:7.2f}"
            f"{_figure(row['ratio_of_counting_texts']):>7}{row['milliseconds_per_pass']:8.2f}"
            f"{_figure(row['tokens_per_forward']):>9}{expected:>15}{_figure(row['positions_per_forward']):>10}"
            f"{_figure(row['num_draft_passes'] / passes if passes else None):>9}{row['repeated_8grams']:7.0%}"
            + "".join([" ", *accepted] if accepted else [])
        )
    return lines + category_lines(result.get("categories", {})) + [f"* {note}" for note in settings["notes"]]


def category_lines(categories: Mapping[str, Mapping[str, Mapping[str, float]]]) -> list[str]:
    """Return a table of methods by categories: times plain decoding, and tokens per pass."""
    if not categories:
        return []
    names = "".join(f"{name[:15]:>17}" for name in categories)
    lines = ["", "times plain decoding, and tokens per pass:", f"{'':28}{names}"]
    for method in next(iter(categories.values())):
        cells = [found.get(method) for found in categories.values()]
        texts = [f"{each['ratio_to_plain']:.2f}  {each['tokens_per_forward']:.2f}" if each else "-" for each in cells]
        lines.append(f"{method:28}" + "".join(f"{text:>17}" for text in texts))
    return lines


def _figure(value: float | None) -> str:
    return "-" if value is None else f"{value:.2f}"
