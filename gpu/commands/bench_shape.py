"""`pass-sampling bench --shape`: a model of a real shape with random weights, against the memory's speed."""

from __future__ import annotations

import argparse
import json
from typing import TYPE_CHECKING, Any

from .bench_output import machine, versions
from .progress import Bar

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = ["SHAPE_NAMES", "run_shape"]

SHAPE_NAMES = ("tiny", "1b", "7b")


def run_shape(arguments: argparse.Namespace) -> None:
    """Measure, print."""
    import torch

    from pass_sampling.reference.config import check_integer

    from ..bench.roofline import SHAPES, measure_shape
    from ..model.precision import check_device, check_dtype

    repeats = 5 if arguments.repeats is None else arguments.repeats
    check_integer("repeats", repeats, 1, 10**6)
    for name in ("methods", "prompts", "plot", "output", "plan", "max_new_tokens"):
        if getattr(arguments, name) is not None:
            raise ValueError(
                f"--{name.replace('_', '-')}: found it with --shape, which has no use for it, expected neither"
            )
    device, dtype = check_device(arguments.device), check_dtype(arguments.dtype or "bfloat16")
    config = SHAPES[arguments.shape]
    with Bar("measuring", unit="part") as bar:
        found = measure_shape(config, dtype, torch.device(device), repeats, bar.show)
    result = {"machine": machine(torch.device(device)), "versions": versions(), "shape": arguments.shape,
              "dtype": str(dtype).removeprefix("torch."), **found}  # fmt: skip
    if arguments.json:
        print(json.dumps(result, indent=2, allow_nan=False))
    else:
        _print(result)


def _print(result: Mapping[str, Any]) -> None:
    where, passes = result["machine"], result["milliseconds_per_pass"]
    print(
        f"{result['shape']}, random weights of {result['weights_gigabytes']:.2f} GB in {result['dtype']}; "
        f"{where['processor']}, threads {where['threads']}, reads {result['gigabytes_per_second']:.0f} GB/s"
    )
    print("rows of a pass  " + "".join(f"{rows:>9}" for rows in passes))
    print("milliseconds    " + "".join(f"{each:9.2f}" for each in passes.values()))
    print("times one row   " + "".join(f"{each:9.2f}" for each in result["times_one_row"].values()))
    print(f"a pass over one row runs at {result['of_the_limit']:.0%} of the memory's speed")
    print(
        f"plain decoding {result['tokens_per_second']:.1f} tokens per second, {result['overhead']:.1%} outside passes"
    )
    for name, rate in result["transformers"].items():
        print(
            f"transformers {name:10} {rate:.1f} tokens per second; ours {result['times_transformers'][name]:.2f} times"
        )
