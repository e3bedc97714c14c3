"""Where a command gets its plan from: a file, what was measured before, or a calibration now."""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..checkpoint.cache_folder import cache_folder
from .candidates import as_written
from .drafting import HOW, Unavailable
from .methods import METHODS
from .plan_inputs import SOURCES, folders_in, made_for, places_in_text, ways_for
from .progress import Bar

if TYPE_CHECKING:
    from pass_sampling.reference.config import SamplingConfig

    from ..bench.choice import Prediction
    from ..bench.plan import Plan
    from ..bench.ways import Candidate
    from ..model.transformer import Transformer

__all__ = ["add_plan", "found_plan", "planned", "with_plan"]


def add_plan(parser: argparse.ArgumentParser) -> None:
    """Add --plan."""
    parser.add_argument(
        "--plan",
        type=Path,
        metavar="FILE",
        help="decode as a plan says that `pass-sampling plan --output FILE` has written; default: as what was measured "
        "on this machine says, if nothing else is asked for",
    )


def planned(
    arguments: argparse.Namespace,
    model: Transformer,
    sampling: SamplingConfig,
    check: Callable[[], Any] = bool,
    make: bool = True,
) -> tuple[Plan | None, argparse.Namespace]:
    """Return the plan to decode by, if it is a plan that says how, and the arguments with what it says.

    Before anything is measured, `check` may refuse what would not be decoded then.

    Raises:
        Unavailable: no plan is kept from before, and none is to be made.
    """
    if arguments.plan is not None:
        plan = read_plan(arguments.plan, arguments, model, sampling)
    elif is_planned(arguments):
        plan = found_plan(arguments, model, sampling, check, make)
    else:
        return None, arguments
    return plan, with_plan(arguments, plan)


def is_planned(arguments: argparse.Namespace) -> bool:
    """Say whether nobody has said how to decode: then a plan does."""
    return arguments.method is None and all(getattr(arguments, flag) is None for flag in HOW)


def with_plan(arguments: argparse.Namespace, plan: Plan) -> argparse.Namespace:
    """Return the arguments as if the plan had been asked for by hand."""
    said = {name: Path(value) if name in SOURCES else value for name, value in plan.options.items()}
    said |= {name: tuple(value) for name, value in said.items() if isinstance(value, list)}
    nothing = dict.fromkeys((*SOURCES, *HOW))
    return argparse.Namespace(**vars(arguments) | nothing | said | {"method": plan.method})


def read_plan(path: Path, arguments: argparse.Namespace, model: Transformer, sampling: SamplingConfig) -> Plan:
    """Read the plan in a file, and check that it is for this model and what it drafts from.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is no plan, was made for something else, or stands beside flags that say how to decode.
    """
    from ..bench.plan import Plan

    said = [flag for flag in ("method", *SOURCES, *HOW) if getattr(arguments, flag) is not None]
    if said:
        raise ValueError(f"--plan: found it with --{said[0].replace('_', '-')}, expected one of them")
    plan = Plan.load(path)
    if plan.method not in METHODS:
        raise ValueError(f"{path}: found the method {plan.method!r:.80}, expected one of {', '.join(METHODS)}")
    plan.check(made_for(model, sampling, folders_in(plan.options)))
    return plan


def found_plan(
    arguments: argparse.Namespace,
    model: Transformer,
    sampling: SamplingConfig,
    check: Callable[[], Any] = bool,
    make: bool = True,
) -> Plan:
    """Return the plan that was made before for the same, else make one and keep it.

    Raises:
        Unavailable: none was made before, and none is to be made.
    """
    from ..bench.plan import Plan

    ways = ways_for(arguments, model, sampling)
    check()
    each = [{"method": way.name} | made_for(model, sampling, folders_in(way.options)) for way in ways]
    wanted = made_for(model, sampling, {}) | {"ways": each, "config": repr(model.config)}
    digest = hashlib.sha256(json.dumps(wanted, sort_keys=True).encode()).hexdigest()
    path = cache_folder("plans") / f"{digest[:32]}.json"
    if not getattr(arguments, "again", False):
        with contextlib.suppress(OSError, ValueError):
            plan = Plan.load(path)
            if plan.method in METHODS:
                return plan
    if not make:
        raise Unavailable("found no plan that is kept for this model and machine, expected pass-sampling plan before")
    plan = calibrated_plan(ways, wanted, arguments, model, sampling)
    with contextlib.suppress(OSError):  # a plan that cannot be kept is made again
        path.parent.mkdir(parents=True, exist_ok=True)
        plan.save(path)
    return plan


def calibrated_plan(
    ways: list[Candidate],
    wanted: dict[str, Any],
    arguments: argparse.Namespace,
    model: Transformer,
    sampling: SamplingConfig,
) -> Plan:
    """Measure every way of drafting on this machine, and plan the fastest."""
    from ..bench.calibration import calibrate
    from ..bench.choice import best_outcomes
    from ..methods import Autoregressive

    plain, prefixes = Autoregressive(model, sampling), places_in_text(arguments, model)
    if not arguments.json:
        print("measuring which way of drafting pays here, once for this model and machine", file=sys.stderr)
    with Bar("measuring", unit="step", quiet=arguments.json) as bar:
        calibration = calibrate(plain, ways, prefixes, report=bar.show)
    outcomes = best_outcomes(calibration, ways)
    return _plan_of(outcomes, calibration, ways, wanted)


def _plan_of(outcomes: list[Prediction], calibration: Any, ways: list[Candidate], wanted: dict[str, Any]) -> Plan:
    """Write down the best of all, and what it was chosen from."""
    from ..bench.plan import Plan

    best, plain = outcomes[0], next(each for each in outcomes if each.way is None)
    considered = [{"method": _name(each, ways), **_settings(each, ways), **_expected(each, plain)} for each in outcomes]
    options = {} if best.way is None else ways[best.way].options | _settings(best, ways)
    chosen = {} if best.way is None else wanted["ways"][best.way]
    return Plan(
        _name(best, ways),
        options,
        {name: value for name, value in (wanted | chosen).items() if name not in ("ways", "config", "method")},
        _expected(best, plain),
        {
            "milliseconds_per_pass": {str(rows): round(ms, 3) for rows, ms in calibration.pass_milliseconds.items()},
            "considered": considered,
        },
    )


def _name(outcome: Prediction, ways: list[Candidate]) -> str:
    return "autoregressive" if outcome.way is None else ways[outcome.way].name


def _settings(outcome: Prediction, ways: list[Candidate]) -> dict[str, Any]:
    if outcome.way is None:
        return {}
    if outcome.candidates is not None:
        return {"candidates": as_written(outcome.candidates), "verify": outcome.rule}
    found: dict[str, Any] = {"num_draft": outcome.num_draft, "verify": outcome.rule}
    return found if outcome.groups is None else found | {"groups": list(outcome.groups)}


def _expected(outcome: Prediction, plain: Prediction) -> dict[str, float]:
    return {
        "tokens_per_step": round(outcome.tokens_per_step, 3),
        "milliseconds_per_step": round(outcome.milliseconds_per_step, 3),
        "tokens_per_second": round(outcome.tokens_per_second, 1),
        "ratio_to_plain": round(outcome.tokens_per_second / plain.tokens_per_second, 3),
    }
