"""A smoke alarm beside the proof: first tokens of many texts, drawn end to end, against the model's own distribution.

    python -m pytest -m slow tests/exactness/test_power.py

takes some minutes per method on the bundled model, one process per core. It draws so many texts that a total
variation of 0.01 over 64 cells is missed with probability at most 1e-6, at a false alarm of 1e-9, as `chi_square`
derives. Fewer texts of smaller models, by every method and every way into the package, are drawn in `test_end_to_end`.
"""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest

import chi_square as chi
import pass_sampling.gpu as port
from chi_square import DEGREES, FALSE_ALARM, LEAST_EXPECTED, MISS, Cells, limit_of, lower_tail, statistic, upper_tail
from pass_sampling.gpu.verify import RULES
from power import MUTANTS, Case, Rows, count_in_processes, draw_batch

SMALLEST_DISTANCE = 0.01
METHODS = ("autoregressive", "token", "match")  # after one draft, every other rule is one of these
BUNDLED = Case("token", (451, 525, 26), max_new_tokens=3, length=2)  # "class A:"


def test_the_tails_are_those_of_the_chi_square_distributions() -> None:
    assert abs(upper_tail(2, 10.0) - math.exp(-5.0)) < 1e-15  # two degrees: an exponential distribution
    assert abs(upper_tail(1, 3.0) - math.erfc(math.sqrt(1.5))) < 1e-15
    for degrees in (1, 2, 9, 63, 64):
        for x in (0.5 * degrees, 1.0 * degrees, 2.5 * degrees):
            assert abs(upper_tail(degrees, x) + lower_tail(degrees, x) - 1) < 1e-13
    # a normal variable with mean c, squared, is at most x if it lies between -x^(1/2) and x^(1/2)
    mean, x = 1.5, 4.0
    between = 0.5 * (math.erf((2 - mean) / math.sqrt(2)) + math.erf((2 + mean) / math.sqrt(2)))
    assert abs(chi.chance_to_miss(1, mean**2, x) - between) < 1e-13


def test_so_many_draws_are_needed() -> None:
    assert abs(upper_tail(DEGREES, limit_of(DEGREES)) / FALSE_ALARM - 1) < 1e-9
    assert chi.chance_to_miss(DEGREES, chi.centre_needed(DEGREES), limit_of(DEGREES)) <= MISS
    assert 550_000 < chi.draws_needed(SMALLEST_DISTANCE) < 565_000
    assert abs(chi.distance_seen(chi.draws_needed(SMALLEST_DISTANCE)) - SMALLEST_DISTANCE) < 1e-7
    assert 0.052 < chi.distance_seen(20_000) < 0.053


def test_the_statistic_has_the_distribution_that_the_numbers_are_made_from() -> None:
    """Multinomial draws in the cells of the box: the right distribution, and the alternative that is hardest to see.

    Hardest is one in proportion to the distribution, for which Cauchy and Schwarz hold with equality. Of 4000 right
    samples about 40 exceed the 1 % limit, more than 80 or fewer than 12 with a chance below 1e-6."""
    cells = Cells.of(Rows(BUNDLED).drawn())
    num_draws = chi.draws_needed(SMALLEST_DISTANCE)
    assert num_draws * cells.probs.min() > 400
    generator = np.random.default_rng(0)
    right = [statistic(counts, cells.probs) for counts in generator.multinomial(num_draws, cells.probs, 4000)]
    one_percent = next(x for x in np.arange(60.0, 120.0, 0.01) if upper_tail(DEGREES, x) <= 0.01)
    assert 12 <= sum(value > one_percent for value in right) <= 80
    signs = np.empty(len(cells.probs))
    balance = 0.0
    for cell in np.argsort(cells.probs)[::-1]:  # split the mass into two halves
        signs[cell] = 1.0 if balance <= 0 else -1.0
        balance += signs[cell] * cells.probs[cell]
    up = cells.probs[signs > 0].sum()
    wrong = cells.probs * (1 + SMALLEST_DISTANCE * np.where(signs > 0, 1 / up, -1 / (1 - up)))
    assert abs(chi.total_variation(wrong, cells.probs) - SMALLEST_DISTANCE) < 1e-12
    missed = [statistic(counts, cells.probs) for counts in generator.multinomial(num_draws, wrong, 4000)]
    assert min(missed) > limit_of(DEGREES)


@pytest.mark.parametrize("method", ["autoregressive", *RULES])
def test_copies_of_a_state_draw_what_the_loop_draws(method: str) -> None:
    """The loop lets rows leave the batch when their texts end."""
    case = replace(BUNDLED, method=method)
    loop = port.generate_batch(case.running(), [case.prompt] * 20, case.max_new_tokens, eos_token_ids=(), seed=9)
    assert draw_batch(case, 20, seed=9) == [result.tokens[: case.length] for result in loop]


# The alarm in minutes, on the bundled model.


@pytest.mark.slow
@pytest.mark.parametrize("method", METHODS)
def test_first_tokens_of_the_bundled_model_follow_its_distribution(method: str) -> None:
    case = replace(BUNDLED, method=method)
    cells = Cells.of(Rows(case).drawn())
    counts = count_in_processes(case, cells, chi.draws_needed(SMALLEST_DISTANCE))
    found = statistic(counts, cells.probs)
    print(f"{method}: {counts.sum():.0f} texts, statistic {found:.1f}, limit {limit_of(DEGREES):.1f}")
    assert counts.sum() >= chi.draws_needed(SMALLEST_DISTANCE)
    assert found <= limit_of(DEGREES)


@pytest.mark.slow
@pytest.mark.parametrize("mutant", MUTANTS)
def test_a_mistake_bundled_is_seen(mutant: str) -> None:
    """At as many draws as the mistake needs, recomputed from the model's rows, never more than the test above has.

    A mistake is seen by its own centre, n chi^2; a coarse one needs fewer draws than the statistic does to have its
    distribution.
    """
    case = replace(BUNDLED, mutant=mutant)
    rows = Rows(case)
    cells = Cells.of(rows.drawn())
    wrong = cells.binned(rows.mutant_distribution())
    divergence = float(((wrong - cells.probs) ** 2 / cells.probs).sum())
    assert divergence >= 4 * chi.total_variation(wrong, cells.probs) ** 2
    needed = math.ceil(max(chi.centre_needed(DEGREES) / divergence, LEAST_EXPECTED / cells.probs.min()))
    assert needed <= chi.draws_needed(SMALLEST_DISTANCE)
    counts = count_in_processes(case, cells, needed)
    found = statistic(counts, cells.probs)
    print(f"{mutant}: {chi.total_variation(wrong, cells.probs):.4f}, {counts.sum():.0f} texts, statistic {found:.1f}")
    assert found > limit_of(DEGREES)
    assert chi.fits(counts, wrong), "another mistake than the one whose power was computed"
