"""The report of a comparison: its settings and figures, remarks, and the table as text."""

from __future__ import annotations

import os
import platform
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from importlib.metadata import version
from typing import Any

import torch

from ..model.precision import processor_name
from ..model.transformer import Transformer
from .expectation import Expectation
from .figures import MOST_REPEATED, by_category, rows_of
from .plan import Plan
from .runs import ENOUGH_REPEATS, Entry, Runs

Row = Mapping[str, Any]
Texts = Sequence[Sequence[int]]
STEADY = 1.5  # how far apart the speeds of plain decoding may be
ENDS = "or until the model ends it"
NO_END = "no token ends a text early, so that all have the same length"


def machine(device: torch.device) -> dict[str, Any]:
    """Return what machine the figures were measured on."""
    on_gpu = device.type == "cuda"
    processor = torch.cuda.get_device_name(device) if on_gpu else processor_name()
    return {
        "system": platform.system(),
        "architecture": platform.machine(),
        "processor": processor,
        "device": str(device),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "load": os.getloadavg()[0] if hasattr(os, "getloadavg") else None,  # what else ran in the minute before
    }


def versions() -> dict[str, str]:
    """Return the versions of Python and of the packages that compute."""
    packages = ("pass-sampling", "torch", "transformers", "numpy")
    return {"python": platform.python_version()} | {name: version(name) for name in packages}


@dataclass
class Comparison:
    """What was asked for and what there is of it, at the end or where the comparison is stopped."""

    asked: Mapping[str, Any]  # sampling, sizes, options of drafts, the source of the texts
    model: Transformer
    prompts: Texts
    places: Texts  # prefixes at which an expectation is taken
    entries: Sequence[Entry]
    left_out: Mapping[str, str]
    plan: Plan | None
    categories: Sequence[str] = ()  # of the prompts, if they have some
    runs: Runs = field(default_factory=dict)
    expectations: dict[str, Expectation] = field(default_factory=dict)
    is_partial: bool = True

    def __post_init__(self) -> None:
        """Look at the machine before it is busy."""
        self.where = machine(self.model.device)

    def result(self) -> dict[str, Any]:
        """Return all of it as plain values."""
        rows = rows_of({each.name: each.options for each in self.entries}, self.runs, self.expectations)
        settings = self._settings()
        settings["notes"] = notes_of(rows, settings)
        result = {"machine": self.where, "versions": versions(), "settings": settings, "rows": rows}
        if any(self.categories):
            result["categories"] = by_category(self.runs, self.categories)
        if self.plan is not None:
            settings["notes"].append(outcome_of(self.plan, rows))
            result["plan"] = self.plan.to_json()
        return result

    def _settings(self) -> dict[str, Any]:
        """Return what was compared, down to the tokens of the prompts, and what is less than was asked for."""
        asked, runs = self.asked, next(iter(self.runs.values()))
        prompts = self.prompts[: len(runs[0])]
        counts = {
            "max_new_tokens": (len(runs[0][0].tokens), asked["max_new_tokens"]),
            "prompts": (len(prompts), len(self.prompts)),
        }
        return {
            "model": self.model.name,
            "fingerprint": self.model.fingerprint,
            "dtype": str(self.model.dtype).removeprefix("torch."),
            **{name: asked[name] for name in ("temperature", "top_k", "top_p", "seed", "quick", "decode")},
            "max_new_tokens": len(runs[0][0].tokens),
            "end": ENDS if asked["chat"] else NO_END,
            "repeats": len(runs),
            "enough_repeats": len(runs) >= ENOUGH_REPEATS,
            "partial": self.is_partial,
            "fewer": {name: list(each) for name, each in counts.items() if each[0] < each[1]},
            "prompts": {"source": asked["source"], "lengths": list(map(len, prompts))},
            "places": {"source": asked["source"], "count": len(self.places), "uniform_streams": asked["num_streams"]},
            "left_out": dict(self.left_out),
        }


