"""The look-ahead adapter, which the last rows of a pass go through, and the sampler head after it."""

import dataclasses
from functools import cache
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from folders import LINEAR, as_numpy, both_packages, module, tiny_config
from pass_sampling.reference.lookahead.head import EPSILON
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
    scaled = home.Adapter({name: scale * tensor for name, tensor in drawn.matrices.items()})
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


@pytest.mark.torch
@given(settings=calls(), rank=st.integers(1, 4), seed=seeds)
def test_both_packages_compute_the_same(settings: dict[str, Any], rank: int, seed: int) -> None:
    calls = [Call(package, settings) for package in ("reference", "gpu")]
    ours, theirs = (call.run(adapter_of(call.model, rank, seed)) for call in calls)
    assert difference(theirs, ours) <= EXACT


def merged(model: Any, adapter: Any) -> Any:
    """Return a model of the port whose own matrices hold the terms of an adapter."""
    layers = list(model.weights.layers)
    for name, up in adapter.matrices.items():
        layer, site, side = name.split(".")
        if side == "up":
            changed = getattr(layers[int(layer)], site) + up @ adapter.matrices[f"{layer}.{site}.down"]
            layers[int(layer)] = dataclasses.replace(layers[int(layer)], **{site: changed})
    return type(model)(model.config, dataclasses.replace(model.weights, layers=tuple(layers)))


@pytest.mark.torch
@given(settings=calls(), rank=st.integers(1, 4), seed=seeds)
def test_adapted_rows_are_those_of_a_model_that_has_learnt_the_terms(settings, rank, seed):
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
@given(settings=calls(), rank=st.integers(1, 3), seed=seeds, scale=st.sampled_from([1e-30, 1e-6, 1.0, 1e3, 1e6]))
def test_no_bit_of_a_text_row_depends_on_the_adapter(package, dtype, settings, rank, seed, scale):
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
    first, inner, out = (as_numpy(tensor) for tensor in head.matrices.values())
    state, expected = first @ real, []
    for row, embedding in zip(hidden, embeddings, strict=True):
        token = embedding / np.sqrt((embedding**2).mean() + EPSILON)
        x = inner[:, :hidden_size] @ row + inner[:, hidden_size:-width] @ token + inner[:, -width:] @ state
        state = x / (1 + np.exp(-x))
        expected.append(row + out @ state)
    # numbers of order 10 from sums of a hundred products, in float64
    assert difference(run(package, head, real, hidden, embeddings), np.stack(expected)) <= 1e-12
