"""How large an enumeration may become, and what it counts while it runs."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import pass_sampling.reference as reference
from exactness_tools import distribution_after
from models import PACKAGES, lookahead, package, table, transformer
from pass_sampling.reference.exactness.cases import PROMPT
from pass_sampling.reference.exactness.distribution import output_distribution

both_packages = pytest.mark.parametrize(
    "package_name", [pytest.param(name, marks=[pytest.mark.torch] * (name == "gpu")) for name in PACKAGES]
)


def test_a_method_that_never_commits_anything_is_refused() -> None:
    class Idle(reference.Autoregressive):
        def run(self, states: Any, uniforms: Any, trace: bool = True) -> Any:
            return [(state, reference.Record((), (), (), choices=())) for state in states]

    with pytest.raises(ValueError, match=r"^max_executions: reached 100 after 100 steps, expected fewer"):
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
