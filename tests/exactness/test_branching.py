"""Programs as they are, run once for every way their draws can fall: their distributions, and what is refused."""

# ruff: noqa: NPY002  (that programs in the old style run unchanged is what is tested)

import copy
import itertools
import math
import random
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from exactness_tools import DISTRIBUTION, EXACT, TENTHS, assert_draws, assert_refused, close, distribution_of
from pass_sampling.reference.exactness.program import HiddenRandomness, program_distribution

CDF = np.cumsum(DISTRIBUTION)
WEIGHTS = np.array(DISTRIBUTION) * 7

DRAWS: dict[str, Callable[[], Any]] = {
    "numpy.random.choice": lambda: np.random.choice(4, p=DISTRIBUTION),
    "choice of values": lambda: "abcd".index(np.random.choice(list("abcd"), p=DISTRIBUTION)),
    "choice of one": lambda: np.random.choice(4, size=1, replace=False, p=DISTRIBUTION)[0],
    "numpy.random.multinomial": lambda: np.random.multinomial(1, DISTRIBUTION).argmax(),
    "default_rng.choice": lambda: np.random.default_rng(0).choice(4, p=DISTRIBUTION),
    "default_rng.multinomial": lambda: np.random.default_rng().multinomial(1, DISTRIBUTION, size=2)[1].argmax(),
    "default_rng.random": lambda: np.searchsorted(CDF, np.random.default_rng(1).random(), side="right"),
    "Generator of a bit generator": lambda: np.random.Generator(np.random.PCG64(3)).choice(4, p=DISTRIBUTION),
    "RandomState.choice": lambda: np.random.RandomState(seed=5).choice(4, p=DISTRIBUTION),
    "RandomState.random_sample": lambda: np.argmax(CDF > np.random.RandomState(5).random_sample()),
    "numpy.random.rand": lambda: np.argmax(CDF > np.random.rand()),
    "numpy.random.rand(1)": lambda: (np.random.rand(1) >= CDF).sum(),
    "numpy.random.random_sample": lambda: np.digitize(np.random.random_sample(), CDF),
    "searchsorted of an array": lambda: np.searchsorted(CDF, np.random.rand(2, 1), side="right")[1, 0],
    "numpy.random.uniform": lambda: np.argmax(np.cumsum(WEIGHTS) > np.random.uniform(0, 7.0)),
    "numpy.random.uniform of limits": lambda: np.argmax(np.random.uniform([0, 0], [1, 7])[1] < np.cumsum(WEIGHTS)),
    "numpy.random.randint": lambda: TENTHS[np.random.randint(10)],
    "integers with an end": lambda: TENTHS[np.random.default_rng().integers(1, 10, endpoint=True) - 1],
    "a product with an integer": lambda: TENTHS[int(np.random.random() * 10)],
    "floor": lambda: TENTHS[math.floor(10 * (1 - random.random()))],
    "numpy.floor": lambda: TENTHS[int(np.floor(np.random.rand(2) * 10)[1])],
    "random.choices": lambda: random.choices(range(4), WEIGHTS)[0],
    "random.choices of a cdf": lambda: random.choices(range(4), cum_weights=np.cumsum(WEIGHTS))[0],
    "random.choice": lambda: random.choice(TENTHS),
    "random.randint": lambda: TENTHS[random.randint(1, 10) - 1],
    "random.randrange": lambda: TENTHS[random.randrange(10)],
    "random.random": lambda: _walk(random.random()),
    "random.uniform": lambda: _walk(random.uniform(-1, 1) / 2 + 0.5),
    "random.Random": lambda: _walk(random.Random(3).random()),
}  # fmt: skip


def _walk(uniform: Any) -> int:
    return next(token for token, edge in enumerate(CDF) if uniform < edge)


@pytest.mark.parametrize("draw", DRAWS.values(), ids=DRAWS)
def test_every_way_of_drawing_from_a_distribution_has_that_distribution(draw: Callable[[], Any]) -> None:
    assert_draws(draw)


