"""Refined drafts scored over a lattice: their distribution, which tokens they choose from, and the other package."""

from __future__ import annotations

import timeit
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import pass_sampling.reference as reference
from folders import as_numpy, both_packages, module
from models import PACKAGES, exact_target, package, table, transformer
from test_candidates_fused import PROMPT, in_slots
from test_draft_tree import assert_exact, distribution_of, is_port, same_course, step
from test_lookahead_fused import lookahead_of

KINDS = ("adapter and head", "head alone")
SHAPES = (None, (1, 1), (2, 1), (2, (2, 1), 1))
EXACT = 1e-12  # sums of some thousand products of numbers in [0, 1], each wrong by a few times 2^-53


@pytest.fixture(params=PACKAGES)
def pkg(request: pytest.FixtureRequest) -> Any:
    return package(request.param)


def method_of(
    pkg: Any, draft_vocab_size: int | None, kind: str = "head", shape: tuple[Any, ...] | None = None, **options: Any
) -> Any:
    """Return the chain, or the tree of a shape, over a transformer with untrained parts."""
    model = transformer(pkg, 4, vocab_size=options.pop("vocab_size", 3))
    vectors = lookahead_of(pkg, model, kind, 2 if shape is None else max(2, len(shape)))
    if shape is None:
        method = pkg.FusedPaSS(model, vectors, **options)
    else:
        method = pkg.FusedCandidates(model, vectors, num_candidates=shape, **options)
    return replace(method, refinement=replace(method.refinement, draft_vocab_size=draft_vocab_size))


@pytest.mark.parametrize("draft_vocab_size", [1, 2, 3])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    ("shape", "rule"),
    [(None, "token"), (None, "block"), (None, "match"), ((2,), "without-replacement"), ((2,), "k-seq")],
    ids=str,
)
def test_the_distribution_is_the_targets(pkg: Any, draft_vocab_size: int, kind: str, shape: Any, rule: str) -> None:
    ending = {"max_new_tokens": 4}
    target = exact_target(transformer(reference, 4), reference.SamplingConfig(), PROMPT, reference.Ending(**ending))
    assert_exact(distribution_of(pkg, method_of(pkg, draft_vocab_size, kind, shape, rule=rule), ending), target)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_a_lattice_of_all_tokens_changes_nothing(pkg: Any, kind: str, shape: Any) -> None:
    full, none = (
        pkg.generate(method_of(pkg, draft_vocab_size, kind, shape, vocab_size=11), PROMPT, 40, (), seed=2, trace=True)
        for draft_vocab_size in (11, None)
    )
    same_course(full, none)


@pytest.mark.parametrize("draft_vocab_size", [1, 4, 10])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_every_draft_has_the_refined_distribution_of_its_own_lattice(
    pkg: Any, draft_vocab_size: int, kind: str, shape: Any
) -> None:
    """The tokens are the likeliest of the row at its depth, by the specification's model; the head goes down anew."""
    method, model = (
        method_of(pkg, draft_vocab_size, kind, shape, vocab_size=11),
        transformer(reference, 4, vocab_size=11),
    )
    head = reference.SamplerHead.of({name: as_numpy(each) for name, each in method.refinement.head.tensors().items()})
    state, num_drafts = method.start(PROMPT, pkg.Ending(60)), 0
    for number in range(9):
        text = [*PROMPT, *state.new_tokens]
        rows = (
            None
            if state.lookahead_hidden is None
            else as_numpy(state.lookahead_hidden[0] if is_port(pkg) else state.lookahead_hidden)
        )
        state, record = step(pkg, method, state, np.random.default_rng(number).random(method.num_uniforms))
        num_drafts += len(record.draft_tokens)
        paths: list[tuple[int, ...]] = []
        parents = record.draft_parents or range(-1, len(record.draft_tokens) - 1)
        for token, parent, prob in zip(record.draft_tokens, parents, record.draft_token_probs, strict=True):
            assert rows is not None
            before = [path[-1] for path, other in zip(paths, parents, strict=False) if other == parent]
            paths.append((*(paths[parent] if parent >= 0 else ()), token))
            memory = head.start(rows[0])
            for place, last in enumerate((text[-1], *paths[-1][:-1])):
                refined, memory = head.step(rows[1 + place], model.embed([last])[0], memory)
            kept = np.argsort(-model.logits(rows[len(paths[-1])]), kind="stable")[:draft_vocab_size]
            assert token in kept
            logits = np.full(11, -np.inf)
            logits[kept] = model.logits(refined)[kept]
            distribution = reference.probs_from_logits(logits, reference.SamplingConfig())
            distribution[before] = 0.0
            assert prob == pytest.approx(distribution[token] / distribution.sum(), abs=1e-10)
    assert num_drafts > 9


