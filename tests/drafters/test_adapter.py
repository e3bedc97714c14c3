"""The look-ahead adapter: low-rank terms that the last rows of a pass go through, and the others never meet."""

from __future__ import annotations

import dataclasses
from functools import cache
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from folders import LINEAR, as_numpy, both_packages, module, tiny_config
from pass_sampling.reference.lookahead.adapter import tensor_shapes
from passes import Passes, difference, same_bits

EXACT = 1e-11  # hidden states of order 1, after inner ones of order 100, from a few hundred roundings of 2^-53
KINDS = {
    "llama, linear rope": tiny_config("llama", rope_scaling=LINEAR),
    "mistral, a window": tiny_config("mistral", sliding_window=3),
    "qwen2, biases": tiny_config("qwen2", attention_output_bias=True),
    "qwen3, norms": tiny_config("qwen3", sliding_window=4, sliding_layers=(True, False)),
}
DTYPES = [("reference", "float64"), ("reference", "float32")]
DTYPES += [("gpu", dtype) for dtype in ("float64", "float32", "bfloat16")]
kinds = st.sampled_from(sorted(KINDS))
on_dtypes = pytest.mark.parametrize(
    "package, dtype", [pytest.param(*each, marks=[pytest.mark.torch] if each[0] == "gpu" else []) for each in DTYPES]
)
seeds = st.integers(0, 2**32)


@cache
def model_of(package: str, kind: str, dtype: str = "float64") -> Passes:
    return Passes(package, KINDS[kind], dtype=dtype)


def adapter_of(model: Passes, rank: int, seed: int, scale: float = 1.0) -> Any:
    """Return a random adapter in a model's dtype; every matrix is scaled."""
    home = module("gpu" if model.port else "reference", "lookahead.adapter")
    drawn = home.Adapter.random(model.model.config, rank, seed)
    scaled = home.Adapter.of({name: scale * tensor for name, tensor in drawn.tensors().items()})
    return scaled.to(model.model.weights.embedding.dtype)


@st.composite
def calls(draw: Any) -> dict[str, Any]:
    """A pass as a step makes it: tokens that the model has not seen, drafts, and groups after some of them."""
    num_draft = draw(st.integers(0, 3))
    return {
        "kind": draw(kinds),
        "cached": draw(st.integers(0, 4)),
        "pending": draw(st.integers(1, 2)),
        "num_draft": num_draft,
        "places": draw(st.lists(st.integers(0, num_draft), unique=True, min_size=1)),
        "depth": draw(st.integers(1, 3)),
        "numbers": draw(seeds),
    }


class Call:
    """Such a pass of one model, with numbers in its rows: tokens, then a group of `depth` rows after some places."""

    def __init__(self, package: str, settings: dict[str, Any], dtype: str = "float64"):
        self.kind, cached, pending, num_draft, places, self.depth, numbers = settings.values()
        self.model = model = model_of(package, self.kind, dtype)
        self.num_groups, self.num_tokens = len(places), pending + num_draft
        home, depth = module(package, "methods.tree_shape"), self.depth
        chain = home.DraftTree((1,) * num_draft)
        if model.port:
            offsets, visible = home.layout(model.tensor(np.array([[pending]])), pending, chain, tuple(places), depth)
            self.positions, self.visible = cached + pending - 1 + as_numpy(offsets[0]), as_numpy(visible[0])
        else:
            self.positions, self.visible = home.layout(cached, pending, chain, range(num_draft + 1), places, depth)
        generator = np.random.default_rng(numbers)
        self.text = generator.integers(23, size=cached)
        self.rows = generator.standard_normal((len(self.positions), 24))
        self.num_adapted = len(self.positions) - self.num_tokens

    def run(self, adapter: Any, num_more: int = 0) -> Any:
        """Return the hidden states of the rows, the groups of which go through an adapter, and perhaps more rows."""
        model, cached = self.model, self.model.cache()
        if len(self.text):
            model.run(self.text, cached)
        num_adapted = self.num_adapted + num_more
        if not model.port:
            rows = self.rows.astype(model.model.weights.embedding.dtype)
            return model.model.hidden(rows, cached, self.positions, self.visible, adapter, num_adapted)
        inputs, places, seen = (model.tensor(each)[None] for each in (self.rows, self.positions, self.visible))
        return as_numpy(model.model.hidden(inputs, cached, places, seen, adapter, num_adapted)[0])


