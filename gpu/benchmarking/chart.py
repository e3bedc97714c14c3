"""A comparison as a picture: speed on the left, tokens per pass on the right."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

__all__ = ["SUFFIXES", "save_chart"]

SUFFIXES = (".png", ".svg")
BLUE, ORANGE, GREY = "#3b6fb6", "#d1762b", "#8a8a8a"
WHITE = {"facecolor": "white", "edgecolor": "none", "pad": 1}


def save_chart(path: Path, rows: Sequence[Mapping[str, Any]], title: str) -> None:
    """Draw the rows of a comparison, the first on top, and write a PNG or an SVG."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10, 1.6 + 0.42 * len(rows)), layout="constrained")
    speed, yields = figure.subplots(1, 2, sharey=True)
    places = range(len(rows))
    ratios = [row["ratio_to_plain"] for row in rows]
    low, high = zip(*(row["ratio_spread"] for row in rows), strict=True)
    reach = [[a - b for a, b in zip(ratios, low, strict=True)], [b - a for a, b in zip(ratios, high, strict=True)]]
    colours = [GREY if row["num_drafts"] is None else BLUE for row in rows]
    speed.barh(places, ratios, color=colours, height=0.6, xerr=reach, error_kw={"elinewidth": 1, "capsize": 3})
    speed.axvline(1, color="black", linewidth=0.8, linestyle=":")
    for place, ratio, end in zip(places, ratios, high, strict=True):
        speed.annotate(
            f"{ratio:.2f}", (end, place), xytext=(5, 0), textcoords="offset points", va="center", fontsize=9, bbox=WHITE
        )
    counting = [(row["ratio_of_counting_texts"], place) for place, row in enumerate(rows)]
    there = [each for each in counting if each[0] is not None]
    if there:
        speed.plot(*zip(*there, strict=True), "o", color="white", markeredgecolor="black", markersize=5)
    speed.set_xlim(0, 1.18 * max(high))
    speed.set_yticks(places, [row["method"] for row in rows])
    speed.invert_yaxis()
    speed.set_xlabel(
        "times the speed of plain decoding\n(median of paired runs, lowest to highest;\n"
        "circles: without texts that repeat themselves)"
    )

    _points(yields, rows, "tokens_per_forward", "in the texts it wrote", "o", ORANGE)
    _points(yields, rows, "expected_tokens_per_forward", "at places of held-out text", "D", BLUE)
    yields.axvline(1, color="black", linewidth=0.8, linestyle=":")
    yields.tick_params(axis="y", length=0)
    yields.set_xlim(0, 1.1 * max(_most(row) for row in rows))
    yields.set_xlabel(
        "new tokens per pass of the model\n(± 2 standard errors at held-out text;\n"
        "without texts that repeat themselves)"
    )
    figure.legend(loc="outside lower right", ncols=2, frameon=False, fontsize=9)
    for axes in (speed, yields):
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(axis="x", linewidth=0.4, alpha=0.5)
        axes.set_axisbelow(True)
    figure.suptitle(title, fontsize=10)
    figure.savefig(path, dpi=150)


def _most(row: Mapping[str, Any]) -> float:
    return max(1.0, row["tokens_per_forward"] or 0, row["expected_tokens_per_forward"] or 0)


def _points(axes: Any, rows: Sequence[Mapping[str, Any]], name: str, label: str, marker: str, colour: str) -> None:
    """Mark one figure of every row that has it."""
    there = [(place, row) for place, row in enumerate(rows) if row[name] is not None]
    values = [row[name] for _, row in there]
    errors = [2 * (row["expected_standard_error"] or 0) if name.startswith("expected") else 0 for _, row in there]
    axes.errorbar(
        values, [place for place, _ in there], xerr=errors, fmt=marker, color=colour, label=label, capsize=3, alpha=0.85
    )
