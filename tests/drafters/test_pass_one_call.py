"""PaSS in one call per step: its distribution, its drafts, what its rows see, and what they leave."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import pass_sampling.reference as reference
from folders import as_numpy, module
from models import PACKAGES, exact_target, package, table, transformer
from pass_sampling.reference.exactness.distribution import OutputDistribution, output_distribution

EXACT = 1e-12
PROMPT = (1, 0)
KINDS = ("vectors", "adapter", "head", "adapter and head", "head alone")


@pytest.fixture(params=PACKAGES)
def pkg(request: pytest.FixtureRequest) -> Any:
    return package(request.param)


def lookahead_of(pkg: Any, model: Any, kind: str, num_lookahead: int = 2, seed: int = 7) -> Any:
    """Vectors, random parts beside them, none trained."""
    parts: dict[str, Any] = {}
    if "adapter" in kind:
        parts["adapter"] = pkg.Adapter.random(model.config, 2, seed)
    if "head" in kind:
        head = pkg.SamplerHead.random(model.hidden_size, 5, seed)
        parts["head"] = replace(head, alone="alone" in kind)
    return replace(pkg.LookAhead.random(num_lookahead, model.hidden_size, seed), **parts)


def fused(pkg: Any, kind: str = "vectors", num_lookahead: int = 2, seed: int = 4, **settings: Any) -> Any:
    shape = settings.pop("shape", {})
    model = transformer(pkg, seed, **shape)
    return pkg.FusedPaSS(model, lookahead_of(pkg, model, kind, num_lookahead), **settings)


def distribution_of(pkg: Any, method: Any, ending: dict[str, Any], **options: Any) -> OutputDistribution:
    return output_distribution(method, PROMPT, pkg.Ending(**ending), **options)


# --- The distribution ---


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("rule", ["token", "block", "match"])
@pytest.mark.parametrize("num_lookahead", [1, 2])
def test_the_distribution_is_the_targets_whatever_drafts_are_made_of(
    pkg: Any, kind: str, rule: str, num_lookahead: int
) -> None:
    ending = {"max_new_tokens": 4}
    distribution = distribution_of(pkg, fused(pkg, kind, rule=rule), ending)
    target = exact_target(transformer(reference, 4), reference.SamplingConfig(), PROMPT, reference.Ending(**ending))
    assert distribution.largest_deviation(target) <= EXACT
    assert sum(count > 0 for count in distribution.verified) >= 2


@pytest.mark.parametrize("groups", [(), (0,), (1,), (0, 2), (2, 1, 0)])
def test_the_distribution_is_the_targets_wherever_groups_hang(pkg: Any, groups: tuple[int, ...]) -> None:
    ending = {"max_new_tokens": 6}
    model = table(pkg, seed=12)
    distribution = distribution_of(pkg, pkg.FusedPaSS(model, model.lookahead(), groups=groups), ending)
    target = exact_target(table(reference, seed=12), reference.SamplingConfig(), PROMPT, reference.Ending(**ending))
    assert distribution.largest_deviation(target) <= EXACT
    assert (distribution.expected["num_draft_tokens"] > 0) == (0 in groups), "the first group hangs after no draft"


@pytest.mark.parametrize("weight", [0.0, 0.7, -2.0])
def test_an_ngram_model_may_refine(pkg: Any, weight: float) -> None:
    """Any weight: the distribution of the text does not depend on it, how many drafts are accepted does."""
    ngrams = module(pkg.__name__.rpartition(".")[2], "drafters.ngram")
    unigram = np.array([0.2, 0.5, 0.3], np.float32)
    if pkg.__name__.endswith("gpu"):
        unigram = __import__("torch").from_numpy(unigram)
    refine = module(pkg.__name__.rpartition(".")[2], "lookahead.refinement").NgramRefinement(
        ngrams.NgramModel(unigram), weight
    )
    with pytest.raises(ValueError, match=r"^the n-gram model has vocab_size 3, expected 4 as in the model"):
        pkg.FusedPaSS(table(pkg, vocab_size=4), table(pkg, vocab_size=4).lookahead(), refinement=refine)
    ending = {"max_new_tokens": 5}
    model = table(pkg, seed=3, zeros=0.0)
    distribution = distribution_of(pkg, pkg.FusedPaSS(model, model.lookahead(), refinement=refine), ending)
    target = exact_target(
        table(reference, seed=3, zeros=0.0), reference.SamplingConfig(), PROMPT, reference.Ending(**ending)
    )
    assert distribution.largest_deviation(target) <= EXACT


@pytest.mark.parametrize("kind", ["vectors", "adapter and head", "head alone"])
def test_merging_states_assumes_nothing_false(pkg: Any, kind: str) -> None:
    """States of one text have the same rows in store, so an enumeration that merges none finds the same counts."""
    method = fused(pkg, kind)
    merged, unmerged = (distribution_of(pkg, method, {"max_new_tokens": 4}, merge=merge) for merge in (True, False))
    assert merged.expected == pytest.approx(dict(unmerged.expected), abs=EXACT)
    assert merged.largest_deviation(unmerged) <= EXACT


# --- One call, and where drafts come from ---


@pytest.mark.parametrize("kind", KINDS)
def test_every_step_is_one_call(pkg: Any, kind: str) -> None:
    result = pkg.generate(fused(pkg, kind, 3), PROMPT, 40, (), seed=2)
    assert all(record.num_forward_passes == 1 for record in result.records)
    assert result.num_forward_passes == len(result.records) == 40 - result.num_accepted_tokens
    first, *middle, _, _, _ = result.records
    rows = 0 if kind == "head alone" else 3
    assert first.num_positions == len(PROMPT) + rows and first.draft_tokens == ()
    assert all(each.num_positions == 4 * (1 + rows) for each in middle[:-4])


@pytest.mark.parametrize("shape", [{}, {"sliding_window": 3}])
def test_drafts_have_the_distributions_of_a_draft_call_at_the_same_place(pkg: Any, shape: dict[str, Any]) -> None:
    """A group's rows are those that PaSS's separate call computes after the last draft that survived."""
    method = fused(pkg, num_lookahead=3, shape=shape)
    port, seen = pkg.__name__.endswith("gpu"), set()
    state = method.start(PROMPT, pkg.Ending(60))
    for step in range(13):
        uniforms = np.random.default_rng(step).random(method.num_uniforms)
        state, record = method.step(state, __import__("torch").tensor(uniforms[None]) if port else uniforms)
        record = record.rows()[0] if port else record
        seen.add(record.num_accepted)
        text = [*PROMPT, *state.new_tokens][:-1]
        model, vectors = method.model, method.vectors
        embedded = model.embed([text] if port else text)
        if port:
            torch = __import__("torch")
            fed = torch.cat([embedded, vectors[None]], dim=1)
            rows = model.hidden(fed, model.new_cache(fed.shape[1]))[0]
            lookahead_hidden = state.lookahead_hidden[0]
        else:
            fed = np.concatenate([embedded, vectors])
            rows, lookahead_hidden = model.hidden(fed, model.new_cache()), state.lookahead_hidden
        assert np.allclose(as_numpy(rows[-4:]), as_numpy(lookahead_hidden), rtol=0, atol=1e-10)
    assert len(seen) > 1


@pytest.mark.parametrize("kind", KINDS)
def test_nothing_but_the_text_stays_in_the_cache(pkg: Any, kind: str) -> None:
    method = fused(pkg, kind, 3)
    port = pkg.__name__.endswith("gpu")
    state = method.start(PROMPT, pkg.Ending(40))
    for step in range(8):
        uniforms = np.random.default_rng(step).random(method.num_uniforms)
        state, _ = method.step(state, __import__("torch").tensor(uniforms[None]) if port else uniforms)
        text = [*PROMPT, *state.new_tokens][:-1]
        fresh = method.model.new_cache(len(text))
        method.model.hidden(method.model.embed([text] if port else text), fresh)
        held = int(state.cache.lengths[0]) if port else state.cache.length
        assert held == len(text) and state.cache.agrees(fresh)


@pytest.mark.parametrize("kind", KINDS)
def test_what_look_ahead_rows_are_fed_changes_no_bit_of_the_text_rows(pkg: Any, kind: str) -> None:
    """Other vectors, of whatever finite size, and another adapter: the same rows of the text, bit for bit."""
    model = transformer(pkg, 4)
    port = pkg.__name__.endswith("gpu")
    found = []
    for seed, scale in ((7, 1.0), (8, 1e30)):
        vectors = lookahead_of(pkg, model, kind, 2, seed)
        vectors = replace(vectors, vectors=vectors.vectors * scale)
        method = pkg.FusedPaSS(model, vectors)
        state = method.start((0, 2, 1), pkg.Ending(9))
        uniforms = np.full(method.num_uniforms, 0.37)
        after, record = method.step(state, __import__("torch").tensor(uniforms[None]) if port else uniforms)
        record = record.rows()[0] if port else record
        cache = after.cache
        found.append((record.tokens, record.log_probs, as_numpy(cache.keys)[..., :3, :].tobytes()))
    assert found[0] == found[1]


# --- Batches, and the other package ---


def course(record: Any) -> tuple[Any, ...]:
    return record.tokens, record.sources, record.draft_tokens, record.num_accepted, record.num_positions


@pytest.mark.parametrize("kind", ["vectors", "adapter and head", "head alone"])
def test_rows_side_by_side_are_the_rows_alone(pkg: Any, kind: str) -> None:
    """Prompts of different lengths begin together: each row's groups hang after its own text."""
    method = fused(pkg, kind, 3)
    prompts = [[1], [2, 0, 1, 2, 2], [0, 0]]
    batch = pkg.generate_batch(method, prompts, 20, (0,), seed=5)
    for request, (prompt, result) in enumerate(zip(prompts, batch, strict=True)):
        alone = pkg.generate(method, prompt, 20, (0,), seed=5, request=request)
        assert [course(record) for record in alone.records] == [course(record) for record in result.records]


