"""Drafts among few tokens: their distribution, which tokens they choose from, what they cost, and the other package."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import pass_sampling.reference as reference
from coupled import assert_same
from draft_folders import trained
from folders import as_numpy, both_packages, module, write_checkpoint
from models import table, transformer
from trees import EXACT, PROMPT, array_of, assert_batches_agree, assert_exact, is_port, method_of, step, target_of

SHAPES = (None, (1, 1), (2, 1), (2, (2, 1), 1))
SOME_PARTS = ("vectors", "adapter and head", "head alone")
each_part = pytest.mark.parametrize("parts", SOME_PARTS)
each_shape = pytest.mark.parametrize("shape", SHAPES, ids=str)


def restricted(
    pkg: Any, tokens: Any, parts: str = "head", shape: Any = None, vocab_size: int = 11, **options: Any
) -> Any:
    """Return the chain, or the tree of a shape, over a transformer with untrained parts and a draft vocabulary."""
    name, shape = ("pass-one-call", (1, 1)) if shape is None else ("pass-one-call-tree", shape)
    model = target_of(pkg, "transformer", vocab_size=vocab_size)
    method = method_of(pkg, name, shape=shape, parts=parts, model=model, **options)
    tokens = None if tokens is None else array_of(pkg, np.array(tokens))
    return replace(method, lookahead=replace(method.lookahead, draft_vocab=tokens), refinement=None)


RULES = [(None, "token"), (None, "block"), ((2,), "without-replacement")]
OF_3_TOKENS = [
    (((1,), (0, 2))[(i + j) % 2], parts, *rule) for i, parts in enumerate(SOME_PARTS) for j, rule in enumerate(RULES)
]
OF_11_TOKENS = [
    (((4,), (0, 2, 3, 10), None)[(i + j) % 3], parts, shape)
    for i, parts in enumerate(SOME_PARTS)
    for j, shape in enumerate(SHAPES)
]


@pytest.mark.parametrize(("tokens", "parts", "shape", "rule"), OF_3_TOKENS)
def test_the_distribution_is_the_targets(pkg: Any, tokens: Any, parts: str, shape: Any, rule: str) -> None:
    method = restricted(pkg, tokens, parts, shape, vocab_size=3, rule=rule)
    assert_exact(pkg, method, {"max_new_tokens": 4}, "transformer")


@each_part
@each_shape
def test_a_draft_vocabulary_of_all_tokens_changes_nothing(pkg: Any, parts: str, shape: Any) -> None:
    methods = [restricted(pkg, tokens, parts, shape) for tokens in (range(11), None)]
    assert_same(*(pkg.generate(method, PROMPT, 40, (), seed=2, trace=True) for method in methods))


@pytest.mark.parametrize(("tokens", "parts", "shape"), OF_11_TOKENS)
def test_every_draft_has_the_distribution_of_the_head_along_its_own_path(pkg, tokens, parts, shape):
    """Among the draft vocabulary, by the specification's model; the head starts anew at every path."""
    method, model = restricted(pkg, tokens, parts, shape), target_of(reference, "transformer", vocab_size=11)
    head = None
    if parts != "vectors":
        weights = method.refinement.head.matrices.items()
        head = reference.SamplerHead({name: as_numpy(each) for name, each in weights})
    kept = list(range(11) if tokens is None else tokens)
    state, num_drafts = method.start(PROMPT, pkg.Ending(60)), 0
    for number in range(9):
        text, ahead = [*PROMPT, *state.new_tokens], state.lookahead_hidden
        rows = None if ahead is None else as_numpy(ahead[0] if is_port(pkg) else ahead)
        state, record = step(pkg, method, state, np.random.default_rng(number).random(method.num_uniforms))
        num_drafts += len(record.draft_tokens)
        paths: list[tuple[int, ...]] = []
        parents = record.draft_parents or range(-1, len(record.draft_tokens) - 1)
        for token, parent, prob in zip(record.draft_tokens, parents, record.draft_token_probs, strict=True):
            assert rows is not None
            siblings = [path[-1] for path, other in zip(paths, parents, strict=False) if other == parent]
            paths.append((*(paths[parent] if parent >= 0 else ()), token))
            hidden = rows[len(paths[-1])]
            memory = None if head is None else head.start(rows[0])
            for place, last in enumerate((text[-1], *paths[-1][:-1])):
                if head is not None:
                    hidden, memory = head.step(rows[1 + place], model.embed([last])[0], memory)
            assert token in kept
            logits = np.full(11, -np.inf)
            logits[kept] = model.logits(hidden)[kept]
            distribution = reference.probs_from_logits(logits, reference.SamplingConfig())
            distribution[siblings] = 0.0
            assert prob == pytest.approx(distribution[token] / distribution.sum(), abs=1e-10)
    assert num_drafts > 9


@pytest.mark.torch
@settings(max_examples=30)
@given(
    tokens=st.sampled_from([(3,), (0, 7), (1, 2, 5, 8, 9), tuple(range(11))]),
    shape=st.sampled_from(SHAPES),
    parts=st.sampled_from(SOME_PARTS),
    sampling=st.sampled_from([{}, {"temperature": 0.0}, {"temperature": 0.7, "top_k": 3}, {"top_p": 0.8}]),
    prompts=st.lists(st.lists(st.integers(0, 10), min_size=1, max_size=6), min_size=1, max_size=4),
    seed=st.integers(0, 2**32),
)
def test_a_batch_of_the_port_is_the_reference_row_by_row(tokens, shape, parts, sampling, prompts, seed):
    assert_batches_agree(lambda pkg: restricted(pkg, tokens, parts, shape, sampling=sampling), prompts, seed)


def test_logits_of_some_tokens_are_those_among_all(pkg: Any) -> None:
    generator = np.random.default_rng(3)
    for model in (transformer(pkg, 4, vocab_size=11), table(pkg, vocab_size=11)):
        width = 11 if model.name == "table" else model.hidden_size
        hidden = array_of(pkg, generator.standard_normal((2, 3, width)))
        for tokens in ([4], [0, 3, 9]):
            some, every = as_numpy(model.logits_of(hidden, array_of(pkg, np.array(tokens)))), model.logits(hidden)
            assert np.allclose(some, as_numpy(every)[..., tokens], rtol=0, atol=EXACT)


@both_packages
@pytest.mark.parametrize("tokens", [[], [3, 1], [1, 1], [-1, 2], [0.5], [[1, 2]]], ids=str)
def test_tokens_that_are_no_draft_vocabulary_are_refused(package: str, tokens: Any) -> None:
    with pytest.raises(ValueError) as error:
        replace(trained(package), draft_vocab=tokens)
    expected = "draft_vocab: found something else, expected token ids in ascending order, each once"
    assert str(error.value) == expected


@both_packages
def test_a_token_beyond_the_models_vocabulary_is_refused(package: str, tmp_path: Path) -> None:
    model = module(package, "checkpoint.load").load_model(write_checkpoint(tmp_path))
    lookahead = replace(trained(package, "vectors"), draft_vocab=[1, model.vocab_size], fingerprint=None)
    with pytest.raises(ValueError) as error:
        lookahead.check(model)
    expected = f"draft_vocab: found the token {model.vocab_size}, expected 0 to {model.vocab_size - 1}, the model's"
    assert str(error.value) == expected
