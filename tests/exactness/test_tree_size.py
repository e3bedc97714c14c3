"""How large an enumeration will be, before it starts; and what it counts while it runs."""

from __future__ import annotations

import re
from typing import Any

import numpy as np
import pytest

import pass_sampling.reference as reference
from models import PACKAGES, lookahead, package, table, transformer
from pass_sampling.reference.exactness.cases import METHODS, PROMPT, Configuration, configurations
from pass_sampling.reference.exactness.distribution import output_distribution
from pass_sampling.reference.exactness.enumeration import estimated_executions

# The estimate is the mean of 16 paths and is seeded: that it is right within these factors, on trees of at least 50
# executions, is a fact about these configurations, not a bound for all. Where a step has more choices it is rougher.
FACTORS = {"autoregressive": 4.0, "pass": 4.0, "candidates": 10.0, "candidates-one-call": 10.0}
FACTOR_ELSEWHERE = 5.0
both_packages = pytest.mark.parametrize(
    "package_name", [pytest.param(name, marks=[pytest.mark.torch] * (name == "gpu")) for name in PACKAGES]
)
ONE_RULE_EACH = {method: (method, rule) for method, rule in reversed(METHODS) if rule != "block"}
COMPARED = [*((method, rule) for method, rule in METHODS if method == "pass"), *ONE_RULE_EACH.values()]
CONFIGURATIONS = {configuration.name: configuration for configuration in configurations()}


@pytest.mark.parametrize("merge", [True, False], ids=["merged", "unmerged"])
@pytest.mark.parametrize(
    "name",
    [
        "table, temperature 1",
        "table, without zeros",
        "table, many zeros",
        "table, no end of text",
        "table, penalty",
        "transformer",
        "transformer, sliding window",
    ],
)
def test_an_estimate_is_within_a_known_factor(name: str, merge: bool) -> None:
    configuration = CONFIGURATIONS[name]
    for method, rule in dict.fromkeys(COMPARED):
        model, ending = configuration.method(reference, method, rule), configuration.ending(reference)
        estimate = estimated_executions(model, PROMPT, ending, merge=merge)
        executions = output_distribution(model, PROMPT, ending, merge=merge).executions
        factor = FACTORS.get(method, FACTOR_ELSEWHERE)
        assert executions / factor <= estimate <= executions * factor or max(executions, estimate) < 50


@pytest.mark.parametrize("seed", range(2))
def test_an_estimate_is_unbiased_where_states_are_not_merged(seed: int) -> None:
    """Unless the mean of 25 estimates is off by a quarter: about three times the standard error of that mean."""
    configuration = Configuration("table", seed=seed, max_new_tokens=4)
    method, ending = configuration.method(reference, "pass", "token"), configuration.ending(reference)
    executions = output_distribution(method, PROMPT, ending, merge=False).executions
    estimates = [estimated_executions(method, PROMPT, ending, merge=False, seed=each) for each in range(25)]
    assert np.mean(estimates) == pytest.approx(executions, rel=0.25)


def test_a_distribution_without_choices_is_one_execution_per_step() -> None:
    model = table(reference)
    method = reference.Autoregressive(model, reference.SamplingConfig(temperature=0.0))
    assert estimated_executions(method, PROMPT, reference.Ending(7)) == pytest.approx(7.0, abs=1e-9)


def test_the_first_tokens_of_long_texts_cost_what_short_texts_do() -> None:
    model = table(reference)
    short = estimated_executions(reference.Autoregressive(model), PROMPT, reference.Ending(3))
    long = estimated_executions(reference.Autoregressive(model), PROMPT, reference.Ending(50), num_tokens=3)
    assert short == long < estimated_executions(reference.Autoregressive(model), PROMPT, reference.Ending(4))


class Counting:
    """A method whose executions are counted."""

    def __init__(self, method: Any):
        self.method, self.executions, self.num_uniforms = method, 0, method.num_uniforms
        self.start = method.start

    def run(self, states: Any, uniforms: Any, trace: bool = True) -> Any:
        self.executions += len(states)
        return self.method.run(states, uniforms)


