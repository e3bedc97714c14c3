"""The enumeration of all executions of one step, for `distribution`, and an estimate of its size.

A record contains the edges that each uniform was compared with. So every other execution follows from one: put a
uniform into another cell of one of its choices, and run again.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple, Protocol

import numpy as np
import numpy.typing as npt

Script = tuple[tuple[int, float, int], ...]
"""The uniforms that an execution fixes, in the order of its choices: column, value, and the expected outcome."""

MISSED = 1e-13  # probability that may be lost when an edge moves by its last digit
ROUNDING = 2.0**-20  # how far an edge may move in float32 when other rows run beside its own
PROBES = 16  # paths of an estimate, walked side by side
COMPARED = ("tokens", "sources", "log_probs", "draft_tokens", "draft_token_probs", "target_token_probs", "accept_probs")


class Batch(NamedTuple):
    """Executions of a step side by side: the states before, their uniforms, and the states after with the records."""

    states: list[Any]
    uniforms: npt.NDArray[np.float64]  # [len(states), num_uniforms]
    results: Sequence[tuple[Any, Any]]


class Enumerable(Protocol):
    """What can be enumerated: the methods of both packages, and everything else that steps on a row of uniforms.

    A state has `new_tokens` (the tuple committed so far) and `end` (None until the text has ended). It may have a
    `key`, a hashable value that differs for states with different futures, and `agrees(state)`, whether a state of the
    same key has the same future. A record has `choices`, each with the fields of `record.Choice`. If it has
    `draft_tokens`, verified drafts are counted. `run` must leave its states unchanged; without `trace`, records need
    no choices.
    """

    @property
    def num_uniforms(self) -> int:
        """Uniforms per step."""

    def start(self, prompt: Sequence[int], ending: Any) -> Any:
        """Return the state before the first step."""

    def run(
        self,
        states: Sequence[Any],
        uniforms: npt.NDArray[np.float64],  # [len(states), num_uniforms]
        trace: bool = True,
    ) -> Sequence[tuple[Any, Any]]:
        """Step each state with its row of uniforms; return the new states and the records."""


def every_outcome(
    method: Enumerable,
    states: Sequence[tuple[Any, float]],
    batch: int,
    probe: bool,
    untraced: bool = False,
) -> Iterator[tuple[Any, Any, float]]:
    """Yield the new state, record and weight of every execution of one step from each state.

    A fork puts its uniform near the two ends of the other cell in turn, which reveals edges other than the reported
    ones. Choices that no script fixes yet get the two ends of [0, 1) in turn.
    """
    todo: list[tuple[Any, float, Script, float]] = [(state, weight, (), 0.0) for state, weight in reversed(states)]
    low_end, missed, replayed = True, 0.0, False
    astray: Batch | None = None  # the first batch with an execution that did not follow its script
    while todo:
        now = [todo.pop() for _ in range(min(batch, len(todo)))]
        uniforms = np.zeros((len(now), method.num_uniforms))
        uniforms[1::2] = np.nextafter(1.0, 0.0)
        for row, (_, _, script, _) in zip(uniforms, now, strict=True):
            for column, value, _ in script:
                row[column] = value
        states_now = [each[0] for each in now]
        run = Batch(states_now, uniforms, method.run(states_now, uniforms))
        if untraced or not replayed:
            _check_untraced(method, run)
            replayed = True
        cells = [_check_choices(record.choices, row) for (_, record), row in zip(run.results, uniforms, strict=True)]
        if probe:
            _check_both_ends(method, run, cells)
        for (state, weight, script, expected), row, (reached, record), bounds in zip(
            now, uniforms, run.results, cells, strict=True
        ):
            if not _followed(record.choices, script):
                missed += expected
                astray = astray or run
                continue
            path: Script = ()
            share = weight
            for place, (choice, (low, high)) in enumerate(zip(record.choices, bounds, strict=True)):
                if place >= len(script):
                    edges = np.concatenate([[0.0], choice.edges])
                    for other in map(int, np.flatnonzero(np.diff(edges) > 0)):
                        if other != choice.outcome:
                            low_end = not low_end
                            inside = _near_end(edges[other], edges[other + 1], low_end)
                            mass = share * float(edges[other + 1] - edges[other])
                            todo.append((state, weight, (*path, (choice.column, inside, other)), mass))
                path = (*path, (choice.column, float(row[choice.column]), choice.outcome))
                share *= high - low
            yield reached, record, share
    if missed > MISSED and astray is not None:
        raise ValueError(_why_astray(method, missed, astray))


def _near_end(low: float, high: float, low_end: bool) -> float:
    """Return a number of the half-open cell [low, high) close to one of its ends.

    Not at the end itself: edges are sums, and their last digit may depend on how many executions run side by side.
    """
    margin = min((high - low) / 4, 2.0**-30)
    near = low + margin if low_end else high - margin
    return float(near if low <= near < high else low)


def _followed(choices: Sequence[Any], script: Script) -> bool:
    """Return whether an execution made the choices of its script."""
    return _made(choices[: len(script)]) == [(column, outcome) for column, _, outcome in script]


def _why_astray(method: Enumerable, missed: float, run: Batch) -> str:
    """Return why executions of a batch did not follow their scripts, and lost some of the probability."""
    again = method.run(run.states, run.uniforms)
    if [_made(record.choices) for _, record in again] != [_made(record.choices) for _, record in run.results]:
        return "choices: found others than in an execution with the same uniforms, expected a pure function"
    alone = [method.run([state], run.uniforms[row : row + 1])[0][1] for row, state in enumerate(run.states)]
    away = [_distance(record.choices, own.choices) for (_, record), own in zip(run.results, alone, strict=True)]
    wrong = [row for row, distance in enumerate(away) if distance > ROUNDING]
    if wrong:
        return (
            f"rows of a batch: found {len(wrong)} of {len(away)}, from row {wrong[0]} on, with edges up to "
            f"{max(away):.2g} from those of the same row alone, expected rows that do not depend on one another"
        )
    return (
        f"batch: found edges that depend on what runs beside them, which lost {missed} of the probability, "
        "expected batch=1 for such a method"
    )


def _distance(choices: Sequence[Any], others: Sequence[Any]) -> float:
    """Return the largest difference of the edges of two executions, up to their first different choice."""
    away = 0.0
    for mine, other in zip(choices, others, strict=False):
        if mine.column != other.column:
            return 1.0
        away = max(away, float(np.abs(mine.edges - other.edges).max()))
        if mine.outcome != other.outcome:
            break
    return away


def _check_choices(choices: Sequence[Any] | None, uniforms: npt.NDArray[np.float64]) -> list[tuple[float, float]]:
    """Return the cell of every choice; raise ValueError if the choices do not describe the execution."""
    if choices is None:
        raise ValueError("choices: found None, expected those of a traced step")
    if len({choice.column for choice in choices}) < len(choices):
        raise ValueError("choices: found a uniform that serves two decisions, expected one decision for each")
    cells = []
    for choice in choices:
        edges = np.concatenate([[0.0], choice.edges])
        if edges[-1] != 1.0 or not np.all(np.diff(edges) >= 0):
            raise ValueError(
                f"choice at slot {choice.column}: found edges {choice.edges.tolist()}, expected them to grow up to "
                "exactly 1, as `sampling.cell_edges` makes them"
            )
        low, high, uniform = float(edges[choice.outcome]), float(edges[choice.outcome + 1]), uniforms[choice.column]
        if not low <= uniform < high:
            raise ValueError(
                f"choice at slot {choice.column}: found outcome {choice.outcome}, of the cell [{low}, {high}), for the "
                f"uniform {uniform}, expected the outcome whose cell holds it"
            )
        cells.append((low, high))
    return cells


def _check_untraced(method: Enumerable, run: Batch) -> None:
    """Raise ValueError unless the same states and uniforms give the same results again, without a trace."""

    def goes_alike(trace: bool) -> bool:
        again = method.run(run.states, run.uniforms, trace)
        return [_course(*each) for each in again] == [_course(*each) for each in run.results]

    if goes_alike(trace=False):
        return
    if all(goes_alike(trace=True) for _ in range(16)):  # of two random runs, one may be the same by chance
        found, expected = "without a trace", "a step that tracing does not change"
    else:
        found, expected = "with the same uniforms", "no randomness of its own"
    raise ValueError(f"{type(method).__name__}: found another course in a run {found}, expected {expected}")


def _course(state: Any, record: Any) -> tuple[Any, ...]:
    """Return what two runs of an execution must have in common to the last bit; NaN is compared as text."""
    return tuple(state.new_tokens), state.end, [repr(getattr(record, name, ())) for name in COMPARED]


def _made(choices: Sequence[Any]) -> list[tuple[int, int]]:
    """Return the columns and outcomes of choices."""
    return [(choice.column, choice.outcome) for choice in choices]


def _check_both_ends(method: Enumerable, run: Batch, cells: Sequence[list[tuple[float, float]]]) -> None:
    """Raise ValueError unless executions are the same at both ends of the cells of their uniforms."""
    for end in ("lower", "upper"):
        moved = run.uniforms.copy()
        for row, (_, record), bounds in zip(moved, run.results, cells, strict=True):
            for choice, (low, high) in zip(record.choices, bounds, strict=True):
                row[choice.column] = _near_end(low, high, end == "lower")
        for (state, record), (other, other_record) in zip(run.results, method.run(run.states, moved), strict=True):
            made = _made(record.choices)
            if (state.new_tokens, state.end, made) != (other.new_tokens, other.end, _made(other_record.choices)):
                raise ValueError(
                    f"choices {made}: found another course at the {end} ends of their cells, "
                    "expected the edges that the step decides by"
                )


def estimated_executions(
    method: Enumerable,
    prompt: Sequence[int],
    ending: Any,
    num_tokens: int | None = None,
    merge: bool = True,
    enough: float = math.inf,
    seed: int = 0,
) -> float:
    """Estimate how many executions of a step `distribution.output_distribution` will need: rough, mostly too high.

    At each choice, a path takes one of the cells that are not empty, all equally likely. On average, the product of
    their numbers is the number of executions of the step. Each step starts again from as many paths, chosen by the
    number of states that they represent. Merged states of a length are at most as many as the texts of that length. The
    walk ends when the estimate exceeds `enough`.

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
    method: Enumerable, states: Sequence[Any], generator: np.random.Generator
) -> tuple[list[tuple[Any, Any]], list[float], int]:
    """Step each state along a random path; return the results, the executions of each step, and the most cells."""
    uniforms = np.zeros((len(states), method.num_uniforms))
    settled = [0] * len(states)  # final choices of each execution
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
            uniforms[row, choice.column] = min((edges[cell] + edges[cell + 1]) / 2, np.nextafter(1.0, 0.0))
            ways[row] *= len(cells)
            most_cells = max(most_cells, len(cells))
            settled[row] += 1
