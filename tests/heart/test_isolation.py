"""Drafts and look-ahead rows may hold anything: the rows that do not attend to them come out the same."""

import math
from functools import cache
from importlib import import_module
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


def each_place(*dtypes: str, in_reference: int) -> Any:
    """Run a test in the given dtypes, the first few also in the reference; the port also on a CUDA device."""
    places = [pytest.param("reference", "cpu", dtype, id=f"reference-{dtype}") for dtype in dtypes[:in_reference]]
    for device, more in (("cpu", []), ("cuda", [pytest.mark.gpu])):
        marks = [pytest.mark.torch, *more]
        places += [pytest.param("gpu", device, dtype, id=f"gpu-{device}-{dtype}", marks=marks) for dtype in dtypes]
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
    """One token and the look-ahead vectors after it, each attends to what is before it."""
    num_rows = 1 + num_lookahead
    return Layout(1, np.arange(num_rows), np.tri(num_rows, dtype=bool))


def groups(num_draft: int, num_lookahead: int) -> Layout:
    """The last token, drafts, and after each of these a group of vectors that attends to no other group."""
    num_real = 1 + num_draft
    ends = np.repeat(np.arange(num_real), num_lookahead)  # the token that comes before a vector
    steps = np.tile(np.arange(num_lookahead), num_real)
    seen_real = np.arange(num_real) <= np.concatenate([np.arange(num_real), ends])[:, None]
    seen_vectors = np.zeros((num_real + len(ends), len(ends)), dtype=bool)
    seen_vectors[num_real:] = (ends == ends[:, None]) & (steps <= steps[:, None])
    positions = np.concatenate([np.arange(num_real), ends + 1 + steps])
    return Layout(num_real, positions, np.concatenate([seen_real, seen_vectors], axis=1))


layouts = st.builds(chain, st.integers(1, 4)) | st.builds(groups, st.integers(0, 3), st.integers(1, 3))


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
    logits = model.run(inputs, cached, *(() if default else (len(prefix) + layout.positions, layout.visible)))
    keys, values = model.cached(cached)
    return logits, keys[:, :, len(prefix) :].swapaxes(0, 2), values[:, :, len(prefix) :].swapaxes(0, 2)


def any_vectors(dtype: str, shape: tuple[int, int]) -> Any:
    """Draw vectors of any numbers of a dtype: zeros, denormals, the largest, and what is none."""
    finfo, width = ml_dtypes.finfo(dtype), 64 if dtype == "float64" else 32
    largest, smallest = float(finfo.max), float(finfo.smallest_subnormal)
    special = [math.nan, math.inf, 0.0, smallest, 3 * smallest, largest, largest**0.5, largest**0.9]
    special += [-number for number in special]
    numbers = st.sampled_from(special) | st.floats(-largest, largest, width=width) | st.floats(-2, 2, width=width)
    return arrays(np.dtype(f"float{width}"), shape, elements=numbers, fill=numbers)


@each_place("float64", "float32", "bfloat16", "float16", in_reference=2)
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
    plain_chain = chained and layout.num_real == 1  # of which the pass knows positions and masks by itself
    before = run(model, layout, prefix, real, vectors, plain_chain)
    after = run(model, layout, prefix, others[: layout.num_real], others[layout.num_real :], plain_chain)
    untouched = ~layout.visible[:, replaced].any(axis=1)
    assert untouched[: min(replaced[0], layout.num_real)].all()
    for old, new in zip(before, after, strict=True):
        assert same_bits(new[untouched], old[untouched])


