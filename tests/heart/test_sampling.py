"""From logits to a distribution, and from a distribution and a uniform to a token, in both packages."""

from decimal import Context, Decimal, localcontext
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import assume, example, given
from hypothesis import strategies as st

from adapters import CUDA, PORT, REFERENCE, Port, Reference, each_impl, each_port
from strategies import (
    LARGEST_UNIFORM,
    TEMPERATURES,
    around,
    distributions,
    grid_logits,
    normalised,
    settings_of,
    wild_logits,
)

Array = np.ndarray

SIZES = st.integers(1, 9)
GRID = SIZES.flatmap(lambda size: st.tuples(grid_logits(size), settings_of(size)))
WILD = SIZES.flatmap(lambda size: st.tuples(wild_logits(size), settings_of(size)))
# Constants that all logits have in common change nothing; logits are multiples of 1/8, so sums with them are exact.
MOVED = st.builds(lambda case, constant: (case[0] + constant, case[1]), GRID, st.integers(-1000, 1000))
EXTREME = st.none() | st.sampled_from([5e-324, 1e-310, 1e-300, 1e-20, 1.7e308])  # temperatures


def rounding(vocab_size: int) -> float:
    """How far a probability may be off: each of V numbers and sums is rounded, and the argument of exp is."""
    return (vocab_size + 4) * 2.0**-52


def as_compared(logits: Array) -> Array:
    """Logits as filters compare them."""
    if logits.dtype != np.float64:
        return logits
    with np.errstate(over="ignore"):
        return (np.round(logits * 2.0**40) / 2.0**40).astype(np.float32)


def by_definition(logits: Array, temperature: float = 1.0, top_k: int = 0, top_p: float = 1.0) -> Array:
    """Return the distribution that the settings make of logits, by sets and sums; discard masses too near top_p to
    tell.

    Logits are compared as `as_compared` returns them, and a mass that is below top_p by at most 2^-24 has reached it.
    """
    compared = as_compared(logits)
    ids = [i for i, logit in enumerate(logits) if logit > -np.inf]
    largest = max(float(logits[i]) for i in ids)
    if temperature == 0:
        return np.eye(len(logits))[min(i for i in ids if compared[i] == max(compared))]
    if top_k:
        kth_largest = sorted(map(float, compared), reverse=True)[top_k - 1]
        ids = [i for i in ids if compared[i] >= kth_largest]
    with localcontext(Context(prec=60)):
        exact = {i: ((Decimal(float(logits[i])) - Decimal(largest)) / Decimal(temperature)).exp() for i in ids}
        kept = {i: weight / sum(exact.values()) for i, weight in exact.items()}
        if top_p < 1:
            noise = len(logits) * Decimal(2) ** -53
            enough, mass, chosen = Decimal(top_p) - Decimal(2) ** -24, Decimal(0), []
            for i in sorted(kept, key=lambda i: (-compared[i], i)):
                chosen.append(i)
                mass += kept[i]
                assume(abs(mass - enough) > noise)
                if mass >= enough:
                    break
            kept = {i: kept[i] / mass for i in chosen}
    return np.array([float(kept.get(i, 0)) for i in range(len(logits))])


@each_impl
@given(MOVED | WILD, EXTREME)
@example((np.zeros(4), {"top_p": 0.5}), None)
@example((np.array([0.0, 0.0, -1.0]), {"top_k": 1, "top_p": 0.6}), None)
@example((np.log([0.4, 0.3, 0.2, 0.1]), {"top_k": 2, "top_p": 0.5}), None)  # 0.4 of what top-k has left is enough
@example((np.array([0.0, 4e-10]), {"top_p": 1e-300}), None)  # probabilities that only the logits tell apart
@example((np.array([0.0, 4e-280, 1e300]), {"temperature": 0.0}), None)  # these, only float64
@example((np.array([0.0, 0.4 * 2.0**-40]), {"temperature": 0.0}), None)  # equal: multiples of 2^-40 are compared
@example((np.array([0.0, 0.6 * 2.0**-40]), {"temperature": 0.0}), None)
@example((np.array([2.0**50, 2.0**51]), {"temperature": 0.0}), None)
@example((np.array([2.0**128, 1.5 * 2.0**128]), {"temperature": 0.0}), None)  # both are infinite in float32, and equal
@example((np.array([0.0, 1e-30], dtype=np.float32), {"temperature": 0.0}), None)  # compared as they are
@example((np.array([0.0, 5.0, 3.0]), {"temperature": 1e300, "top_p": 0.5}), None)
@example((np.array([-1.7e308, 1.7e308]), {}), None)
@example((np.array([0.0, 1.0], dtype=np.float32), {}), 5e-324)
@example((np.array([-3e38, 3e38], dtype=np.float32), {"top_k": 1}), 1e-300)
@example((np.array([1e300, 1.0, 0.0]), {}), 1.7e308)
def test_a_distribution_is_what_the_definition_says(impl, case, extreme_temperature):
    logits, settings = case
    if extreme_temperature is not None:
        settings = settings | {"temperature": extreme_temperature}
    probs, expected = impl.probs(logits, **settings), by_definition(logits, **settings)
    assert probs.dtype == np.float64
    assert np.all(probs[expected > 1e-300] > 0) and np.all(probs[expected == 0] == 0), "another set of tokens"
    np.testing.assert_allclose(probs, expected, rtol=0, atol=rounding(logits.size))
    if isinstance(impl, Port):
        assert bool(impl.module("sampling").largest_logits(impl.tensor(logits)).isfinite())


