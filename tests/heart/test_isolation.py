"""Drafts and look-ahead rows may hold anything: the rows that do not see them come out the same."""

from __future__ import annotations

import dataclasses
import math
from functools import cache
from typing import Any, NamedTuple

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from folders import both_packages, module
from passes import KINDS, Passes, difference, same_bits

EXACT = 1e-12  # logits of order 1 to 10 from a few hundred roundings of 2^-53
DTYPES = [("reference", "float64"), ("reference", "float32")]
DTYPES += [("gpu", dtype) for dtype in ("float64", "float32", "bfloat16", "float16")]


def _places(dtypes: list[tuple[str, str]]) -> Any:
    """Run a test in the given packages and dtypes, the port also on a CUDA device where there is one."""
    places = []
    for package, dtype in dtypes:
        marks = [pytest.mark.torch] if package == "gpu" else []
        places.append(pytest.param(package, "cpu", dtype, id=f"{package}-{dtype}", marks=marks))
        if package == "gpu":
            places.append(pytest.param(package, "cuda", dtype, id=f"cuda-{dtype}", marks=[*marks, pytest.mark.gpu]))
    return pytest.mark.parametrize("package, device, dtype", places)


on_kinds = pytest.mark.parametrize("kind", KINDS)


@cache
def model_of(package: str, kind: str, device: str, dtype: str) -> Passes:
    return Passes(package, KINDS[kind], device, dtype)


class Layout(NamedTuple):
    """The rows of one pass: tokens of the text, then look-ahead vectors."""

    num_real: int
    positions: np.ndarray  # [T], counted from the first row
    visible: np.ndarray  # [T, T]

    @property
    def num_vectors(self) -> int:
        return len(self.positions) - self.num_real


def chain(num_lookahead: int) -> Layout:
    """One token and the look-ahead vectors after it, each seeing what is before it."""
    num_rows = 1 + num_lookahead
    return Layout(1, np.arange(num_rows), np.tri(num_rows, dtype=bool))


def groups(num_draft: int, num_lookahead: int) -> Layout:
    """The last token, drafts, and after each of these a group of vectors that sees nothing of the other groups."""
    num_real = 1 + num_draft
    ends = np.repeat(np.arange(num_real), num_lookahead)  # the token that a vector stands after
    steps = np.tile(np.arange(num_lookahead), num_real)
    seen_real = np.arange(num_real) <= np.concatenate([np.arange(num_real), ends])[:, None]
    seen_vectors = np.zeros((num_real + len(ends), len(ends)), dtype=bool)
    seen_vectors[num_real:] = (ends == ends[:, None]) & (steps <= steps[:, None])
    return Layout(
        num_real,
        np.concatenate([np.arange(num_real), ends + 1 + steps]),
        np.concatenate([seen_real, seen_vectors], axis=1),
    )


layouts = st.one_of(
    st.builds(chain, st.integers(1, 4)),
    st.builds(groups, st.integers(0, 3), st.integers(1, 3)),
)


def run(
    model: Passes,
    layout: Layout,
    prefix: np.ndarray,
    real: np.ndarray,  # tokens, or their vectors
    vectors: np.ndarray,
    default: bool = False,
) -> tuple[np.ndarray, ...]:
    """Return the logits of a pass after a prefix, and what it left in the cache."""
    cached = model.cache()
    if len(prefix):
        model.run(prefix, cached)
    inputs = np.concatenate([model.embed(real) if real.ndim == 1 else real, vectors]).astype(model.embed([0]).dtype)
    if default:
        logits = model.run(inputs, cached)
    else:
        logits = model.run(inputs, cached, len(prefix) + layout.positions, layout.visible)
    keys, values = model.cached(cached)
    return logits, keys[:, :, len(prefix) :].swapaxes(0, 2), values[:, :, len(prefix) :].swapaxes(0, 2)


def any_vectors(dtype: str, shape: tuple[int, int]) -> Any:
    """Draw vectors of any numbers of a dtype: zeros, denormals, the largest, and what is none."""
    finfo = ml_dtypes.finfo(dtype)
    largest, smallest = float(finfo.max), float(finfo.smallest_subnormal)
    width = 64 if dtype == "float64" else 32
    special = [
        math.nan,
        math.inf,
        -math.inf,
        0.0,
        -0.0,
        smallest,
        -smallest,
        3 * smallest,
        largest,
        -largest,
        largest**0.5,
        -(largest**0.9),
    ]
    numbers = st.sampled_from(special) | st.floats(-largest, largest, width=width) | st.floats(-2, 2, width=width)
    return arrays(np.dtype(f"float{width}"), shape, elements=numbers, fill=numbers)