@pytest.mark.torch
@settings(max_examples=20)
@given(
    seed=st.integers(0, 2**32),
    kind=st.sampled_from(KINDS),
    rule=st.sampled_from(["token", "block", "match"]),
    temperature=st.sampled_from([0.0, 0.7, 1.0]),
    window=st.sampled_from([None, 3]),
)
def test_both_packages_write_the_same_text(
    seed: int, kind: str, rule: str, temperature: float, window: int | None
) -> None:
    results = []
    for name in PACKAGES:
        pkg = package(name)
        options = {"rule": rule, "sampling": pkg.SamplingConfig(temperature), "shape": {"sliding_window": window}}
        results.append(pkg.generate(fused(pkg, kind, 3, **options), [0, 2, 1], 20, (), seed=seed))
    one, two = results
    assert [course(record) for record in one.records] == [course(record) for record in two.records]
    assert np.allclose(one.log_probs, two.log_probs, rtol=0, atol=1e-10)


def test_greedy_text_is_plain_decodings(pkg: Any) -> None:
    greedy = pkg.SamplingConfig(0.0)
    plain = pkg.generate(pkg.Autoregressive(transformer(pkg, 4), greedy), PROMPT, 40, ()).tokens
    for kind in KINDS:
        assert pkg.generate(fused(pkg, kind, 3, sampling=greedy), PROMPT, 40, ()).tokens == plain


