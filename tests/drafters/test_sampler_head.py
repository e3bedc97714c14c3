"""The sampler head: one row after another, each given the token before its own and the state that the others left."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from folders import as_numpy, both_packages, module
from pass_sampling.reference.lookahead.head import EPSILON, tensor_shapes
from passes import difference, same_bits

EXACT = 1e-12  # numbers of order 10 from sums of a hundred products, in float64
sizes = {"hidden_size": st.integers(1, 12), "width": st.integers(1, 9), "seed": st.integers(0, 2**32)}


def head_of(package: str, hidden_size: int, width: int, seed: int) -> Any:
    head = module(package, "lookahead.head").SamplerHead.random(hidden_size, width, seed)
    return head.to(np.float64 if package == "reference" else __import__("torch").float64)


def inputs(hidden_size: int, seed: int, count: int = 4) -> list[np.ndarray]:  # [D], [K, D], [K, D]
    """Return a text row, look-ahead rows, and embeddings of the tokens before, some of them tiny or zero."""
    generator = np.random.default_rng(seed)
    shapes = (hidden_size,), (count, hidden_size), (count, hidden_size)
    real, hidden, embeddings = (generator.standard_normal(shape) for shape in shapes)
    embeddings *= np.resize([1.0, 1e-3, 0.0, 30.0], count)[:, None]
    return [real, hidden, embeddings]


def run(package: str, head: Any, real: np.ndarray, hidden: np.ndarray, embeddings: np.ndarray) -> np.ndarray:  # [K, D]
    """Refine rows left to right."""
    as_array: Any = np.asarray if package == "reference" else __import__("torch").from_numpy
    memory, rows = head.start(as_array(real)), []
    for row, embedding in zip(hidden, embeddings, strict=True):
        refined, memory = head.step(as_array(row), as_array(embedding), memory)
        rows.append(as_numpy(refined))
    return np.stack(rows)


@both_packages
@given(**sizes)
def test_it_is_its_equation(package: str, hidden_size: int, width: int, seed: int) -> None:
    head, (real, hidden, embeddings) = head_of(package, hidden_size, width, seed), inputs(hidden_size, seed)
    first, inner, out = (as_numpy(tensor) for tensor in (head.first, head.inner, head.out))
    state, expected = first @ real, []
    for row, embedding in zip(hidden, embeddings, strict=True):
        token = embedding / np.sqrt((embedding**2).mean() + EPSILON)
        x = inner[:, :hidden_size] @ row + inner[:, hidden_size:-width] @ token + inner[:, -width:] @ state
        state = x / (1 + np.exp(-x))
        expected.append(row + out @ state)
    assert difference(run(package, head, real, hidden, embeddings), np.stack(expected)) <= EXACT


@pytest.mark.torch
@given(**sizes)
def test_both_packages_draw_and_compute_the_same(hidden_size: int, width: int, seed: int) -> None:
    one, two = (head_of(package, hidden_size, width, seed) for package in ("reference", "gpu"))
    shapes = tensor_shapes(hidden_size, width)
    assert {name: array.shape for name, array in one.tensors().items()} == shapes
    assert all(same_bits(as_numpy(two.tensors()[name]), array) for name, array in one.tensors().items())
    assert one.width == two.width == width
    rows = inputs(hidden_size, seed)
    assert difference(run("gpu", two, *rows), run("reference", one, *rows)) <= EXACT


@pytest.mark.torch
@given(**sizes)
def test_rows_side_by_side_are_the_rows_alone(hidden_size: int, width: int, seed: int) -> None:
    """As training runs it: batch and anchors in front."""
    import torch

    head = head_of("gpu", hidden_size, width, seed)
    rows = [[inputs(hidden_size, seed + 3 * b + n) for n in range(3)] for b in range(2)]
    real, hidden, embeddings = (torch.from_numpy(np.array([[x[i] for x in line] for line in rows])) for i in range(3))
    memory, found = head.start(real), []
    for i in range(hidden.shape[2]):
        row, memory = head.step(hidden[:, :, i], embeddings[:, :, i], memory)
        found.append(row)
    for b in range(2):
        for n in range(3):
            alone = run("gpu", head, *rows[b][n])
            assert difference(torch.stack(found, dim=2)[b, n].numpy(), alone) <= EXACT


@both_packages
@given(**sizes)
def test_a_head_that_ends_in_zeros_changes_nothing(package: str, hidden_size: int, width: int, seed: int) -> None:
    head, rows = head_of(package, hidden_size, width, seed), inputs(hidden_size, seed)
    assert not np.array_equal(run(package, head, *rows), rows[1])
    assert np.array_equal(run(package, replace(head, out=0 * head.out), *rows), rows[1])


@both_packages
@given(seed=st.integers(0, 2**32), place=st.integers(0, 3))
def test_a_token_tells_its_own_draft_and_those_after_it(package: str, seed: int, place: int) -> None:
    head, (real, hidden, embeddings) = head_of(package, 12, 6, seed), inputs(12, seed)
    before = run(package, head, real, hidden, embeddings)
    embeddings[place] = 1 + np.random.default_rng(seed + 1).standard_normal(12)
    after = run(package, head, real, hidden, embeddings)
    assert same_bits(after[:place], before[:place])
    assert (np.abs(after - before).max(axis=1) > 1e-9)[place:].all()
    other = run(package, head, 1 + real, hidden, embeddings)
    assert (np.abs(other - after).max(axis=1) > 1e-9).all(), "the last text row tells every draft"


@both_packages
@pytest.mark.parametrize("uses_lookahead", [False, True])
def test_a_head_is_rebuilt_from_its_tensors(package: str, uses_lookahead: bool) -> None:
    home = module(package, "lookahead.head").SamplerHead
    head = replace(home.random(4, 3, 0), uses_lookahead=uses_lookahead)
    again = home.of(dict(reversed(head.tensors().items())), uses_lookahead)
    assert all(tensor is head.tensors()[name] for name, tensor in again.tensors().items())
    wider = head.to(np.float64 if package == "reference" else __import__("torch").float64)
    assert (again.uses_lookahead, wider.uses_lookahead, wider.width) == (uses_lookahead, uses_lookahead, 3)