PROGRAMS: list[Any] = []


def has(distribution: dict[Any, float], executions: int | None = None) -> Callable[..., Any]:
    """Return a decorator that states the distribution of a program, and how many executions it has if that is fixed."""

    def decorate(program: Callable[[], Any]) -> Callable[[], Any]:
        PROGRAMS.append(pytest.param(program, distribution, executions, id=program.__name__))
        return program

    return decorate


@has({(0, 0): 0.05, (0, 1): 0.45, (1, 0): 0.35, (1, 1): 0.15}, executions=4)
def a_sequence_of_draws() -> tuple[int, ...]:
    rows = {(): (0.5, 0.5), (0,): (0.1, 0.9), (1,): (0.7, 0.3)}
    tokens: tuple[int, ...] = ()
    while len(tokens) < 2:
        tokens = (*tokens, int(np.random.choice(2, p=rows[tokens])))
    return tokens


@has({0: 1 / 4 + 3 / 4 / 4**2, 2: 2 / 4 * (3 / 4) ** 2, 4: (3 / 4) ** 3})
def a_branching_process() -> int:
    """Each of the first two generations' members has 0 or 2 children: f(f(s)) with f(s) = 1/4 + 3/4 s^2."""
    members = 1
    for _ in range(2):
        members = sum(2 for _ in range(members) if random.random() < 0.75)
    return members


@has({(True, True): 0.25, (True, False): 0.25, (False, False): 0.5})
def a_copy_of_a_number_is_the_same_number() -> tuple[bool, bool]:
    number = random.random()
    return number < 0.5, copy.deepcopy([copy.copy(number)])[0] < 0.25


@has({(True, 0): 0.25, (True, 1): 0.25, (False, 2): 0.25, (False, 3): 0.25})
def a_number_cut_after_it_was_compared() -> tuple[bool, int]:
    u = random.random()
    return u < 0.5, int(u * 4)


@has({(False, True, False, False, False, True, False, False): 1.0})
def equality_and_what_is_no_number() -> tuple[bool, ...]:
    u = random.random
    near_nan = bool((np.random.rand(2) > np.array([math.nan, math.inf])).any())
    return u() == 0.5, u() != 0.5, u() < math.nan, u() > math.nan, u() == None, u() != "a", u() in (0.0, 1.0), near_nan  # noqa: E711


@has({(0.3, True): 0.125, (0.3, False): 0.375, (0.0, True): 0.125, (0.0, False): 0.375})
def a_program_finds_the_distribution_of_another() -> tuple[float, bool]:
    first = np.random.rand() < 0.5
    share = distribution_of(lambda: random.random() < 0.3)[True]
    return (share if first else 0.0), random.random() < 0.25


@has(dict.fromkeys(itertools.product((True, False), repeat=2), 0.25))
def no_seed_decides_anything() -> tuple[bool, bool]:
    np.random.seed(0)
    random.seed(0)
    return np.random.rand() < 0.5, random.random() < 0.5


@pytest.mark.parametrize(("program", "distribution", "executions"), PROGRAMS)
def test_a_program_has_its_distribution(program, distribution, executions):
    found = program_distribution(program)
    assert close(dict(found.probs), distribution)
    assert executions in (None, found.executions)


def test_probabilities_in_float32_are_normalised_as_numpy_does() -> None:
    distribution = np.float32([0.25, 0.5, 0.2502])
    expected = distribution.astype(np.float64) / distribution.sum(dtype=np.float64)
    assert close(distribution_of(lambda: int(np.random.choice(3, p=distribution))), dict(enumerate(expected)))
    with pytest.raises(ValueError, match=r"^draw 0: found probabilities with a sum of 1\.0002"):
        program_distribution(lambda: np.random.choice(3, p=distribution.astype(np.float64)))


