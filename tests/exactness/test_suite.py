"""The exact suite and `pass-sampling verify`: what they promise, and that no wrong sampler satisfies them."""

import json
import subprocess
import sys
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

import pass_sampling.reference as reference
from gallery_acceptance import replacement_from_the_target
from gallery_tools import Site
from models import PACKAGES, package
from pass_sampling.reference.exactness import cases, suite

CASES, BRIEF = cases.configurations(), cases.configurations(every=False)
SOME = BRIEF[::3]
REST = [case for case in CASES if case not in SOME]
PAIRS = [  # blocks that are rescored are left to make check
    pytest.param(*pair, marks=[pytest.mark.check] * ("+" in pair[0])) for pair in cases.methods_of(reference)
]


def test_there_are_different_configurations_of_the_promised_size() -> None:
    assert len({case.name for case in CASES}) == len(CASES) > 30
    assert CASES[: len(BRIEF)] == BRIEF and len(BRIEF) < len(CASES)
    for case in CASES:
        assert case.model(reference).vocab_size >= 3 and case.num_draft >= 2


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_a_configuration_has_a_different_row_after_every_prefix(case: cases.Configuration) -> None:
    model = case.model(reference)
    prefixes = [(1, 0), (1, 0, 0), (1, 0, 1), (1, 0, 0, 1), (1, 0, 1, 0)]
    rows = [model.logits(model.hidden(model.embed(prefix), model.new_cache()))[-1] for prefix in prefixes]
    assert len({np.round(row, 9).tobytes() for row in rows}) == len(prefixes)


@pytest.mark.parametrize("some", [SOME, pytest.param(REST, marks=pytest.mark.check)], ids=["some", "rest"])
@pytest.mark.parametrize("name", PACKAGES)
@pytest.mark.parametrize(("method", "rule"), PAIRS)
def test_every_method_and_rule_is_exact(name: str, method: str, rule: str | None, some: list[Any]) -> None:
    some = some[:14] if "+" in method else some  # with those of the other part 20; verify --all runs all
    (row,) = suite.exact_suite([package(name)], [(method, rule)], some)
    assert row.configurations == len(some) and row.package == name
    assert row.largest_deviation <= suite.EXACT
    assert row.executions > 20 * len(some) and row.steps >= 3


def test_a_wrong_sampler_is_named_with_the_configuration(monkeypatch: pytest.MonkeyPatch) -> None:
    replacement_from_the_target(Site("reference", monkeypatch))
    (row,) = suite.exact_suite([reference], [("pass", "token")], CASES[:3])
    assert row.largest_deviation > 1e-3 and row.worst in {case.name for case in CASES[:3]}


def test_a_configuration_with_one_drafted_step_is_refused() -> None:
    with pytest.raises(ValueError, match="found one step with drafts verified, expected two"):
        list(suite.exact_suite([reference], [("pass", "token")], [replace(CASES[0], max_new_tokens=3)]))


def test_an_unknown_method_is_refused() -> None:
    with pytest.raises(ValueError, match=r"^method: found 'guess', expected one of autoregressive, .*pass-one-call"):
        CASES[0].method(reference, "guess", None)


def verify(*arguments: str, first: str = "pass", num_cases: int = 1) -> str:
    """Return what the command prints, on the first few configurations: above, every method meets all of them."""
    script = (
        f"{first}; import sys; from pass_sampling.reference.exactness import cases, suite; "
        f"few = cases.configurations()[:{num_cases}]; cases.configurations = lambda every=True: few; "
        f"from pass_sampling.gpu.__main__ import main; sys.exit(main(['verify', *{arguments}]))"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=1200)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_verify_needs_no_torch_for_the_specification() -> None:
    found = json.loads(verify("--package", "reference", "--json", first="import sys; sys.modules['torch'] = None"))
    assert found["configurations"] == len(cases.methods_of(reference))
    assert found["largest_deviation"] <= 1e-12 and found["executions"] > 1000
    assert {row["package"] for row in found["rows"]} == {"reference"}


@pytest.mark.torch
@pytest.mark.parametrize(
    "num_cases", [pytest.param(1, marks=pytest.mark.check), pytest.param(len(CASES), marks=pytest.mark.slow)]
)
def test_verify_prints_a_row_per_package_method_and_rule_of_both(num_cases: int) -> None:
    lines = verify(num_cases=num_cases).splitlines()
    assert [line.split()[:3] for line in lines[1:-1]] == [
        [name, method, rule or "-"] for name in PACKAGES for method, rule in cases.methods_of(reference)
    ]
    assert f"{2 * len(cases.methods_of(reference)) * num_cases} exact distributions" in lines[-1]
