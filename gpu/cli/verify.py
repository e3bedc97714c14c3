"""Prove by execution that the samplers are exact; or test a checkpoint."""

from __future__ import annotations

import os
import time
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict
from importlib import import_module
from multiprocessing import get_context
from typing import Any

from ..checkpoints import LOOKAHEAD
from ..decode_options import is_bundled
from .commands import PACKAGES, VERIFY_SECONDS, Verify
from .console import print_json
from .options import ModelOptions

POSITIONS = 500


def run_verify(options: Verify) -> None:
    """Run the suite, or check a model."""
    if options.model is None:
        _run_suite(options)
    else:
        _check_model(options, options.target.fetched())


def _run_suite(options: Verify) -> None:
    names = PACKAGES if options.package is None else (options.package,)
    packages = [import_module(f"pass_sampling.{name}") for name in names]
    for package in packages:
        package.TableModel  # noqa: B018  (what is missing, shows before anything is run)
    suite: Any = import_module("pass_sampling.reference.exactness.suite")  # by its name: no package imports the other
    cases = import_module("pass_sampling.reference.exactness.cases").configurations(options.all)
    started, rows = time.perf_counter(), list[dict[str, Any]]()
    columns = ("configurations", "executions", "steps", "deviation")
    line = "{:11}{:24}{:20}{:>15}{:>12}{:>8}{:>11}"
    if not options.json:
        print(line.format("package", "method", "rule", *columns))
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    os.environ["OMP_NUM_THREADS"] = "1"  # of each process
    with ProcessPoolExecutor(cores, get_context("spawn")) as pool:
        for row in suite.exact_suite(packages, cases=cases, run=map if cores == 1 else pool.map):
            rows.append(asdict(row))
            if not options.json:
                counts = row.configurations, row.executions, row.steps, f"{row.largest_deviation:.1e}"
                print(line.format(row.package, row.method, row.rule or "-", *counts), flush=True)
    seconds = time.perf_counter() - started
    sums = {name: sum(row[name] for row in rows) for name in ("configurations", "executions")}
    worst = max(rows, key=lambda row: float(row["largest_deviation"]))
    deviation = worst["largest_deviation"]
    if options.json:
        print_json({**sums, "largest_deviation": deviation, "seconds": seconds, "rows": rows})
    else:
        print(
            f"{sums['configurations']} exact distributions by {sums['executions']} executions in {seconds:.0f} s; "
            f"largest deviation from the target's distribution {deviation:.1e} (expected at most 1e-12)"
        )
    if not deviation <= suite.EXACT:
        raise ValueError(
            f"{worst['package']} {worst['method']}: the distribution deviates by {deviation:.1e} on "
            f"{worst['worst']!r}, expected at most {suite.EXACT:.0e}"
        )


def _check_model(options: Verify, target: ModelOptions) -> None:
    from ..exactness.model_check import draw_check, row_check
    from ..lookahead.vectors import LookAhead
    from ..methods import PaSS
    from ..training.text import own_text

    sampling, seed, model = options.tested.config, options.tested.seed, target.load()
    folder = options.lookahead or (LOOKAHEAD if is_bundled(target.model) else None)
    lookahead = LookAhead.random(4, model.hidden_size, seed)
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
    draws = draw_check(PaSS(model, lookahead, sampling), texts[0][:4], options.seconds or VERIFY_SECONDS, seed=seed)
    dtype = str(model.dtype).removeprefix("torch.")
    if options.json:
        about = {"model": model.name, "dtype": dtype, "device": str(model.device)}
        print_json(about | {"rows": asdict(rows), "draws": asdict(draws)})
    else:
        print(f"{model.name}, {dtype} on {model.device}, {lookahead.num_lookahead} look-ahead vectors")
        print(
            f"verify rows against one-token rows, {rows.positions} positions: total variation "
            f"{rows.largest:.1e} at most, {rows.mean:.1e} on average"
        )
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