@given(st.lists(st.floats(-0.5, 1.5), min_size=1, max_size=6))
def test_comparing_one_number_again_narrows_its_interval(limits: list[float]) -> None:
    distribution = distribution_of(lambda: (lambda u: tuple(u < limit for limit in limits))(random.random()))
    edges = sorted({0.0, 1.0, *(min(max(limit, 0.0), 1.0) for limit in limits)})
    expected = {tuple(high <= limit for limit in limits): high - low for low, high in itertools.pairwise(edges)}
    assert close(distribution, expected, 8 * EXACT)  # up to 6 factors


@given(st.floats(-3, 3).filter(lambda x: abs(x) > 1e-3), st.floats(-3, 3), st.floats(-6, 6), st.integers(0, 5))
def test_a_number_may_be_moved_and_scaled_before_it_is_compared(scale, shift, limit, form):
    edge = min(max((limit - shift) / scale, 0.0), 1.0)
    share = edge if scale > 0 else 1.0 - edge
    tolerance = 16 * 2.0**-53 * (1 + (abs(limit) + abs(shift)) / abs(scale))  # of a few roundings of the edge
    programs: tuple[Callable[[], Any], ...] = (
        lambda: random.random() * scale + shift < limit,
        lambda: shift - -scale * random.random() <= limit,
        lambda: not (np.random.rand(1) * scale + shift > limit)[0],
        lambda: bool(np.array([limit])[0] >= np.float64(scale) * np.random.rand() + shift),
        lambda: bool((1 - random.random()) * -scale + (shift + scale) < limit),
        lambda: bool(random.random() / (1 / scale) + shift < limit),
    )
    assert abs(distribution_of(programs[form]).get(True, 0.0) - share) <= tolerance


@given(st.lists(st.floats(0, 1), min_size=3, max_size=3))
def test_the_elements_of_an_array_are_independent(limits: list[float]) -> None:
    distribution = distribution_of(lambda: tuple((np.random.rand(3) < np.array(limits)).tolist()))
    for outcome in itertools.product((True, False), repeat=3):
        share = math.prod(limit if yes else 1 - limit for yes, limit in zip(outcome, limits, strict=True))
        assert abs(distribution.get(outcome, 0.0) - share) <= 2 * EXACT


REFUSED: dict[str, Callable[[], Any]] = {
    "float: found the value": lambda: math.log(random.random()),
    "bool: found the value": lambda: bool(random.random()),
    "index: found the value": lambda: [1, 2][random.random()],  # type: ignore[call-overload]
    "numpy.log: found the value": lambda: np.log(np.random.rand()),
    "pow: found the value": lambda: random.random() ** 2,
    "rtruediv: found the value": lambda: 1 / random.random(),
    "format: found the value": lambda: f"{random.random():.3f}",
    "add: found it between two": lambda: random.random() + random.random(),
    "less: found it between two": lambda: random.random() < random.random(),
    "a uniform number: found multiply with 0.0": lambda: random.random() * 0,
    "numpy.random.normal: found it called": lambda: np.random.normal(),
    "numpy.random.standard_normal: found it called": lambda: np.random.default_rng().standard_normal(3),
    "numpy.random.gumbel: found it called": lambda: np.argmax(np.random.gumbel(size=3)),
    "numpy.random.permutation: found it called": lambda: np.random.RandomState(0).permutation(3),
    "numpy.random.choice: found replace=False": lambda: np.random.choice(3, size=2, replace=False),
    "numpy.random.choice: found probabilities of shape": lambda: np.random.choice(3, p=[0.5, 0.5]),
    "numpy.random.integers: found 4294967296 possible values": lambda: np.random.randint(2**32),
    "numpy.random.random: found `out`": lambda: np.random.default_rng().random(out=np.zeros(2)),
    "random.gauss: found it called": lambda: random.gauss(0, 1),
    "random.getrandbits: found it called": lambda: random.Random().getrandbits(8),
    "random.choices: found 2 weights, expected 3": lambda: random.choices("abc", [1, 2]),
    "draw 1: found probabilities with a sum of 0.9": lambda: random.randint(0, 1) + np.random.choice(2, p=[0.5, 0.4]),
    "draw 0, probability 1: found -0.25": lambda: np.random.choice(2, p=[1.25, -0.25]),
    "draw 0, probability 2: found nan": lambda: np.random.multinomial(1, [0.5, 0.5, math.nan]),
    "program: found it return list": lambda: [random.random() < 0.5],
    "program: found it return Uniform": lambda: random.random(),
    "draws: found more than 10000 in one run": lambda: [True for _ in iter(lambda: random.random() < 2e-9, None)],
}


