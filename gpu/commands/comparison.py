"""What `pass-sampling bench` compares, and what has come of it so far: printed at the end, or where it is stopped."""

from __future__ import annotations

import argparse
import hashlib
import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

from pass_sampling.reference.checkpoint.folder import replace_file

from .bench_output import NO_END, notes_of, outcome_of, print_table, versions
from .drafting import num_draft

if TYPE_CHECKING:
    from ..bench.expectation import Expectation
    from ..bench.plan import Plan
    from ..bench.runs import Entry, Runs
    from ..model.transformer import Transformer

__all__ = ["Comparison"]

Texts = Sequence[Sequence[int]]


@dataclass
class Comparison:
    """What was asked for, and what there is of it."""

    arguments: argparse.Namespace
    model: Transformer
    where: Mapping[str, Any]  # the machine
    source: str  # of the texts
    prompts: Texts
    prefixes: Texts  # the places at which an expectation is taken
    contenders: Sequence[Entry]
    left_out: Mapping[str, str]
    plan: Plan | None
    runs: Runs = field(default_factory=dict)
    chosen: Texts | None = None  # those of the places that there was time for
    expectations: dict[str, Expectation] = field(default_factory=dict)
    is_partial: bool = True

    def save(self) -> None:
        """Write what there is to --output."""
        if self.arguments.output is not None and any(self.runs.values()):
            replace_file(self.arguments.output, json.dumps(self.result(), indent=2, allow_nan=False) + "\n")

    def show(self) -> None:
        """Print what there is, and draw it."""
        if not any(self.runs.values()):
            return
        result = self.result()
        if self.arguments.json:
            print(json.dumps(result, indent=2, allow_nan=False))
        else:
            print_table(result)
        sys.stdout.flush()
        if self.arguments.plot is not None:
            from ..bench.figures import save_chart

            settings, where = result["settings"], self.where
            distribution = "temperature {temperature:g}, top-k {top_k}, top-p {top_p:g}".format(**settings)
            title = f"{self.model.name}, {settings['dtype']}, {distribution}; {where['processor']}"
            title += f", threads {where['threads']}"
            save_chart(self.arguments.plot, result["rows"], title)

    def result(self) -> dict[str, Any]:
        """Return all of it as plain values."""
        from ..bench.runs import rows_of

        rows = rows_of({each.name: each.options for each in self.contenders}, self.runs, self.expectations)
        settings = self._settings()
        settings["notes"] = notes_of(rows, settings, self.where)
        result = {"machine": self.where, "versions": versions(), "settings": settings, "rows": rows}
        if self.plan is not None:
            settings["notes"].append(outcome_of(self.plan, rows))
            result["plan"] = asdict(self.plan)
        return result

    def _settings(self) -> dict[str, Any]:
        """Return what was compared, down to the tokens of the prompts, and what is less than was asked for."""
        from ..bench.figures import MOST_REPEATED
        from ..bench.runs import ENOUGH_REPEATS

        arguments, runs = self.arguments, next(iter(self.runs.values()))
        prompts, places = self.prompts[: len(runs[0])], self.prefixes if self.chosen is None else self.chosen
        asked = {
            "max_new_tokens": (len(runs[0][0].tokens), arguments.max_new_tokens),
            "prompts": (len(prompts), len(self.prompts)),
            "repeats": (len(runs), arguments.repeats),
            "places": (len(places), len(self.prefixes)),
        }
        return {
            "model": self.model.name,
            "fingerprint": self.model.fingerprint,
            "dtype": str(self.model.dtype).removeprefix("torch."),
            "temperature": arguments.temperature,
            "top_k": arguments.top_k,
            "top_p": arguments.top_p,
            "num_draft": num_draft(arguments),
            "candidates": arguments.candidates,
            "verify": arguments.verify or ("token" if arguments.candidates is None else "without-replacement"),
            "max_new_tokens": len(runs[0][0].tokens),
            "end": NO_END,
            "repeats": len(runs),
            "least_repeats": ENOUGH_REPEATS,
            "enough_repeats": len(runs) >= ENOUGH_REPEATS,
            "quick": arguments.quick,
            "partial": self.is_partial,
            "fewer": {name: list(each) for name, each in asked.items() if each[0] < each[1]},
            "seed": arguments.seed,
            "prompts": {"source": self.source, "lengths": list(map(len, prompts)), "sha256": _digest(prompts)},
            "places": {
                "source": self.source,
                "count": len(places),
                "uniform_streams": arguments.num_streams,
                "sha256": _digest(places),
            },
            "most_repeated_8grams": MOST_REPEATED,
            "left_out": dict(self.left_out),
        }


def _digest(texts: Texts) -> str:
    return hashlib.sha256(repr([list(map(int, text)) for text in texts]).encode()).hexdigest()
