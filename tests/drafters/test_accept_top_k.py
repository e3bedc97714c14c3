"""Top-k acceptance, which is lossy: a greedy draft among the model's k likeliest tokens is accepted."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import pass_sampling.reference as reference
from coupled import assert_same
from models import PACKAGES, TINY, package
from pass_sampling.reference.exactness import cases
from pass_sampling.reference.exactness.cases import PROMPT, Configuration
from pass_sampling.reference.exactness.distribution import output_distribution
from pass_sampling.reference.sampling import compared_logits

GREEDY = {"temperature": 0.0}
SHAPE = TINY | {"vocab_size": 9}
METHODS = ("blockwise", "blockwise+ngram", "pass-one-call")
CASES = [
    Configuration("heads", SHAPE, seed=12, num_draft=3, sampling=GREEDY, eos_token_ids=(8,)),
    Configuration("ties", SHAPE, seed=13, num_draft=3, levels=4, sampling=GREEDY, eos_token_ids=()),
    Configuration("masks", seed=6, vocab_size=9, zeros=0.5, num_draft=3, sampling=GREEDY, eos_token_ids=()),
    Configuration("penalty", SHAPE, seed=7, num_draft=2, sampling=GREEDY, processor=cases.penalty, eos_token_ids=()),
    Configuration("drawn", SHAPE, seed=8, num_draft=3, sampling=GREEDY, draft_sampling={}, eos_token_ids=()),
]
each_case = pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)


def method_of(pkg: Any, case: Configuration, name: str, rule: str, accept_top_k: int) -> Any:
    return replace(case.method(pkg, name, rule), accept_top_k=accept_top_k)


def written(pkg: Any, method: Any, case: Configuration, prompt: tuple[int, ...] = PROMPT, seed: int = 3) -> Any:
    return pkg.generate(method, prompt, 20, case.eos_token_ids, seed=seed, trace=True)


def rank(method: Any, prefix: tuple[int, ...], token: int) -> float:
    """Return how many tokens the reference's model finds likelier than a token, which no mask may exclude."""
    hidden = method.model.hidden(method.model.embed(prefix), method.model.new_cache())
    row = compared_logits(method.process(prefix, method.model.logits(hidden[-1])))
    if row[token] == -np.inf:
        return np.inf
    return sorted(range(len(row)), key=lambda each: (-row[each], each)).index(token)


@pytest.mark.parametrize("name", PACKAGES)
@pytest.mark.parametrize("method", METHODS)
@each_case
@pytest.mark.parametrize("k", [1, 3, 9])
def test_a_draft_is_accepted_if_and_only_if_it_is_among_the_k_likeliest(name, method, case, k) -> None:
    pkg = package(name)
    result = written(pkg, method_of(pkg, case, method, "token", k), case)
    judge, text, accepted, rejected = method_of(reference, case, method, "token", 1), PROMPT, 0, 0
    for record in result.records:
        for place, token in enumerate(record.tokens):
            if record.sources[place] == "accepted":
                accepted += 1
                assert rank(judge, text, token) < k
            else:
                assert rank(judge, text, token) == 0, "a token that was not drafted is the likeliest"
            if record.sources[place] == "correction":
                rejected += 1
                assert rank(judge, text, record.draft_tokens[place]) >= k
            text += (token,)
    assert accepted + rejected > 0


@pytest.mark.parametrize("name", PACKAGES)
@pytest.mark.parametrize("rule", ["token", "block", "match"])
@each_case
def test_with_k_1_the_text_is_greedy_and_with_more_it_is_not(name, rule, case) -> None:
    pkg = package(name)
    plain = pkg.generate(case.method(pkg, "autoregressive", None), PROMPT, 20, case.eos_token_ids)
    texts = [written(pkg, method_of(pkg, case, "blockwise", rule, k), case) for k in (1, 4)]
    assert texts[0].tokens == plain.tokens != texts[1].tokens
    assert texts[0].draft_acceptance_rate < texts[1].draft_acceptance_rate


@pytest.mark.torch
@settings(max_examples=25)
@given(
    case=st.sampled_from(CASES),
    method=st.sampled_from(METHODS),
    rule=st.sampled_from(["token", "block", "match"]),
    k=st.integers(1, 9),
    prompt=st.lists(st.integers(0, 8), min_size=1, max_size=4).map(tuple),
    seed=st.integers(0, 99),
)
def test_both_packages_accept_the_same_drafts(case, method, rule, k, prompt, seed) -> None:
    both = (reference, package("gpu"))
    assert_same(*(written(pkg, method_of(pkg, case, method, rule, k), case, prompt, seed) for pkg in both))


@pytest.mark.parametrize("name", PACKAGES)
def test_the_exact_suite_has_no_method_with_it_and_would_find_it_inexact(name: str) -> None:
    pkg, case = package(name), CASES[3]
    for method, rule in cases.methods_of(pkg):
        assert getattr(case.suited(method).method(pkg, method, rule), "accept_top_k", 1) == 1
    ending = pkg.Ending(14, case.eos_token_ids)
    for k in (1, 4):
        distribution = output_distribution(method_of(pkg, case, "blockwise", "match", k), PROMPT, ending)
        plain = output_distribution(case.method(pkg, "autoregressive", None), PROMPT, ending)
        assert distribution.total_variation(plain) == (0.0 if k == 1 else 1.0)


@pytest.mark.parametrize("name", PACKAGES)
@pytest.mark.parametrize(
    ("k", "sampling", "message"),
    [
        (0, GREEDY, r"^accept_top_k: found 0, expected an integer from 1 to 9$"),
        (10, GREEDY, r"^accept_top_k: found 10, expected an integer from 1 to 9$"),
        (2, {"temperature": 0.8}, r"^accept_top_k: found 2 with temperature 0.8, expected temperature 0$"),
    ],
)
def test_what_does_not_fit_is_refused(name: str, k: int, sampling: dict[str, float], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        method_of(package(name), replace(CASES[0], sampling=sampling), "blockwise", "match", k)