# --- Refusals ---


@pytest.mark.parametrize("groups", [(3,), (-1,), (0, 0)])
def test_groups_that_cannot_be_are_refused(pkg: Any, groups: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=r"^groups: found .*, expected different numbers of drafts, 0 to 2$"):
        fused(pkg, groups=groups)


def test_parts_of_another_model_are_refused(pkg: Any) -> None:
    model = transformer(pkg, 4)
    other = lookahead_of(pkg, transformer(pkg, 4, num_hidden_layers=1), "adapter")
    with pytest.raises(ValueError, match="the look-ahead adapter has the shapes of another model, expected those of"):
        pkg.FusedPaSS(model, other)
    narrow = replace(lookahead_of(pkg, model, "vectors"), head=pkg.SamplerHead.random(model.hidden_size - 1, 5, 7))
    with pytest.raises(ValueError, match=r"^the sampler head reads hidden states of width \d+, expected \d+$"):
        pkg.FusedPaSS(model, narrow)
    with pytest.raises(ValueError, match="num_lookahead: found 3, expected an integer from 0 to 2"):
        pkg.FusedPaSS(model, lookahead_of(pkg, model, "vectors"), num_lookahead=3)
    with pytest.raises(ValueError, match="rule: found 'guess', expected one of block, match, token"):
        pkg.FusedPaSS(model, lookahead_of(pkg, model, "vectors"), rule="guess")


@pytest.mark.parametrize("kind", ["adapter", "head", "head alone"])
def test_pass_as_published_refuses_parts_that_it_would_ignore(pkg: Any, kind: str) -> None:
    """Vectors that were trained with other parts are poor drafts without them."""
    model = transformer(pkg, 4)
    lookahead = lookahead_of(pkg, model, kind)
    with pytest.raises(ValueError, match=r"^lookahead: found vectors trained with an adapter or a head, .* FusedPaSS"):
        pkg.PaSS(model, lookahead)
    pkg.PaSS(model, replace(lookahead, adapter=None, head=None))
