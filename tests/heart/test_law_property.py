"""The exact distribution on configurations that nobody chose: all of them drawn by Hypothesis."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

from models import PACKAGES, package
from pass_sampling.reference.exactness.cases import METHODS, PROMPT, TINY, WINDOWED, Configuration, penalty
from pass_sampling.reference.exactness.distribution import output_distribution
from pass_sampling.reference.exactness.suite import EXACT, definition


@st.composite
def sampling_settings(draw: Any, vocab_size: int) -> dict[str, Any]:
    """Settings of a distribution: off, mild, extreme, greedy."""
    return {
        "temperature": draw(st.sampled_from([0.0, 0.05, 0.7, 1.0, 3.0])),
        "top_k": draw(st.integers(0, vocab_size)),
        "top_p": draw(st.sampled_from([1.0, 0.9, 0.5, 1e-6])),
    }


@st.composite
def cases(draw: Any) -> Configuration:
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


@pytest.mark.parametrize("name", PACKAGES)
@settings(suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much])
@given(case=cases(), method=st.sampled_from(METHODS), batch=st.sampled_from([1, 7, 4096]), merge=st.booleans())
def test_the_distribution_is_the_targets_whatever_is_drawn(
    name: str, case: Configuration, method: tuple[str, str | None], batch: int, merge: bool
) -> None:
    pkg = package(name)
    assume(method[0] != "candidates-one-call" or case.num_draft > 0)  # a tree needs vectors
    if not merge:
        case = Configuration(**{**vars(case), "max_new_tokens": min(case.max_new_tokens, 4), "num_draft": 2})
    distribution = output_distribution(case.method(pkg, *method), PROMPT, case.ending(pkg), merge=merge, batch=batch)
    assert distribution.largest_deviation(definition(case)) <= EXACT
    assert abs(sum(distribution.values()) - 1.0) <= EXACT