# --- What it is made of ---


@both_packages
@given(kind=kinds, rank=st.integers(1, 30), seed=seeds)
def test_every_layer_has_four_terms_of_the_rank(package: str, kind: str, rank: int, seed: int) -> None:
    home, config = module(package, "lookahead.adapter"), KINDS[kind]
    adapter = home.Adapter.random(config, rank, seed)
    shapes = tensor_shapes(module("reference", "lookahead.adapter").sizes_of(config), rank)
    tensors = adapter.tensors()
    assert {name: tuple(tensor.shape) for name, tensor in tensors.items()} == shapes
    assert len(shapes) == 8 * config.num_hidden_layers and adapter.rank == rank
    again = home.Adapter.of(dict(reversed(tensors.items()))).tensors()
    assert [(name, tensor is tensors[name]) for name, tensor in again.items()] == [(name, True) for name in tensors]
    term = adapter.layers[1].gate_up
    every = as_numpy(term(term.down.new_tensor(np.eye(24)) if package == "gpu" else np.eye(24, dtype=np.float32)))
    assert every.shape == (24, 40) and np.linalg.matrix_rank(every.astype(np.float64), tol=1e-5) <= rank


@pytest.mark.torch
@given(rank=st.integers(1, 5), seed=seeds)
def test_both_packages_draw_the_same(rank: int, seed: int) -> None:
    config = tiny_config()
    homes = [module(package, "lookahead.adapter") for package in ("reference", "gpu")]
    drawn = [home.Adapter.random(config, rank, seed).tensors() for home in homes]
    assert drawn[0].keys() == drawn[1].keys()
    assert all(same_bits(as_numpy(drawn[1][name]), array) for name, array in drawn[0].items())


# --- What it computes ---


@pytest.mark.torch
@given(settings=calls(), rank=st.integers(1, 4), seed=seeds)
def test_both_packages_compute_the_same(settings: dict[str, Any], rank: int, seed: int) -> None:
    calls = [Call(package, settings) for package in ("reference", "gpu")]
    ours, theirs = (call.run(adapter_of(call.model, rank, seed)) for call in calls)
    assert difference(theirs, ours) <= EXACT


def merged(model: Any, adapter: Any) -> Any:
    """Return a model of the port whose own matrices hold the terms of an adapter."""
    layers = tuple(
        dataclasses.replace(
            layer, **{name: getattr(layer, name) + term.up @ term.down for name, term in vars(terms).items()}
        )
        for layer, terms in zip(model.weights.layers, adapter.layers, strict=True)
    )
    return type(model)(model.config, dataclasses.replace(model.weights, layers=layers))


@pytest.mark.torch
@given(settings=calls(), rank=st.integers(1, 4), seed=seeds)
def test_adapted_rows_are_those_of_a_model_that_has_learnt_the_terms(
    settings: dict[str, Any], rank: int, seed: int
) -> None:
    """Its own matrices are W + up down, and it reads what the model before it has put into the cache."""
    call = Call("gpu", settings)
    model = call.model
    adapter = adapter_of(model, rank, seed)
    other = Passes("gpu", KINDS[call.kind], model=merged(model.model, adapter))
    cached = model.cache()
    text = np.concatenate([model.embed(call.text), call.rows[: call.num_tokens]])
    if len(text):
        model.run(text, cached)
    seen = np.concatenate([np.ones((call.num_adapted, len(call.text)), bool), call.visible[call.num_tokens :]], axis=1)
    inputs, places = other.tensor(call.rows[call.num_tokens :])[None], other.tensor(call.positions[call.num_tokens :])
    expected = other.model.hidden(inputs, cached, places[None], other.tensor(seen))
    assert difference(call.run(adapter)[call.num_tokens :], as_numpy(expected[0])) <= EXACT