@each_place("float64", in_reference=1)
@on_kinds
@given(layout=layouts, num_prefix=st.integers(0, 6), seed=st.integers(0, 1000))
def test_in_float64_text_rows_are_the_same_without_the_vectors(package, device, dtype, kind, layout, num_prefix, seed):
    model, generator = model_of(package, kind, device, dtype), np.random.default_rng(seed)
    prefix, real = generator.integers(23, size=num_prefix), generator.integers(23, size=layout.num_real)
    vectors = generator.standard_normal((layout.num_vectors, model.model.hidden_size))
    together = run(model, layout, prefix, real, vectors)
    alone = model.run(np.concatenate([prefix, real]))[num_prefix:]
    assert difference(together[0][: layout.num_real], alone) <= EXACT
    count = layout.num_vectors // layout.num_real
    for end in range(layout.num_real):  # a group is the chain after its token
        rows, before = slice(end * count, (end + 1) * count), np.concatenate([prefix, real[:end]])
        after = run(model, chain(count), before, real[end : end + 1], vectors[rows])
        assert difference(together[0][layout.num_real :][rows], after[0][1:]) <= EXACT


def in_float64(model: Passes) -> Passes:
    """Return the model that computes in float64 with the same, already rounded weights."""
    package, config = "gpu" if model.port else "reference", model.model.config
    home, options = module(package, "model.weights"), {"device": model.device} if model.port else {}
    weights = home.Weights.random(config, 0, import_module("torch" if model.port else "numpy").float64, **options)
    for entry in home.weight_table(config):
        home.destination(weights, entry)[:] = home.destination(model.model.weights, entry)
    return Passes(package, config, model.device, "float64", model=type(model.model)(config, weights))


@each_place("float32", "bfloat16", "float16", in_reference=1)
@on_kinds
def test_in_lower_precision_text_rows_move_less_than_plain_decoding_errs(package, device, dtype, kind):
    """The text's rows with look-ahead rows beside them, and without: how far apart?

    Matrix products of other heights round in another order, so the bits may differ. Plain decoding, one token at a
    time, has a worst error of its own against float64. Each of the two runs may err twice as much, plus a floor of two
    units in the last place of the largest logit; so they are apart by at most four times plain decoding's error and
    two floors.
    """
    model, layout = model_of(package, kind, device, dtype), groups(3, 4)
    exact, generator = in_float64(model), np.random.default_rng(0)
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


def _everything_seen(attention: Any) -> Any:
    return lambda queries, keys, values, *seen: attention(queries, keys, values, None)


def _softmax_over_hidden_keys(attention: Any) -> Any:
    """Hide a key by a large negative score that a larger score outweighs."""
    return lambda queries, keys, values, *seen: (
        0.999 * attention(queries, keys, values, *seen) + 0.001 * attention(queries, keys, values, None)
    )


def _norm_across_rows(rms_norm: Any) -> Any:
    return lambda x, weight, eps: rms_norm(x + 1e-3 * x.mean(-2)[..., None, :], weight, eps)


MUTANTS = {
    "everything is seen": ("attention", _everything_seen),
    "softmax over hidden keys": ("attention", _softmax_over_hidden_keys),
    "norm across rows": ("rms_norm", _norm_across_rows),
    "groups see one another": None,
}


@both_packages
@pytest.mark.parametrize("mutant", [None, *MUTANTS])
def test_the_comparison_rejects_a_leak(package, mutant, monkeypatch):
    """The text's rows and the last group must not depend on the groups before; with a mistake, some rows do."""
    model, layout, generator = model_of(package, "full", "cpu", "float64"), groups(2, 3), np.random.default_rng(0)
    vectors = generator.standard_normal((layout.num_vectors, model.model.hidden_size))
    others = vectors.copy()
    others[:6] += 1.0
    if mutant == "groups see one another":
        layout = layout._replace(visible=np.tri(len(layout.positions), dtype=bool))
    elif mutant is not None:
        name, mutate = MUTANTS[mutant]
        home = module(package, "model.transformer")
        monkeypatch.setattr(home, name, mutate(getattr(home, name)))
    before, after = (run(model, layout, np.arange(4), np.array([5, 6, 7]), each)[0] for each in (vectors, others))
    rows = [0, 1, 2, -3, -2, -1]
    if mutant is None:
        assert same_bits(after[rows], before[rows])
    else:
        assert difference(after[rows], before[rows]) > 1e-6
