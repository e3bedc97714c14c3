"""Drafts among few tokens: their distribution, which tokens they choose from, what they cost, and the other package."""

from __future__ import annotations

import timeit
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import pass_sampling.reference as reference
from draft_folders import refused, tensors, trained
from folders import as_numpy, both_packages, module, write_checkpoint
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
each_part = pytest.mark.parametrize("parts", ["vectors", "adapter and head", "head alone"])
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


@pytest.mark.parametrize("tokens", [(1,), (0, 2)])
@each_part
@pytest.mark.parametrize(
    ("shape", "rule"),
    [(None, "token"), (None, "block"), (None, "match"), ((2,), "without-replacement"), ((2,), "k-seq")],
    ids=str,
)
def test_the_distribution_is_the_targets(pkg: Any, tokens: Any, parts: str, shape: Any, rule: str) -> None:
    method = restricted(pkg, tokens, parts, shape, vocab_size=3, rule=rule)
    assert_exact(pkg, method, {"max_new_tokens": 4}, "transformer")


@each_part
@each_shape
def test_a_draft_vocabulary_of_all_tokens_changes_nothing(pkg: Any, parts: str, shape: Any) -> None:
    methods = [restricted(pkg, tokens, parts, shape) for tokens in (range(11), None)]
    same_course(*(pkg.generate(method, PROMPT, 40, (), seed=2, trace=True) for method in methods))


@pytest.mark.parametrize("tokens", [(4,), (0, 2, 3, 10), tuple(range(1, 11)), None])
@each_part
@each_shape
def test_every_draft_has_the_distribution_of_the_head_along_its_own_path(
    pkg: Any, tokens: Any, parts: str, shape: Any
) -> None:
    """Among the draft vocabulary, by the specification's model; the head starts anew at every path."""
    method, model = restricted(pkg, tokens, parts, shape), target_of(reference, "transformer", vocab_size=11)
    head = None
    if parts != "vectors":
        weights = method.refinement.head.tensors().items()
        head = reference.SamplerHead.of({name: as_numpy(each) for name, each in weights})
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
    parts=st.sampled_from(["vectors", "adapter and head", "head alone"]),
    sampling=st.sampled_from([{}, {"temperature": 0.0}, {"temperature": 0.7, "top_k": 3}, {"top_p": 0.8}]),
    **BATCHES,
)
def test_a_batch_of_the_port_is_the_reference_row_by_row(
    tokens: Any, shape: Any, parts: str, sampling: dict[str, Any], **batch: Any
) -> None:
    def make(pkg: Any) -> Any:
        return restricted(pkg, tokens, parts, shape, sampling=sampling)

    assert_batches_agree(make, **batch, in_order=shape is None)


def test_logits_of_some_tokens_are_those_among_all(pkg: Any) -> None:
    generator = np.random.default_rng(3)
    for model in (transformer(pkg, 4, vocab_size=11), table(pkg, vocab_size=11)):
        width = 11 if model.name == "table" else model.hidden_size
        hidden = array_of(pkg, generator.standard_normal((2, 3, width)))
        for tokens in ([4], [0, 3, 9]):
            some, every = as_numpy(model.logits_of(hidden, array_of(pkg, np.array(tokens)))), model.logits(hidden)
            assert np.allclose(some, as_numpy(every)[..., tokens], rtol=0, atol=EXACT)


# --- In a folder ---


@both_packages
@pytest.mark.parametrize("parts", ["vectors", "adapter and head", "head alone"])
def test_a_folder_keeps_it_and_both_packages_read_it(package: str, parts: str, tmp_path: Path) -> None:
    made = replace(trained(package, parts), draft_vocab=[0, 2, 5])
    made.save(tmp_path / "parts")
    for reader in ("reference", "gpu") if package == "gpu" else ("reference",):
        found = module(reader, "lookahead.vectors").LookAhead.load(tmp_path / "parts")
        assert as_numpy(found.draft_vocab).tolist() == [0, 2, 5]
        assert np.array_equal(as_numpy(found.vectors), as_numpy(made.vectors))


ASCENDING = "draft_vocab: found something else, expected token ids in ascending order, each once"


@both_packages
@pytest.mark.parametrize("tokens", [[], [3, 1], [1, 1], [-1, 2], [0.5], [[1, 2]]], ids=str)
def test_tokens_that_are_no_draft_vocabulary_are_refused(package: str, tokens: Any) -> None:
    with pytest.raises(ValueError) as error:
        replace(trained(package), draft_vocab=tokens)
    assert str(error.value) == ASCENDING


@both_packages
@pytest.mark.parametrize(
    ("array", "message"),
    [
        (np.array([2, 1], np.int32), ASCENDING),
        (np.array([[1]], np.int32), "holds I32 [1, 1] as 'draft_vocab', expected I32 [1]"),
        (np.array([1], np.int64), "holds I64 [1] as 'draft_vocab', expected I32 [1]"),
    ],
    ids=str,
)
def test_a_folder_with_another_is_refused(package: str, array: Any, message: str, tmp_path: Path) -> None:
    trained(package).save(tmp_path / "parts")
    load = module(package, "lookahead.vectors").LookAhead.load
    assert message in refused(load, tmp_path / "parts", tensors({"draft_vocab": array}))


@both_packages
def test_a_token_beyond_the_models_vocabulary_is_refused(package: str, tmp_path: Path) -> None:
    model = module(package, "checkpoint.load").load_model(write_checkpoint(tmp_path))
    lookahead = replace(trained(package, "vectors"), draft_vocab=[1, model.vocab_size], fingerprint=None)
    with pytest.raises(ValueError) as error:
        lookahead.check(model)
    expected = f"draft_vocab: found the token {model.vocab_size}, expected 0 to {model.vocab_size - 1}, the model's"
    assert str(error.value) == expected


@pytest.mark.slow
@pytest.mark.torch
def test_what_a_draft_costs() -> None:
    """Print microseconds on one thread at the sizes of a model of 1B parameters: `pytest -m slow -rP` shows them."""
    import torch

    from pass_sampling.gpu import SamplingConfig, probs_from_logits
    from pass_sampling.gpu.model.linear import Linear, rows_of

    weight, hidden = (torch.randn(rows, 2048, dtype=torch.bfloat16) for rows in (128_256, 1))
    every = Linear(weight)(hidden)
    tasks = {
        "logits": partial(Linear(weight), hidden),
        "the distribution": lambda: probs_from_logits(every, SamplingConfig(0.8, 10)),
    }
    for number in (512, 2048, 8192):
        tasks[f"logits of {number} tokens"] = partial(rows_of(weight, torch.arange(number)), hidden)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    fastest = {name: min(timeit.repeat(task, number=10, repeat=5)) * 1e5 for name, task in tasks.items()}
    torch.set_num_threads(threads)
    for name, microseconds in fastest.items():
        print(f"{name}: {microseconds:.0f} microseconds")
    assert fastest["logits of 512 tokens"] < fastest["logits"] / 20
