"""Draw many texts, bin them, and say how large a mistake Pearson's statistic would have seen.

The statistic of n draws in m + 1 cells has, if the distribution is the expected one, the chi-square distribution
with m degrees of freedom, and under another distribution the non-central one; both up to terms of order 1 / (n times
the smallest cell), which is why cells are the likeliest outcomes, and the rest is one cell. The centre is n sum((q -
p)^2 / p), and at a total variation d over the cells at least 4 n d^2: by Cauchy and Schwarz (sum |q - p|)^2 <=
sum((q - p)^2 / p) sum(p), and the left side is (2 d)^2. So a distance, a false alarm and a chance to miss give the
number of draws."""

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import cache

import numpy as np

Tokens = tuple[int, ...]
Distribution = dict[Tokens, float]
FALSE_ALARM, MISS = 1e-9, 1e-6
NUM_CELLS = 63  # the likeliest outcomes, at most; what is left is one more
LEAST = 100  # draws that a cell should get, for the statistic to have its distribution far out in the tail


def _term(shape: float, x: float) -> float:
    """Return x^shape e^-x / gamma(shape + 1)."""
    return math.exp(shape * math.log(x) - x - math.lgamma(shape + 1))


def upper_tail(degrees: int, x: float) -> float:
    """Return the chance that a chi-square variable exceeds x: Q(a + 1, h) = Q(a, h) + h^a e^-h / gamma(a + 1)."""
    half = x / 2
    start = 0.5 * (degrees % 2)
    first = math.erfc(math.sqrt(half)) if degrees % 2 else 0.0
    return first + sum(_term(start + i, half) for i in range(degrees // 2))


def lower_tail(degrees: int, x: float) -> float:
    """Return the chance that a chi-square variable is at most x, by the series of the incomplete gamma function."""
    shape, half = degrees / 2, x / 2
    term, total, i = _term(shape, half), 0.0, 0
    while term > 2.0**-60 * total:
        total, i = total + term, i + 1
        term *= half / (shape + i)
    return total


def chance_to_miss(degrees: int, centre: float, limit: float) -> float:
    """Return the chance that a non-central chi-square variable is at most a limit: a Poisson mixture of central ones.

    The sum ends where a Poisson weight beyond the mean has fallen below 1e-20; the weights left out together are less
    than that by a factor, and each multiplies a probability.
    """
    total, i, weight = 0.0, 0, 1.0
    while i < centre / 2 or weight > 1e-20:
        weight = _term(i, centre / 2)
        total, i = total + weight * lower_tail(degrees + 2 * i, limit), i + 1
    return total


def _least(condition: Callable[[float], bool], high: float) -> float:
    """Return, by halving, where a condition that stays true once it is true begins to hold."""
    low = 0.0
    for _ in range(80):
        middle = (low + high) / 2
        low, high = (low, middle) if condition(middle) else (middle, high)
    return high


@cache
def limit_of(degrees: int) -> float:
    """Return what a right sampler's statistic exceeds with probability 1e-9."""
    return _least(lambda x: x > 0 and upper_tail(degrees, x) <= FALSE_ALARM, 1e4)


@cache
def centre_needed(degrees: int) -> float:
    """Return the centre from which on a statistic stays below the limit with probability at most 1e-6."""
    return _least(lambda centre: centre > 0 and chance_to_miss(degrees, centre, limit_of(degrees)) <= MISS, 1e3)


def distance_seen(num_draws: int, degrees: int) -> float:
    """Return the total variation over the cells that so many draws see."""
    return math.sqrt(centre_needed(degrees) / (4 * num_draws))


@dataclass(frozen=True)
class Cells:
    """The likeliest outcomes of a distribution, and the rest as the last cell."""

    outcomes: tuple[Tokens, ...]
    probs: np.ndarray  # [cells]

    @staticmethod
    def of(distribution: Distribution, num_draws: float = math.inf) -> "Cells":
        """Bin so that, of so many draws, every cell should get `LEAST`."""
        outcomes: list[Tokens] = []
        probs = [1.0]  # the last is that of all others
        for tokens in sorted(distribution, key=lambda tokens: (-distribution[tokens], tokens))[:NUM_CELLS]:
            rest = probs[-1] - distribution[tokens]
            if min(distribution[tokens], rest) * num_draws < LEAST:
                break
            outcomes.append(tokens)
            probs[-1:] = [distribution[tokens], rest]
        return Cells(tuple(outcomes), np.array(probs))

    @property
    def degrees(self) -> int:
        return len(self.outcomes)

    def count(self, texts: Iterable[Tokens]) -> np.ndarray:  # [cells]
        """Count the texts in each cell."""
        place = {tokens: i for i, tokens in enumerate(self.outcomes)}
        cells = [place.get(tokens, self.degrees) for tokens in texts]
        return np.bincount(cells, minlength=self.degrees + 1)


def statistic(counts: np.ndarray, probs: np.ndarray) -> float:
    """Return Pearson's statistic."""
    expected = counts.sum() * probs
    return float(((counts - expected) ** 2 / expected).sum())