@on_dtypes
@given(settings=calls(), seed=seeds)
def test_an_adapter_that_ends_in_zeros_changes_nothing(
    package: str, dtype: str, settings: dict[str, Any], seed: int
) -> None:
    call = Call(package, settings, dtype)
    tensors = adapter_of(call.model, 2, seed).tensors()
    untrained = {name: 0 * tensor if name.endswith(".up") else tensor for name, tensor in tensors.items()}
    found = call.run(module(package, "lookahead.adapter").Adapter.of(untrained))
    assert np.array_equal(found, call.run(None))


# --- Whom it concerns ---


@on_dtypes
@given(
    settings=calls(),
    rank=st.integers(1, 3),
    seed=seeds,
    scale=st.sampled_from([1e-30, 1e-6, 1.0, 1e3, 1e6]),
)
def test_no_bit_of_a_text_row_depends_on_the_adapter(
    package: str, dtype: str, settings: dict[str, Any], rank: int, seed: int, scale: float
) -> None:
    """Terms of up to 1e12 times ordinary ones, from which every dtype here still makes finite numbers."""
    call = Call(package, settings, dtype)
    plain, adapted = call.run(None), call.run(adapter_of(call.model, rank, seed, scale))
    assert np.isfinite(adapted).all()
    assert same_bits(adapted[: call.num_tokens], plain[: call.num_tokens])
    if scale >= 1:
        assert (np.abs(adapted - plain).max(axis=1) > 1e-3)[call.num_tokens :].all()


@pytest.mark.filterwarnings("ignore:.*(overflow|invalid value):RuntimeWarning")
@on_dtypes
@given(settings=calls(), seed=seeds, scale=st.sampled_from([1e9, 1e12, 1e20, 1e38]))
def test_an_adapter_beyond_all_measure_leaves_a_text_row_as_it_is_or_without_numbers(
    package: str, dtype: str, settings: dict[str, Any], seed: int, scale: float
) -> None:
    """Where look-ahead rows overflow, other rows may be NaN, which ends the text by an error; never other numbers."""
    call = Call(package, settings, dtype)
    plain, adapted = (call.run(each)[: call.num_tokens] for each in (None, adapter_of(call.model, 2, seed, scale)))
    for before, after in zip(plain, adapted, strict=True):
        assert same_bits(after, before) or np.isnan(after).all()


@on_dtypes
@given(settings=calls(), seed=seeds, scale=st.sampled_from([1.0, 1e6]))
def test_no_bit_of_a_group_depends_on_the_rows_of_another(
    package: str, dtype: str, settings: dict[str, Any], seed: int, scale: float
) -> None:
    call = Call(package, settings, dtype)
    adapter = adapter_of(call.model, 2, seed)
    before = call.run(adapter)
    for group in range(call.num_groups):
        start = call.num_tokens + group * call.depth
        rows = slice(start, start + call.depth)
        kept, call.rows[rows] = call.rows[rows].copy(), scale * (1 + call.rows[rows])
        after, call.rows[rows] = call.run(adapter), kept
        others = np.delete(np.arange(len(before)), np.r_[rows])
        assert same_bits(after[others], before[others])
        assert (np.abs(after - before).max(axis=1) > 1e-3)[rows].all()


@both_packages
@given(settings=calls(), seed=seeds)
def test_one_row_too_many_would_be_seen(package: str, settings: dict[str, Any], seed: int) -> None:
    call = Call(package, settings)
    plain = call.run(None)
    adapted = call.run(adapter_of(call.model, 2, seed), 1)
    assert not same_bits(adapted[: call.num_tokens], plain[: call.num_tokens])
