"""The exact output law of a method, by running it once for every way its random choices can fall.

A step is a pure function of a state and a row of uniforms, and its record says which uniform was compared with what.
So one run of a step tells all the runs beside it: put a uniform into each other cell of each choice, and run again.
Each execution's probability is the product of the widths of the cells its uniforms lie in. No model of the step is
involved, only the step.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from .ending import Ending
from .sampling import Probs

TokenTuple = tuple[int, ...]
Script = tuple[tuple[int, float], ...]
"""The uniforms that an execution fixes, as (slot, value) in the order of its choices."""


class Enumerable(Protocol):
    """What can be enumerated: the methods of both packages, and whatever else steps on a row of uniforms.

    A state has `new_tokens` (the tuple committed so far) and `end` (None until the text has ended); a record has
    `choices`, each with `slot`, `edges` and `outcome` as `record.Choice` says. `run` must leave its states unchanged.
    """

    @property
    def num_slots(self) -> int:
        """Uniforms per step."""

    def start(self, prompt: Sequence[int], ending: Any) -> Any:
        """Return the state before the first step."""

    def run(
        self,
        states: Sequence[Any],
        uniforms: npt.NDArray[np.float64],  # [len(states), num_slots]
    ) -> Sequence[tuple[Any, Any]]:
        """Step each state with its row of uniforms; return the new states and the records."""


@dataclass(frozen=True)
class OutputLaw(Mapping[TokenTuple, float]):
    """The probability of every token sequence, with what it took to find out."""

    probs: Mapping[TokenTuple, float]
    executions: int = 0  # runs of a step to one of its ends
    cycles: int = 0  # most steps in a row
    verified: tuple[int, ...] = ()  # executions of each cycle, in turn, that verified at least one draft

    def __getitem__(self, tokens: TokenTuple) -> float:
        """Return the probability of a sequence that can come out."""
        return self.probs[tokens]

    def __iter__(self) -> Iterator[TokenTuple]:
        """Iterate over the sequences that can come out."""
        return iter(self.probs)

    def __len__(self) -> int:
        """Count the sequences that can come out."""
        return len(self.probs)

    def largest_deviation(self, other: Mapping[TokenTuple, float]) -> float:
        """Return the largest difference in probability over all sequences of either law."""
        return max((abs(self.get(key, 0.0) - other.get(key, 0.0)) for key in {*self, *other}), default=0.0)

    def total_variation(self, other: Mapping[TokenTuple, float]) -> float:
        """Return half the sum of the differences: the most that any event's probability differs by."""
        return 0.5 * sum(abs(self.get(key, 0.0) - other.get(key, 0.0)) for key in {*self, *other})


def output_law(
    method: Enumerable,
    prompt: Sequence[int],
    ending: Any,
    num_tokens: int | None = None,
    merge: bool = True,
    max_executions: int = 2_000_000,
    batch: int = 4096,
) -> OutputLaw:
    """Return the exact law of what a method emits behind a prompt.

    Args:
        method: anything `Enumerable`.
        prompt: token ids.
        ending: where texts end; its length limit bounds the enumeration.
        num_tokens: look only at the first so many tokens, of texts that may go on.
        merge: continue only one of the states that have committed the same tokens. Sound if the future depends on
            nothing else; an unmerged run, which assumes nothing, shows that.
        max_executions: give up beyond this.
        batch: executions to run side by side. In low precision a row's rounding depends on how many rows run
            with it; 1 then keeps the executions consistent with one another.

    Raises:
        ValueError: more executions than allowed, or an outcome that does not lie in the cell of its uniform.
    """
    length = num_tokens if num_tokens is not None else float("inf")
    law: dict[TokenTuple, float] = {}
    verified: list[int] = []
    level: list[tuple[Any, float]] = [(method.start(prompt, ending), 1.0)]
    executions = cycles = 0
    while level:
        following: dict[Any, tuple[Any, float]] = {}
        verified.append(0)
        for state, record, weight in _every_outcome(method, level, batch):
            executions += 1
            if executions > max_executions:
                raise ValueError(f"max_executions: reached {max_executions} after {cycles} cycles, expected fewer")
            verified[-1] += bool(getattr(record, "draft_tokens", ()))
            tokens = tuple(state.new_tokens)
            if state.end is not None or len(tokens) >= length:
                shown = tokens[:num_tokens]
                law[shown] = law.get(shown, 0.0) + weight
            else:
                key = tokens if merge else executions
                first, mass = following.get(key, (state, 0.0))
                following[key] = (first, mass + weight)
        level = list(following.values())
        cycles += 1
    return OutputLaw(law, executions, cycles, tuple(verified))


def target_law(
    next_probs: Callable[[TokenTuple], Probs],
    ending: Ending,
    num_tokens: int | None = None,
) -> OutputLaw:
    """Return the law of drawing token after token from `next_probs(new_tokens)`: the definition to compare with."""
    length = num_tokens if num_tokens is not None else ending.max_new_tokens
    law: dict[TokenTuple, float] = {}
    level: dict[TokenTuple, float] = {(): 1.0}
    while level:
        following: dict[TokenTuple, float] = {}
        for tokens, weight in level.items():
            for token, prob in enumerate(next_probs(tokens)):
                if prob > 0:
                    longer = (*tokens, token)
                    ended = ending.reason(longer) is not None or len(longer) >= length
                    (law if ended else following)[longer] = weight * float(prob)
        level = following
    return OutputLaw(law)


def _every_outcome(
    method: Enumerable,
    states: Sequence[tuple[Any, float]],
    batch: int,
) -> Iterator[tuple[Any, Any, float]]:
    """Yield the new state, record and weight of every execution of one step from each state."""
    todo: list[tuple[Any, float, Script]] = [(state, weight, ()) for state, weight in reversed(states)]
    while todo:
        now = [todo.pop() for _ in range(min(batch, len(todo)))]
        uniforms = np.full((len(now), method.num_slots), 0.5)
        for row, (_, _, script) in zip(uniforms, now, strict=True):
            for slot, value in script:
                row[slot] = value
        results = method.run([state for state, _, _ in now], uniforms)
        for (state, weight, script), row, (reached, record) in zip(now, uniforms, results, strict=True):
            path: Script = ()
            share = weight
            for place, choice in enumerate(record.choices):
                edges = np.concatenate([[0.0], choice.edges])
                _check_outcome(choice, row[choice.slot], edges)
                if place >= len(script):
                    for other in np.flatnonzero(np.diff(edges) > 0):
                        if other != choice.outcome:
                            inside = _inside(edges[other], edges[other + 1])
                            todo.append((state, weight, (*path, (choice.slot, inside))))
                path = (*path, (choice.slot, float(row[choice.slot])))
                share *= float(edges[choice.outcome + 1] - edges[choice.outcome])
            yield reached, record, share


def _inside(low: float, high: float) -> float:
    """Return a number of the half-open cell [low, high): its middle, or its lower edge if it is one ulp wide."""
    middle = low + (high - low) / 2
    return float(middle if middle < high else low)


def _check_outcome(choice: Any, uniform: float, edges: npt.NDArray[np.float64]) -> None:
    """Raise ValueError unless the uniform lies in the cell of the outcome that was reported for it."""
    low, high = edges[choice.outcome], edges[choice.outcome + 1]
    if not low <= uniform < high:
        raise ValueError(
            f"choice at slot {choice.slot}: found outcome {choice.outcome}, of the cell [{low}, {high}), for the "
            f"uniform {uniform}, expected the outcome whose cell holds it"
        )
