"""NumPy's random calls, and those of `random`, replaced by branching ones while a program runs."""

from __future__ import annotations

import random as python_random
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import numpy as np
import numpy.typing as npt

from .chooser import Chooser, refused, replaced
from .unknown_uniform import search_each

STATE = ("get_state", "set_state", "getstate", "setstate", "get_bit_generator", "set_bit_generator")


class BranchingGenerator:
    """Replaces a generator of `numpy.random`, and its functions, by draws that branch."""

    def __init__(self, chooser: Chooser):
        self._chooser = chooser

    def random(self, size: Any = None, dtype: Any = np.float64, out: Any = None) -> Any:
        """Return uniform numbers that are not known yet."""
        if out is not None:
            raise ValueError("numpy.random.random: found `out`, expected none: the numbers are not known yet")
        return _draws(size, self._chooser.kind, self._chooser.uniform)

    random_sample = ranf = sample = random

    def rand(self, *shape: int) -> Any:
        """Return uniform numbers of a shape."""
        return self.random(shape or None)

    def uniform(self, low: Any = 0.0, high: Any = 1.0, size: Any = None) -> Any:
        """Return uniform numbers between two limits."""
        low, high = (np.asarray(limit) if np.ndim(limit) else limit for limit in (low, high))
        return self.random(_size(size, low, high)) * (high - low) + low

    def choice(
        self, a: Any, size: Any = None, replace: bool = True, p: Any = None, axis: int = 0, shuffle: bool = True
    ) -> Any:
        """Draw from some values by their probabilities."""
        values: npt.NDArray[Any] = np.arange(a) if np.ndim(a) == 0 else np.asarray(a)
        weights = np.full(len(values), 1.0 / max(1, len(values))) if p is None else np.asarray(p)
        if weights.shape != (len(values),) or axis != 0:
            raise ValueError(
                f"numpy.random.choice: found probabilities of shape {weights.shape} and axis={axis}, expected "
                f"({len(values)},), one for each value, and 0"
            )
        distribution = weights.astype(np.float64)
        is_narrow = weights.dtype in (np.float16, np.float32)
        if is_narrow and abs(distribution.sum() - 1) <= np.finfo(weights.dtype).eps ** 0.5:
            distribution /= distribution.sum()  # NumPy allows for their rounding, and does the same
        if not replace and size is not None and np.prod(size) > 1:
            raise ValueError("numpy.random.choice: found replace=False, expected draws with replacement, or one draw")
        return values[_draws(size, np.int64, lambda: self._chooser.choose(distribution.tolist()))]

    def integers(
        self, low: Any, high: Any = None, size: Any = None, dtype: Any = np.int64, endpoint: bool = False
    ) -> Any:
        """Draw integers, all equally likely."""
        if np.ndim(low) or np.ndim(high):
            raise ValueError("numpy.random.integers: found arrays of limits, expected numbers")
        first, last = (0, low) if high is None else (low, high)
        count = int(last) - int(first) + bool(endpoint)
        if not 0 < count <= 1_000_000:
            raise ValueError(f"numpy.random.integers: found {count} possible values, expected 1 to 1000000")
        drawn = self.choice(count, size) + int(first)
        return int(drawn) if size is None and dtype is int else np.asarray(drawn, dtype)[()]

    def randint(self, low: Any, high: Any = None, size: Any = None, dtype: Any = int) -> Any:
        """Draw integers below a limit."""
        return self.integers(low, high, size, dtype)

    def multinomial(self, n: int, pvals: Any, size: Any = None) -> Any:
        """Draw how often each outcome comes out."""
        distribution = np.asarray(pvals, dtype=np.float64)
        if np.ndim(n) or distribution.ndim != 1:
            raise ValueError(
                f"numpy.random.multinomial: found pvals of shape {distribution.shape}, n={n}, expected one distribution"
            )
        counts = np.zeros((*np.empty(() if size is None else size).shape, len(distribution)), dtype=np.int64)
        for place in np.ndindex(counts.shape[:-1]):
            for _ in range(n):
                counts[(*place, self._chooser.choose(distribution.tolist()))] += 1
        return counts

    def seed(self, *arguments: Any, **options: Any) -> None:
        """Do nothing: seeds have no effect."""

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_") or not (hasattr(_Generator, name) or hasattr(_RandomState, name)):
            raise AttributeError(name)
        return refused(f"numpy.random.{name}")


