"""How large an enumeration will be, before it starts; and what it counts while it runs."""

from __future__ import annotations

import re
from typing import Any

import numpy as np
import pytest

import pass_sampling.reference as reference
from exactness_tools import distribution_after
from models import PACKAGES, lookahead, package, table, transformer
from pass_sampling.reference.exactness.cases import PROMPT, Configuration, configurations, methods_of
from pass_sampling.reference.exactness.distribution import output_distribution
from pass_sampling.reference.exactness.enumeration import estimated_executions

# The estimate is the mean of 16 paths and is seeded: that it is right within these factors, on trees of at least 50
# executions, is a fact about these configurations, not a bound for all. Where a step has more choices it is rougher.
FACTORS = {"autoregressive": 4.0, "pass": 4.0, "draft-model-tree": 10.0, "pass-one-call-tree": 10.0}
FACTOR_ELSEWHERE = 5.0
ONE_RULE_EACH = {method: (method, rule) for method, rule in reversed(methods_of(reference)) if rule != "block"}
COMPARED = [*((method, rule) for method, rule in methods_of(reference) if method == "pass"), *ONE_RULE_EACH.values()]
CONFIGURATIONS = {configuration.name: configuration for configuration in configurations()}

both_packages = pytest.mark.parametrize(
    "package_name", [pytest.param(name, marks=[pytest.mark.torch] * (name == "gpu")) for name in PACKAGES]
)
merged_and_not = pytest.mark.parametrize("merge", [True, False], ids=["merged", "unmerged"])


@merged_and_not
@pytest.mark.parametrize(
    "name",
    [
        *(f"table, {kind}" for kind in ("temperature 1", "without zeros", "many zeros", "no end of text", "penalty")),
        "transformer",
        "transformer, sliding window",
    ],
)
def test_an_estimate_is_within_a_known_factor(name: str, merge: bool) -> None:
    configuration = CONFIGURATIONS[name]
    for method, rule in dict.fromkeys(COMPARED):
        running, ending = configuration.method(reference, method, rule), configuration.ending(reference)
        estimate = estimated_executions(running, PROMPT, ending, merge=merge)
        executions = output_distribution(running, PROMPT, ending, merge=merge).executions
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


def test_a_text_costs_what_its_first_tokens_do_and_without_choices_one_execution_per_step() -> None:
    def estimate(length: int, num_tokens: int | None = None, **sampling: float) -> float:
        method = reference.Autoregressive(table(reference), reference.SamplingConfig(**sampling))
        return estimated_executions(method, PROMPT, reference.Ending(length), num_tokens=num_tokens)

    assert estimate(7, temperature=0.0) == pytest.approx(7.0, abs=1e-9)
    assert estimate(3) == estimate(50, num_tokens=3) < estimate(4)


class Counting:
    """A method whose executions are counted."""

    def __init__(self, method: Any):
        self.method, self.executions, self.num_uniforms = method, 0, method.num_uniforms
        self.start = method.start

    def run(self, states: Any, uniforms: Any, trace: bool = True) -> Any:
        self.executions += len(states)
        return self.method.run(states, uniforms)


@both_packages
@merged_and_not
def test_a_tree_that_is_too_large_is_refused_before_it_is_run(package_name: str, merge: bool) -> None:
    pkg = package(package_name)
    model = table(pkg, vocab_size=5, num_lookahead=3)
    method = Counting(pkg.PaSS(model, model.lookahead()))
    with pytest.raises(ValueError) as refusal:
        output_distribution(method, PROMPT, pkg.Ending(50), merge=merge)
    message = r"max_executions: found a tree of at least about (\S+) executions, expected at most 2000000"
    told = re.fullmatch(message, str(refusal.value))
    assert told is not None and float(told[1]) > 2e6
    assert method.executions < 10_000  # paths, of a tree of millions


def test_a_method_that_never_commits_anything_is_refused_too() -> None:
    class Idle(reference.Autoregressive):
        def run(self, states: Any, uniforms: Any, trace: bool = True) -> Any:
            return [(state, reference.Record((), (), (), choices=())) for state in states]

    with pytest.raises(ValueError, match=r"^max_executions: found a tree of at least about 1\.0e\+02 executions"):
        output_distribution(Idle(table(reference)), PROMPT, reference.Ending(3), max_executions=100)


# --- What is counted on the way ---


@both_packages
@pytest.mark.parametrize("seed", range(3))
def test_one_draft_is_accepted_as_often_as_its_distribution_and_the_targets_overlap(
    package_name: str, seed: int
) -> None:
    """An exact token, a draft, and, if it is accepted, the last token; if it is not, one more pass."""
    pkg, model = package(package_name), table(reference, num_lookahead=1, seed=seed)
    draft = distribution_after(model, PROMPT, 1)
    overlaps = [np.minimum(distribution_after(model, (*PROMPT, token)), draft).sum() for token in range(3)]
    accepted = float(distribution_after(model, PROMPT) @ overlaps)
    run = table(pkg, num_lookahead=1, seed=seed)
    found = output_distribution(pkg.PaSS(run, run.lookahead()), PROMPT, pkg.Ending(3))
    expected = {
        "num_tokens": 3,
        "num_draft_tokens": 1,
        "num_accepted_tokens": accepted,
        "num_forward_passes": 2 + (1 - accepted),
        "num_draft_passes": 0,
        # the prompt and a vector; the exact token and its draft; the token after a rejected draft
        "num_positions": (len(PROMPT) + 1) + 2 + (1 - accepted),
    }
    assert found.expected == pytest.approx(expected, abs=1e-12)


@both_packages
def test_plain_decoding_is_one_pass_per_token(package_name: str) -> None:
    pkg = package(package_name)
    found = output_distribution(pkg.Autoregressive(table(pkg)), PROMPT, pkg.Ending(4, (2,)))
    length = sum(prob * len(tokens) for tokens, prob in found.items())
    expected = {"num_tokens": length, "num_forward_passes": length, "num_positions": length + len(PROMPT) - 1}
    expected |= dict.fromkeys(("num_draft_passes", "num_draft_tokens", "num_accepted_tokens"), 0)
    assert found.expected == pytest.approx(expected, abs=1e-12)


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
