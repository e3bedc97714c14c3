"""What steps cost on this machine, and how far their drafts come, measured in seconds.

Everything takes turns, and of each the quickest counts: whatever else a machine does can only make it slower.

Glossary of shapes: K drafts.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch

from pass_sampling.reference.ending import Ending
from pass_sampling.reference.record import Record

from ..methods import Candidates, FusedCandidates, Method
from ..methods.pass_one_call import Fused
from ..methods.tree_shape import NumCandidates
from ..model.transformer import Transformer
from ..uniforms import uniform_streams
from .expectation import steps_after
from .tree_shapes import WIDEST, best_shapes, rank_rates
from .ways import Candidate, most_drafts, with_settings

__all__ = ["Calibration", "Measured", "MeasuredTree", "calibrate", "step_milliseconds"]

DEPTHS = (1, 2, 3, 4, 6, 8)  # numbers of drafts that are timed
ROWS = (1, 2, 3, 5, 9, 17, 33, 65)  # rows of a pass that are timed
STEPS = 6  # that count, of each run
NUM_STREAMS = 1  # on which drafts are drawn after each prefix: more prefixes say more than more uniform streams


@dataclass(frozen=True)
class MeasuredTree:
    """What a tree of candidates costs and yields, verified without replacement."""

    shape: NumCandidates
    milliseconds: float
    tokens: float


@dataclass(frozen=True)
class Measured:
    """What one way costs and yields."""

    milliseconds: dict[int, float]  # of a step of K drafts, verified token by token
    block_milliseconds: float  # that the block rule takes more, at most drafts
    survival: tuple[float, ...]  # [K], the chance that at least so many drafts are accepted, by the token rule
    block_survival: tuple[float, ...]  # [K], by the block rule, at most drafts
    num_exact: float  # tokens of a step that no draft stands for, beside the last one
    trees: tuple[MeasuredTree, ...] = ()

    @property
    def most(self) -> int:
        """The most drafts that were measured."""
        return len(self.survival)


@dataclass(frozen=True)
class Calibration:
    """What was measured of a model, and of every way by its place."""

    pass_milliseconds: dict[int, float]  # of a pass over so many rows
    plain_milliseconds: float  # of a token by plain decoding
    ways: tuple[Measured, ...]


@torch.inference_mode()
def calibrate(
    plain: Method,
    ways: Sequence[Candidate],
    prefixes: Sequence[Sequence[int]],
    seconds: float = 2.0,
    report: Callable[[int, int], None] | None = None,
) -> Calibration:
    """Measure passes, steps and acceptance after some prefixes; about so many seconds go to the timing of steps.

    Raises:
        ValueError: there is no prefix, or one leaves no room for a step in the model's context.
    """
    report = report or (lambda done, total: None)
    tasks: dict[tuple[int, int, str], Method] = {(-1, 0, ""): plain}
    for place, way in enumerate(ways):
        most = most_drafts(way.method)
        for depth in sorted({depth for depth in DEPTHS if depth < most} | {most}):
            tasks[place, depth, "token"] = with_settings(way.method, depth, "token")
        tasks[place, most, "block"] = with_settings(way.method, most, "block")
    times: dict[tuple[int, int, str], list[float]] = {task: [] for task in tasks}
    began, turn, steps = time.perf_counter(), 0, 2 * len(ways) + 3
    while turn < 2 or (turn < 9 and time.perf_counter() - began < seconds):
        for task, method in tasks.items():
            times[task] += step_milliseconds(method, prefixes[turn % len(prefixes)])
        turn += 1
        report(min(turn, 2), steps)
    passes = _pass_milliseconds(plain.model, prefixes[0])  # type: ignore[arg-type]  # a plan is made for a Transformer
    report(3, steps)
    found = {task: min(values) for task, values in times.items()}
    for place, depth, rule in sorted(found, reverse=True):  # more drafts never cost less
        deeper = [found[task] for task in found if task[0] == place and task[1] > depth and task[2] == rule]
        found[place, depth, rule] = min([found[place, depth, rule], *deeper])
    measured = []
    for place, way in enumerate(ways):
        most = most_drafts(way.method)
        methods = (with_settings(way.method, most, rule) for rule in ("token", "block"))
        token, block = (steps_after(method, prefixes, NUM_STREAMS) for method in methods)
        measured.append(
            Measured(
                {
                    depth: found[task]
                    for task in tasks
                    if task[0] == place and task[2] == "token"
                    for depth in task[1:2]
                },
                max(0.0, found[place, most, "block"] - found[place, most, "token"]),
                tuple(np.mean([_survival(record, most) for record in token], axis=0).tolist()),
                tuple(np.mean([_block_survival(record, most) for record in block], axis=0).tolist()),
                float(np.mean([record.sources.count("exact") for record in token])),
            )
        )
        report(2 * place + 4, steps)
        measured[-1] = replace(measured[-1], trees=_measured_trees(way, prefixes))
        report(2 * place + 5, steps)
    return Calibration(passes, found[-1, 0, ""], tuple(measured))


def _measured_trees(way: Candidate, prefixes: Sequence[Sequence[int]]) -> tuple[MeasuredTree, ...]:
    """Measure how often each candidate is accepted, and time the best tree of each of some sizes."""
    wide = way.tree(WIDEST[: most_drafts(way.method)])
    if wide is None:
        return ()
    shapes = dict(best_shapes(rank_rates(steps_after(wide, prefixes, NUM_STREAMS), wide.rule)))
    times: dict[NumCandidates, list[float]] = {shape: [] for shape in shapes}
    for turn in range(2):
        for shape, values in times.items():
            method = way.tree(shape)
            assert method is not None
            values += step_milliseconds(method, prefixes[turn % len(prefixes)])
    return tuple(MeasuredTree(shape, min(times[shape]), tokens) for shape, tokens in shapes.items())


def step_milliseconds(method: Method, prefix: Sequence[int]) -> list[float]:
    """Time whole steps after a prefix, with what the loop does between them; those that warm up do not count."""
    device, most = method.model.device, method.model.max_position_embeddings
    unmeasured = 2 if isinstance(method, Fused) else 1  # the prefix's own pass, and the first with drafts
    trees = Candidates, FusedCandidates
    tokens = (
        len(method.tree.num_candidates) + 1 if isinstance(method, trees) else max(1, method.num_uniforms)
    )  # at most
    steps = unmeasured + max(1, min(STEPS, (most - len(prefix) - 1) // tokens - unmeasured))
    state = method.start(prefix, Ending(steps * tokens + 1))
    times: list[float] = []
    for uniforms in uniform_streams(0, [0], 0, steps, method.num_uniforms, device=device):
        started = _clock(device)
        state, batch = method.step(state, uniforms)
        state.raise_fault()
        state.cache.measure()
        batch.rows()
        times.append(1000 * (_clock(device) - started))
    return times[unmeasured:]


def _pass_milliseconds(model: Transformer, prefix: Sequence[int]) -> dict[int, float]:
    """Time passes over different numbers of rows after a prefix."""
    rows = [count for count in ROWS if len(prefix) + count <= model.max_position_embeddings]
    cache = model.new_cache(len(prefix) + max(rows))
    model.hidden(model.embed([list(prefix)]), cache)
    length = cache.lengths
    times: dict[int, list[float]] = {count: [] for count in rows}
    for _ in range(7):
        for count in rows:
            inputs = model.embed([[0] * count])
            started = _clock(model.device)
            model.logits(model.hidden(inputs, cache))
            times[count].append(1000 * (_clock(model.device) - started))
            cache.truncate(length)
    return {count: min(values) for count, values in times.items()}


def _survival(record: Record, most: int) -> list[float]:
    """Return the chance that at least so many drafts are accepted one by one, given the drafts."""
    chances = np.cumprod(record.accept_probs)
    return [float(value) for value in chances] + [0.0] * (most - len(chances))


def _block_survival(record: Record, most: int) -> list[float]:
    """Return the same by the block rule, which asks from the longest run down."""
    accept = np.array(record.accept_probs)
    given_up = np.cumprod((1.0 - accept)[::-1])[::-1]  # that this run and all longer ones are
    return [float(value) for value in 1.0 - given_up] + [0.0] * (most - len(accept))


def _clock(device: torch.device | str) -> float:
    if torch.device(device).type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()
