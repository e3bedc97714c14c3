"""The exact suite: every method and rule of a package, on many small models and settings, against the definition.

It takes the packages as modules: `exact_suite([pass_sampling.gpu])`.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cache
from importlib import import_module
from types import ModuleType
from typing import NamedTuple

from ..config import SamplingConfig
from ..ending import Ending
from ..methods import Autoregressive, LanguageModel
from ..sampling import Probs, Processor
from .cases import PROMPT, Configuration, configurations, methods_of
from .distribution import OutputDistribution, output_distribution, target_distribution

EXACT = 1e-12  # sums of some thousand products of numbers in [0, 1], each wrong by a few times 2^-53


@dataclass(frozen=True)
class SuiteRow:
    """The result of the suite for one method and rule."""

    package: str
    method: str
    rule: str | None
    configurations: int
    executions: int
    steps: int  # steps of the longest text
    largest_deviation: float
    seconds: float  # of one processor
    worst: str  # the configuration with the largest deviation


class Task(NamedTuple):
    """One distribution to enumerate."""

    package: str
    method: str
    rule: str | None
    case: Configuration


def exact_suite(
    packages: Sequence[ModuleType],
    methods: Sequence[tuple[str, str | None]] | None = None,
    cases: Sequence[Configuration] | None = None,
    run: Callable[[Callable[[Task], SuiteRow], Iterable[Task]], Iterable[SuiteRow]] = map,
) -> Iterator[SuiteRow]:
    """Enumerate the distribution of every method and rule on every configuration, and yield a row per method and rule.

    The default is all methods and all configurations. `run` is a `map`, for example that of a pool of processes.

    Raises:
        ValueError: a configuration does not verify drafts in two steps, or a record does not describe its step.
    """
    cases = configurations() if cases is None else cases
    rows = [(package.__name__, method, rule) for package in packages for method, rule in methods or methods_of(package)]
    results = iter(run(_enumerated, [Task(*row, case.suited(row[1])) for row in rows for case in cases]))
    for _ in rows:
        found = [next(results) for _ in cases]
        worst = max(found, key=lambda each: each.largest_deviation)
        yield replace(
            worst,
            configurations=len(cases),
            executions=sum(each.executions for each in found),
            steps=max(each.steps for each in found),
            seconds=sum(each.seconds for each in found),
        )


def _enumerated(task: Task) -> SuiteRow:
    """Enumerate one distribution, each execution with a trace and without, and compare it with the definition."""
    started = time.perf_counter()
    package, case = import_module(task.package), task.case
    method, ending = case.method(package, task.method, task.rule), case.ending(package)
    found = output_distribution(method, PROMPT, ending, untraced=True, max_executions=None)
    # Prompt lookup drafts nothing where no token has come before; a block of a few paths may reach the end at once.
    least = 1 if task.method == "prompt-lookup" or task.method.startswith(("blockwise-paths", "blockwise+head")) else 2
    if task.method != "autoregressive" and sum(count > 0 for count in found.verified) < least:
        raise ValueError(f"{case.name}: found one step with drafts verified, expected two")
    deviation = max(found.largest_deviation(definition(case)), abs(sum(found.values()) - 1.0))
    who = (task.package.rpartition(".")[2], task.method, task.rule)
    return SuiteRow(*who, 1, found.executions, found.steps, deviation, time.perf_counter() - started, case.name)


@cache
def definition(case: Configuration) -> OutputDistribution:
    """Return the target distribution of a configuration, computed by the specification."""
    model = case.model(import_module("pass_sampling.reference"))
    decode = (lambda tokens: _whole_text(case, (*PROMPT[-1:], *tokens))) if case.pieces else None
    ending = Ending(case.max_new_tokens, case.eos_token_ids, case.stop_strings, decode)
    return plain_distribution(model, SamplingConfig(**case.sampling), PROMPT, ending, processor=case.processor)


def _whole_text(case: Configuration, tokens: Sequence[int]) -> str:
    """Return the text of tokens by its definition: a run of bytes that is not UTF-8 becomes one U+FFFD per byte."""
    text, run = "", b""
    for characters, *data in (*(case.pieces[token] for token in tokens), ("",)):
        if data:
            run += data[0]
            continue
        try:
            text += run.decode()
        except UnicodeDecodeError:
            text += "\ufffd" * len(run)
        text, run = text + characters, b""
    return text


def plain_distribution(
    model: LanguageModel,
    sampling: SamplingConfig,
    prompt: Sequence[int],
    ending: Ending,
    num_tokens: int | None = None,
    processor: Processor | None = None,
) -> OutputDistribution:
    """Return the target's distribution by its definition: one fresh pass per prefix, without a cache."""
    method = Autoregressive(model, sampling, processor)

    def next_probs(tokens: tuple[int, ...]) -> Probs:
        prefix = (*prompt, *tokens)
        hidden = model.hidden(model.embed(prefix), model.new_cache())
        return method.probs(prefix, model.logits(hidden[-1]))

    return target_distribution(next_probs, ending, num_tokens)
