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

import inspect
import itertools
import math
import pickle
import random as python_random
import sys
from collections.abc import Callable, Hashable, Iterable, Sequence
from contextlib import AbstractContextManager, ExitStack
from typing import Any

import numpy as np
from numpy.random import default_rng  # by its name, which no replacement reaches

from ..config import check_integer
from .chooser import Chooser, HiddenRandomness
from .distribution import OutputDistribution
from .numpy_draws import numpy_random

__all__ = ["HiddenRandomness", "estimated_executions", "numpy_random", "program_distribution"]

HINT = "; replace=[torch_random] of pass_sampling.gpu.exactness.torch_draws replaces its calls"
Replacement = Callable[[Chooser], AbstractContextManager[None]]
"""Replaces the drawing calls of one library by branching ones, as a context: `numpy_random`, `torch_random`."""

MOST_REPLAYED = 1000  # executions that are run again with the same draws
REPLAYS = 64  # the least number of such runs of all executions together
PROBES = 48  # random runs after the estimate of the tree's size


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
        program: takes nothing; returns a hashable value, such as the tuple of its tokens, or a pair of that and a
            dictionary of counts, whose expectations are returned as the distribution's `expected`.
        replace: which libraries' calls to replace.
        max_executions: refuse larger trees; the size is estimated first.
        replays: how often each of the first executions is run again, 64 times in all at least.

    Raises:
        ValueError: the tree is too large, a distribution is no distribution, or `replays` is out of range.
        HiddenRandomness: the program has randomness of its own; the message names its source if its state reveals it.
    """
    check_integer("replays", replays, 1, 10**6)
    replacements = tuple(replace)
    before = _states(program)
    estimate = estimated_executions(program, replacements)
    if estimate > max_executions:
        raise ValueError(
            f"max_executions: found a tree of about {estimate:.2g} executions, expected at most {max_executions}"
        )
    try:
        return _enumerated(program, replacements, max_executions, replays)
    except HiddenRandomness as error:
        after = _states(program)
        moved = [name for name in after if after[name] != before.get(name)]
        why = f"{' and '.join(moved)} changed" if moved else f"not from {', '.join(after)}; from time, or an address?"
        named = {getattr(replacement, "__name__", "") for replacement in replacements}
        hint = HINT if "torch" in moved and "torch_random" not in named else ""
        raise HiddenRandomness(f"{error} ({why}{hint})") from None


def _enumerated(
    program: Callable[[], Hashable], replacements: Sequence[Replacement], max_executions: int, replays: int
) -> OutputDistribution:
    """Run the program once per leaf, each leaf from the script of its choices."""
    probs: dict[Hashable, list[float]] = {}
    expected: dict[str, list[float]] = {}
    executions, replayed = 0, []
    todo: list[tuple[tuple[int, ...], tuple[tuple[float, ...], ...]]] = [((), ())]
    while todo:
        if executions == max_executions:
            raise ValueError(f"max_executions: reached {max_executions}, expected fewer executions")
        chooser = _run(program, replacements, Chooser(*todo.pop()))
        executions += 1
        outcome, counts = chooser.result
        probs.setdefault(outcome, []).append(chooser.weight)
        for name, count in counts.items():
            expected.setdefault(name, []).append(chooser.weight * count)
        for place in range(len(chooser.script), len(chooser.outcomes)):
            for other, prob in enumerate(chooser.distributions[place]):
                if other != chooser.outcomes[place] and prob > 0:
                    todo.append(((*chooser.outcomes[:place], other), tuple(chooser.distributions[: place + 1])))
        if executions <= MOST_REPLAYED:
            replayed.append(chooser)
    for chooser in replayed * max(replays, math.ceil(REPLAYS / len(replayed))):
        _check_same(
            _run(program, replacements, Chooser(chooser.outcomes, chooser.distributions)).result, chooser.result
        )
    distribution = {outcome: math.fsum(weights) for outcome, weights in probs.items()}
    total = math.fsum(distribution.values())
    if abs(total - 1.0) > 1e-9:
        raise ValueError(f"program: found a total probability of {total}, expected 1")
    counted = {name: math.fsum(terms) for name, terms in expected.items()}
    return OutputDistribution(distribution, executions, expected=counted)  # type: ignore[arg-type]  # outcomes need not be tokens


def estimated_executions(
    program: Callable[[], Hashable],
    replace: Iterable[Replacement] = (numpy_random,),
    probes: int = PROBES,
    seed: int = 0,
) -> float:
    """Estimate the number of executions from random paths down the tree; unbiased, and rough.

    Each path takes one of the possible outcomes of each choice, all equally likely. On average, the product of their
    numbers is the number of leaves.

    Source: Knuth 1975, "Estimating the efficiency of backtrack programs".
    """
    generator = default_rng(seed)
    replacements = tuple(replace)
    sizes = []
    for _ in range(probes):
        chooser = _run(program, replacements, Chooser(generator=generator))
        sizes.append(math.prod(float(sum(prob > 0 for prob in distribution)) for distribution in chooser.distributions))
    return float(np.mean(sizes))


def _run(program: Callable[[], Hashable], replacements: Sequence[Replacement], chooser: Chooser) -> Chooser:
    """Run the program once with its draws replaced; its outcome and counts are in `chooser.result`."""
    with ExitStack() as stack:
        for replacement in replacements:
            stack.enter_context(replacement(chooser))
        result: Any = program()
    chooser.check_finished()
    counts: dict[str, Any] = {}
    if isinstance(result, tuple) and len(result) == 2 and isinstance(result[1], dict):
        result, counts = result
    try:
        hash(result)
    except TypeError:
        raise ValueError(
            f"program: found it return {type(result).__name__} {result!r:.80}, expected something hashable, such as a "
            "tuple of numbers"
        ) from None
    chooser.result = result, {name: float(count) for name, count in counts.items()}
    return chooser


def _check_same(again: tuple[Hashable, dict[str, float]], before: tuple[Hashable, dict[str, float]]) -> None:
    """Raise HiddenRandomness if the results of two runs with the same draws differ."""
    try:
        same = bool(again == before)
        plain = not same or hash(again[0]) == hash(before[0])
    except (RuntimeError, ValueError):  # arrays, which are compared element by element
        plain = False
    if not plain:
        raise ValueError(
            f"program: found it return {before[0]!r:.80}, which is told apart by identity, expected plain values, such "
            "as a tuple of numbers"
        )
    if not same:
        raise HiddenRandomness(
            f"program: found {again!r:.80} where the same draws gave {before!r:.80}, expected no randomness but that "
            "of the replaced calls"
        )


def _states(program: Callable[[], Hashable]) -> dict[str, bytes]:
    """Return the states of the libraries' own generators, and of the variables that the program uses."""
    sources: dict[str, Any] = {"random": python_random, "numpy.random": np.random}
    if "torch" in sys.modules:
        sources["torch"] = sys.modules["torch"].default_generator
    try:
        around = inspect.getclosurevars(program)
    except TypeError:  # not a plain function
        return {name: _state(source) for name, source in sources.items()}
    variables = {f"the variable {name}": value for name, value in {**around.globals, **around.nonlocals}.items()}
    kept = {name: value for name, value in variables.items() if _state(value) and not inspect.ismodule(value)}
    return {name: _state(source) for name, source in (sources | kept).items()}


def _state(source: Any) -> bytes:
    """Return the state of a generator or a counter; empty for other things."""
    if isinstance(source, int | float | str | itertools.count):
        return repr(source).encode()
    if isinstance(source, list | dict | set):
        return str(len(source)).encode()
    if isinstance(source, np.random.Generator):
        return pickle.dumps(source.bit_generator.state)
    for name in ("get_state", "getstate"):  # of numpy.random, RandomState and torch.Generator; of random
        if not isinstance(source, type) and callable(getattr(source, name, None)):
            state = getattr(source, name)()
            return state.numpy().tobytes() if hasattr(state, "numpy") else pickle.dumps(state)
    return b""
