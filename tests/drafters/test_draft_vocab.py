"""Refined drafts scored over few tokens: their distribution, which tokens they choose from, and the other package."""

from __future__ import annotations

import timeit
from dataclasses import replace
from functools import partial
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import pass_sampling.reference as reference
from folders import as_numpy, both_packages, module
from models import table, transformer
from trees import (
    BATCHES,
    EXACT,
    PROMPT,
    array_of,
    assert_batches_agree,
    assert_exact,
    is_port,
    method_of,
    same_course,
    step,
    target_of,
)

SHAPES = (None, (1, 1), (2, 1), (2, (2, 1), 1))
each_part = pytest.mark.parametrize("parts", ["adapter and head", "head alone"])
each_shape = pytest.mark.parametrize("shape", SHAPES, ids=str)


def refined(
    pkg: Any, draft_vocab_size: int | None, parts: str = "head", shape: Any = None, vocab_size: int = 11, **options: Any
) -> Any:
    """Return the chain, or the tree of a shape, over a transformer with untrained parts."""
    name, shape = ("pass-one-call", (1, 1)) if shape is None else ("pass-one-call-tree", shape)
    model = target_of(pkg, "transformer", vocab_size=vocab_size)
    method = method_of(pkg, name, shape=shape, parts=parts, model=model, **options)
    return replace(method, refinement=replace(method.refinement, draft_vocab_size=draft_vocab_size))


@pytest.mark.parametrize("draft_vocab_size", [1, 2])
@each_part
@pytest.mark.parametrize(
    ("shape", "rule"),
    [(None, "token"), (None, "block"), (None, "match"), ((2,), "without-replacement"), ((2,), "k-seq")],
    ids=str,
)
def test_the_distribution_is_the_targets(pkg: Any, draft_vocab_size: int, parts: str, shape: Any, rule: str) -> None:
    method = refined(pkg, draft_vocab_size, parts, shape, vocab_size=3, rule=rule)
    assert_exact(pkg, method, {"max_new_tokens": 4}, "transformer")


@each_part
@each_shape
def test_a_draft_vocabulary_of_all_tokens_changes_nothing(pkg: Any, parts: str, shape: Any) -> None:
    methods = [refined(pkg, draft_vocab_size, parts, shape) for draft_vocab_size in (11, None)]
    same_course(*(pkg.generate(method, PROMPT, 40, (), seed=2, trace=True) for method in methods))


@pytest.mark.parametrize("draft_vocab_size", [1, 4, 10, None])
@each_part
@each_shape
def test_every_draft_has_the_distribution_of_the_head_along_its_own_path(
    pkg: Any, draft_vocab_size: int | None, parts: str, shape: Any
) -> None:
    """Its tokens are the likeliest of the row at its depth, by the specification's model; the head starts anew."""
    method, model = refined(pkg, draft_vocab_size, parts, shape), target_of(reference, "transformer", vocab_size=11)
    head = reference.SamplerHead.of({name: as_numpy(each) for name, each in method.refinement.head.tensors().items()})
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
            memory = head.start(rows[0])
            for place, last in enumerate((text[-1], *paths[-1][:-1])):
                hidden, memory = head.step(rows[1 + place], model.embed([last])[0], memory)
            kept = np.argsort(-model.logits(rows[len(paths[-1])]), kind="stable")[:draft_vocab_size]
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
    draft_vocab_size=st.sampled_from([1, 2, 5, 11]),
    shape=st.sampled_from(SHAPES),
    parts=st.sampled_from(["adapter and head", "head alone"]),
    sampling=st.sampled_from([{}, {"temperature": 0.0}, {"temperature": 0.7, "top_k": 3}, {"top_p": 0.8}]),
    **BATCHES,
)
def test_a_batch_of_the_port_is_the_reference_row_by_row(
    draft_vocab_size: int, shape: Any, parts: str, sampling: dict[str, Any], **batch: Any
) -> None:
    def make(pkg: Any) -> Any:
        return refined(pkg, draft_vocab_size, parts, shape, sampling=sampling)

    assert_batches_agree(make, **batch, in_order=shape is None)


