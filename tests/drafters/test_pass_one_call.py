"""Methods of one call per step: their distribution, what their rows attend to, and what they leave in the cache."""

from dataclasses import fields, replace
from typing import Any

import numpy as np
import pytest

from folders import as_numpy
from lookaheads import PARTS
from models import table, transformer
from trees import (
    PROMPT,
    assert_exact,
    assert_states_may_be_merged,
    checked_steps,
    home,
    is_port,
    lookahead_of,
    method_of,
    step,
)

METHODS = ("pass-one-call", "pass-one-call-tree")
RULES = [(METHODS[0], "token"), (METHODS[0], "block"), (METHODS[1], "without-replacement")]  # the suite has all
each_method = pytest.mark.parametrize("name", METHODS)
each_part = pytest.mark.parametrize("parts", PARTS)
TOP_2 = {"draft_sampling": {"top_k": 2}}  # keeps an enumeration small; the target chooses among three tokens


@pytest.mark.parametrize(("name", "rule"), RULES)
@pytest.mark.parametrize("parts", [*PARTS, "n-grams"])
def test_the_distribution_is_the_targets_whatever_drafts_are_made_of(pkg, name, rule, parts):
    """It does not depend on the state of the head, rotary positions, or the mask of tree and groups."""
    method = method_of(pkg, name, "transformer", (2, 1), parts, rule=rule, **TOP_2)
    assert_exact(pkg, method, {"max_new_tokens": 4}, "transformer")


@pytest.mark.parametrize(("name", "rule"), RULES)
@pytest.mark.parametrize("groups", [(), (0,), (1,), (0, 2), (2, 1, 0)])
def test_the_distribution_is_the_targets_wherever_groups_are(pkg, name, rule, groups):
    method = method_of(pkg, name, shape=(2, 1), rule=rule, groups=groups, **TOP_2)
    distribution = assert_exact(pkg, method, {"max_new_tokens": 5}, verified_steps=0)
    assert (distribution.expected["num_draft_tokens"] > 0) == (0 in groups), "the first group follows no draft"


@pytest.mark.parametrize("weight", [0.0, 0.7, -2.0])
def test_an_ngram_model_may_refine_with_any_weight(pkg: Any, weight: float) -> None:
    ngrams, unigram = home(pkg, "drafters.ngram"), np.array([0.2, 0.5, 0.3], np.float32)
    refine = home(pkg, "lookahead.rescoring").ngram_refinement(ngrams.NgramModel(unigram), weight)
    with pytest.raises(ValueError, match=r"^the n-gram model has vocab_size 3, expected 4 as in the model"):
        method_of(pkg, "pass-one-call", model=table(pkg, vocab_size=4), refinement=refine)
    assert_exact(pkg, method_of(pkg, "pass-one-call", refinement=refine), {"max_new_tokens": 5})


@each_method
@pytest.mark.parametrize("parts", ["vectors", "adapter and head", "head alone"])
def test_the_enumeration_assumes_nothing_about_states(pkg: Any, name: str, parts: str) -> None:
    assert_states_may_be_merged(pkg, method_of(pkg, name, "transformer", parts=parts, **TOP_2), {"max_new_tokens": 4})


@each_method
@each_part
def test_every_step_is_one_call(pkg: Any, name: str, parts: str) -> None:
    method = method_of(pkg, name, "transformer", (2, (1, 0), 2), parts)
    result = pkg.generate(method, PROMPT, 40, (), seed=2)
    assert all(record.num_forward_passes == 1 for record in result.records)
    assert result.num_forward_passes == len(result.records) == 40 - result.num_accepted_tokens
    first, *middle, _, _, _ = result.records
    rows = 0 if parts in ("head alone", "block heads") else 3
    assert first.num_positions == len(PROMPT) + rows and first.draft_tokens == ()
    places = 1 + 3 if name == "pass-one-call" else 1 + 2 + 1 + 2
    assert all(each.num_positions == places * (1 + rows) for each in middle[:-4])
    assert name == "pass-one-call" or middle[0].draft_parents == (-1, -1, 0, 2, 2)