@pytest.mark.parametrize(("message", "program"), REFUSED.items(), ids=REFUSED)
def test_what_cannot_be_enumerated_is_refused_by_name(message: str, program: Callable[[], Any]) -> None:
    assert_refused(program, message)


def test_the_place_where_a_value_is_asked_for_is_named() -> None:
    with pytest.raises(ValueError, match=r"test_branching\.py, line \d+, expected it only compared"):
        program_distribution(lambda: np.sqrt(random.random()))


def test_a_tree_that_is_too_large_is_refused_at_the_limit() -> None:
    runs = itertools.count()
    with pytest.raises(ValueError, match=r"^max_executions: reached 20, expected fewer executions"):
        program_distribution(lambda: (random.randint(1, 30), next(runs))[0], max_executions=20)
    assert next(runs) == 20


generator, original, counted = np.random.default_rng(0), random.random, 0


def count_up() -> int:
    global counted
    counted += 1
    return counted % 2


HIDDEN: dict[str, Callable[[], Any]] = {
    "a generator made outside": lambda: int(generator.integers(9)),
    "a global number": count_up,
    "a function imported by its name": lambda: original() < 0.5,
    "the time": time.perf_counter_ns,
    "one way only": lambda: random.random() < 0.5 and int(generator.integers(99)),
    "the number of draws": lambda: [random.randint(0, 1) for _ in range(count_up())].count(1),
    "the distribution of a draw": lambda: int(np.random.choice(2, p=([0.5, 0.5], [0.4, 0.6])[count_up()])),
}


@pytest.mark.parametrize("program", HIDDEN.values(), ids=HIDDEN)
def test_hidden_randomness_is_found(program: Callable[[], Any]) -> None:
    with pytest.raises(HiddenRandomness, match="no randomness but that of the replaced calls"):
        program_distribution(program)


def test_rare_randomness_of_a_programs_own_is_found_by_more_replays() -> None:
    """A draw of 1 in 500 is missed by 2,000 replays of each of 2 executions with chance 0.998^4000 = 3e-4."""
    rare = np.random.default_rng(0)

    def program() -> bool:
        return (random.random() < 0.5) != (rare.random() < 0.002)

    assert program_distribution(program).probs == {True: 0.5, False: 0.5}  # too few runs to see it
    with pytest.raises(HiddenRandomness, match="no randomness but that"):
        program_distribution(program, replays=2000)
    with pytest.raises(ValueError, match="replays: found 0, expected an integer from 1"):
        program_distribution(program, replays=0)


def test_randomness_of_a_library_that_is_not_replaced_is_found() -> None:
    with pytest.raises(HiddenRandomness, match=r"PyTorch's are those of replace=\[torch_random\]"):
        program_distribution(lambda: np.random.rand() < 0.5, replace=[])


def replaced() -> list[Any]:
    names = sorted(name for name in vars(np.random) if not name.startswith("_"))
    numpy_calls = [np.searchsorted, *(getattr(np.random, name) for name in names)]
    return numpy_calls + [getattr(random, name) for name in random.__all__]


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
def test_the_functions_come_back_after_an_exception(error: type[BaseException]) -> None:
    def program() -> None:
        assert not isinstance(random.random(), float)
        raise error("on purpose")

    before = replaced()
    with pytest.raises(error, match="on purpose"):
        program_distribution(program)
    assert all(one is two for one, two in zip(before, replaced(), strict=True))
