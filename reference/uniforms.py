"""The uniforms, the only source of randomness."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import accumulate

import numpy as np
import numpy.typing as npt

from .config import check_integer
from .record import Choice
from .sampling import Probs, cell_edges, draw

NamedUniforms = Mapping[str, int]
"""The names of a step's uniforms in order, and the number of each, such as {"exact": 1, "draft": 4}."""


def uniform_stream(seed: int, request: int, step: int, num_uniforms: int) -> npt.NDArray[np.float64]:  # [num_uniforms]
    """Return the uniforms of one step of one request, in [0, 1), multiples of 2^-53.

    They depend on nothing else, such as other requests of a batch. No two steps, requests or seeds share a number.
    A longer row begins with the shorter one.

    Raises:
        ValueError: a number is not an integer, is negative or does not fit in 64 bits.

    Source: Salmon et al. 2011, "Parallel random numbers: as easy as 1, 2, 3" (Philox), keyed by seed and request,
    with the step in the counter's second word, which the draws of one step never reach.
    """
    for name, value in (("seed", seed), ("request", request), ("step", step)):
        check_integer(name, value, 0, 2**64 - 1)
    counter, key = np.array([0, step, 0, 0], np.uint64), np.array([seed, request], np.uint64)
    return np.random.Generator(np.random.Philox(counter=counter, key=key)).random(num_uniforms)


class UniformRow:
    """One step's row of uniforms, used by name; each uniform serves one decision."""

    def __init__(
        self,
        uniforms: npt.NDArray[np.float64],  # [num_uniforms]
        named_uniforms: NamedUniforms,
        trace: bool = False,
    ):
        """Name the uniforms of a row, each in [0, 1); with `trace`, keep what each was compared with."""
        num_uniforms = sum(named_uniforms.values())
        if uniforms.shape != (num_uniforms,):
            raise ValueError(f"uniforms: found shape {uniforms.shape}, expected {(num_uniforms,)}")
        if not np.all((uniforms >= 0) & (uniforms < 1)):
            raise ValueError(f"uniforms: found {uniforms.tolist()}, expected numbers from 0 to 1, without 1")
        self._uniforms = uniforms
        self._named = named_uniforms
        self._start = dict(zip(named_uniforms, accumulate(named_uniforms.values(), initial=0), strict=False))
        self._used: set[int] = set()
        self.choices: tuple[Choice, ...] | None = () if trace else None  # in order

    def token(
        self,
        name: str,
        probs: Probs,  # [V]
        index: int = 0,
    ) -> int:
        """Draw a token from a distribution with the uniform `name[index]`."""
        return self._choose(name, index, cell_edges(probs))

    def accept(self, name: str, accept_prob: float, index: int = 0) -> bool:
        """Accept with the given probability: iff the uniform `name[index]` is strictly below it."""
        return self._choose(name, index, np.array([accept_prob, 1.0])) == 0

    def _choose(self, name: str, index: int, edges: npt.NDArray[np.float64]) -> int:
        column = self._start[name] + index
        if not 0 <= index < self._named[name]:
            raise RuntimeError(f"uniform {name}[{index}] is not among its {self._named[name]} uniforms")
        if column in self._used:
            raise RuntimeError(f"uniform {name}[{index}] would serve two decisions")
        self._used.add(column)
        outcome = draw(edges, self._uniforms[column])
        self._record(Choice(column, edges, outcome))
        return outcome

    def _record(self, choice: Choice) -> None:
        """Keep a choice if choices are traced; tracing does nothing else."""
        if self.choices is not None:
            self.choices += (choice,)
