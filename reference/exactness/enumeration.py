"""The enumeration of all executions of one step, for `distribution`.

A record contains the edges that each uniform was compared with. So every other execution follows from one: put a
uniform into another cell of one of its choices, and run again.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

Script = tuple[tuple[int, float, int], ...]
"""The uniforms that an execution fixes, in the order of its choices: column, value, and the expected outcome."""

MISSED = 1e-13  # probability that may be lost when an edge moves by its last digit
COMPARED = ("tokens", "sources", "log_probs", "draft_tokens", "draft_token_probs", "target_token_probs", "accept_probs")


class Enumerable(Protocol):
    """The interface that enumeration needs. The methods of both packages have it.

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
    method: Enumerable, states: Sequence[tuple[Any, float]], batch: int, probe: bool, untraced: bool = False
) -> Iterator[tuple[Any, Any, float]]:
    """Yield the new state, record and weight of every execution of one step from each state.

    Each choice without a script adds one new script per other cell. The uniforms of new scripts are near the lower and
    the upper end of their cells in turn, which reveals edges other than the reported ones. Choices that no script fixes
    yet get the uniform 0 in every other row of a batch and the largest number below 1 in the rows between; with batch=1
    they all get 0.
    """
    todo: list[tuple[Any, float, Script, float]] = [(state, weight, (), 0.0) for state, weight in reversed(states)]
    low_end, missed, replayed = True, 0.0, False
    while todo:
        now = [todo.pop() for _ in range(min(batch, len(todo)))]
        uniforms = np.zeros((len(now), method.num_uniforms))
        uniforms[1::2] = np.nextafter(1.0, 0.0)
        for row, (_, _, script, _) in zip(uniforms, now, strict=True):
            for column, value, _ in script:
                row[column] = value
        states_now = [each[0] for each in now]
        results = method.run(states_now, uniforms)
        if untraced or not replayed:
            _check_untraced(method, states_now, uniforms, results)
            replayed = True
        cells = [_check_choices(record.choices, row) for (_, record), row in zip(results, uniforms, strict=True)]
        if probe:
            _check_both_ends(method, states_now, uniforms, results, cells)
        for (state, weight, script, expected), row, (reached, record), bounds in zip(
            now, uniforms, results, cells, strict=True
        ):
            if _made(record.choices[: len(script)]) != [(column, outcome) for column, _, outcome in script]:
                missed += expected  # it did not follow its script
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
    if missed > MISSED:
        raise ValueError(
            f"batch: found edges that depend on what runs beside them, which lost {missed} of the probability, "
            "expected a pure function of each row, or batch=1 in low precision"
        )


def _near_end(low: float, high: float, low_end: bool) -> float:
    """Return a number of the half-open cell [low, high) close to one of its ends.

    Not at the end itself: edges are sums, and their last digit may depend on how many executions run side by side.
    """
    margin = min((high - low) / 4, 2.0**-30)
    near = low + margin if low_end else high - margin
    return float(near if low <= near < high else low)


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
                f"choice at column {choice.column}: found edges {choice.edges.tolist()}, expected them to grow up to "
                "exactly 1, as `sampling.cell_edges` makes them"
            )
        low, high, uniform = float(edges[choice.outcome]), float(edges[choice.outcome + 1]), uniforms[choice.column]
        if not low <= uniform < high:
            raise ValueError(
                f"choice at column {choice.column}: found outcome {choice.outcome}, of the cell [{low}, {high}), for "
                f"the uniform {uniform}, expected the outcome whose cell holds it"
            )
        cells.append((low, high))
    return cells


def _check_untraced(
    method: Enumerable, states: Sequence[Any], uniforms: npt.NDArray[np.float64], results: Sequence[tuple[Any, Any]]
) -> None:
    """Raise ValueError unless the same states and uniforms give the same results again, without a trace."""
    again = method.run(states, uniforms, False)
    if [_course(*each) for each in again] != [_course(*each) for each in results]:
        raise ValueError(
            f"{type(method).__name__}: found another course in a run with the same uniforms, without a trace, expected "
            "no randomness of its own, and a step that tracing does not change"
        )


def _course(state: Any, record: Any) -> tuple[Any, ...]:
    """Return what two runs of an execution must have in common to the last bit; NaN is compared as text."""
    return tuple(state.new_tokens), state.end, [repr(getattr(record, name, ())) for name in COMPARED]


def _made(choices: Sequence[Any]) -> list[tuple[int, int]]:
    return [(choice.column, choice.outcome) for choice in choices]


def _check_both_ends(
    method: Enumerable,
    states: Sequence[Any],
    uniforms: npt.NDArray[np.float64],
    results: Sequence[tuple[Any, Any]],
    cells: Sequence[list[tuple[float, float]]],
) -> None:
    """Raise ValueError unless executions are the same at both ends of the cells of their uniforms."""
    for end in ("lower", "upper"):
        moved = uniforms.copy()
        for row, (_, record), bounds in zip(moved, results, cells, strict=True):
            for choice, (low, high) in zip(record.choices, bounds, strict=True):
                row[choice.column] = _near_end(low, high, end == "lower")
        for (state, record), (other, other_record) in zip(results, method.run(states, moved), strict=True):
            made = _made(record.choices)
            if (state.new_tokens, state.end, made) != (other.new_tokens, other.end, _made(other_record.choices)):
                raise ValueError(
                    f"choices {made}: found another course at the {end} ends of their cells, "
                    "expected the edges that the step decides by"
                )
