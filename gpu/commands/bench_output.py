"""What a comparison says of itself, and its table."""

from __future__ import annotations

import os
import platform
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch

    from ..bench.plan import Plan

__all__ = ["NO_END", "machine", "notes_of", "outcome_of", "print_table", "versions"]

Row = Mapping[str, Any]
STEADY = 1.5  # how far apart the speeds of plain decoding may be
NO_END = "no token ends a text early, so that all have the same length"


def machine(device: torch.device) -> dict[str, Any]:
    """Return what the figures were measured on."""
    import torch

    processor = platform.processor() or platform.machine()
    if device.type == "cuda":
        processor = torch.cuda.get_device_name(device)
    elif (info := Path("/proc/cpuinfo")).is_file():
        names = [
            line.partition(":")[2].strip() for line in info.read_text().splitlines() if line.startswith("model name")
        ]
        processor = names[0] if names else processor
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
    """Return the versions of all that computes."""
    packages = ("pass-sampling", "torch", "transformers", "numpy")
    return {"python": platform.python_version()} | {name: version(name) for name in packages}


def notes_of(rows: Sequence[Row], settings: Mapping[str, Any], where: Mapping[str, Any]) -> list[str]:
    """Return what must be said beside the figures."""
    notes = ["partial: this comparison was not finished"] if settings["partial"] else []
    fewer = ", ".join(f"{name} {found} of {asked}" for name, (found, asked) in settings["fewer"].items())
    if fewer:
        notes.append(f"less than was asked for{', to keep to two minutes' * settings['quick']}: {fewer}")
    notes += [f"{name} is left out: {reason}" for name, reason in settings["left_out"].items()]
    lossy = [row["method"] for row in rows if "lossy_lenience" in row["options"]]
    if lossy:
        notes.append(f"LOSSY, with another distribution than plain decoding: {', '.join(lossy)}")
    if not settings["enough_repeats"]:
        notes.append(f"too few paired runs for a claim: {settings['repeats']}, which takes {settings['least_repeats']}")
    if any(row["texts_that_count"] < row["texts"] for row in rows):
        left = ", ".join(f"{row['method']} {row['texts_that_count']}" for row in rows)
        notes.append(
            f"texts with more than {settings['most_repeated_8grams']:.0%} repeated 8-grams are not fresh, and count "
            "for nothing but the speeds of all, which they flatter; of "
            f"{rows[0]['texts']} texts these are left: {left}"
        )
    slowest, fastest = rows[0]["spread"]
    if fastest > STEADY * slowest:
        notes.append(
            f"unsteady: plain decoding itself was {fastest / slowest:.1f} times as fast in one run as in another, so "
            "the speeds say little; what is counted and expected does not depend on the machine's other work"
        )
    load = where["load"]
    if load is not None and load + where["threads"] > where["cores"] + 0.5:
        notes.append(
            f"other work ran beside this: load {load:.1f} on {where['cores']} cores before it began"
            + (
                ", where threads that wait for one another are slow: try OMP_NUM_THREADS=1"
                if where["threads"] > 1
                else ""
            )
        )
    return notes


def outcome_of(plan: Plan, rows: Sequence[Row]) -> str:
    """Return what a plan promised, and what came of it."""
    row = next(row for row in rows if row["method"] == "planned")
    expected = plan.prediction
    return (
        f"planned is {plan.method}: {expected['ratio_to_plain']:.2f} times plain decoding was predicted, and "
        f"{expected['tokens_per_step']:.2f} tokens a step; it was {row['ratio_to_plain']:.2f} times"
    )


def print_table(result: Mapping[str, Any]) -> None:
    """Print the figures, between what they are figures of and what must be said beside them."""
    settings, where = result["settings"], result["machine"]
    prompts, places = settings["prompts"], settings["places"]
    print(
        f"{settings['model']}, {settings['dtype']} on {where['device']}: {where['processor']}, "
        f"{where['cores']} cores, "
        f"threads {where['threads']}" + ("" if where["load"] is None else f", load before {where['load']:.1f}")
    )
    print(
        f"prompts: {len(prompts['lengths'])} ({prompts['source']}); new tokens: {settings['max_new_tokens']} each, "
        f"{NO_END}; temperature {settings['temperature']:g}, top-k {settings['top_k']}, top-p {settings['top_p']:g}; "
        f"seed {settings['seed']}"
    )
    print(
        f"paired runs that take turns: {settings['repeats']}, of which the medians; held out: expected at "
        f"{places['count']} places, {places['uniform_streams']} uniform streams each; repeated: 8-grams of a text "
        "that stood in it before; accepted: by depth"
    )
    print()
    print(
        f"{'':28}{'tokens':>8}{'lowest to':>12}{'times plain':>14}{'ms per':>8}{'tokens per pass':>24}{'rows per':>10}"
        f"{'drafter':>9}{'re-':>7}"
    )
    print(
        f"{'':28}{'per s':>8}{'highest':>12}{'all':>7}{'fresh':>7}{'pass':>8}{'written':>9}{'held out':>15}{'pass':>10}"
        f"{'passes':>9}{'peated':>7}  accepted"
    )
    for row in result["rows"]:
        low, high = row["spread"]
        print(
            f"{row['method']:28}{row['tokens_per_second']:8.0f}{f'{low:.0f}-{high:.0f}':>12}{row['ratio_to_plain']:7.2f}"
            f"{_figure(row['ratio_of_counting_texts']):>7}"
            f"{row['milliseconds_per_pass']:8.2f}{_figure(row['tokens_per_forward']):>9}{_expected(row):>15}"
            f"{_figure(row['positions_per_forward']):>10}{_draft_passes(row):>9}{row['repeated_8grams']:7.0%}"
            f"{_accepted(row)}"
        )
    for note in result["settings"]["notes"]:
        print(f"* {note}")


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
