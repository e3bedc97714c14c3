"""Prove by execution that the samplers are exact; or test a checkpoint.

  pass-sampling verify                              every method and rule, enumerated, in both packages
  pass-sampling verify --all                        the same on all configurations of the suite, which takes longer
  pass-sampling verify --package reference          the specification alone, which needs no PyTorch
  pass-sampling verify --model FOLDER --lookahead VECTORS --device cuda

Without --model, every way in which the random choices of every method can fall is run on small models, one process per
core, and the distribution of what comes out is compared with the target's; the last lines say what that covers and
what not. With --model: how far the rows of a verify pass are from those of one-token passes in this dtype on this
device, whether greedy texts agree, and a test of the first two tokens, with the total variation that it could
detect.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from importlib import import_module
from multiprocessing import get_context
from pathlib import Path
from typing import Any

from ..checkpoints import LOOKAHEAD
from ..decode_options import is_bundled, option, place
from .options import ModelOptions, SamplingOptions, json_option

HELP = "prove by execution that the samplers are exact, or check a checkpoint"
PACKAGES = ("reference", "gpu")
SECONDS, POSITIONS = 20.0, 500


@dataclass(frozen=True)
class Options:
    """Options of `pass-sampling verify`; those from `lookahead` on need --model."""

    package: str | None = option(help="which package to enumerate; default: both", choices=PACKAGES)
    all: bool = option(False, "run all configurations; default: those of about a minute")
    model: Path | None = option(help="check this checkpoint instead; default: none", metavar="FOLDER", type=place)
    lookahead: Path | None = option(
        help="its look-ahead vectors; default: the bundled ones, or random ones", metavar="FOLDER", type=place
    )
    seconds: float | None = option(help=f"for the test of drawn tokens; default: {SECONDS:g}")
    temperature: float | None = option(help="of the tested distribution; default: 1")
    top_k: int | None = option(help="of the tested distribution; default: 0, all tokens", metavar="K")
    top_p: float | None = option(help="of the tested distribution; default: 1, all tokens", metavar="P")
    seed: int | None = option(help="of the test of drawn tokens; default: 0")
    dtype: str | None = option(help="dtype to compute in; default: auto")
    device: str | None = option(help="device to compute on; default: cpu", metavar="NAME")
    json: bool = json_option()

    def __post_init__(self) -> None:
        """Refuse options that would be ignored: a proof must not look like one of something else."""
        of_a_model = ("lookahead", "seconds", "temperature", "top_k", "top_p", "seed", "dtype", "device")
        given = [name for name in of_a_model if getattr(self, name) is not None]
        if self.model is None and given:
            flag = "--" + given[0].replace("_", "-")
            raise ValueError(f"{flag}: found it without --model, expected both or neither")
        for name in ("package", "all"):
            if self.model is not None and getattr(self, name):
                raise ValueError(f"--{name}: found it with --model, which the port runs, expected one of them")
        if self.seconds is not None and not self.seconds > 0:
            raise ValueError(f"seconds: found {self.seconds}, expected a positive number")

    @property
    def sampling(self) -> SamplingOptions:
        """The tested distribution."""
        values = {name: getattr(self, name) for name in ("temperature", "top_k", "top_p", "seed")}
        return replace(SamplingOptions(1.0, 0), **{name: each for name, each in values.items() if each is not None})


def run(options: Options) -> None:
    """Run the suite, or check a model.

    Raises:
        ValueError: a distribution is not the target's, or a model's draws are not distributed as they should be.
    """
    if options.model is not None:
        _check_model(
            options,
            ModelOptions(options.model, dtype=options.dtype or "auto", device=options.device or "cpu").fetched(),
        )
    else:
        _run_suite(options)


def _run_suite(options: Options) -> None:
    names = PACKAGES if options.package is None else (options.package,)
    packages = [import_module(f"pass_sampling.{name}") for name in names]
    for package in packages:
        package.TableModel  # noqa: B018  (what is missing, shows before anything is run)
    suite: Any = import_module("pass_sampling.reference.exactness.suite")  # by its name: no package imports the other
    cases = import_module("pass_sampling.reference.exactness.cases").configurations(options.all)
    started = time.perf_counter()
    rows = []
    if not options.json:
        print(
            f"{'package':11}{'method':20}{'rule':20}{'configurations':>15}{'executions':>12}{'steps':>8}{'deviation':>11}"
        )
    with _processes() as run_all:
        for row in suite.exact_suite(packages, cases=cases, run=run_all):
            rows.append(asdict(row))
            if not options.json:
                print(
                    f"{row.package:11}{row.method:20}{row.rule or '-':20}{row.configurations:15}{row.executions:12}"
                    f"{row.steps:8}{row.largest_deviation:11.1e}",
                    flush=True,
                )
    coverage = suite.coverage(packages, cases)
    result = {
        "configurations": sum(row["configurations"] for row in rows),
        "executions": sum(row["executions"] for row in rows),
        "largest_deviation": max(row["largest_deviation"] for row in rows),
        "seconds": time.perf_counter() - started,
        "rows": rows,
        **coverage,
    }
    if options.json:
        print(json.dumps(result, indent=2, allow_nan=False))
    else:
        print(
            f"{result['configurations']} exact distributions by {result['executions']} executions in "
            f"{result['seconds']:.0f} s; "
            f"largest deviation from the target's distribution {result['largest_deviation']:.1e} (1e-12 is asked)"
        )
        for title, sentences in (("Covered:", "covered"), ("Not covered:", "not_covered")):
            print(title, *coverage[sentences], sep="\n  ")
    if not result["largest_deviation"] <= suite.EXACT:
        worst = max(rows, key=lambda row: float(row["largest_deviation"]))
        raise ValueError(
            f"{worst['package']} {worst['method']}: the distribution deviates by {worst['largest_deviation']:.1e} on "
            f"{worst['worst']!r}, expected at most {suite.EXACT:.0e}"
        )


@contextmanager
def _processes() -> Iterator[Any]:
    """Provide a `map` whose work is shared by one process per core, each with one thread."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    if cores == 1:
        yield map
        return
    threads = os.environ.get("OMP_NUM_THREADS")
    os.environ["OMP_NUM_THREADS"] = "1"
    try:
        with ProcessPoolExecutor(cores, get_context("spawn")) as pool:
            yield pool.map
    finally:
        os.environ.pop("OMP_NUM_THREADS")
        if threads is not None:
            os.environ["OMP_NUM_THREADS"] = threads