_Generator, _RandomState = np.random.Generator, np.random.RandomState  # they are replaced below


def _size(size: Any, *limits: Any) -> Any:
    """Return the size of a result, by default that of its arguments."""
    return size if size is not None or not any(map(np.ndim, limits)) else np.broadcast(*limits).shape


def _draws(size: Any, dtype: Any, draw: Callable[[], Any]) -> Any:
    """Return one draw, or an array of draws, made in order."""
    if size is None:
        return draw()
    drawn = np.empty(size, dtype)
    for place in np.ndindex(drawn.shape):
        drawn[place] = draw()
    return drawn


def _functions(module: Any) -> dict[str, Any]:
    """Return a refusal for every function of a module that draws from its own generator."""
    hidden = type(getattr(getattr(module, "random", None), "__self__", None))
    return {
        name: refused(f"{module.__name__}.{name}")
        for name, function in vars(module).items()
        if not name.startswith("_") and name not in STATE and type(getattr(function, "__self__", None)) is hidden
    }


REFUSED = {module: _functions(module) for module in (np.random, python_random)}
REFUSED[np.random] |= {name: refused(f"numpy.random.{name}") for name in ("seed", "sample", "ranf")}


class BranchingRandom:
    """Replaces `random.Random`, and the functions of `random`."""

    def __init__(self, chooser: Chooser):
        generator = BranchingGenerator(chooser)
        self.random, self.uniform, self.seed = chooser.uniform, generator.uniform, generator.seed
        self._chooser, self._generator = chooser, generator

    def randrange(self, start: int, stop: int | None = None, step: int = 1) -> int:
        """Draw an integer of a range."""
        return int(self.choice(range(start) if stop is None else range(start, stop, step)))

    def randint(self, a: int, b: int) -> int:
        """Draw an integer of an interval."""
        return self.randrange(a, b + 1)

    def choice(self, seq: Any) -> Any:
        """Draw one of some values."""
        return seq[self._generator.integers(len(seq), dtype=int)]

    def choices(self, population: Any, weights: Any = None, *, cum_weights: Any = None, k: int = 1) -> list[Any]:
        """Draw several times by weights that need not sum to 1."""
        if cum_weights is not None:
            weights = np.diff(np.asarray(cum_weights, dtype=np.float64), prepend=0.0)
        distribution = np.ones(len(population)) if weights is None else np.asarray(weights, dtype=np.float64)
        if distribution.shape != (len(population),):
            raise ValueError(f"random.choices: found {distribution.size} weights, expected {len(population)}")
        return [population[self._chooser.choose((distribution / distribution.sum()).tolist())] for _ in range(k)]

    def __getattr__(self, name: str) -> Any:
        if name not in REFUSED[python_random]:
            raise AttributeError(name)
        return REFUSED[python_random][name]


@contextmanager
def numpy_random(chooser: Chooser) -> Iterator[None]:
    """Replace the functions of `numpy.random` and `random`, and their generators, while the context lasts.

    Generators that were made before, and functions imported by their own names (`from random import random`), are not
    replaced. They are hidden randomness, which `program_distribution` finds unless a seed within the program fixes it.
    """

    def generator_class(name: str, base: type) -> type:
        return type(name, (base,), {"__init__": lambda self, *seed, **options: base.__init__(self, chooser)})  # type: ignore[misc]

    drawing, standard = BranchingGenerator(chooser), BranchingRandom(chooser)
    classes = {name: generator_class(name, BranchingGenerator) for name in ("Generator", "RandomState")}
    ours: Any = {
        np: {"searchsorted": search_each(np.searchsorted)},
        np.random: classes | {"default_rng": classes["Generator"]},
        python_random: {name: generator_class(name, BranchingRandom) for name in ("Random", "SystemRandom")},
    }
    for module, source in ((np.random, drawing), (python_random, standard)):
        names = [name for name in REFUSED[module] if name in vars(source) or hasattr(type(source), name)]
        ours[module] = REFUSED[module] | {name: getattr(source, name) for name in names} | ours[module]
    with ExitStack() as stack:
        for module, functions in ours.items():
            stack.enter_context(replaced(module, functions))
        yield