@each_impl
@given(
    st.integers(0, 2**32), st.integers(12, 60), st.integers(1, 9), st.lists(st.integers(1, 60), min_size=1, max_size=4)
)
def test_more_tokens_than_top_k_are_kept_where_they_are_tied_and_rows_do_not_matter_to_one_another(
    impl, seed, size, top_k, levels
):
    """Also where more are tied than a port picks at first."""
    random, settings = np.random.default_rng(seed), {"temperature": 0.7, "top_k": top_k}
    logits = np.stack([random.integers(0, level, size) / 8 for level in levels])
    for dtype in (np.float64, np.float32):
        probs = impl.probs(logits.astype(dtype), **settings)
        for row, found in zip(logits.astype(dtype), probs, strict=True):
            expected = by_definition(row, **settings)
            assert np.all((found > 0) == (expected > 0))
            np.testing.assert_allclose(found, expected, rtol=0, atol=rounding(size))
            np.testing.assert_array_equal(found, impl.probs(row, **settings))


@each_impl
@given(st.lists(st.integers(1, 9), min_size=2, max_size=9), st.data())
def test_top_p_is_exact_where_a_set_reaches_it_exactly(impl, weights, data):
    order = sorted(range(len(weights)), key=lambda i: (-weights[i], i))
    count = data.draw(st.integers(1, len(weights)))
    mass = Fraction(sum(weights[i] for i in order[:count]), sum(weights))
    probs = impl.probs(np.log(weights), top_p=float(mass))
    assert set(np.flatnonzero(probs)) == set(order[:count])


@each_impl
def test_a_mass_that_is_below_top_p_by_the_tolerance_has_reached_it(impl: Reference) -> None:
    for beyond, count in ((0.0, 1), (2.0**-24, 1), (2.0**-24 + 2.0**-50, 2)):
        assert np.count_nonzero(impl.probs(np.zeros(2), top_p=0.5 + beyond)) == count


@each_impl
@given(st.integers(0, 2**32), st.sampled_from([1, 2, 100, 1999, 2000]))
def test_top_k_of_a_large_vocabulary_are_its_k_largest(impl: Reference, seed: int, top_k: int) -> None:
    logits = np.random.default_rng(seed).permutation(2000) / 256
    assert set(np.flatnonzero(impl.probs(logits, top_k=top_k))) == set(np.argsort(-logits)[:top_k])


@pytest.mark.torch
@given(st.integers(0, 2**32), st.integers(2, 60), st.data())
def test_a_distribution_is_that_of_the_transformers_library(seed: int, size: int, data: st.DataObject) -> None:
    import torch
    from transformers.generation.logits_process import TemperatureLogitsWarper, TopKLogitsWarper, TopPLogitsWarper

    logits = np.random.default_rng(seed).standard_normal((1, size)) * 3  # no ties, where definitions differ
    temperature, top_k = data.draw(st.sampled_from(TEMPERATURES[1:])), data.draw(st.integers(1, size))
    top_p = data.draw(st.floats(0.05, 0.95))
    scores = torch.from_numpy(logits)
    for warper in (TemperatureLogitsWarper(temperature), TopKLogitsWarper(top_k), TopPLogitsWarper(top_p)):
        scores = warper(torch.zeros((1, 1), dtype=torch.int64), scores)
    settings = {"temperature": temperature, "top_k": top_k, "top_p": top_p}
    by_definition(logits[0], **settings)  # discards masses that are too near top_p
    for impl in (REFERENCE, PORT):
        np.testing.assert_allclose(
            impl.probs(logits, **settings), scores.softmax(dim=-1).numpy(), rtol=0, atol=rounding(size)
        )


@each_impl
@given(GRID, st.integers(1, 9), st.integers(0, 2**32), st.sampled_from([1e-3, 0.501, 1.0]), st.booleans())
def test_rounding_of_a_pass_moves_a_distribution_by_rounding(impl, case, count, seed, top_p, equal):
    """Of logits that are far apart or equal, also where a set of equal tokens reaches top-p exactly."""
    logits, settings = case
    if equal:
        logits, top_p = np.zeros(logits.size), min(count, logits.size) / logits.size
    settings = settings | {"top_p": top_p}
    noise = np.random.default_rng(seed).uniform(-1e-14, 1e-14, logits.size)
    exact, rounded = (impl.probs(each, **settings) for each in (logits, logits + noise))
    np.testing.assert_allclose(rounded, exact, rtol=0, atol=1e-12)


FAULTS = [([0.0, np.nan], "nan"), ([np.inf, 0.0], "inf"), ([np.nan, np.inf], "nan"), ([-np.inf] * 3, "-inf")]


