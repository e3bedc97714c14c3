"""The exact suite: every method and rule of a package, on many small models and settings, against the definition.

It runs on either package, which is handed in as a module: `exact_suite(pass_sampling.gpu)`.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from importlib import import_module
from types import ModuleType

from ..config import SamplingConfig
from ..ending import Ending
from ..methods import Autoregressive, LanguageModel
from ..sampling import Probs, Processor
from .cases import METHODS, PROMPT, Configuration, configurations
from .distribution import OutputLaw, output_law, target_law

__all__ = ["EXACT", "SuiteRow", "definition", "exact_suite", "plain_law"]

EXACT = 1e-12  # sums of some thousand products of numbers in [0, 1], each wrong by a few times 2^-53


@dataclass(frozen=True)
class SuiteRow:
    """What the suite found for one method and rule."""

    package: str
    method: str
    rule: str | None
    configurations: int
    executions: int
    cycles: int  # most steps in a row
    largest_deviation: float
    seconds: float
    worst: str  # the configuration with the largest deviation


def exact_suite(
    package: ModuleType,
    methods: Sequence[tuple[str, str | None]] = METHODS,
    cases: Sequence[Configuration] | None = None,
) -> Iterator[SuiteRow]:
    """Enumerate the law of every method and rule on every configuration, and yield a row per method and rule.

    Raises:
        ValueError: a configuration does not verify drafts in two cycles, or a step is not what its record says.
    """
    cases = configurations() if cases is None else cases
    targets: dict[str, OutputLaw] = {}
    for name, rule in methods:
        started = time.perf_counter()
        executions = cycles = 0
        worst, place = 0.0, ""
        for case in cases:
            if case.name not in targets:
                targets[case.name] = definition(case)
            law = output_law(case.method(package, name, rule), PROMPT, case.ending(package), max_executions=None)
            least = 1 if name == "prompt-lookup" else 2  # which has nothing to say where nothing has come before
            if name != "autoregressive" and sum(count > 0 for count in law.verified) < least:
                raise ValueError(f"{case.name}: found one cycle with drafts verified, expected two")
            deviation = max(law.largest_deviation(targets[case.name]), abs(sum(law.values()) - 1.0))
            executions, cycles = executions + law.executions, max(cycles, law.cycles)
            if deviation >= worst:
                worst, place = deviation, case.name
        yield SuiteRow(
            package.__name__.rpartition(".")[2],
            name,
            rule,
            len(cases),
            executions,
            cycles,
            worst,
            time.perf_counter() - started,
            place,
        )


def definition(case: Configuration) -> OutputLaw:
    """Return the law that a configuration's texts should have, in the specification."""
    model = case.model(import_module(__package__))
    decode = (lambda tokens: _whole_text(case, (*PROMPT[-1:], *tokens))) if case.pieces else None
    ending = Ending(case.max_new_tokens, case.eos_token_ids, case.stop_strings, decode)
    return plain_law(model, SamplingConfig(**case.sampling), PROMPT, ending, processor=case.processor)


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


def plain_law(
    model: LanguageModel,
    sampling: SamplingConfig,
    prompt: Sequence[int],
    ending: Ending,
    num_tokens: int | None = None,
    processor: Processor | None = None,
) -> OutputLaw:
    """Return the target's law by its definition: one fresh pass of the specification's model per prefix, no cache."""
    method = Autoregressive(model, sampling, processor)

    def next_probs(tokens: tuple[int, ...]) -> Probs:
        prefix = (*prompt, *tokens)
        hidden = model.hidden(model.embed(prefix), model.new_cache())
        return method.law(prefix, model.logits(hidden[-1]))

    return target_law(next_probs, ending, num_tokens)