@_places(DTYPES)
@on_kinds
@given(layout=layouts, num_prefix=st.integers(0, 6), seed=st.integers(0, 1000), chained=st.booleans(), data=st.data())
def test_rows_change_no_bit_of_a_row_that_does_not_see_them(
    package, device, dtype, kind, layout, num_prefix, seed, chained, data
):
    """Drafts not of the text before them, vectors not of the text, another group, or those before them.

    Neither of logits nor of the cache, whatever the rows hold instead of a token's vector or a trained one.
    """
    model, generator = model_of(package, kind, device, dtype), np.random.default_rng(seed)
    prefix, real = generator.integers(23, size=num_prefix), generator.integers(23, size=layout.num_real)
    vectors = generator.standard_normal((layout.num_vectors, model.model.hidden_size))
    replaced = sorted(data.draw(st.sets(st.integers(1, len(layout.positions) - 1), min_size=1), label="replaced"))
    others = np.concatenate([model.embed(real), vectors])
    others[replaced] = data.draw(any_vectors(dtype, (len(replaced), vectors.shape[1])), label="by")
    plain_chain = layout.num_real == 1 and chained and bool(layout.visible[np.tril_indices(len(layout.visible))].all())
    before = run(model, layout, prefix, real, vectors, plain_chain)
    after = run(model, layout, prefix, others[: layout.num_real], others[layout.num_real :], plain_chain)
    untouched = ~layout.visible[:, replaced].any(axis=1)
    assert untouched[: min(replaced[0], layout.num_real)].all()
    for old, new in zip(before, after, strict=True):
        assert same_bits(new[untouched], old[untouched])


@pytest.mark.parametrize("scale", ["huge", "denormal"])
@_places(DTYPES)
def test_vectors_of_the_extreme_sizes_leave_finite_text_rows(package, device, dtype, scale):
    huge = {"float64": 1e300, "float32": 1e30, "bfloat16": 1e30, "float16": 6e4}
    size = huge[dtype] if scale == "huge" else float(ml_dtypes.finfo(dtype).smallest_subnormal)
    model, layout = model_of(package, "full", device, dtype), groups(2, 3)
    prefix, real = np.arange(4), np.array([5, 6, 7])
    shape = (layout.num_vectors, model.model.hidden_size)
    plain = run(model, layout, prefix, real, np.zeros(shape))[0]
    found = run(model, layout, prefix, real, np.full(shape, size))[0]
    assert np.isfinite(found).all()
    assert same_bits(found[:3], plain[:3])


@_places([("reference", "float64"), ("gpu", "float64")])
@on_kinds
@given(layout=layouts, num_prefix=st.integers(0, 6), seed=st.integers(0, 1000))
def test_in_float64_text_rows_are_the_same_without_the_vectors(package, device, dtype, kind, layout, num_prefix, seed):
    model, generator = model_of(package, kind, device, dtype), np.random.default_rng(seed)
    prefix, real = generator.integers(23, size=num_prefix), generator.integers(23, size=layout.num_real)
    vectors = generator.standard_normal((layout.num_vectors, model.model.hidden_size))
    together = run(model, layout, prefix, real, vectors)
    alone = model.run(np.concatenate([prefix, real]))[num_prefix:]
    assert difference(together[0][: layout.num_real], alone) <= EXACT
    # A group is the chain after its token.
    if layout.num_real > 1:
        count = layout.num_vectors // layout.num_real
        for end in range(layout.num_real):
            rows = slice(end * count, (end + 1) * count)
            behind = run(model, chain(count), np.concatenate([prefix, real[:end]]), real[end : end + 1], vectors[rows])
            part = together[0][layout.num_real :][rows]
            assert difference(part, behind[0][1:]) <= EXACT


def _in_float64(model: Passes) -> Passes:
    """Return the model that computes in float64 with the same, already rounded weights."""

    def widen(value: Any) -> Any:
        if dataclasses.is_dataclass(value):
            fields = {field.name: widen(getattr(value, field.name)) for field in dataclasses.fields(value)}
            return dataclasses.replace(value, **fields)
        if isinstance(value, tuple):
            return tuple(widen(part) for part in value)
        return None if value is None else value.double() if model.port else value.astype(np.float64)

    inner = model.model
    twin = type(inner)(inner.config, widen(inner.weights))
    return Passes("gpu" if model.port else "reference", inner.config, model.device, "float64", model=twin)