def _check_model(options: Options, target: ModelOptions) -> None:
    from ..exactness.model_check import draw_check, greedy_check, row_check
    from ..lookahead.vectors import LookAhead
    from ..methods import PaSS
    from ..training.text import own_text

    sampling, seed, model = options.sampling.config, options.sampling.seed, target.load()
    folder = options.lookahead or (LOOKAHEAD if is_bundled(target.model) else None)
    lookahead = LookAhead.random(4, model.hidden_size, seed, model.device)
    if folder is not None:
        lookahead = LookAhead.load(folder, model.device)
    length = min(128, model.max_position_embeddings)
    rows_of_a_text = length - length % (lookahead.num_lookahead + 1)  # passes over as many rows as a verification
    if rows_of_a_text == 0:
        raise ValueError(f"the model reads {length} tokens, expected more than {lookahead.num_lookahead} drafts need")
    count = -(-POSITIONS // rows_of_a_text)
    tokens = own_text(model, count * length, length, sampling, seed)
    texts = tokens.reshape(count, length).tolist()
    rows = row_check(model, texts, sampling, lookahead.num_lookahead, POSITIONS)
    prompts = [text[:16] for text in texts[:4]]
    same, total = greedy_check(model, lookahead, prompts, min(64, length - 16))
    draws = draw_check(PaSS(model, lookahead, sampling), texts[0][:4], options.seconds or SECONDS, seed=seed)
    dtype = str(model.dtype).removeprefix("torch.")
    result = {
        "model": model.name,
        "dtype": dtype,
        "device": str(model.device),
        "rows": asdict(rows),
        "greedy": {"same": same, "tokens": total},
        "draws": asdict(draws),
    }
    if options.json:
        print(json.dumps(result, indent=2, allow_nan=False))
    else:
        print(f"{model.name}, {dtype} on {model.device}, {lookahead.num_lookahead} look-ahead vectors")
        print(
            f"verify rows against one-token rows, {rows.positions} positions: total variation "
            f"{rows.largest:.1e} at most, {rows.mean:.1e} on average"
        )
        print(f"greedy: {same} of {total} tokens as in plain decoding")
        print(
            f"first two tokens of {draws.texts} texts: chi-square {draws.statistic:.1f} over {draws.cells} cells, "
            f"at most {draws.limit:.1f} expected; a total variation of {draws.detectable:.3f} over these cells "
            f"would have been detected (all but the likeliest pairs count as one cell, of probability {draws.rest:.2f})"
        )
    if not draws.passed:
        raise ValueError(
            f"{model.name}: the first tokens are not distributed as they should be (chi-square {draws.statistic:.1f}), "
            f"expected at most {draws.limit:.1f}"
        )
