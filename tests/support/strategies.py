"""Hypothesis strategies: distributions, logits, settings and uniforms, with the cases that samplers get wrong.

Glossary of shapes: V vocabulary, K drafts.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
from hypothesis import strategies as st

Array = np.ndarray
Strategy = st.SearchStrategy

LARGEST_UNIFORM = 1.0 - 2.0**-53
DENORMAL = 5e-324
TEMPERATURES = (0.0, 0.25, 0.5, 0.8, 1.0, 1.5, 4.0)


def normalised(weights: Sequence[float]) -> Array:  # [V]
    """Return the distribution proportional to some weights."""
    weights = np.asarray(weights, dtype=np.float64)
    return weights / weights.sum()


@st.composite
def integer_distributions(draw: Any, vocab_size: int) -> Array:  # [V]
    """A distribution with small integer weights: zeros, equal ones, a single one."""
    weights = draw(st.lists(st.integers(0, 5), min_size=vocab_size, max_size=vocab_size))
    weights[draw(st.integers(0, vocab_size - 1))] += 1
    return normalised(weights)


@st.composite
def generic_distributions(draw: Any, vocab_size: int) -> Array:  # [V]
    """A distribution without any structure, over one or over many orders of magnitude."""
    scale = draw(st.sampled_from([0.0, 1.0, 30.0]))
    numbers = np.random.default_rng(draw(st.integers(0, 2**32))).standard_normal(vocab_size)
    return normalised(np.exp(scale * numbers))


@st.composite
def denormal_distributions(draw: Any, vocab_size: int) -> Array:  # [V]
    """A distribution in which some tokens have the smallest probabilities that there are."""
    distribution = draw(integer_distributions(vocab_size))
    tiny = draw(st.lists(st.booleans(), min_size=vocab_size, max_size=vocab_size))
    size = draw(st.sampled_from([DENORMAL, 3 * DENORMAL, 2.2250738585072014e-308, 2.0**-53, 2.0**-54]))
    replaced = np.array(tiny) & (distribution < distribution.max())
    return np.where(replaced, size, normalised(np.where(replaced, 0.0, distribution)))


def one_hot_distributions(vocab_size: int) -> Strategy[Array]:  # [V]
    """All probability on one token."""
    return st.integers(0, vocab_size - 1).map(lambda token: np.eye(vocab_size)[token])


def distributions(vocab_size: int) -> Strategy[Array]:  # [V]
    """Any distribution over a vocabulary."""
    makers = (integer_distributions, generic_distributions, denormal_distributions, one_hot_distributions)
    return st.one_of([maker(vocab_size) for maker in makers])


@st.composite
def neighbours(draw: Any, distribution: Array) -> Array:  # [V]
    """A distribution whose positive numbers are each at most one unit in the last place away."""
    steps = draw(st.lists(st.sampled_from([-1.0, 0.0, 1.0]), min_size=distribution.size, max_size=distribution.size))
    moved = np.nextafter(distribution, np.where(np.array(steps) > 0, 2.0, -1.0))
    return np.where((np.array(steps) == 0) | (distribution == 0) | (moved > 1), distribution, moved)


@st.composite
def distribution_pairs(draw: Any, vocab_size: int) -> tuple[Array, Array]:  # [V], [V]
    """A target and a draft: unrelated, equal, one unit in the last place apart, or without a common token."""
    target = draw(distributions(vocab_size))
    kind = draw(st.sampled_from(["unrelated", "equal", "near", "disjoint"]))
    if kind == "equal":
        return target, target.copy()
    if kind == "near":
        return target, draw(neighbours(target))
    other = draw(distributions(vocab_size))
    if kind == "unrelated":
        return target, other
    split = draw(st.integers(1, vocab_size - 1))
    low, high = target.copy(), other.copy()
    low[split:], high[:split] = 0.0, 0.0
    low[0] += low.sum() == 0
    high[-1] += high.sum() == 0
    pair = (normalised(low), normalised(high))
    return pair if draw(st.booleans()) else pair[::-1]


@st.composite
def grid_logits(draw: Any, vocab_size: int, distinct: bool = False) -> Array:  # [V]
    """Logits that are multiples of 1/8 within 6 of 0, with ties unless told otherwise, and with some masked."""
    cell = st.integers(-48, 48)
    numbers = draw(st.lists(cell, min_size=vocab_size, max_size=vocab_size, unique=distinct))
    logits = np.array(numbers) / 8.0
    masked = draw(st.lists(st.integers(0, 3), min_size=vocab_size, max_size=vocab_size))
    masked[draw(st.integers(0, vocab_size - 1))] = 1
    return logits if distinct else np.where(np.array(masked) == 0, -np.inf, logits)


@st.composite
def wild_logits(draw: Any, vocab_size: int) -> Array:  # [V]
    """Logits of any size, float32 or float64, with ties and masks, the largest finite."""
    dtype, bound = draw(st.sampled_from([(np.float32, 2.0**127), (np.float64, 2.0**1023)]))
    number = st.one_of(
        st.sampled_from([0.0, -0.0, 1.0, bound, -bound, -np.inf, DENORMAL]),
        st.floats(-bound, bound, width=32 if dtype is np.float32 else 64),
        st.floats(-20, 20, width=32 if dtype is np.float32 else 64),
    )
    logits = np.array(draw(st.lists(number, min_size=vocab_size, max_size=vocab_size)), dtype=dtype)
    if not np.isfinite(logits.max()):
        logits[draw(st.integers(0, vocab_size - 1))] = 0.0
    return logits


@st.composite
def settings_of(draw: Any, vocab_size: int) -> dict[str, Any]:
    """Sampling settings as keyword arguments: each of the three on or off."""
    top_p = st.one_of(st.sampled_from([1e-300, 0.1, 0.25, 0.5, 0.75, 0.9, LARGEST_UNIFORM]), st.floats(1e-3, 1.0))
    return {
        "temperature": draw(st.sampled_from(TEMPERATURES)),
        "top_k": draw(st.integers(0, vocab_size)),
        "top_p": draw(st.one_of(st.just(1.0), top_p)),
    }


def around(edges: Any) -> Array:
    """Return the uniforms at some edges, one unit in the last place to both sides, at 0 and at the largest."""
    edges = np.atleast_1d(np.asarray(edges, dtype=np.float64))
    numbers = np.concatenate([edges, np.nextafter(edges, -1.0), np.nextafter(edges, 2.0), [0.0, LARGEST_UNIFORM]])
    return np.unique(numbers[(numbers >= 0) & (numbers < 1)])


def uniforms(edges: Any = ()) -> Strategy[float]:
    """A uniform in [0, 1), often where a decision turns."""
    return st.one_of(st.sampled_from(around(edges).tolist()), st.integers(0, 2**53 - 1).map(lambda n: n * 2.0**-53))
