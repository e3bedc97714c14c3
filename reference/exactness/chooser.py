"""Choices that follow a script: one path through the tree of all outcomes of a program's draws."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, NoReturn

from .unknown_uniform import Uniform

MOST_CHOICES = 10_000  # in one run, so that an endless program is refused
MOST_OUTCOMES = 1_000_000  # of one choice
EXPECTED = "expected no randomness but that of the replaced calls (PyTorch's are those of replace=[torch_random])"
ROUNDING = 2.0**-26  # how far from 1 a sum of probabilities may be: what numpy.random.choice allows


class HiddenRandomness(ValueError):
    """Two runs with the same draws differed: something other than the replaced calls is random."""


class Chooser:
    """Makes and records the random choices of one run: those of a script, then the first possible outcomes."""

    kind: type = object  # of its uniform numbers in an array

    def __init__(self, script: Sequence[int] = (), distributions: Sequence[tuple[float, ...]] = ()):
        """Follow a script, whose choices had the given distributions before; then take the first possible outcomes."""
        self.script, self.scripted_distributions = tuple(script), tuple(distributions)
        self.outcomes: list[int] = []
        self.distributions: list[tuple[float, ...]] = []
        self.intervals: list[list[float]] = []  # of every draw: the uniform numbers that make it fall as it fell
        self.weight = 1.0  # the probability of this run

    def choose(self, probs: Sequence[float]) -> int:
        """Draw from a distribution; raise HiddenRandomness if the run differs from that of its script."""
        outcome = self._decide(probs)
        low = math.fsum(self.distributions[-1][:outcome])
        self.intervals.append([low, low + self.distributions[-1][outcome]])
        return outcome

    def uniform(self) -> Any:
        """Return a number that is uniform in [0, 1) and not known yet."""
        self.intervals.append([0.0, 1.0])
        return Uniform(self._decide, self.intervals[-1])

    def _decide(self, probs: Sequence[float]) -> int:
        place = len(self.outcomes)
        distribution = checked_probs(probs, f"draw {place}")
        if place >= MOST_CHOICES:
            raise ValueError(f"draws: found more than {MOST_CHOICES} in one run, expected a program that always ends")
        if place < len(self.script):
            outcome = self.script[place]
            if distribution != self.scripted_distributions[place]:
                raise HiddenRandomness(
                    f"draw {place}: found another distribution than in a run with the same draws before it, {EXPECTED}"
                )
        else:
            outcome = next(outcome for outcome, prob in enumerate(distribution) if prob > 0)
        self.outcomes.append(outcome)
        self.distributions.append(distribution)
        self.weight *= distribution[outcome]
        return outcome


def refused(name: str) -> Callable[..., NoReturn]:
    """Return a function that raises ValueError, to replace one whose draws cannot be enumerated."""

    def refuse(*arguments: Any, **options: Any) -> NoReturn:
        raise ValueError(
            f"{name}: found it called, expected draws of uniform numbers, of integers, or from a distribution"
        )

    return refuse


@contextmanager
def replaced(home: Any, functions: Mapping[str, Any]) -> Iterator[None]:
    """Replace attributes of a module or class in a context; inherited ones are inherited again afterwards."""
    before = {name: vars(home)[name] for name in functions if name in vars(home)}
    for name, function in functions.items():
        setattr(home, name, function)
    try:
        yield
    finally:
        for name in functions:
            if name in before:
                setattr(home, name, before[name])
            else:
                delattr(home, name)


def checked_probs(probs: Sequence[float], where: str = "probabilities") -> tuple[float, ...]:
    """Return probabilities as a distribution; raise ValueError if one is wrong, or their sum is not nearly 1."""
    if len(probs) > MOST_OUTCOMES:
        raise ValueError(f"{where}: found {len(probs)} outcomes, expected at most {MOST_OUTCOMES}")
    distribution = tuple(float(prob) for prob in probs)
    for place, prob in enumerate(distribution):
        if not prob >= 0 or math.isinf(prob):
            raise ValueError(f"{where}, probability {place}: found {prob}, expected a number of at least 0")
    total = math.fsum(distribution)
    if abs(total - 1.0) > ROUNDING:
        raise ValueError(f"{where}: found probabilities with a sum of {total}, expected 1")
    return tuple(prob / total for prob in distribution)
