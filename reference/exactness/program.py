"""The exact distribution of any program that draws at random, by running it once for every outcome of its draws.

`distribution.output_distribution` enumerates steps that take their uniforms as an argument. Here the program needs no
change: while it runs, the calls with which it draws are replaced by ones that branch. A draw from a distribution
becomes a choice among its outcomes. A uniform number becomes a number that is not known yet, and every comparison with
it becomes a choice between smaller and not smaller, each with its probability.

    def program():
        ...                                  # draws by numpy.random, or by torch
        return tuple(tokens)                 # the outcome, hashable

    distribution = program_distribution(program)               # exact: no sampling, no tolerance but rounding

`numpy_random` replaces NumPy's calls and those of `random`; for PyTorch's there is `torch_random` in
`pass_sampling.gpu.exactness.torch_draws`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack

from ..config import check_integer
from .chooser import EXPECTED, Chooser, HiddenRandomness
from .distribution import OutputDistribution
from .numpy_draws import numpy_random

__all__ = ["HiddenRandomness", "numpy_random", "program_distribution"]

Replacement = Callable[[Chooser], AbstractContextManager[None]]
"""Replaces the drawing calls of one library by branching ones, as a context: `numpy_random`, `torch_random`."""

MOST_REPLAYED = 1000  # executions that are run again with the same draws
REPLAYS = 64  # the least number of such runs of all executions together


def program_distribution(
    program: Callable[[], Hashable],
    replace: Iterable[Replacement] = (numpy_random,),
    max_executions: int = 200_000,
    replays: int = 1,
) -> OutputDistribution:
    """Return the exact distribution of what a program returns.

    The program is run once per leaf of the tree of its draws. It must depend on nothing else that changes. To find
    hidden randomness, the first 1,000 executions are run again with the same draws, by default once each. Randomness
    that seldom has an effect, or only in later executions, may be missed. Generators that the program makes by the
    replaced calls draw as if their seed were random: the result is the distribution over seeds.

    Args:
        program: takes nothing; returns a hashable value, such as the tuple of its tokens.
        replace: which libraries' calls to replace.
        max_executions: executions after which the tree is refused as too large.
        replays: how often each of the first executions is run again, 64 times in all at least.

    Raises:
        ValueError: the tree is too large, probabilities do not sum to 1, or `replays` is out of range.
        HiddenRandomness: the program has randomness of its own.
    """
    check_integer("replays", replays, 1, 10**6)
    replacements = tuple(replace)
    probs: dict[Hashable, list[float]] = {}
    executions = 0
    replayed: list[tuple[Chooser, Hashable]] = []
    for chooser, outcome in every_execution(program, replacements, max_executions):
        executions += 1
        probs.setdefault(outcome, []).append(chooser.weight)
        if executions <= MOST_REPLAYED:
            replayed.append((chooser, outcome))
    for chooser, outcome in replayed * max(replays, math.ceil(REPLAYS / len(replayed))):
        _check_same(run_program(program, replacements, Chooser(chooser.outcomes, chooser.distributions)), outcome)
    distribution = {outcome: math.fsum(weights) for outcome, weights in probs.items()}
    return OutputDistribution(distribution, executions)  # type: ignore[arg-type]  # outcomes need not be tokens


def every_execution(
    program: Callable[[], Hashable], replacements: Sequence[Replacement], max_executions: int
) -> Iterator[tuple[Chooser, Hashable]]:
    """Yield the choices and the outcome of every execution of a program."""
    executions = 0
    todo: list[tuple[tuple[int, ...], tuple[tuple[float, ...], ...]]] = [((), ())]
    while todo:
        if executions == max_executions:
            raise ValueError(f"max_executions: reached {max_executions}, expected fewer executions")
        chooser = Chooser(*todo.pop())
        yield chooser, run_program(program, replacements, chooser)
        executions += 1
        for place in range(len(chooser.script), len(chooser.outcomes)):
            for other, prob in enumerate(chooser.distributions[place]):
                if other != chooser.outcomes[place] and prob > 0:
                    todo.append(((*chooser.outcomes[:place], other), tuple(chooser.distributions[: place + 1])))


def run_program(program: Callable[[], Hashable], replacements: Sequence[Replacement], chooser: Chooser) -> Hashable:
    """Run the program once with its draws replaced; return its outcome."""
    with ExitStack() as stack:
        for replacement in replacements:
            stack.enter_context(replacement(chooser))
        outcome = program()
    if len(chooser.outcomes) < len(chooser.script):
        raise HiddenRandomness(
            f"draws: found {len(chooser.outcomes)}, and {len(chooser.script)} in a run with the same draws, {EXPECTED}"
        )
    try:
        hash(outcome)
    except TypeError:
        raise ValueError(
            f"program: found it return {type(outcome).__name__} {outcome!r:.80}, expected something hashable, such as "
            "a tuple of numbers"
        ) from None
    return outcome


def _check_same(again: Hashable, before: Hashable) -> None:
    """Raise HiddenRandomness if the outcomes of two runs with the same draws differ."""
    try:
        same = bool(again == before)
        plain = not same or hash(again) == hash(before)
    except (RuntimeError, ValueError):  # arrays, which are compared element by element
        plain = False
    if not plain:
        raise ValueError(
            f"program: found it return {before!r:.80}, which is told apart by identity, expected plain values, such "
            "as a tuple of numbers"
        )
    if not same:
        raise HiddenRandomness(f"program: found {again!r:.80} where the same draws gave {before!r:.80}, {EXPECTED}")
