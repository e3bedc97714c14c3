"""How large an enumeration will be, estimated before it starts by walking down a few random paths."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from .enumeration import Enumerable

__all__ = ["estimated_executions"]

PROBES = 16  # paths, walked side by side


def estimated_executions(
    method: Enumerable,
    prompt: Sequence[int],
    ending: Any,
    num_tokens: int | None = None,
    merge: bool = True,
    enough: float = math.inf,
    seed: int = 0,
) -> float:
    """Estimate how many executions of a step `law.output_law` will need: rough, mostly too high.

    A path takes, at each choice, any of the cells that are not empty, all equally likely; the product of their numbers
    is then, on average, the number of ways through the step. Each step starts anew from as many paths, chosen by the
    number of states that they stand for. Merged, there are at most as many states of a length as there are texts of
    that length. The walk ends where the estimate exceeds `enough`.

    Source: Knuth 1975, "Estimating the efficiency of backtrack programs"; Chen 1992, "Heuristic sampling".
    """
    generator = np.random.default_rng(seed)
    length = num_tokens if num_tokens is not None else math.inf
    states, weights = [method.start(prompt, ending)] * PROBES, np.full(PROBES, 1.0 / PROBES)
    most_cells, executions = 2, 0.0
    while True:
        results, ways, cells = _random_steps(method, states, generator)
        most_cells = max(most_cells, cells)
        weights = weights * ways
        executions += float(weights.sum())
        open_rows = [
            row for row, (state, _) in enumerate(results) if state.end is None and len(state.new_tokens) < length
        ]
        if not open_rows or executions > enough:
            return executions
        weights = weights[open_rows]
        if merge:
            reached = np.array([len(results[row][0].new_tokens) for row in open_rows])
            for count in set(reached.tolist()):
                alike = reached == count
                weights[alike] *= min(1.0, float(most_cells) ** count / weights[alike].sum())
        total = float(weights.sum())
        places = np.searchsorted(np.cumsum(weights) / total, (np.arange(PROBES) + generator.random()) / PROBES)
        states = [results[open_rows[min(place, len(open_rows) - 1)]][0] for place in places]
        weights = np.full(PROBES, total / PROBES)


def _random_steps(
    method: Enumerable,
    states: Sequence[Any],
    generator: np.random.Generator,
) -> tuple[list[tuple[Any, Any]], list[float], int]:
    """Step each state along a random path; return the results, the ways through each step, and the most cells."""
    uniforms = np.zeros((len(states), method.num_slots))
    settled = [0] * len(states)  # choices of each execution that are made for good
    ways, most_cells = [1.0] * len(states), 2
    while True:
        results = list(method.run(states, uniforms))
        open_rows = [row for row, (_, record) in enumerate(results) if settled[row] < len(record.choices or ())]
        if not open_rows:
            return results, ways, most_cells
        strata = (generator.permutation(len(states)) + generator.random()) / len(states)  # even more evenly than chance
        for row in open_rows:
            choice = results[row][1].choices[settled[row]]
            edges = np.concatenate([[0.0], choice.edges])
            cells = np.flatnonzero(np.diff(edges) > 0)
            cell = int(cells[int(strata[row] * len(cells))])
            uniforms[row, choice.slot] = min((edges[cell] + edges[cell + 1]) / 2, np.nextafter(1.0, 0.0))
            ways[row] *= len(cells)
            most_cells = max(most_cells, len(cells))
            settled[row] += 1
