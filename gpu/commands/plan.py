"""Measure which way of decoding is the fastest for a model on this machine, and write it down.

  pass-sampling plan
  pass-sampling plan --model FOLDER --lookahead VECTORS --output plan.json
  pass-sampling generate --model FOLDER --plan plan.json --prompt 'def main():'

Every way of drafting that can run is timed, with different numbers of drafts, and how far its drafts come is measured
at places of text; the best settings of each follow. Commands that are not told how to decode do this by themselves,
once, and keep what they found. A plan never changes the distribution of a text.
"""

from __future__ import annotations

import argparse
import json
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .drafting import HOW
from .options import add_json, add_lookahead, add_machine, add_model, add_sampling, open_model, sampling_of
from .places import place
from .planned import found_plan

if TYPE_CHECKING:
    from ..bench.plan import Plan

HELP = "measure which way of decoding is the fastest here"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Describe the command."""
    add_model(parser)
    add_lookahead(parser)
    parser.add_argument(
        "--draft-model", type=place, metavar="FOLDER", help="a smaller model that may draft; default: the bundled one"
    )
    parser.add_argument(
        "--ngram", type=place, metavar="FOLDER", help="an n-gram model that may draft; default: the bundled one"
    )
    parser.add_argument("--again", action="store_true", help="measure even if it was measured before")
    parser.add_argument("--output", type=Path, metavar="FILE", help="write the plan here as well; default: nowhere")
    add_sampling(parser)
    add_machine(parser)
    add_json(parser)
    parser.set_defaults(method=None, **dict.fromkeys(HOW))


def run(arguments: argparse.Namespace) -> None:
    """Measure, choose, print."""
    sampling = sampling_of(arguments)
    if arguments.output is not None and (arguments.output.is_dir() or not arguments.output.parent.is_dir()):
        raise ValueError(f"--output: {arguments.output} cannot be written, expected a file in a folder that is there")
    plan = found_plan(arguments, open_model(arguments), sampling)
    if arguments.output is not None:
        plan.save(arguments.output)
    if arguments.json:
        print(json.dumps(asdict(plan), indent=2, allow_nan=False))
        return
    _print_plan(plan)
    if arguments.output is not None:
        print(f"saved in {arguments.output}")


def _print_plan(plan: Plan) -> None:
    passes = plan.calibration["milliseconds_per_pass"]
    first = next(iter(passes.values()))
    print("rows of a pass  " + "".join(f"{rows:>8}" for rows in passes))
    print("milliseconds    " + "".join(f"{milliseconds:8.2f}" for milliseconds in passes.values()))
    print("times one row   " + "".join(f"{milliseconds / first:8.2f}" for milliseconds in passes.values()))
    print()
    print(f"{'expected of':16}{'tokens':>8}{'ms':>8}{'tokens':>9}{'times':>7}")
    print(f"{'':16}{'a step':>8}{'a step':>8}{'per s':>9}{'plain':>7}  settings")
    for each in plan.calibration["considered"]:
        print(
            f"{each['method']:16}{each['tokens_per_step']:8.2f}{each['milliseconds_per_step']:8.2f}"
            f"{each['tokens_per_second']:9.0f}{each['ratio_to_plain']:7.2f}  {_settings(each)}"
        )
    print(f"plan: {plan.method} {_settings(plan.options)}".rstrip())


def _settings(options: dict[str, Any]) -> str:
    """Return settings as flags."""
    shown = {name: options[name] for name in HOW if options.get(name) is not None}
    said = {name: ",".join(map(str, value)) if isinstance(value, list) else value for name, value in shown.items()}
    return " ".join(f"--{name.replace('_', '-')} {value}" for name, value in said.items())