@both_packages
@pytest.mark.parametrize("merge", [True, False], ids=["merged", "unmerged"])
def test_a_tree_that_is_too_large_is_refused_before_it_is_run(package_name: str, merge: bool) -> None:
    pkg = package(package_name)
    model = table(pkg, vocab_size=5, num_lookahead=3)
    method = Counting(pkg.PaSS(model, model.lookahead()))
    with pytest.raises(ValueError) as refusal:
        output_distribution(method, PROMPT, pkg.Ending(50), merge=merge)
    told = re.fullmatch(
        r"max_executions: found a tree of at least about (\S+) executions, expected at most 2000000",
        str(refusal.value),
    )
    assert told is not None and float(told[1]) > 2e6
    assert method.executions < 10_000  # paths, of a tree of millions


def test_a_method_that_never_commits_anything_is_refused_too() -> None:
    class Idle:
        num_uniforms = 1

        def start(self, prompt: Any, ending: Any) -> Any:
            return reference.Autoregressive(table(reference)).start(prompt, ending)

        def run(self, states: Any, uniforms: Any, trace: bool = True) -> Any:
            return [(state, reference.Record((), (), (), choices=())) for state in states]

    with pytest.raises(ValueError, match=r"^max_executions: found a tree of at least about 1\.0e\+02 executions"):
        output_distribution(Idle(), PROMPT, reference.Ending(3), max_executions=100)


# --- What is counted on the way ---


def distribution_behind(model: Any, tokens: tuple[int, ...], vectors: Any = None) -> Any:
    """Return the distribution after some tokens, and after a look-ahead vector that follows them."""
    inputs = model.embed(tokens)
    inputs = inputs if vectors is None else np.concatenate([inputs, vectors])
    row = model.logits(model.hidden(inputs, model.new_cache())[-1])
    return reference.probs_from_logits(row, reference.SamplingConfig())


@both_packages
@pytest.mark.parametrize("seed", range(3))
def test_one_draft_is_accepted_as_often_as_its_distribution_and_the_targets_overlap(
    package_name: str, seed: int
) -> None:
    """An exact token, a draft, and, if it is accepted, the last token; if it is not, one more pass."""
    pkg, model = package(package_name), table(reference, num_lookahead=1, seed=seed)
    first = distribution_behind(model, PROMPT)
    draft = distribution_behind(model, PROMPT, model.lookahead().vectors)
    accepted = sum(
        prob * np.minimum(distribution_behind(model, (*PROMPT, token)), draft).sum() for token, prob in enumerate(first)
    )
    run = table(pkg, num_lookahead=1, seed=seed)
    distribution = output_distribution(pkg.PaSS(run, run.lookahead()), PROMPT, pkg.Ending(3))
    expected = {
        "num_tokens": 3,
        "num_draft_tokens": 1,
        "num_accepted_tokens": accepted,
        "num_forward_passes": 2 + (1 - accepted),
        "num_draft_passes": 0,
        # the prompt and a vector; the exact token and its draft; the token after a rejected draft
        "num_positions": (len(PROMPT) + 1) + 2 + (1 - accepted),
    }
    assert distribution.expected == pytest.approx(expected, abs=1e-12)


@both_packages
def test_plain_decoding_is_one_pass_per_token(package_name: str) -> None:
    pkg = package(package_name)
    distribution = output_distribution(pkg.Autoregressive(table(pkg)), PROMPT, pkg.Ending(4, (2,)))
    length = sum(prob * len(tokens) for tokens, prob in distribution.items())
    expected = {"num_tokens": length, "num_forward_passes": length, "num_positions": length + len(PROMPT) - 1}
    assert distribution.expected == pytest.approx(
        expected | {"num_draft_passes": 0, "num_draft_tokens": 0, "num_accepted_tokens": 0}, abs=1e-12
    )


@pytest.mark.parametrize("rule", ["token", "match"])
@pytest.mark.parametrize("kind", [table, transformer])
def test_expected_counts_do_not_depend_on_merging(kind: Any, rule: str) -> None:
    model = kind(reference, seed=3)
    method = reference.PaSS(model, lookahead(reference, model), rule=rule)
    merged, unmerged = (
        output_distribution(method, PROMPT, reference.Ending(4), merge=merge) for merge in (True, False)
    )
    assert merged.executions < unmerged.executions
    assert merged.expected == pytest.approx(dict(unmerged.expected), abs=1e-12)
    assert 0 < merged.expected["num_accepted_tokens"] < merged.expected["num_draft_tokens"]