def notes_of(rows: Sequence[Row], settings: Mapping[str, Any]) -> list[str]:
    """Return remarks that belong beside the figures."""
    notes = ["partial: this comparison was not finished"] if settings["partial"] else []
    fewer = ", ".join(f"{name} {found} of {asked}" for name, (found, asked) in settings["fewer"].items())
    if fewer:
        notes.append(f"less than was asked for{', to keep to two minutes' * settings['quick']}: {fewer}")
    notes += [f"{name} is left out: {reason}" for name, reason in settings["left_out"].items()]
    lossy = [row["method"] for row in rows if "lossy_lenience" in row["options"]]
    if lossy:
        notes.append(f"LOSSY, with another distribution than plain decoding: {', '.join(lossy)}")
    if not settings["enough_repeats"]:
        notes.append(f"too few paired runs for a claim: {settings['repeats']}, which takes {ENOUGH_REPEATS}")
    if any(row["texts_that_count"] < row["texts"] for row in rows):
        left = ", ".join(f"{row['method']} {row['texts_that_count']}" for row in rows)
        notes.append(
            f"texts with more than {MOST_REPEATED:.0%} repeated 8-grams are not fresh, and count "
            "for nothing but the speeds of all, which they flatter; of "
            f"{rows[0]['texts']} texts these are left: {left}"
        )
    slowest, fastest = rows[0]["spread"]
    if fastest > STEADY * slowest:
        notes.append(
            f"unsteady: plain decoding itself was {fastest / slowest:.1f} times as fast in one run as in another, so "
            "the speeds say little; what is counted and expected does not depend on the machine's other work"
        )
    return notes


def outcome_of(plan: Plan, rows: Sequence[Row]) -> str:
    """Return what a plan predicted beside what was measured."""
    row = next(row for row in rows if row["method"] == "planned")
    expected = plan.prediction
    return (
        f"planned is {plan.options.method}: {expected['ratio_to_plain']:.2f} times plain decoding was predicted, and "
        f"{expected['tokens_per_step']:.2f} tokens a step; it was {row['ratio_to_plain']:.2f} times"
    )


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
        f"paired runs that take turns: {settings['repeats']}, of which the medians; held out: expected at "
        f"{places['count']} places, {places['uniform_streams']} uniform streams each; repeated: 8-grams of a text "
        "that came in it before; accepted: by depth",
        "",
        f"{'':28}{'tokens':>8}{'lowest to':>12}{'times plain':>14}{'ms per':>8}{'tokens per pass':>24}{'rows per':>10}"
        f"{'drafter':>9}{'re-':>7}",
        f"{'':28}{'per s':>8}{'highest':>12}{'all':>7}{'fresh':>7}{'pass':>8}{'written':>9}{'held out':>15}{'pass':>10}"
        f"{'passes':>9}{'peated':>7}  accepted",
    ]
    for row in result["rows"]:
        low, high = row["spread"]
        lines.append(
            f"{row['method']:28}{row['tokens_per_second']:8.0f}{f'{low:.0f}-{high:.0f}':>12}{row['ratio_to_plain']:7.2f}"
            f"{_figure(row['ratio_of_counting_texts']):>7}"
            f"{row['milliseconds_per_pass']:8.2f}{_figure(row['tokens_per_forward']):>9}{_expected(row):>15}"
            f"{_figure(row['positions_per_forward']):>10}{_draft_passes(row):>9}{row['repeated_8grams']:7.0%}"
            f"{_accepted(row)}"
        )
    return lines + category_lines(result.get("categories", {})) + [f"* {note}" for note in settings["notes"]]


def category_lines(categories: Mapping[str, Mapping[str, Mapping[str, float]]]) -> list[str]:
    """Return a table of methods by categories: times plain decoding, and tokens per pass."""
    if not categories:
        return []
    lines = [
        "",
        "times plain decoding, and tokens per pass:",
        f"{'':28}" + "".join(f"{name[:15]:>17}" for name in categories),
    ]
    for method in next(iter(categories.values())):
        cells = (found.get(method) for found in categories.values())
        texts = (
            "-" if each is None else f"{each['ratio_to_plain']:.2f}  {each['tokens_per_forward']:.2f}" for each in cells
        )
        lines.append(f"{method:28}" + "".join(f"{text:>17}" for text in texts))
    return lines


def _figure(value: float | None) -> str:
    return "-" if value is None else f"{value:.2f}"


def _expected(row: Row) -> str:
    error = row["expected_standard_error"]
    return _figure(row["expected_tokens_per_forward"]) + ("" if error is None else f" ± {error:.2f}")


def _draft_passes(row: Row) -> str:
    passes = row["num_forward_passes"]
    return _figure(row["num_draft_passes"] / passes if passes else None)


def _accepted(row: Row) -> str:
    """Show how many of the drafts at each depth were accepted, of the steps that drafted."""
    if not row["num_drafts"]:
        return ""
    return "  " + " ".join(f"{count / row['num_drafts']:.2f}" for count in row["accepted_per_position"][:8])
