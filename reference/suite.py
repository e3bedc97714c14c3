"""The exact suite: every method and rule of a package, on many small models and settings, against the definition.

It runs on either package, which is handed in as a module: `exact_suite(pass_sampling.gpu)`. Each configuration has at
least three tokens, two drafts, a different row behind every prefix, and a second drafted cycle that is verified.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from importlib import import_module
from types import ModuleType
from typing import Any

import numpy as np

from .config import SamplingConfig
from .ending import Ending
from .law import OutputLaw, output_law, target_law
from .methods import Autoregressive, LanguageModel
from .sampling import Probs, Processor

__all__ = ["EXACT", "METHODS", "Configuration", "SuiteRow", "configurations", "definition", "exact_suite", "plain_law"]

EXACT = 1e-12  # sums of some thousand products of numbers in [0, 1], each wrong by a few times 2^-53
PROMPT = (1, 0)
METHODS: tuple[tuple[str, str | None], ...] = (
    ("autoregressive", None),
    ("lookahead", "token"),
    ("lookahead", "block"),
    ("lookahead", "match"),
)

TINY: dict[str, Any] = {
    "vocab_size": 3,
    "hidden_size": 8,
    "intermediate_size": 12,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "head_dim": 4,
    "max_position_embeddings": 64,
}
WINDOWED: dict[str, Any] = TINY | {"sliding_window": 3, "query_key_norm": True, "attention_bias": True}


def penalty(prefix: tuple[int, ...], logits: Any) -> Any:
    """Lower what has been said before, the more the more often: a processor that depends on the whole prefix."""
    counts = [float(prefix.count(token)) for token in range(len(logits))]
    return logits - 0.4 * (np.array(counts) if isinstance(logits, np.ndarray) else logits.new_tensor(counts))


@dataclass(frozen=True)
class Configuration:
    """One small model, with the settings of a target and of its drafts."""

    name: str
    shape: dict[str, Any] | None = None  # of a transformer; None: a table
    seed: int = 0
    vocab_size: int = 3  # of a table
    num_draft: int = 2  # drafts per cycle
    zeros: float = 0.1  # share of a table's tokens that are masked
    spread: float = 1.5  # size of a table's logits
    sampling: dict[str, Any] = field(default_factory=dict)
    draft_sampling: dict[str, Any] | None = None
    eos_token_ids: tuple[int, ...] = (2,)
    max_new_tokens: int = 5
    processor: Callable[..., Any] | None = None

    def model(self, package: Any) -> Any:
        """Return the model, in float64; the same numbers in both packages."""
        if self.shape is None:
            return package.TableModel(self.vocab_size, self.num_draft, self.seed, self.spread, self.zeros)
        config = package.ModelConfig(**self.shape)
        return package.Transformer(config, package.Weights.random(config, self.seed))

    def method(self, package: Any, name: str, rule: str | None) -> Any:
        """Return a method over the model.

        Raises:
            ValueError: there is no method of that name.
        """
        model, sampling = self.model(package), package.SamplingConfig(**self.sampling)
        if name == "autoregressive":
            return package.Autoregressive(model, sampling, self.processor)
        if name != "lookahead":
            raise ValueError(f"method: found {name!r}, expected autoregressive or lookahead")
        vectors = (
            model.lookahead()
            if self.shape is None
            else package.LookAhead.random(self.num_draft, model.hidden_size, seed=7)
        )
        own = None if self.draft_sampling is None else package.SamplingConfig(**self.draft_sampling)
        return package.PaSS(model, vectors, sampling, own, rule, self.processor)

    def ending(self, package: Any) -> Any:
        """Return where texts end."""
        return package.Ending(self.max_new_tokens, self.eos_token_ids)


def configurations() -> list[Configuration]:
    """Return the configurations of the suite, more than 20, for every method and rule."""
    settings: dict[str, dict[str, Any]] = {
        "temperature 1": {},
        "temperature 0.6": {"temperature": 0.6},
        "temperature 1.7": {"temperature": 1.7},
        "top-k 2": {"top_k": 2},
        "top-p 0.75": {"top_p": 0.75},
        "all three": {"temperature": 0.8, "top_k": 2, "top_p": 0.9},
    }
    greedy: dict[str, Any] = {"eos_token_ids": (), "max_new_tokens": 9}  # one path only, so a longer one
    found = [
        Configuration(f"table, {name}", seed=seed, sampling=each)
        for seed, (name, each) in zip((12, 13, 30, 15, 16, 17), settings.items(), strict=True)
    ]
    found += [
        Configuration("table, greedy", seed=1, sampling={"temperature": 0.0}, **greedy),
        Configuration("table, greedy drafts", seed=2, draft_sampling={"temperature": 0.0}),
        Configuration("table, narrow drafts", seed=3, draft_sampling={"temperature": 0.7, "top_k": 2}),
        Configuration("table, wide drafts", seed=4, sampling={"top_k": 2}, draft_sampling={"temperature": 2.0}),
        Configuration("table, without zeros", seed=5, zeros=0.0),
        Configuration("table, many zeros", seed=6, zeros=0.4),
        Configuration("table, peaked rows", seed=30, spread=6.0),
        Configuration("table, nearly equal rows", seed=8, spread=0.05),
        Configuration("table, 4 tokens", seed=9, vocab_size=4, zeros=0.3),
        Configuration("table, 3 drafts", seed=10, num_draft=3),
        Configuration("table, no end of text", seed=11, eos_token_ids=()),
        Configuration("table, two ends of text", seed=18, eos_token_ids=(1, 2), spread=1.0),
        Configuration("table, longer texts", seed=19, max_new_tokens=6),
        Configuration("table, penalty", seed=20, processor=penalty),
        Configuration(
            "table, penalty and filters", seed=21, processor=penalty, sampling={"temperature": 0.9, "top_p": 0.9}
        ),
        Configuration("transformer", TINY, seed=4),
        Configuration("transformer, all three", TINY, seed=5, sampling=settings["all three"]),
        Configuration("transformer, greedy", TINY, seed=6, sampling={"temperature": 0.0}, **greedy),
        Configuration("transformer, sliding window", WINDOWED, seed=7),
        Configuration("transformer, penalty", TINY, seed=8, processor=penalty),
    ]
    return found


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
            law = output_law(case.method(package, name, rule), PROMPT, case.ending(package))
            if name != "autoregressive" and sum(count > 0 for count in law.verified) < 2:
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
    ending = Ending(case.max_new_tokens, case.eos_token_ids)
    return plain_law(model, SamplingConfig(**case.sampling), PROMPT, ending, processor=case.processor)


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
