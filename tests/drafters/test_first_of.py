"""Drafters in turn: the first that is sure proposes, and where none is, the step is a plain one."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from folders import as_numpy
from models import PACKAGES, package, table
from pass_sampling.reference.exactness.cases import TINY, Configuration, bigrams
from trees import assert_exact, target_of

texts = st.lists(st.integers(0, 3), min_size=1, max_size=9)


def row_of(name: str, drafter: Any, text: list[int]) -> np.ndarray:
    """Return a drafter's logits after a text."""
    if name == "reference":
        return np.asarray(drafter.logits(text, None))
    torch = pytest.importorskip("torch")
    tokens = torch.tensor([[*text, 0, 0]])
    return as_numpy(drafter.logits(tokens, None, torch.tensor([len(text)]), 1))[0]


def drafters_of(name: str, least: float, vocab_size: int = 4) -> Any:
    pkg = package(name)
    return pkg.FirstOf((pkg.PromptLookup(vocab_size, 3, 2), bigrams(pkg, vocab_size)), least)


@pytest.mark.parametrize("name", PACKAGES)
@given(text=texts, least=st.sampled_from([0.01, 0.3, 0.45, 1.0]))
def test_the_first_drafter_that_is_sure_proposes(name: str, text: list[int], least: float) -> None:
    both = drafters_of(name, least)
    expected = np.full(4, -np.inf)
    for drafter in reversed(both.drafters):
        row = row_of(name, drafter, text)
        expected = row if np.exp(row.max()) >= least else expected
    assert row_of(name, both, text).tolist() == expected.tolist()


@pytest.mark.parametrize("name", PACKAGES)
def test_a_step_without_a_sure_draft_is_a_plain_step(name: str) -> None:
    pkg = package(name)
    model = target_of(pkg)
    sure, unsure = (pkg.SpeculativeSampling(model, drafters_of(name, least, 3)) for least in (0.01, 1.0))
    assert pkg.generate(unsure, [0], 9, seed=1).num_draft_tokens < pkg.generate(sure, [0], 9, seed=1).num_draft_tokens
    never = replace(unsure, drafter=pkg.FirstOf((bigrams(pkg, 3),), 1.0))
    assert pkg.generate(never, [0], 9, seed=1).num_positions == 9
    assert_exact(pkg, sure, {"max_new_tokens": 5})


@pytest.mark.parametrize("name", PACKAGES)
def test_drafters_that_cost_passes_or_do_not_go_together_are_refused(name: str) -> None:
    pkg = package(name)
    other = pkg.ModelDrafter(table(pkg, num_lookahead=0))
    for drafters in ((), (pkg.PromptLookup(3), pkg.PromptLookup(4)), (pkg.PromptLookup(3), other)):
        with pytest.raises(ValueError, match=r"^drafters: found .*, expected free ones over one vocabulary$"):
            pkg.FirstOf(drafters)
    with pytest.raises(ValueError, match=r"^least: found 0, expected a number above 0 and at most 1$"):
        pkg.FirstOf((pkg.PromptLookup(3),), 0)


@pytest.mark.torch
@given(texts, st.sampled_from([0.01, 0.3, 0.45, 1.0]), st.integers(1, 3))
def test_the_likeliest_token_is_that_of_the_logits(text: list[int], least: float, shortest: int) -> None:
    import torch

    pkg = package("gpu")
    asked = torch.tensor([[*text, 0, 0], [*text[::-1], 0, 0]]), None, torch.tensor([len(text), 1]), 1
    for drafter in (pkg.PromptLookup(4, 3, shortest), bigrams(pkg, 4), drafters_of("gpu", least)):
        token, logit = drafter.best(*asked)
        rows = drafter.logits(*asked)
        assert logit.tolist() == rows.amax(dim=1).tolist()
        proposed = logit.isfinite()
        assert token[proposed].tolist() == rows.argmax(dim=1)[proposed].tolist()


CASE = Configuration("a transformer", TINY, seed=3, num_draft=3)


def with_free_drafts(pkg: Any, least: float = 0.25, **changes: Any) -> Any:
    method = CASE.method(pkg, "pass-one-call+lookup", "token")
    lookup = {"drafter": pkg.FirstOf((pkg.PromptLookup(3, 3, 2),))}
    return replace(method, refinement=replace(method.refinement, least=least, **(lookup | changes)))


@pytest.mark.parametrize("name", PACKAGES)
def test_a_free_drafter_drafts_where_it_is_sure_and_the_model_where_it_is_not(name: str) -> None:
    pkg = package(name)
    num_drafts = [
        pkg.generate(with_free_drafts(pkg, least), [0, 1], 30, seed=2).num_draft_tokens for least in (0.01, 1)
    ]
    alone = pkg.generate(with_free_drafts(pkg, 1.0), [0, 1], 30, seed=2, trace=True)
    assert num_drafts[0] > num_drafts[1] > 0
    drafter, tokens = with_free_drafts(pkg).refinement.drafter, [*alone.prompt]
    for record in alone.records:
        for i, token in enumerate(record.draft_tokens):
            row = row_of(name, drafter, [*tokens, *record.draft_tokens[:i]])
            assert row[token] > -np.inf, "a draft that the free drafter does not propose"
        tokens += record.tokens


@pytest.mark.parametrize("name", PACKAGES)
def test_what_does_not_go_before_a_models_own_drafts_is_refused(name: str) -> None:
    pkg = package(name)
    costly, rescored = pkg.ModelDrafter(table(pkg, num_lookahead=0)), CASE.method(pkg, "blockwise+ngram", "token")
    for changes, message in (
        ({"drafter": costly}, r"^drafter: found '.*', which runs a model, expected a free one$"),
        ({"drafter": pkg.PromptLookup(4)}, r"^drafter: found 4 tokens, expected 3$"),
        (
            {"drafts": rescored.refinement},
            r"^drafts: found rescored drafts, expected a head or look-ahead rows as they ",
        ),
        ({"least": 0}, r"^least: found 0, expected a number above 0 and at most 1$"),
    ):
        with pytest.raises(ValueError, match=message):
            with_free_drafts(pkg, **changes)
