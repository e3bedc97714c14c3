"""Compare every way of decoding on one checkpoint and one set of prompts, transformers beside them.

  pass-sampling bench
  pass-sampling bench --quick --json --output FILE.json
  pass-sampling bench --model FOLDER --lookahead VECTORS --draft-model FOLDER --prompts FILE.jsonl --plot FILE.png

All take turns in one process, and every speed is a ratio of paired runs. What a method yields is measured in the texts
it wrote and, as an exact expectation, at places of text that it did not write: text that repeats itself flatters.
Ctrl-C stops it: what was compared until then is printed, and marked as partial.
"""

from __future__ import annotations

import argparse
import os
import tempfile
import time
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

from .bench_output import machine
from .bench_shape import SHAPE_NAMES, run_shape
from .bench_texts import affordable, bench_texts, prefixes_for, prompts_for, room_of
from .comparison import Comparison
from .contenders import NAMES, PLANNED, chosen_names, entries_for
from .drafting import Unavailable, add_drafting, check_drafting
from .options import add_json, add_machine, add_model, add_sampling, open_model, sampling_of
from .planned import add_plan, planned
from .progress import Bar
from .text import load_tokenizer

if TYPE_CHECKING:
    from pass_sampling.reference.config import SamplingConfig

    from ..bench.plan import Plan
    from ..bench.runs import Runs
    from ..model.transformer import Transformer