@both_packages
@given(data=st.data(), number=st.integers(1, 8))
def test_equal_logits_are_kept_lowest_ids_first(package: str, data: st.DataObject, number: int) -> None:
    values = st.sampled_from([-np.inf, -1.0, 0.0, 0.5, 2.0])
    rows = np.array(data.draw(st.lists(st.lists(values, min_size=8, max_size=8), min_size=1, max_size=3)))
    array = rows if package == "reference" else __import__("torch").from_numpy(rows)
    found = as_numpy(module(package, "lookahead.refinement")._likeliest(array, number))
    for row, kept in zip(rows.tolist(), found.tolist(), strict=True):
        assert kept == sorted(sorted(range(8), key=lambda token: (-row[token], token))[:number])


def test_logits_of_some_tokens_are_those_among_all(pkg: Any) -> None:
    generator = np.random.default_rng(3)
    for model in (transformer(pkg, 4, vocab_size=11), table(pkg, vocab_size=11)):
        width = 11 if model.name == "table" else model.hidden_size
        hidden, tokens = generator.standard_normal((2, 3, width)), generator.integers(0, 11, (2, 3, 4))
        hidden, tokens = (array_of(pkg, each) for each in (hidden, tokens))
        some, every = as_numpy(model.logits_of(hidden, tokens)), as_numpy(model.logits(hidden))
        assert np.allclose(some, np.take_along_axis(every, as_numpy(tokens), axis=-1), rtol=0, atol=EXACT)


POSITIVE = "expected an integer from 1 to 2147483647"


@pytest.mark.parametrize(
    ("draft_vocab_size", "expected"),
    [(500, "expected at most 11, the vocabulary"), *((number, POSITIVE) for number in (0, -1, 2.0, True))],
)
def test_a_draft_vocabulary_that_cannot_be_is_refused(pkg: Any, draft_vocab_size: Any, expected: str) -> None:
    with pytest.raises(ValueError) as error:
        refined(pkg, draft_vocab_size)
    assert str(error.value) == f"draft_vocab_size: found {draft_vocab_size!r}, {expected}"


@pytest.mark.slow
@pytest.mark.torch
def test_a_draft_costs_the_same_whatever_the_vocabulary() -> None:
    """Print microseconds on one thread at the sizes of a model of 1B parameters: `pytest -m slow -rP` shows them."""
    import torch

    from pass_sampling.gpu import SamplingConfig, Transformer, probs_from_logits
    from pass_sampling.gpu.lookahead.refinement import _likeliest
    from pass_sampling.gpu.model.linear import Linear

    weight, hidden = (torch.randn(rows, 2048, dtype=torch.bfloat16) for rows in (128_256, 6))
    model: Any = SimpleNamespace(weights=SimpleNamespace(output=weight), _output=Linear(weight))
    every = Transformer.logits(model, hidden)
    tasks = {
        "logits, 1 row": lambda: Transformer.logits(model, hidden[:1]),
        "logits, 6 rows": lambda: Transformer.logits(model, hidden),
        "the 512 likeliest of 6 rows": lambda: _likeliest(every, 512),
        "the distribution of 1 row": lambda: probs_from_logits(every[:1], SamplingConfig(0.8, 10)),
    }
    for number in (8, 32, 128, 512):
        some = partial(Transformer.logits_of, model, hidden[:1], _likeliest(every[:1], number))
        tasks[f"logits_of {number} tokens, 1 row"] = some
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    fastest = {name: min(timeit.repeat(task, number=10, repeat=5)) * 1e5 for name, task in tasks.items()}
    torch.set_num_threads(threads)
    for name, microseconds in fastest.items():
        print(f"{name}: {microseconds:.0f} microseconds")
    assert fastest["logits_of 512 tokens, 1 row"] < fastest["logits, 1 row"] / 20
