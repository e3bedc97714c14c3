"""The exact suite: every method and rule of a package, on many small models and settings, against the definition.

It runs on either package, which is handed in as a module: `exact_suite(pass_sampling.gpu)`.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from importlib import import_module
from types import ModuleType
from typing import Any, NamedTuple

from ..config import SamplingConfig
from ..ending import Ending
from ..methods import Autoregressive, LanguageModel
from ..sampling import Probs, Processor
from .cases import PROMPT, Configuration, configurations, methods_of
from .distribution import OutputDistribution, output_distribution, target_distribution

__all__ = ["EXACT", "SuiteRow", "coverage", "definition", "exact_suite", "plain_distribution"]

EXACT = 1e-12  # sums of some thousand products of numbers in [0, 1], each wrong by a few times 2^-53


@dataclass(frozen=True)
class SuiteRow:
    """What the suite found for one method and rule."""

    package: str
    method: str
    rule: str | None
    configurations: int
    executions: int
    steps: int  # most steps in a row
    largest_deviation: float
    seconds: float  # of one processor
    worst: str  # the configuration with the largest deviation


class Task(NamedTuple):
    """One distribution to enumerate."""

    package: str
    method: str
    rule: str | None
    case: Configuration


class Found(NamedTuple):
    """What was found of it."""

    executions: int
    steps: int
    deviation: float
    seconds: float


def exact_suite(
    packages: Sequence[ModuleType],
    methods: Sequence[tuple[str, str | None]] | None = None,
    cases: Sequence[Configuration] | None = None,
    run: Callable[[Callable[[Task], Found], Iterable[Task]], Iterable[Found]] = map,
) -> Iterator[SuiteRow]:
    """Enumerate the distribution of every method and rule on every configuration, and yield a row per method and rule.

    Args:
        packages: whose methods to run.
        methods: names and rules; default: all that a package has registered.
        cases: default: all configurations.
        run: as `map` does; the `map` of a pool of processes runs them side by side.

    Raises:
        ValueError: a configuration does not verify drafts in two steps, or a step is not what its record says.
    """
    cases = configurations() if cases is None else cases
    rows = [(package.__name__, method, rule) for package in packages for method, rule in methods or methods_of(package)]
    results = iter(run(_enumerated, [Task(*row, case.suited(row[1])) for row in rows for case in cases]))
    for package, method, rule in rows:
        found = [next(results) for _ in cases]
        deviation, worst = max((each.deviation, case.name) for each, case in zip(found, cases, strict=True))
        yield SuiteRow(
            package=package.rpartition(".")[2],
            method=method,
            rule=rule,
            configurations=len(cases),
            executions=sum(each.executions for each in found),
            steps=max(each.steps for each in found),
            largest_deviation=deviation,
            seconds=sum(each.seconds for each in found),
            worst=worst,
        )


def _enumerated(task: Task) -> Found:
    """Enumerate one distribution, each execution with a trace and without, and compare it with the definition."""
    started = time.perf_counter()
    package, case = import_module(task.package), task.case
    method, ending = case.method(package, task.method, task.rule), case.ending(package)
    distribution = output_distribution(method, PROMPT, ending, untraced=True, max_executions=None)
    # Prompt lookup drafts nothing where no token has come before; a block of a few paths may reach the end at once.
    least = 1 if task.method == "prompt-lookup" or task.method.startswith(("blockwise-paths", "blockwise+head")) else 2
    if task.method != "autoregressive" and sum(count > 0 for count in distribution.verified) < least:
        raise ValueError(f"{case.name}: found one step with drafts verified, expected two")
    deviation = max(distribution.largest_deviation(definition(case)), abs(sum(distribution.values()) - 1.0))
    return Found(distribution.executions, distribution.steps, deviation, time.perf_counter() - started)


@cache
def definition(case: Configuration) -> OutputDistribution:
    """Return the distribution that a configuration's texts should have, in the specification."""
    model = case.model(import_module("pass_sampling.reference"))
    decode = (lambda tokens: _whole_text(case, (*PROMPT[-1:], *tokens))) if case.pieces else None
    ending = Ending(case.max_new_tokens, case.eos_token_ids, case.stop_strings, decode)
    return plain_distribution(model, SamplingConfig(**case.sampling), PROMPT, ending, processor=case.processor)


def _whole_text(case: Configuration, tokens: Sequence[int]) -> str:
    """Return the text of some tokens by its definition: a run of bytes is U+FFFD for each, unless it is UTF-8."""
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


def coverage(packages: Sequence[ModuleType], cases: Sequence[Configuration]) -> dict[str, list[str]]:
    """Say in sentences what the suite covers on these configurations, and what it does not."""
    names = " and ".join(package.__name__.rpartition(".")[2] for package in packages)
    sampling: list[dict[str, Any]] = [case.sampling for case in cases]
    temperatures = sorted({each.get("temperature", 1.0) for each in sampling})
    tokens = [case.shape["vocab_size"] if case.shape else case.vocab_size for case in cases]
    tables = sum(case.shape is None for case in cases)
    num_draft = sorted({case.num_draft for case in cases})
    kinds = {
        "top-k": any("top_k" in each for each in sampling),
        "top-p": any("top_p" in each for each in sampling),
        "tied logits": any(case.levels for case in cases),
        "a processor": any(case.processor for case in cases),
        "draft settings of their own": any(case.draft_sampling for case in cases),
        "adaptive draft lengths": any(case.schedule[0] != "fixed" for case in cases),
        "ends of text": any(case.eos_token_ids for case in cases),
        "texts longer than a sliding window": any("sliding_window" in (case.shape or ()) for case in cases),
    }
    left_out = len(configurations()) - len(cases)
    covered = [
        f"The {len(methods_of(packages[0]))} pairs of a method and a rule above, in {names}.",
        f"{len(cases)} configurations: {tables} tables, each with another row after every prefix, and "
        f"{len(cases) - tables} random transformers in float64, of {min(tokens)} to {max(tokens)} tokens, with "
        f"{' or '.join(map(str, num_draft))} drafts per step and texts of up to "
        f"{max(case.max_new_tokens for case in cases)} new tokens.",
        f"Temperatures {', '.join(f'{each:g}' for each in temperatures)}; "
        f"{', '.join(kind for kind, is_there in kinds.items() if is_there)}.",
        "Every way in which the uniforms of every step can decide, to the end of every text; each execution runs with "
        "a trace and once more without one, as texts are generated.",
    ]
    not_covered = [
        "The loop with its stream of uniforms (generate, generate_batch, the engine), and stop strings: "
        "tests/exactness/test_end_to_end.py draws texts from them and tests their frequencies.",
        "Longer texts, larger vocabularies and trained weights.",
        "Rounding in float32, bfloat16 and float16, by which a row's distribution depends on the rows of its pass: "
        "`pass-sampling verify --model FOLDER` measures it.",
        "CUDA kernels and captured graphs.",
    ]
    not_covered += [f"{left_out} more configurations: `pass-sampling verify --all` runs them."] if left_out else []
    return {"covered": covered, "not_covered": not_covered}