@pytest.mark.parametrize("dtype", [np.float64, np.float32])
@pytest.mark.parametrize("settings", [{}, {"temperature": 0}, {"top_k": 1}, {"top_p": 0.5}], ids=str)
@pytest.mark.parametrize("logits, found", FAULTS, ids=str)
def test_logits_without_a_distribution_are_refused_by_the_reference(logits, found, settings, dtype):
    function, sampling = REFERENCE.module("sampling").probs_from_logits, REFERENCE.sampling(**settings)
    for where in ([], ["logits after position 3"]):
        with pytest.raises(ValueError) as error:
            function(np.array(logits, dtype=dtype), sampling, *where)
        assert str(error.value) == f"{(where or ['logits'])[0]}: the largest logit is {found}, expected a finite number"


@each_port
@pytest.mark.parametrize("dtype", [np.float64, np.float32, np.float16])
@pytest.mark.parametrize("logits, found", FAULTS, ids=str)
def test_logits_without_a_distribution_are_flagged_by_the_port(port, logits, found, dtype):
    rows = np.zeros((2, 3), dtype=dtype)
    rows[1, : len(logits)] = logits
    largest = port.module("sampling").largest_logits(port.tensor(rows)).tolist()
    assert [str(value) for value in largest] == ["0.0", found]


# Running sums that end just below 1, before tokens of probability 0; and one that passes 1 before the last token.
BELOW_1, ABOVE_1 = np.array([0.1] * 10 + [0.0, 0.0]), np.array([0.5, 0.5 + 2.0**-51, 2.0**-51, 0.0])


def test_the_rounded_distributions_are_what_they_are_for() -> None:
    assert np.cumsum(BELOW_1)[-1] == LARGEST_UNIFORM
    assert 1 < np.cumsum(ABOVE_1)[1] < np.cumsum(ABOVE_1)[2]


@each_impl
@given(SIZES.flatmap(distributions))
@example(BELOW_1)
@example(ABOVE_1)
def test_cells_fill_the_unit_interval_and_those_of_impossible_tokens_are_empty(impl, distribution):
    edges = impl.cell_edges(distribution)
    assert edges.shape == distribution.shape and edges[-1] == edges.max() == 1.0
    widths = np.diff(edges, prepend=0.0)
    assert np.all(widths >= 0)
    assert np.all(widths[distribution == 0] == 0), "a token of probability 0 has a cell"
    np.testing.assert_allclose(widths, distribution, rtol=0, atol=rounding(distribution.size))


@each_impl
@given(SIZES.flatmap(distributions), st.lists(st.integers(0, 2**53 - 1), max_size=5))
@example(BELOW_1, [])
@example(ABOVE_1, [])
@example(np.array([0.25, 0.0, 0.5, 0.25, 0.0]), [])
def test_a_draw_is_the_half_open_cell_that_holds_the_uniform(impl, distribution, ticks):
    edges = impl.cell_edges(distribution)
    numbers = np.concatenate([around(edges), np.array(ticks, dtype=np.float64) * 2.0**-53])
    tokens = impl.draw(distribution, numbers)
    below = np.concatenate([[0.0], edges])[tokens]
    assert np.all((below <= numbers) & (numbers < edges[tokens]))
    assert np.all(distribution[tokens] > 0), "a token of probability 0 was drawn"
    assert np.array_equal(tokens, np.searchsorted(edges, numbers, side="right"))


def real_distribution(size: int) -> Array:
    """A distribution such as language models have: a few likely tokens, and a long tail with holes."""
    generator = np.random.default_rng(size)
    weights = np.exp(3.0 * generator.standard_normal(size))
    weights[generator.random(size) < 0.2] = 0.0
    weights[size // 2] += 1.0
    return normalised(weights)


@pytest.mark.torch
@pytest.mark.parametrize("size", [2, 3, 10, 100, 1000, 10_000, 32_000, 50_000])
def test_both_packages_draw_the_same_token_at_every_edge(size: int) -> None:
    distribution = real_distribution(size)
    edges = REFERENCE.cell_edges(distribution)
    assert np.array_equal(PORT.cell_edges(distribution), edges), "the running sums differ"
    numbers = around(edges if size <= 1000 else edges[:: size // 16])
    assert np.array_equal(REFERENCE.draw(distribution, numbers), PORT.draw(distribution, numbers))
    tokens = np.searchsorted(edges, around(edges), side="right")  # a draw is a search of the edges, which are the same
    assert np.all(distribution[tokens] > 0)


@pytest.mark.gpu
@pytest.mark.parametrize("size", [10, 1000, 50_000])
def test_a_device_draws_the_same_token_or_the_uniform_lies_at_an_edge(size: int) -> None:
    distribution = real_distribution(size)
    edges = REFERENCE.cell_edges(distribution)
    numbers = around(edges[:: max(1, size // 64)])
    numbers = np.concatenate([numbers, np.random.default_rng(0).random(64)])
    ours, theirs = REFERENCE.draw(distribution, numbers), CUDA.draw(distribution, numbers)
    gap = np.abs(numbers[:, None] - edges).min(axis=1)  # parallel sums round differently
    assert np.all((ours == theirs) | (gap <= rounding(size)))