@_places([place for place in DTYPES if place[1] != "float64"])
@on_kinds
def test_in_lower_precision_text_rows_move_less_than_plain_decoding_errs(package, device, dtype, kind):
    """The text's rows with look-ahead rows beside them, and without: how far apart?

    Matrix products of other heights round in another order, so the bits may differ. Plain decoding, one token at a
    time, has a worst error of its own against float64. Each of the two runs may err twice as much, plus a floor of two
    units in the last place of the largest logit; so they are apart by at most four times plain decoding's error and
    two floors.
    """
    model, layout = model_of(package, kind, device, dtype), groups(3, 4)
    exact, generator = _in_float64(model), np.random.default_rng(0)
    errors: dict[str, float] = {"plain": 0.0, "together": 0.0, "alone": 0.0, "apart": 0.0}
    largest = 0.0
    for _ in range(10):
        prefix, real = generator.integers(23, size=10), generator.integers(23, size=layout.num_real)
        vectors = generator.standard_normal((layout.num_vectors, model.model.hidden_size))
        truth = exact.run(np.concatenate([prefix, real]))[len(prefix) :]
        together = run(model, layout, prefix, real, vectors)[0][: layout.num_real]
        alone = run(model, chain(0)._replace(num_real=4), prefix, real, vectors[:0], default=True)[0]
        cached = model.cache()
        plain = np.concatenate([model.run([token], cached) for token in (*prefix, *real)])[len(prefix) :]
        for name, found in {"plain": plain, "together": together, "alone": alone}.items():
            errors[name] = max(errors[name], difference(found, truth))
        errors["apart"] = max(errors["apart"], difference(together, alone))
        largest = max(largest, np.abs(truth).max())
    floor = 2 * float(ml_dtypes.finfo(dtype).eps) * largest
    print(f"{package} {device} {dtype} {kind}: largest logit {largest:.1f}, worst", errors)
    assert max(errors["together"], errors["alone"]) <= 2 * errors["plain"] + floor, errors
    assert errors["apart"] <= 4 * errors["plain"] + 2 * floor, errors


# Mistakes that the comparison above must notice.


def _everything_seen(attention: Any) -> Any:
    return lambda queries, keys, values, *seen: attention(queries, keys, values, None)


def _norm_across_rows(rms_norm: Any) -> Any:
    def mutant(x: Any, weight: Any, eps: float) -> Any:
        return rms_norm(x + 1e-3 * x.mean(-2)[..., None, :], weight, eps)

    return mutant


def _softmax_over_hidden_keys(attention: Any) -> Any:
    """Hide a key by a large negative score that a larger score outweighs."""

    def mutant(queries: Any, keys: Any, values: Any, *seen: Any) -> Any:
        return 0.999 * attention(queries, keys, values, *seen) + 0.001 * attention(queries, keys, values, None)

    return mutant


@both_packages
@pytest.mark.parametrize(
    "name, mutate",
    [
        ("attention", _everything_seen),
        ("attention", _softmax_over_hidden_keys),
        ("rms_norm", _norm_across_rows),
    ],
)
def test_the_comparison_rejects_a_leak(package, name, mutate, monkeypatch):
    model, layout, generator = model_of(package, "full", "cpu", "float64"), groups(2, 3), np.random.default_rng(0)
    prefix, real = np.arange(4), np.array([5, 6, 7])
    pairs = generator.standard_normal((2, layout.num_vectors, model.model.hidden_size))
    home = module(package, "model.transformer")
    for mutated in (False, True):
        if mutated:
            monkeypatch.setattr(home, name, mutate(getattr(home, name)))
        first, second = (run(model, layout, prefix, real, vectors)[0][:3] for vectors in pairs)
        assert difference(first, second) > 1e-6 if mutated else same_bits(first, second)


@both_packages
def test_the_comparison_rejects_groups_that_see_each_other(package):
    model, layout, generator = model_of(package, "full", "cpu", "float64"), groups(2, 3), np.random.default_rng(0)
    leaky = layout._replace(visible=np.tri(len(layout.positions), dtype=bool))
    prefix, real = np.arange(4), np.array([5, 6, 7])
    vectors = generator.standard_normal((layout.num_vectors, model.model.hidden_size))
    others = vectors.copy()
    others[:3] += 1.0  # the group after the last token
    for found, isolated in ((layout, True), (leaky, False)):
        before, after = (run(model, found, prefix, real, given)[0][6:] for given in (vectors, others))
        assert same_bits(after, before) if isolated else difference(after, before) > 1e-6