@each_method
@pytest.mark.parametrize("parts", ["vectors", "adapter and head"])
@pytest.mark.parametrize("kind", ["transformer", "windowed"])
def test_drafts_come_from_the_rows_of_a_draft_call_at_the_same_place(pkg, name, parts, kind):
    """The rows that a step hands on are those that a call of their own computes after the last draft that survived."""
    method, seen = method_of(pkg, name, kind, (3, 2, 1), parts), set()
    model, vectors = method.model, method.vectors
    adapted = {} if method.adapter is None else {"adapter": method.adapter, "num_adapted": len(vectors)}
    for state, record in checked_steps(pkg, method, 12):
        seen.add(record.num_accepted)
        text = [*PROMPT, *state.new_tokens][:-1]
        if is_port(pkg):
            inputs = __import__("torch").cat([model.embed([text]), vectors[None]], dim=1)
            rows, ahead = model.hidden(inputs, model.new_cache(64), **adapted)[0], state.lookahead_hidden[0]
        else:
            inputs = np.concatenate([model.embed(text), vectors])
            rows, ahead = model.hidden(inputs, model.new_cache(), **adapted), state.lookahead_hidden
        np.testing.assert_allclose(as_numpy(ahead), as_numpy(rows)[-1 - len(vectors) :], rtol=0, atol=1e-10)
    assert len(seen) > 1


@each_method
@each_part
def test_nothing_but_the_text_stays_in_the_cache(pkg: Any, name: str, parts: str) -> None:
    for _ in checked_steps(pkg, method_of(pkg, name, "windowed", (2, 2), parts), 16):
        pass


@each_method
@each_part
def test_what_look_ahead_rows_are_fed_changes_no_bit_of_the_text_rows(pkg: Any, name: str, parts: str) -> None:
    """After one state, other vectors of whatever finite size and another adapter: the same rows of the text."""
    first, found = method_of(pkg, name, "transformer", (3, 2), parts), []
    uniforms = np.random.default_rng(2).random((2, first.num_uniforms))
    for seed, scale in ((7, 1.0), (8, 1e30)):
        vectors = lookahead_of(pkg, first.model, parts, 2, seed)
        vectors = replace(vectors, vectors=vectors.vectors * scale)
        second = replace(first, lookahead=vectors, refinement=first.refinement)
        state, _ = step(pkg, first, first.start((0, 2, 1), pkg.Ending(9)), uniforms[0])
        after, record = step(pkg, second, state, uniforms[1])
        assert record.draft_tokens
        cache, length = after.cache, 3 + len(after.new_tokens) - 1
        described = tuple(repr(getattr(record, each.name)) for each in fields(record))
        found.append((described, *(as_numpy(each)[..., :length, :].tobytes() for each in (cache.keys, cache.values))))
    assert found[0] == found[1]


@each_method
@pytest.mark.parametrize("groups", [(3,), (-1,), (0, 0)])
def test_groups_that_cannot_be_are_refused(pkg: Any, name: str, groups: tuple[int, ...]) -> None:
    with pytest.raises(ValueError) as error:
        method_of(pkg, name, "transformer", (2, 1), groups=groups)
    assert str(error.value) == f"groups: found {groups!r}, expected different numbers of drafts, 0 to 2"


def test_parts_of_another_model_are_refused(pkg: Any) -> None:
    model = transformer(pkg, 4)
    vectors = lookahead_of(pkg, model, "vectors")
    other = lookahead_of(pkg, transformer(pkg, 4, num_hidden_layers=1), "adapter")
    narrow = replace(vectors, head=pkg.SamplerHead.random(model.hidden_size - 1, 5, 7))
    for lookahead, options, message in (
        (other, {}, r"the look-ahead adapter has the shapes of another model, expected those of"),
        (narrow, {}, r"the sampler head reads hidden states of width \d+, expected \d+$"),
        (vectors, {"num_lookahead": 3}, r"num_lookahead: found 3, expected an integer from 0 to 2"),
        (vectors, {"rule": "guess"}, r"rule: found 'guess', expected one of block, match, token"),
    ):
        with pytest.raises(ValueError, match=f"^{message}"):
            pkg.PaSSOneCall(model, lookahead, **options)
    message = r"^num_candidates: found \(1, 1, 1\), expected at most 2 depths, one per look-ahead vector$"
    with pytest.raises(ValueError, match=message):
        pkg.PaSSOneCallTree(model, vectors, num_candidates=(1, 1, 1))


@pytest.mark.parametrize("parts", ["adapter", "head", "head alone"])
def test_pass_as_published_refuses_parts_that_it_would_ignore(pkg: Any, parts: str) -> None:
    """Vectors that were trained with other parts are poor drafts without them."""
    model = transformer(pkg, 4)
    lookahead = lookahead_of(pkg, model, parts)
    with pytest.raises(
        ValueError, match=r"^lookahead: found vectors trained with an adapter or a head, .* PaSSOneCall"
    ):
        pkg.PaSS(model, lookahead)
    pkg.PaSS(model, replace(lookahead, adapter=None, head=None))