HELP = "compare all methods of decoding on one checkpoint"
FULL = {"repeats": 5, "max_new_tokens": 96, "num_prompts": 12, "num_places": 64, "num_streams": 8}
QUICK = {"repeats": 3, "max_new_tokens": 64, "num_prompts": 6, "num_places": 24, "num_streams": 4}
QUICK_SECONDS, RUNS_SHARE = 110, 0.6  # of --quick, with loading; the part of what is left then that the runs take


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Describe the command."""
    add_model(parser)
    parser.add_argument(
        "--methods",
        metavar="A,B,...",
        help=f"some of {', '.join(NAMES)}; plain decoding always runs; default: all that can run on the checkpoint",
    )
    add_drafting(parser)
    add_plan(parser)
    parser.add_argument(
        "--prompts",
        type=Path,
        metavar="FILE.jsonl",
        help="a JSON object with a `prompt` on each line; default: pieces of those files of Python's standard library "
        "that the bundled model has not seen",
    )
    defaults = "; default: {} ({} with --quick)"
    parser.add_argument(
        "--max-new-tokens",
        type=int,
        metavar="N",
        help="length of each text" + defaults.format(FULL["max_new_tokens"], QUICK["max_new_tokens"]),
    )
    parser.add_argument(
        "--repeats",
        type=int,
        metavar="N",
        help="paired runs after each figure" + defaults.format(FULL["repeats"], QUICK["repeats"]),
    )
    parser.add_argument(
        "--quick",
        action="store_true",
        help="about two minutes, on free cores: fewer runs, prompts and tokens, and what does not fit is left out",
    )
    parser.add_argument(
        "--shape",
        choices=SHAPE_NAMES,
        help="instead of all this, measure passes over random weights of the shape of a model of 1B or 7B parameters "
        "against the memory's speed; default: none",
    )
    parser.add_argument(
        "--output",
        type=Path,
        metavar="FILE.json",
        help="write the JSON object there as well, after every paired run what there is so far; default: nowhere",
    )
    parser.add_argument("--plot", type=Path, metavar="FILE", help="a .png or .svg to draw as well; default: none")
    add_sampling(parser)
    add_machine(parser)
    add_json(parser)
    parser.set_defaults(method=None)


def run(arguments: argparse.Namespace) -> None:
    """Check, load, compare, print."""
    from pass_sampling.reference.config import check_integer
    from pass_sampling.reference.ending import Ending

    from ..bench.expectation import expected_tokens_per_forward
    from ..bench.runs import run_all

    if arguments.shape is not None:
        run_shape(arguments)
        return
    began = time.perf_counter()
    for name, value in (QUICK if arguments.quick else FULL).items():
        if getattr(arguments, name, None) is None:
            setattr(arguments, name, value)
    check_integer("repeats", arguments.repeats, 1, 10**6)
    check_integer("max_new_tokens", arguments.max_new_tokens, 1, 2**30)
    check_drafting(arguments)
    names = chosen_names(arguments)
    _check_output("--plot", arguments.plot)
    _check_output("--output", arguments.output)
    sampling = sampling_of(arguments)
    source, texts = bench_texts(arguments)
    model = open_model(arguments)
    tokenizer = load_tokenizer(arguments.model)
    prompts = prompts_for(arguments, tokenizer, texts, model.max_position_embeddings)
    if arguments.quick:
        _spare_threads(model.device.type)  # before anything is timed
    plan, no_plan = _plan(names, arguments, model, sampling)
    contenders, methods, left_out = entries_for(names, arguments, model, sampling, plan)
    for method in methods.values():
        for prompt in prompts:
            method.start(prompt, Ending(arguments.max_new_tokens))  # refuses what does not fit, before anything is run
    prefixes = prefixes_for(arguments, tokenizer, texts, prompts, min(map(room_of, methods.values())))

    def seconds_left(share: float = 1.0) -> float | None:
        return max(0.0, share * (QUICK_SECONDS - (time.perf_counter() - began))) if arguments.quick else None

    where = machine(model.device)
    found = Comparison(arguments, model, where, source, prompts, prefixes, contenders, no_plan | left_out, plan)
    try:
        with Bar("writing", unit="text") as bar:

            def written(done: int, total: int, runs: Runs) -> None:
                bar.show(done, total)
                found.runs = runs
                if done % len(contenders) == 0:
                    found.save()

            found.runs = run_all(
                contenders,
                prompts,
                arguments.max_new_tokens,
                arguments.repeats,
                arguments.seed,
                model.device,
                written,
                seconds_left(RUNS_SHARE),
            )
        with Bar("expecting", unit="method") as bar:
            found.chosen = affordable(methods, prefixes, arguments.num_streams, seconds_left())
            for name, method in methods.items():
                found.expectations[name] = expected_tokens_per_forward(
                    method, found.chosen, arguments.num_streams, arguments.seed
                )
                bar.show(len(found.expectations), len(methods))
                found.save()
        found.is_partial = False
    finally:  # also where Ctrl-C has stopped it
        found.save()
        found.show()


def _plan(
    names: list[str], arguments: argparse.Namespace, model: Transformer, sampling: SamplingConfig
) -> tuple[Plan | None, dict[str, str]]:
    """Return the plan, if one takes part; --quick makes none, which takes a minute, unless it is asked for by name."""
    if PLANNED not in names:
        return None, {}
    loud = argparse.Namespace(**vars(arguments) | {"json": False})
    try:
        return planned(loud, model, sampling, make=not arguments.quick or arguments.methods is not None)[0], {}
    except Unavailable as error:
        names.remove(PLANNED)
        return None, {PLANNED: str(error)}


def _spare_threads(device: str) -> None:
    """Compute on the cores that are free, unless OMP_NUM_THREADS says something else.

    Where others compute, threads that wait for one another can take ten times as long.
    """
    import torch

    if device == "cpu" and "OMP_NUM_THREADS" not in os.environ and hasattr(os, "getloadavg"):
        free = (os.cpu_count() or 1) - round(os.getloadavg()[0])
        torch.set_num_threads(max(1, min(torch.get_num_threads(), free)))


def _check_output(flag: str, path: Path | None) -> None:
    """Refuse a file that could not be written, or a chart not drawn, before minutes are spent on it."""
    from ..bench.figures import SUFFIXES

    if path is None:
        return
    if flag == "--plot" and path.suffix.lower() not in SUFFIXES:
        raise ValueError(f"--plot: found {path}, expected a file name that ends in {' or '.join(SUFFIXES)}")
    if flag == "--plot" and find_spec("matplotlib") is None:
        raise ValueError("--plot: found no matplotlib, expected it installed: pip install '.[plot]'")
    if path.is_dir() or not path.parent.is_dir():
        raise ValueError(f"{flag}: {path} cannot be written, expected a file in a folder that is there")
    try:
        if path.exists():
            path.open("ab").close()
        else:
            tempfile.TemporaryFile(dir=path.parent).close()  # permissions alone do not tell
    except OSError as error:
        raise ValueError(f"{flag}: {path} cannot be written ({error.strerror}), expected a place that can") from None
