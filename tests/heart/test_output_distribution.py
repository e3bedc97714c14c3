"""The output distribution of running methods on what the exact suite has no configuration of.

`test_suite.py` enumerates every method and rule with every setting. Added here are ends inside a block, bans, rows
without a distribution, other numbers of vectors, states that are not merged, and whatever Hypothesis draws.
"""

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

import pass_sampling.reference as reference
from models import PACKAGES, exact_target, lookahead, package, table, transformer
from pass_sampling.reference.exactness.cases import PROMPT, TINY, WINDOWED, Configuration, methods_of, penalty
from pass_sampling.reference.exactness.distribution import OutputDistribution, output_distribution
from pass_sampling.reference.exactness.suite import EXACT, definition

each_package = pytest.mark.parametrize("name", PACKAGES)
each_rule = pytest.mark.parametrize("rule", ["token", "block", "match"])


def assert_exact(distribution: OutputDistribution, target: OutputDistribution, verified_steps: int = 0) -> None:
    assert distribution.largest_deviation(target) <= EXACT
    assert abs(sum(distribution.values()) - 1.0) <= EXACT
    assert set(distribution) <= set(target), "a sequence came out that the target cannot produce"
    assert sum(count > 0 for count in distribution.verified) >= verified_steps, distribution.verified


def copy_of(logits: Any) -> Any:
    return logits.copy() if isinstance(logits, np.ndarray) else logits.clone()


def repetition_penalty(prefix: tuple[int, ...], logits: Any) -> Any:
    """Lower what the prefix holds, by its count, and ban a third repetition in a row."""
    processed = copy_of(logits)
    for token in range(len(logits)):
        processed[token] = processed[token] - 0.4 * prefix.count(token)
    if len(prefix) >= 2 and prefix[-1] == prefix[-2]:
        processed[prefix[-1]] = -np.inf
    return processed


def nothing_after_the_end(prefix: tuple[int, ...], logits: Any) -> Any:
    """Leave no distribution after an end of the text, as grammars do."""
    processed = copy_of(logits)
    if 2 in prefix[len(PROMPT) :]:
        processed[:] = -np.inf
    return processed


def in_letters(tokens: Any) -> str:
    return "".join("abc"[token] for token in tokens)


@dataclass(frozen=True)
class Case:
    """PaSS over a table, by default of 3 tokens with 2 vectors, and the settings of its texts."""

    table: dict[str, Any]
    ending: dict[str, Any]
    sampling: dict[str, Any] = field(default_factory=dict)
    processor: Any = None
    fixed_token: int | None = None  # drafted from in place of the table's vectors
    options: dict[str, Any] = field(default_factory=dict)  # of the enumeration
    verified_steps: int = 2  # at least so many steps verify drafts

    def distribution(self, pkg: Any, rule: str) -> OutputDistribution:
        model = table(pkg, **self.table)
        drafts: dict[str, Any] = {"lookahead": None, "num_lookahead": 2, "fixed_token": self.fixed_token}
        drafts = {"lookahead": model.lookahead()} if self.fixed_token is None else drafts
        sampling = pkg.SamplingConfig(**self.sampling)
        method = pkg.PaSS(model, sampling=sampling, rule=rule, processor=self.processor, **drafts)
        return output_distribution(method, PROMPT, pkg.Ending(**self.ending), **self.options)

    def target(self) -> OutputDistribution:
        model, sampling = table(reference, **self.table), reference.SamplingConfig(**self.sampling)
        ending, num_tokens = reference.Ending(**self.ending), self.options.get("num_tokens")
        return exact_target(model, sampling, PROMPT, ending, num_tokens, self.processor)


FIVE, SIX, ENDS = {"max_new_tokens": 5}, {"max_new_tokens": 6}, {"max_new_tokens": 6, "eos_token_ids": (2,)}
CASES = {
    **{  # which depend neither on the rest of the text nor on drafts that a length limit would have cut
        f"the first {n} tokens": Case(
            {"seed": 8}, ENDS | {"max_new_tokens": 30}, options={"num_tokens": n}, verified_steps=n // 2
        )
        for n in (1, 2, 4)
    },
    "a fixed token": Case({"seed": 5}, FIVE | {"eos_token_ids": (2,)}, fixed_token=1),
    "bans": Case({"seed": 6}, SIX, {"temperature": 0.9, "top_p": 0.95}, processor=repetition_penalty),
    "stop strings": Case({"seed": 9}, SIX | {"stop_strings": ("ba", "cc"), "decode": in_letters}),
    "nothing after the end": Case({"seed": 13, "spread": 1.0}, ENDS, processor=nothing_after_the_end),
}


@each_package
@each_rule
@pytest.mark.parametrize("case", CASES)
def test_the_distribution_is_the_targets(name: str, rule: str, case: str) -> None:
    chosen = CASES[case]
    distribution = chosen.distribution(package(name), rule)
    assert_exact(distribution, chosen.target(), chosen.verified_steps)
    if chosen.ending.get("stop_strings"):
        assert any(len(tokens) < chosen.ending["max_new_tokens"] for tokens in distribution), "no text was stopped"


