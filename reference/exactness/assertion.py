"""`assert_exact` for the tests of any sampler, and `replay` for the run that its message names.

Use them in any test framework: a wrong sampler raises `NotExact`, an AssertionError.

    def test_my_sampler():
        assert_exact(lambda: speculate(target_rows, draft_rows), lambda tokens: target_rows[len(tokens)])

`docs/test-your-sampler.md` has three worked examples.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Any

from .chooser import Chooser, checked_probs
from .distribution import OutputDistribution
from .numpy_draws import numpy_random
from .program import Replacement, every_execution, program_distribution, run_program

Target = Mapping[Any, float] | Callable[[tuple[Any, ...]], Sequence[float] | None]
ROUNDING = 1e-6  # a total variation that float32 alone can make


@dataclass(frozen=True)
class Event:
    """Outcomes that begin with some tokens, or one outcome, with the probability that it has and should have."""

    outcome: Any  # the first tokens, if it is a tuple
    is_whole: bool  # whether outcomes with more tokens are left out
    prob: float
    expected: float

    def __str__(self) -> str:
        name = f"the outcome {self.outcome!r}" if self.is_whole else f"an outcome that begins with {self.outcome!r}"
        return f"{name} has probability {self.prob:.6g}, expected {self.expected:.6g} ({self.difference:+.3g})"

    @property
    def difference(self) -> float:
        """By how much the probability is too large."""
        return self.prob - self.expected

    def matched(self, outcome: Any) -> int:
        """Return how many tokens of an outcome the event fixes; -1 if it neither belongs to the event nor begins it."""
        if not isinstance(outcome, tuple) or not isinstance(self.outcome, tuple):
            return 0 if outcome == self.outcome else -1
        both = min(len(outcome), len(self.outcome))
        longer = self.is_whole and len(outcome) > both
        return both if outcome[:both] == self.outcome[:both] and not longer else -1


class NotExact(AssertionError):
    """The distribution of a program is not its target.

    Attributes:
        worst: the event whose probability is most wrong; of several the one of fewest tokens.
        shortest: the event of fewest tokens whose probability is wrong.
        shown: what the replayed run shows: `worst`, or if that is too rare, the event of as many tokens that comes too
            often by most.
        uniforms: the uniform numbers of that run, one for each draw in order.
        outcome: what it returns.
    """

    def __init__(self, message: str, worst: Event, shortest: Event, shown: Event, uniforms: list[float], outcome: Any):
        super().__init__(message)
        self.worst, self.shortest, self.shown = worst, shortest, shown
        self.uniforms, self.outcome = uniforms, outcome


def assert_exact(
    program: Callable[[], Hashable],
    target: Target,
    replace: Iterable[Replacement] = (numpy_random,),
    tolerance: float = 1e-12,
    max_executions: int = 200_000,
) -> OutputDistribution:
    """Raise NotExact unless a program's outcomes have exactly their target distribution, else return it.

    All outcomes are enumerated as by `program_distribution`; nothing is sampled. A program that takes its uniforms as
    an argument is handed them: `lambda: program(numpy.random.rand(5))`, or `torch.rand(5)` with `torch_random`.

    Args:
        program: takes nothing and draws by itself; returns a hashable value, such as the tuple of its tokens.
        target: the probability of every outcome. Or a function that returns the target's probabilities of the next
            token after a tuple of tokens, or None where a text ends. Outcomes may then be blocks of several lengths,
            as one verification returns them: the shorter ones are continued by plain sampling from the target.
        replace: which libraries' draws are enumerated: `numpy_random`, which includes `random`, and `torch_random` of
            `pass_sampling.gpu.exactness.torch_draws`.
        tolerance: how much the probability of an event may be wrong. 1e-12 is right for float64, 1e-6 for float32.
        max_executions: refuse a larger tree of draws.

    Raises:
        NotExact: the message names the event that is most wrong, its two probabilities, the shortest tokens that show
            a mistake, and the uniforms of a run that shows it.
        ValueError: the program cannot be enumerated, or the target is not a distribution.
    """
    replacements = tuple(replace)
    found = program_distribution(program, replacements, max_executions)
    probs, expected = _comparable(found, target)
    levels = _events(probs, expected)
    wrong = [max(level, key=lambda event: abs(event.difference)) for level in levels]
    wrong = [event for event in wrong if not abs(event.difference) <= tolerance]
    if not wrong:
        return found
    worst = wrong[0]
    for event in wrong:
        worst = event if abs(event.difference) > abs(worst.difference) + tolerance else worst
    level = next(level for level in levels if worst in level)
    shown = worst if worst.difference > 0 else max(level, key=lambda event: event.difference)
    runs = every_execution(program, replacements, max_executions)
    chooser, outcome = max(runs, key=lambda run: (shown.matched(run[1]), run[0].weight))
    uniforms = [_inside(*interval) for interval in chooser.intervals]
    distance = OutputDistribution(probs).total_variation(expected)
    lines = [
        f"{getattr(program, '__name__', type(program).__name__)}: {worst}; total variation {distance:.3g}, "
        f"{found.executions} executions"
    ]
    if wrong[0] != worst:
        lines.append(f"fewest tokens that show a mistake: {wrong[0]}")
    if shown != worst:
        lines.append(f"in its place: {shown}")
    lines.append(f"replay(program, {uniforms}) returns {outcome!r}")
    if distance < ROUNDING:
        lines.append("a difference this small may be rounding: compute in float64, or pass a tolerance")
    raise NotExact("\n".join(lines), worst, wrong[0], shown, uniforms, outcome)


def replay(
    program: Callable[[], Hashable], uniforms: Sequence[float], replace: Iterable[Replacement] = (numpy_random,)
) -> Hashable:
    """Run a program with given uniform numbers, one for each draw in order, and return its outcome.

    Uniform draws return these numbers themselves. A draw from a distribution takes the outcome in whose cell its number
    is, in the order of the outcomes.

    Raises:
        ValueError: the program makes more or fewer draws than there are numbers, or cannot be enumerated.
    """
    chooser = _Replayed(uniforms)
    outcome = run_program(program, tuple(replace), chooser)
    if chooser.taken < len(uniforms):
        raise ValueError(f"uniforms: found {len(uniforms)}, expected {chooser.taken}, one for each draw")
    return outcome


class _Replayed(Chooser):
    """Makes the draws of one run by given uniform numbers."""

    kind = float

    def __init__(self, uniforms: Sequence[float]):
        super().__init__()
        self._uniforms, self.taken = [float(number) for number in uniforms], 0
        if not all(0 <= number < 1 for number in self._uniforms):
            raise ValueError(f"uniforms: found {self._uniforms}, expected numbers from 0 to 1, without 1")

    def choose(self, probs: Sequence[float]) -> int:
        number, distribution = self.uniform(), checked_probs(probs)
        edges = zip(accumulate(distribution), distribution, strict=True)
        possible = [(outcome, edge) for outcome, (edge, prob) in enumerate(edges) if prob > 0]
        return next((outcome for outcome, edge in possible if number < edge), possible[-1][0])

    def uniform(self) -> float:
        if self.taken == len(self._uniforms):
            raise ValueError(f"uniforms: found {self.taken}, expected one for each draw, and the program makes more")
        self.taken += 1
        return self._uniforms[self.taken - 1]


def _comparable(found: Mapping[Any, float], target: Target) -> tuple[dict[Any, float], dict[Any, float]]:
    """Return the probabilities of the same kind of outcomes, of the program and of its target."""
    if isinstance(target, Mapping):
        return dict(found), dict(zip(target, checked_probs(list(target.values()), "target"), strict=True))
    other = next((outcome for outcome in found if not isinstance(outcome, tuple)), None)
    if other is not None:
        raise ValueError(f"program: found it return {other!r:.80}, expected a tuple of tokens, which its target takes")
    length = max(map(len, found))
    return _continued(found, target, length), _continued({(): 1.0}, target, length)


def _continued(blocks: Mapping[Any, float], next_probs: Callable[[Any], Any], length: int) -> dict[Any, float]:
    """Return the distribution of blocks that are continued up to a length by plain sampling from the target."""
    texts: dict[Any, float] = {}
    level: dict[Any, float] = {}
    for num_tokens in range(length + 1):
        for tokens, prob in blocks.items():
            if len(tokens) == num_tokens:
                level[tokens] = level.get(tokens, 0.0) + prob
        following: dict[Any, float] = {}
        for tokens, prob in level.items():
            row = next_probs(tokens) if num_tokens < length else None
            if row is None:
                texts[tokens] = prob
            else:
                shares = enumerate(checked_probs(row, f"target after {tokens}"))
                following |= {(*tokens, token): prob * share for token, share in shares if share > 0}
        level = following
    return texts


def _events(probs: Mapping[Any, float], expected: Mapping[Any, float]) -> list[list[Event]]:
    """Return the events of 1 token, of 2 tokens and so on, each list a partition of all outcomes."""
    outcomes = dict.fromkeys([*probs, *expected])
    longest = max((len(outcome) for outcome in outcomes if isinstance(outcome, tuple)), default=0)
    levels = []
    for length in range(1, longest + 2):
        parts: dict[tuple[Any, bool], list[Any]] = {}
        for outcome in outcomes:
            whole = not isinstance(outcome, tuple) or len(outcome) < length
            parts.setdefault((outcome if whole else outcome[:length], whole), []).append(outcome)
        levels.append(
            [
                Event(*part, *(math.fsum(each.get(outcome, 0.0) for outcome in members) for each in (probs, expected)))
                for part, members in parts.items()
            ]
        )
    return levels


def _inside(low: float, high: float) -> float:
    """Return a number inside an interval, with as few digits as possible."""
    middle = (low + high) / 2
    return next((short for digits in range(1, 18) if low < (short := round(middle, digits)) < high), middle)
