"""The plan: which way of decoding is the fastest for a model on this machine, measured, chosen, and written down.

A plan changes the speed of a text, never its distribution. Whole steps are timed with different numbers of drafts. A
step is timed twice and the quicker run counts, because other work can only slow it down. Acceptance is an expectation
over drafts at places in text, taken from the probabilities in the records. Plain decoding is always among the choices.

Glossary of shapes: K drafts, R numbers of accepted drafts, from none to all.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from pass_sampling.reference.checkpoint.folder import read_json, replace_file
from pass_sampling.reference.record import Record

from ..decode_options import SOURCES, DecodeOptions
from ..generation import generate
from ..methods import Method
from .expectation import steps_after, steps_before
from .figures import clock
from .prompts import context_of

__all__ = ["Candidate", "Plan", "Prediction", "group_share", "most_drafts", "predict", "step_milliseconds"]

Array = npt.NDArray[np.float64]
FORMAT_VERSION = 2
FIGURES = {"tokens_per_step", "milliseconds_per_step", "tokens_per_second", "ratio_to_plain"}
ROWS = (1, 2, 3, 5, 9, 17, 33, 65)  # rows of a pass that are timed
STEPS = 6  # timed in each run
FEW_PLACES = 4  # at which acceptance is always taken
FINALISTS = 2  # ways of drafting that write texts beside plain decoding
WRITTEN = 32  # tokens of such a text
LEAST_GAIN = 1.02  # over plain decoding: less is within the noise of the timings


@dataclass(frozen=True)
class Candidate:
    """A way to draft: its options, and its method with the most drafts that it can make."""

    options: DecodeOptions
    method: Method

    def with_settings(self, num_draft: int, rule: str) -> Method:
        """Return the method with fewer drafts and a rule."""
        name = "num_draft" if hasattr(self.method, "num_draft") else "num_lookahead"
        changes: Any = {name: num_draft, "rule": rule}
        return replace(self.method, **changes)  # type: ignore[type-var]  # every method is a dataclass

    def planned(self, options: DecodeOptions) -> Method:
        """Return the method as chosen options have it."""
        assert options.num_draft is not None and options.verify is not None
        method = self.with_settings(options.num_draft, options.verify)
        groups: Any = {} if options.groups is None else {"groups": options.groups}
        return replace(method, **groups)  # type: ignore[type-var]


@dataclass(frozen=True)
class Prediction:
    """What is expected of a way of decoding."""

    options: DecodeOptions
    tokens_per_step: float
    milliseconds_per_step: float

    @property
    def tokens_per_second(self) -> float:
        """Tokens of one text."""
        return 1000 * self.tokens_per_step / self.milliseconds_per_step


@torch.inference_mode()
def predict(
    plain: Method,
    candidates: Sequence[Candidate],
    prefixes: Sequence[Sequence[int]],
    seconds: float = 10.0,
    report: Callable[[int, int], None] | None = None,
) -> tuple[list[Prediction], dict[int, float]]:
    """Return what is expected of plain decoding and of every candidate, the fastest first; and milliseconds by rows.

    Two fifths of the seconds go to timings, two fifths to acceptance, about; a slow model is measured at fewer places.
    In the rest the likeliest ways write texts in turn, and what they took is what is expected of them.

    Raises:
        ValueError: there is no prefix, or one leaves no room for a step in the model's context.
    """
    report = report or (lambda done, total: None)
    passes = pass_milliseconds(plain.model, prefixes[0])
    report(1, len(candidates) + 2)
    costs = _step_costs(plain, candidates, prefixes, 0.4 * seconds)
    report(2, len(candidates) + 2)
    plain_cost = costs[-1, 0, ""]
    found = [Prediction(DecodeOptions("autoregressive"), 1.0, plain_cost)]
    for place, candidate in enumerate(candidates):
        own = {(depth, rule): cost for (other, depth, rule), cost in costs.items() if other == place}
        rules = ("token", "block")
        survival, num_exact = _survivals(candidate, rules, prefixes, 0.4 * seconds / len(candidates))
        choices = _predictions(candidate, own, survival, num_exact, plain_cost, passes)
        found.append(max(choices, key=lambda each: each.tokens_per_second))
        report(place + 3, len(candidates) + 2)
    methods = [plain, *(each.planned(one.options) for each, one in zip(candidates, found[1:], strict=True))]
    best = sorted(range(1, len(found)), key=lambda place: -found[place].tokens_per_second)[:FINALISTS]
    if best:
        finalists = [0, *best]
        rates = _rates([methods[place] for place in finalists], prefixes, 0.2 * seconds)
        for place, rate in zip(finalists, rates, strict=True):
            found[place] = replace(found[place], milliseconds_per_step=1000 * found[place].tokens_per_step / rate)
    gain = {True: LEAST_GAIN, False: 1.0}  # by which plain decoding is preferred
    others = [each for place, each in enumerate(found) if place not in (0, *best)]
    ranked = sorted(
        (found[place] for place in (0, *best)), key=lambda each: -each.tokens_per_second * gain[each is found[0]]
    )
    return [*ranked, *sorted(others, key=lambda each: -each.tokens_per_second)], passes


def _rates(methods: Sequence[Method], prefixes: Sequence[Sequence[int]], seconds: float) -> list[float]:
    """Return the tokens per second of texts that the methods write in turn after the same prefixes."""
    room = min(context_of(method) for method in methods) - max(map(len, prefixes))
    times, tokens = np.zeros(len(methods)), np.zeros(len(methods))
    began, number = time.perf_counter(), 0
    while number < 2 or (number < len(prefixes) and time.perf_counter() - began < seconds):
        for place, method in enumerate(methods):
            started = time.perf_counter()
            text = generate(method, prefixes[number % len(prefixes)], max(1, min(WRITTEN, room)), (), (), seed=number)
            times[place] += time.perf_counter() - started
            tokens[place] += len(text.tokens)
        number += 1
    rates: list[float] = (tokens / times).tolist()
    return rates


def _step_costs(
    plain: Method, candidates: Sequence[Candidate], prefixes: Sequence[Sequence[int]], seconds: float
) -> dict[tuple[int, int, str], float]:
    """Return the milliseconds of a step by candidate, drafts and rule; plain decoding is candidate -1."""
    tasks: dict[tuple[int, int, str], Method] = {(-1, 0, ""): plain}
    for place, candidate in enumerate(candidates):
        most = most_drafts(candidate.method)
        for depth in {1, (most + 1) // 2, most}:
            tasks[place, depth, "token"] = candidate.with_settings(depth, "token")
        tasks[place, most, "block"] = candidate.with_settings(most, "block")
    # A step without drafts is cheap, so all steps after a prefix count; of a step that is repeated, the quickest run.
    times: dict[tuple[int, int, str], dict[int, Array]] = {task: {} for task in tasks}
    began, turn = time.perf_counter(), 0
    while turn < 4 or (turn < 16 and time.perf_counter() - began < seconds):
        number = turn // 2 % len(prefixes)
        for task, method in tasks.items():
            found_now = np.array(step_milliseconds(method, prefixes[number]))
            times[task][number] = np.minimum(times[task].get(number, found_now), found_now)
        turn += 1
    found = {task: float(np.mean(np.concatenate([*each.values()]))) for task, each in times.items()}
    for place, depth, rule in sorted(found, reverse=True):  # more drafts never cost less
        deeper = [found[task] for task in found if task[0] == place and task[1] > depth and task[2] == rule]
        found[place, depth, rule] = min([found[place, depth, rule], *deeper])
    return found


def _survivals(
    candidate: Candidate, rules: Sequence[str], prefixes: Sequence[Sequence[int]], seconds: float
) -> tuple[dict[str, Array], float]:
    """Return by rule the chances that at least 1, 2, ... drafts are accepted; and the tokens of a step before drafts.

    The chances are averages over places, as many as there is time for, given the drafts.
    """
    most, chances, exact = most_drafts(candidate.method), {}, 0.0
    for rule in rules:
        method, began = candidate.with_settings(most, rule), time.perf_counter()
        records = steps_after(method, prefixes[:FEW_PLACES], 1)
        more = int((seconds / len(rules) - (time.perf_counter() - began)) / (time.perf_counter() - began) * FEW_PLACES)
        if more > 0 and len(prefixes) > FEW_PLACES:
            records += steps_after(method, prefixes[FEW_PLACES:][:more], 1)
        chances[rule] = np.mean([_survival(record, most, rule) for record in records], axis=0)
        exact = float(np.mean([record.sources.count("exact") for record in records]))
    return chances, exact


def _survival(record: Record, most: int, rule: str) -> Array:  # [K]
    """Return the chances that at least 1, 2, ... drafts are accepted, given the drafts."""
    accept = np.array(record.accept_probs)
    if rule == "block":  # asks from the longest run down
        chances = 1.0 - np.cumprod((1.0 - accept)[::-1])[::-1]
    else:
        chances = np.cumprod(accept)
    return np.pad(chances, (0, most - len(chances)))


def _predictions(
    candidate: Candidate,
    costs: Mapping[tuple[int, str], float],
    survivals: Mapping[str, Array],  # [K]
    num_exact: float,
    plain_cost: float,
    passes: Mapping[int, float],
) -> Iterator[Prediction]:
    """Yield what is expected of every number of drafts, of both rules, and of look-ahead rows in fewer groups."""
    most = most_drafts(candidate.method)
    depths = sorted(depth for depth, rule in costs if rule == "token")
    for depth in range(1, most + 1):
        cost = float(np.interp(depth, depths, [costs[each, "token"] for each in depths]))
        part = (depth - 1) / max(1, most - 1)  # of what the block rule gains and costs at the most drafts
        for rule in ("token", "block") if depth > 1 else ("token",):
            survival = survivals["token"][:depth]
            if rule == "block":
                survival = survival + part * np.maximum(survivals["block"] - survivals["token"], 0.0)[:depth]
                cost += part * max(0.0, costs[most, "block"] - costs[most, "token"])
            options = replace(candidate.options, num_draft=depth, verify=rule)
            yield Prediction(options, 1.0 + num_exact + float(survival.sum()), cost)
            refinement = getattr(candidate.method, "refinement", None)
            if refinement is not None and refinement.uses_lookahead:
                yield from _with_groups(options, survival, cost, plain_cost, passes)


def _with_groups(
    options: DecodeOptions,
    survival: Array,  # [K]
    cost: float,
    plain_cost: float,
    passes: Mapping[int, float],
) -> Iterator[Prediction]:
    """Leave look-ahead rows out after some numbers of accepted drafts, but never after none: drafting would end.

    The step's cost falls by that of the rows which its pass does not have.
    """
    depth = len(survival)
    bare = plain_cost + _pass_cost(passes, 1 + depth) - _pass_cost(passes, 1)
    for groups in [tuple(range(last + 1)) for last in range(depth)] + [(0, depth)] * (depth > 1):
        rows = 1 + depth + len(groups) * depth
        drafting = cost + _pass_cost(passes, rows) - _pass_cost(passes, (depth + 1) ** 2)
        share = group_share(survival, groups)
        milliseconds = share * max(drafting, bare) + (1.0 - share) * bare
        yield Prediction(replace(options, groups=groups), 1.0 + share * float(survival.sum()), milliseconds)


def group_share(
    survival: Array,  # [K]
    groups: tuple[int, ...],
) -> float:
    """Return the share of steps that have drafts, if look-ahead rows come only after some numbers of accepted drafts.

    A step without drafts accepts none, and its rows after none draft for the next step.

    share = stays share + (1 - share), where stays is the chance that a step with drafts ends where there are rows
    """
    reached = np.concatenate([[1.0], survival, [0.0]])
    ends = reached[:-1] - reached[1:]  # [R], the chance that exactly so many are accepted
    return 1.0 / (2.0 - float(ends[list(groups)].sum()))


def _pass_cost(passes: Mapping[int, float], num_rows: int) -> float:
    """Return the milliseconds of a pass: on straight lines between the measured ones, and beyond the last."""
    rows, times = (list(each) for each in zip(*sorted(passes.items()), strict=True))
    if num_rows <= rows[-1] or len(rows) == 1:
        return float(np.interp(num_rows, rows, times))
    return float(times[-1] + (num_rows - rows[-1]) * (times[-1] - times[-2]) / (rows[-1] - rows[-2]))


def most_drafts(method: Any) -> int:
    """Return the most tokens that a method of chains drafts in a step."""
    return int(method.num_draft) if hasattr(method, "num_draft") else len(method.vectors)


class _EnoughError(Exception):
    """Ends a text whose steps have been timed."""


def step_milliseconds(method: Method, prefix: Sequence[int]) -> list[float]:
    """Time whole steps after a prefix, with the loop's work between them; those that warm up do not count."""
    room = method.model.max_position_embeddings - len(prefix) - 1
    warm, most = 1 + steps_before(method), max(1, method.num_uniforms)  # a token needs a uniform
    steps = warm + max(1, min(STEPS, room // most - warm))
    times = [time.perf_counter()]

    def note(number: int, record: Record) -> None:
        times.append(time.perf_counter())
        if len(times) > steps:
            raise _EnoughError

    with contextlib.suppress(_EnoughError):
        generate(method, prefix, steps * most + 1, (), (), callback=note)
    return [1000 * (after - before) for before, after in pairwise(times)][warm:]


def pass_milliseconds(model: Any, prefix: Sequence[int]) -> dict[int, float]:
    """Time passes over different numbers of rows after a prefix; return the quickest of each."""
    rows = [count for count in ROWS if len(prefix) + count <= model.max_position_embeddings]
    cache = model.new_cache(len(prefix) + max(rows))
    model.hidden(model.embed([list(prefix)]), cache)
    length = cache.lengths
    times: dict[int, list[float]] = {count: [] for count in rows}
    for _ in range(4):
        for count in rows:
            inputs = model.embed([[0] * count])
            started = clock(model.device)
            model.logits(model.hidden(inputs, cache))
            times[count].append(1000 * (clock(model.device) - started))
            cache.truncate(length)
    return {count: min(values) for count, values in times.items()}


@dataclass(frozen=True)
class Plan:
    """Options, what they were chosen for, and what was expected of them and of the others."""

    options: DecodeOptions
    made_for: dict[str, Any] = field(default_factory=dict)  # model, folders, sampling, dtype, machine
    prediction: dict[str, float] = field(default_factory=dict)
    considered: list[dict[str, Any]] = field(default_factory=list)  # options and predictions, the fastest first
    milliseconds_per_pass: dict[str, float] = field(default_factory=dict)  # by rows

    def check(self, made_for: Mapping[str, Any]) -> None:
        """Refuse a model or a folder that the plan was not made for; sampling, dtype and machine may differ.

        Raises:
            ValueError: the model is another, or a folder that drafts come from is another or is not there.
        """
        for name, what in {"model": "model", **SOURCES}.items():
            mine, yours = self.made_for.get(name), made_for.get(name)
            if name in self.options.given and yours is None:
                raise ValueError(f"plan: found no {self.options.given[name]}, expected the {what} it was made with")
            if mine and yours and mine != yours:
                known = [f"{each['name']!r:.80} ({str(each['fingerprint'])[:12]})" for each in (mine, yours)]
                raise ValueError(f"plan: found it made for {known[0]}, expected the {what} {known[1]}")

    def to_json(self) -> dict[str, Any]:
        """Return the plan as plain values."""
        return asdict(self) | {"options": self.options.to_json()}

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the plan as JSON, whole or not at all.

        Raises:
            OSError: the file cannot be written.
        """
        found = {"format_version": FORMAT_VERSION} | self.to_json()
        replace_file(Path(path), json.dumps(found, indent=2, allow_nan=False) + "\n")

    @staticmethod
    def load(path: str | os.PathLike[str]) -> Plan:
        """Read a plan.

        Raises:
            FileNotFoundError: there is no such file.
            ValueError: it holds something else.
        """
        path = Path(path)
        if not path.is_file():
            raise FileNotFoundError(f"{path} is not a file, expected a plan as `pass-sampling plan --output` writes it")
        found = read_json(path)
        whole = {each: dict for each in ("options", "made_for", "prediction", "milliseconds_per_pass")}
        kinds = {"format_version": int, "considered": list, **whole}
        if found.keys() != kinds.keys() or found["format_version"] != FORMAT_VERSION:
            raise ValueError(f"{path} is no plan of format_version {FORMAT_VERSION}, expected one")
        for name, kind in kinds.items():
            if not isinstance(found[name], kind):
                raise ValueError(f"{path}: found {name} {found[name]!r:.80}, expected that of a plan")
        prediction = found["prediction"]
        if prediction.keys() != FIGURES or not all(map(_is_finite, prediction.values())):
            raise ValueError(f"{path}: found the prediction {prediction!r:.80}, expected {', '.join(sorted(FIGURES))}")
        named = [each for name, each in found["made_for"].items() if name in ("model", *SOURCES)]
        if not all(isinstance(each, dict) and each.keys() == {"name", "fingerprint"} for each in named):
            raise ValueError(f"{path}: found made_for {named!r:.80}, expected names and fingerprints")
        try:
            options = DecodeOptions.from_json(found["options"])
        except ValueError as error:
            raise ValueError(f"{path}: {error}") from None
        rest = {name: found[name] for name in kinds if name not in ("format_version", "options")}
        return Plan(options, **rest)


def _is_finite(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
