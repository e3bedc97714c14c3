"""The plan: which way of decoding is the fastest for a model on this machine, measured, chosen, and written down.

A plan changes the speed of a text, never its distribution. All ways of drafting, each with few and with many drafts,
write short texts after the same prompts in turn, and the slower ones leave after each round. Plain decoding stays.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from pass_sampling.reference.checkpoint.folder import errors_of, read_json, replace_file
from pass_sampling.reference.record import Record

from ..decode_options import DecodeOptions, method_names
from ..generation import generate
from ..methods import Method
from .prompts import context_of

FORMAT_VERSION = 3
FIGURES = {"tokens_per_step", "milliseconds_per_step", "tokens_per_second", "ratio_to_plain"}
ROUNDS = (0.4, 0.7, 1.0)  # the part of the time by which each ends
TEXTS = 2  # of each way in a round, at least
SHORTEST, LONGEST = 12, 32  # tokens of a text
LEAST_GAIN = 1.02  # over plain decoding: less is within the noise of the timings


@dataclass(frozen=True)
class Candidate:
    """A way to draft: its options, and its method with the most drafts that it can make."""

    options: DecodeOptions
    method: Method

    def settings(self) -> Iterator[tuple[DecodeOptions, Method]]:
        """Yield the method with few, with some and with most drafts, and with fewer groups of look-ahead rows."""
        most, method = most_drafts(self.method), self.method
        name = "num_draft" if hasattr(method, "num_draft") else "num_lookahead"
        refinement = getattr(method, "refinement", None)
        for num_draft in sorted({1, (most + 1) // 2, most}):
            rule = "token" if num_draft == 1 else "block"  # which accepts no fewer
            options = replace(self.options, num_draft=num_draft, verify=rule)
            changes: Any = {name: num_draft, "rule": rule}
            yield options, replace(method, **changes)  # type: ignore[type-var]  # every method is a dataclass
            if refinement is not None and refinement.uses_lookahead and num_draft > 1:
                changes["groups"] = 0, num_draft
                yield replace(options, groups=changes["groups"]), replace(method, **changes)  # type: ignore[type-var]


@dataclass(frozen=True)
class Prediction:
    """The expected speed of a way of decoding."""

    options: DecodeOptions
    tokens_per_step: float
    milliseconds_per_step: float

    @property
    def tokens_per_second(self) -> float:
        """Tokens of one text."""
        return 1000 * self.tokens_per_step / self.milliseconds_per_step

    def figures(self, plain: float) -> dict[str, float]:
        """Return the figures beside the tokens per second of plain decoding, rounded."""
        return {
            "tokens_per_step": round(self.tokens_per_step, 3),
            "milliseconds_per_step": round(self.milliseconds_per_step, 3),
            "tokens_per_second": round(self.tokens_per_second, 1),
            "ratio_to_plain": round(self.tokens_per_second / plain, 3),
        }


@torch.inference_mode()
def predict(
    plain: Method,
    candidates: Sequence[Candidate],
    prefixes: Sequence[Sequence[int]],
    seconds: float = 10.0,
    report: Callable[[int, int], None] = lambda done, total: None,
) -> list[Prediction]:
    """Return what is expected of plain decoding and of every candidate with its best settings, the fastest first.

    It takes about `seconds`, and longer for a slow model.

    Source: Karnin et al. 2013, "Almost Optimal Exploration in Multi-Armed Bandits", for halving.
    """
    entries = [(DecodeOptions("autoregressive"), plain)]
    entries += [setting for candidate in candidates for setting in candidate.settings()]
    _, tokens, milliseconds = _written(plain, prefixes[0], SHORTEST, 0)
    affordable = ROUNDS[0] * 1000 * seconds * tokens / (TEXTS * len(entries) * milliseconds)
    length = int(np.clip(affordable, SHORTEST, LONGEST))
    for _, method in entries:  # warm up
        _written(method, prefixes[0], 1, 0)
    found, going, began, number = np.zeros((len(entries), 3)), list(range(len(entries))), time.perf_counter(), 0

    def speed(place: int) -> float:
        return float(found[place, 1] / found[place, 2]) * (1.0 if place else LEAST_GAIN)

    for round_, part in enumerate(ROUNDS):
        texts = 0
        while texts < TEXTS or (texts < len(prefixes) and time.perf_counter() - began < part * seconds):
            for place in going:
                found[place] += _written(entries[place][1], prefixes[number % len(prefixes)], length, number)
            texts, number = texts + 1, number + 1
        report(round_ + 1, len(ROUNDS))
        others = sorted(set(going) - {0}, key=speed, reverse=True)
        going = [0, *others[: max(2, len(others) // 3)]]
    best: dict[str | None, Prediction] = {}
    for place in sorted(range(len(entries)), key=lambda place: (place in going, speed(place)), reverse=True):
        options, (steps, tokens, milliseconds) = entries[place][0], found[place].tolist()
        best.setdefault(options.method, Prediction(options, tokens / steps, milliseconds / steps))
    return list(best.values())


def _written(method: Method, prefix: Sequence[int], length: int, seed: int) -> npt.NDArray[np.float64]:  # [3]
    """Return steps, tokens and milliseconds of a text without its first step, which reads the prompt, and its last."""
    times, counts = [time.perf_counter()], list[int]()

    def note(number: int, record: Record) -> None:
        times.append(time.perf_counter())
        counts.append(len(record.tokens))

    length = min(max(length, 2 * most_drafts(method) + 3), context_of(method) - len(prefix))  # room for a third step
    generate(method, prefix, length, (), (), seed=seed, callback=note)
    inner = slice(1, -1) if len(counts) > 2 else slice(None)
    return np.array([len(counts[inner]), sum(counts[inner]), 1000 * float(np.diff(times)[inner].sum())])


def most_drafts(method: Any) -> int:
    """Return the most tokens that a method of chains drafts in a step."""
    return int(method.num_draft) if hasattr(method, "num_draft") else len(getattr(method, "vectors", ()))


@dataclass(frozen=True)
class Plan:
    """Options, what was expected of them, and of the others."""

    options: DecodeOptions
    prediction: dict[str, float] = field(default_factory=dict)
    considered: list[dict[str, Any]] = field(default_factory=list)  # options and predictions, the fastest first

    def to_json(self) -> dict[str, Any]:
        """Return the plan as plain values, which `load` reads from a file."""
        return {"format_version": FORMAT_VERSION} | asdict(self) | {"options": self.options.to_json()}

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the plan as JSON, whole or not at all."""
        replace_file(Path(path), json.dumps(self.to_json(), indent=2, allow_nan=False) + "\n")

    @staticmethod
    def load(path: str | os.PathLike[str]) -> Plan:
        """Read a plan; raise FileNotFoundError if there is no such file, ValueError if it holds something else."""
        path = Path(path)
        if not path.is_file():
            raise FileNotFoundError(f"{path} is not a file, expected a plan, as `pass-sampling plan --json` prints it")
        found = read_json(path)
        prediction, considered = found.get("prediction"), found.get("considered")
        if found.get("format_version") != FORMAT_VERSION or not isinstance(considered, list):
            raise ValueError(f"{path} is not a plan of format_version {FORMAT_VERSION}, expected one")
        if not isinstance(prediction, dict) or not all(type(prediction.get(each)) is float for each in FIGURES):
            raise ValueError(f"{path}: found the prediction {prediction!r:.80}, expected {', '.join(sorted(FIGURES))}")
        with errors_of(path):
            options = DecodeOptions.from_json(found.get("options"))
            if options.method is None:
                raise ValueError(f"found a plan without a method, expected one of {', '.join(method_names())}")
        return Plan(options, prediction, considered)
