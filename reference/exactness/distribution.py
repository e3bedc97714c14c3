"""The exact output distribution of a method, by running it once for every outcome of its random choices.

A step is a pure function of a state and a row of uniforms, and its record contains what each uniform was compared with.
So all executions of a step follow from one: put a uniform into each other cell of each choice, and run again. The
probability of an execution is the product of the widths of its uniforms' cells. The step that runs here is the one that
`generate` runs.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from ..ending import Ending
from ..sampling import Probs
from .enumeration import Enumerable, every_outcome

TokenTuple = tuple[int, ...]


@dataclass(frozen=True)
class OutputDistribution(Mapping[TokenTuple, float]):
    """The probability of every token sequence, and the size of the enumeration."""

    probs: Mapping[TokenTuple, float]
    executions: int = 0  # executions of one step
    steps: int = 0  # steps of the longest text
    verified: tuple[int, ...] = ()  # executions of each step, in turn, that verified at least one draft
    expected: Mapping[str, float] = field(default_factory=dict)  # of the counts of a text: passes, drafts, accepted

    def __getitem__(self, tokens: TokenTuple) -> float:
        return self.probs[tokens]

    def __iter__(self) -> Iterator[TokenTuple]:
        return iter(self.probs)

    def __len__(self) -> int:
        return len(self.probs)

    def largest_deviation(self, other: Mapping[TokenTuple, float]) -> float:
        """Return the largest difference in probability over all sequences of either distribution."""
        return max(self._differences(other), default=0.0)

    def total_variation(self, other: Mapping[TokenTuple, float]) -> float:
        """Return half the sum of the differences: the most that any event's probability differs by."""
        return 0.5 * sum(self._differences(other))

    def _differences(self, other: Mapping[TokenTuple, float]) -> Iterator[float]:
        return (abs(self.get(key, 0.0) - other.get(key, 0.0)) for key in {*self, *other})


def output_distribution(
    method: Enumerable,
    prompt: Sequence[int],
    ending: Any,
    num_tokens: int | None = None,
    merge: bool = True,
    probe: bool = False,
    untraced: bool = False,
    max_executions: int | None = 2_000_000,
    batch: int = 4096,
) -> OutputDistribution:
    """Return the exact distribution of the tokens that a method emits after a prompt.

    Args:
        method: anything `Enumerable`.
        prompt: token ids.
        ending: where texts end; its length limit bounds the enumeration.
        num_tokens: use only the first `num_tokens` tokens, of texts that may continue.
        merge: continue only one of the states with the same `key`: the new tokens, and whatever else the future depends
            on (by default nothing). States that have `agrees` are compared by it; a run with False checks the merging.
        probe: run every execution twice more, with each uniform near the lower and near the upper end of its cell,
            and refuse a step for which that makes a difference: it decides by other edges than it reports.
        untraced: run every execution once more without a trace, as `generate` does, and refuse a step for which that
            makes any difference; by default only the first batch of each step is run again.
        max_executions: refuse to run more executions; None: no limit.
        batch: executions to run side by side. In low precision, or with very thin cells, a row's rounding depends on
            the other rows; 1 then keeps the executions consistent.

    Raises:
        ValueError: there are more executions than allowed, or a record does not describe its step.
    """
    length = num_tokens if num_tokens is not None else float("inf")
    distribution: dict[TokenTuple, float] = {}
    expected: dict[str, float] = {}
    verified: list[int] = []
    level: list[tuple[Any, float]] = [(method.start(prompt, ending), 1.0)]
    executions = steps = 0
    while level:
        following: dict[Any, tuple[Any, float]] = {}
        verified.append(0)
        for state, record, weight in every_outcome(method, level, batch, probe, untraced):
            executions += 1
            if max_executions is not None and executions > max_executions:
                raise ValueError(f"max_executions: reached {max_executions} after {steps} steps, expected fewer")
            verified[-1] += bool(getattr(record, "draft_tokens", ()))
            for name, count in _counts(record).items():
                expected[name] = expected.get(name, 0.0) + weight * count
            tokens = tuple(state.new_tokens)
            if state.end is not None or len(tokens) >= length:
                shown = tokens[:num_tokens]
                distribution[shown] = distribution.get(shown, 0.0) + weight
            else:
                key = getattr(state, "key", tokens) if merge else executions
                first, mass = following.get(key, (state, 0.0))
                if first is not state and hasattr(state, "agrees") and not state.agrees(first):
                    raise ValueError(
                        f"states: found two after {tokens} that differ, expected merge=False or keys for them"
                    )
                following[key] = (first, mass + weight)
        level = list(following.values())
        steps += 1
    if abs(sum(distribution.values()) - 1.0) > 1e-9:
        raise ValueError(f"choices: found a total probability of {sum(distribution.values())}, expected 1")
    return OutputDistribution(distribution, executions, steps, tuple(verified), expected)


def _counts(record: Any) -> dict[str, float]:
    """Return what a step adds to the counts of a text, under the names of `Generation`; absent fields count 0."""
    counts = {name: getattr(record, name, 0) for name in ("num_forward_passes", "num_positions", "num_draft_passes")}
    counts["num_tokens"] = len(getattr(record, "tokens", ()))
    counts["num_draft_tokens"] = len(getattr(record, "draft_tokens", ()))
    counts["num_accepted_tokens"] = getattr(record, "num_accepted", 0)
    return {name: float(count) for name, count in counts.items()}


def target_distribution(
    next_probs: Callable[[TokenTuple], Probs], ending: Ending, num_tokens: int | None = None
) -> OutputDistribution:
    """Return the distribution of drawing token after token from `next_probs(new_tokens)`: the definition."""
    length = num_tokens if num_tokens is not None else ending.max_new_tokens
    distribution: dict[TokenTuple, float] = {}
    level: dict[TokenTuple, float] = {(): 1.0}
    while level:
        following: dict[TokenTuple, float] = {}
        for tokens, weight in level.items():
            for token, prob in enumerate(next_probs(tokens)):
                if prob > 0:
                    longer = (*tokens, token)
                    ended = ending.reason(longer) is not None or len(longer) >= length
                    (distribution if ended else following)[longer] = weight * float(prob)
        level = following
    return OutputDistribution(distribution)