@pytest.mark.torch
@settings(max_examples=30)
@given(
    seed=st.integers(0, 2**32),
    draft_vocab_size=st.sampled_from([1, 2, 5, 11]),
    shape=st.sampled_from(SHAPES),
    kind=st.sampled_from(KINDS),
    sampling=st.sampled_from([{}, {"temperature": 0.0}, {"temperature": 0.7, "top_k": 3}, {"top_p": 0.8}]),
    prompts=st.lists(st.lists(st.integers(0, 10), min_size=1, max_size=6), min_size=1, max_size=4),
    eos=st.sampled_from([(), (1,)]),
)
def test_a_batch_of_the_port_is_the_reference_row_by_row(
    seed: int,
    draft_vocab_size: int,
    shape: Any,
    kind: str,
    sampling: dict[str, Any],
    prompts: list[list[int]],
    eos: tuple[int, ...],
) -> None:
    results = []
    for name in PACKAGES:
        pkg = package(name)
        method = method_of(pkg, draft_vocab_size, kind, shape, vocab_size=11, sampling=pkg.SamplingConfig(**sampling))
        results.append(pkg.generate_batch(method, prompts, 14, eos, seed=seed, trace=True))
    for one, other in zip(*results, strict=True):
        same_course(in_slots(one), in_slots(other))


@both_packages
@given(data=st.data(), number=st.integers(1, 8))
def test_equal_logits_are_kept_lowest_ids_first(package: str, data: st.DataObject, number: int) -> None:
    values = st.sampled_from([-np.inf, -1.0, 0.0, 0.5, 2.0])
    rows = data.draw(st.lists(st.lists(values, min_size=8, max_size=8), min_size=1, max_size=3))
    array = (
        np.array(rows)
        if package == "reference"
        else __import__("torch").tensor(rows, dtype=__import__("torch").float64)
    )
    found = as_numpy(module(package, "lookahead.refinement")._likeliest(array, number))
    for row, kept in zip(rows, found.tolist(), strict=True):
        assert kept == sorted(sorted(range(8), key=lambda token: (-row[token], token))[:number])


def test_logits_of_some_tokens_are_those_among_all(pkg: Any) -> None:
    generator = np.random.default_rng(3)
    for model in (transformer(pkg, 4, vocab_size=11), table(pkg, vocab_size=11)):
        width = 11 if model.name == "table" else model.hidden_size
        hidden, tokens = generator.standard_normal((2, 3, width)), generator.integers(0, 11, (2, 3, 4))
        if is_port(pkg):
            hidden, tokens = (__import__("torch").from_numpy(each) for each in (hidden, tokens))
        some, all_ = as_numpy(model.logits_of(hidden, tokens)), as_numpy(model.logits(hidden))
        assert np.allclose(some, np.take_along_axis(all_, as_numpy(tokens), axis=-1), rtol=0, atol=EXACT)


@pytest.mark.parametrize(
    ("draft_vocab_size", "message"),
    [
        (500, "draft_vocab_size: found 500, expected at most 3, the vocabulary"),
        (0, "draft_vocab_size: found 0, expected an integer from 1 to 2147483647"),
        (-1, "draft_vocab_size: found -1, expected an integer from 1 to 2147483647"),
        (2.0, "draft_vocab_size: found 2.0, expected an integer from 1 to 2147483647"),
        (True, "draft_vocab_size: found True, expected an integer from 1 to 2147483647"),
    ],
)
def test_a_lattice_that_cannot_be_is_refused(pkg: Any, draft_vocab_size: Any, message: str) -> None:
    with pytest.raises(ValueError) as error:
        method_of(pkg, draft_vocab_size)
    assert str(error.value) == message


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
        tokens = _likeliest(every[:1], number)
        tasks[f"logits_of {number} tokens, 1 row"] = lambda tokens=tokens: Transformer.logits_of(
            model, hidden[:1], tokens
        )
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        fastest = {name: min(timeit.repeat(task, number=10, repeat=5)) * 1e5 for name, task in tasks.items()}
    finally:
        torch.set_num_threads(threads)
    for name, microseconds in fastest.items():
        print(f"{name}: {microseconds:.0f} microseconds")
    assert fastest["logits_of 512 tokens, 1 row"] < fastest["logits, 1 row"] / 20