@each_package
@each_rule
def test_a_row_without_a_distribution_matters_only_where_the_text_comes(name: str, rule: str) -> None:
    """Look-ahead rows without a distribution end the draft; target rows without one matter once reached."""
    pkg, ending = package(name), {"max_new_tokens": 5}
    asked_for_target = [True]

    def dead_end(prefix: tuple[int, ...], logits: Any) -> Any:
        processed = copy_of(logits)
        if 1 in prefix[len(PROMPT) :]:
            processed[:] = np.nan
        elif asked_for_target[0]:
            processed[1] = -np.inf
        return processed

    class Careless(pkg.PaSS):  # drafts what the target bans
        def _draft(self, *args: Any) -> Any:
            asked_for_target[0] = False
            try:
                return super()._draft(*args)
            finally:
                asked_for_target[0] = True

    model = table(pkg, seed=14)
    method = Careless(model, model.lookahead(), rule=rule, processor=dead_end)
    distribution = output_distribution(method, PROMPT, pkg.Ending(**ending))
    sampling = reference.SamplingConfig()
    target = exact_target(table(reference, seed=14), sampling, PROMPT, reference.Ending(**ending), processor=dead_end)
    assert_exact(distribution, target)
    assert not any(1 in tokens for tokens in distribution)


@each_package
@pytest.mark.parametrize("rule", [None, "token", "match"])
@pytest.mark.parametrize("kind", ["table", "transformer"])
def test_unmerged_enumeration_agrees(name: str, rule: str | None, kind: str) -> None:
    """Every path is continued on its own, from the very cache that it left: nothing is assumed about states."""

    def make(pkg: Any) -> Any:
        return table(pkg, seed=1) if kind == "table" else transformer(pkg, seed=1, sliding_window=2)

    pkg, ending = package(name), {"max_new_tokens": 5 if kind == "table" else 4, "eos_token_ids": (2,)}
    model = make(pkg)
    method = pkg.PaSS(model, lookahead(pkg, model), rule=rule) if rule else pkg.Autoregressive(model)
    merged, unmerged = (
        output_distribution(method, PROMPT, pkg.Ending(**ending), merge=merge, probe=merge) for merge in (True, False)
    )
    assert merged.largest_deviation(unmerged) <= EXACT
    sampling, end = reference.SamplingConfig(), reference.Ending(**ending)
    assert_exact(unmerged, exact_target(make(reference), sampling, PROMPT, end))
    assert unmerged.executions > merged.executions or rule is None


@st.composite
def sampling_settings(draw: Any, vocab_size: int) -> dict[str, Any]:
    """Settings of a distribution: off, mild, extreme, greedy."""
    return {
        "temperature": draw(st.sampled_from([0.0, 0.05, 0.7, 1.0, 3.0])),
        "top_k": draw(st.integers(0, vocab_size)),
        "top_p": draw(st.sampled_from([1.0, 0.9, 0.5, 1e-6])),
    }


@st.composite
def configurations(draw: Any) -> Configuration:
    """A table or a tiny transformer with everything that may be set."""
    shape = draw(st.sampled_from([None, None, None, TINY, WINDOWED]))
    vocab_size = draw(st.integers(2, 4)) if shape is None else 3
    num_draft = draw(st.integers(0, 3))
    ends = draw(st.sets(st.integers(0, vocab_size - 1), max_size=2))
    return Configuration(
        "drawn",
        shape,
        seed=draw(st.integers(0, 10**6)),
        vocab_size=vocab_size,
        num_draft=num_draft,
        zeros=draw(st.sampled_from([0.0, 0.2, 0.5])),
        spread=draw(st.sampled_from([0.0, 1e-12, 1.0, 8.0])),
        sampling=draw(sampling_settings(vocab_size)),
        draft_sampling=draw(st.none() | sampling_settings(vocab_size)),
        eos_token_ids=tuple(sorted(ends)),
        max_new_tokens=draw(st.integers(1, 5)),
        processor=draw(st.sampled_from([None, penalty])),
    )


@each_package
@settings(suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much])
@given(
    case=configurations(),
    method=st.sampled_from(methods_of(reference)),
    batch=st.sampled_from([1, 7, 4096]),
    merge=st.booleans(),
)
def test_the_distribution_is_the_targets_whatever_is_drawn(name, case, method, batch, merge):
    pkg = package(name)
    assume(method[0] != "pass-one-call-tree" or case.num_draft > 0)  # a tree needs vectors
    if not merge:
        case = Configuration(**{**vars(case), "max_new_tokens": min(case.max_new_tokens, 4), "num_draft": 2})
    distribution = output_distribution(case.method(pkg, *method), PROMPT, case.ending(pkg), merge=merge, batch=batch)
    assert distribution.largest_deviation(definition(case)) <= EXACT
    assert abs(sum(distribution.values()) - 1.0) <= EXACT
