"""The distribution tool against samplers that lie: each fraud is refused, or its distribution is seen to be wrong."""

from __future__ import annotations

import itertools
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

import pass_sampling.reference as reference
from models import TINY, exact_target, lookahead, package, table, transformer
from pass_sampling.reference.exactness.distribution import OutputDistribution, output_distribution
from pass_sampling.reference.record import Choice
from pass_sampling.reference.uniforms import UniformRow

PROMPT = (1, 0)
ENDING = reference.Ending(5)


def distribution_of(method: Any, **options: Any) -> OutputDistribution:
    return output_distribution(method, PROMPT, ENDING, **options)


def truth(seed: int = 0) -> OutputDistribution:
    return exact_target(table(reference, seed=seed), reference.SamplingConfig(), PROMPT, ENDING)


def on_table(kind: type = reference.PaSS, pkg: Any = reference, seed: int = 0, **options: Any) -> Any:
    """Return PaSS, or a fraud of that kind, over a table."""
    model = table(pkg, seed=seed)
    return kind(model, model.lookahead(), **options)


def accept_more_than_reported(self: UniformRow, column: str, accept_prob: float, index: int = 0) -> bool:
    """Accept likely drafts more often than the edge says."""
    column = self._start[column] + index
    generous = accept_prob + 0.4 * (1 - accept_prob) if accept_prob > 0.5 else accept_prob
    accepted = bool(self._uniforms[column] < generous)
    self._record(Choice(column, np.array([accept_prob, 1.0]), int(not self._uniforms[column] < accept_prob)))
    return accepted


def draw_by_coarse_edges(self: UniformRow, column: str, probs: Any, index: int = 0) -> int:
    """Search a cumulative sum that was rounded to 1/64, and report the exact one."""
    column = self._start[column] + index
    edges = np.minimum(np.cumsum(probs), 1.0)
    edges[np.flatnonzero(probs)[-1] :] = 1.0
    token = int(np.searchsorted(np.round(edges * 64) / 64, self._uniforms[column], side="right"))
    self._record(Choice(column, edges, int(np.searchsorted(edges, self._uniforms[column], side="right"))))
    return token


@pytest.mark.parametrize(("name", "fraud"), [("accept", accept_more_than_reported), ("token", draw_by_coarse_edges)])
def test_deciding_by_other_edges_than_reported_is_refused_by_the_probe(
    monkeypatch: pytest.MonkeyPatch, name: str, fraud: Any
) -> None:
    monkeypatch.setattr(UniformRow, name, fraud)
    with pytest.raises(ValueError, match="expected the edges that the step decides by"):
        distribution_of(on_table(), probe=True)


@pytest.mark.parametrize("seed", range(4))
def test_a_generous_acceptance_is_seen_without_the_probe_too(monkeypatch: pytest.MonkeyPatch, seed: int) -> None:
    monkeypatch.setattr(UniformRow, "accept", accept_more_than_reported)
    found = distribution_of(on_table(seed=seed))
    monkeypatch.undo()
    assert found.total_variation(truth(seed)) > 1e-3


@pytest.mark.parametrize("name", ["reference", pytest.param("gpu", marks=pytest.mark.torch)])
@pytest.mark.parametrize("rule", ["token", "block", "match"])
def test_our_own_steps_pass_the_probe(name: str, rule: str) -> None:
    pkg = package(name)
    method = on_table(pkg.PaSS, pkg, seed=3, rule=rule)
    assert output_distribution(method, PROMPT, pkg.Ending(5), probe=True).largest_deviation(truth(3)) <= 1e-12


# --- Records that are tampered with ---


def tampered(tamper: Any) -> Any:
    class Fraud(reference.PaSS):
        def step(self, state: Any, uniforms: Any, trace: bool = False) -> Any:
            state, record = super().step(state, uniforms, trace)
            return state, (replace(record, choices=tamper(record.choices)) if trace else record)

    return on_table(Fraud)


runs = itertools.count()
TAMPERED = {
    "a uniform that serves two decisions, expected one decision for each": lambda choices: (
        *choices[:-1],
        replace(choices[-1], column=choices[0].column),
    ),
    "expected them to grow up to exactly 1": lambda choices: tuple(replace(c, edges=c.edges * 0.9) for c in choices),
    "found edges .*, expected them to grow": lambda choices: tuple(replace(c, edges=c.edges * 1.1) for c in choices),
    "expected the outcome whose cell holds it": lambda choices: tuple(
        replace(c, outcome=(c.outcome + 1) % 2) for c in choices
    ),
    "expected (a pure function|no randomness of its own)": lambda choices: choices[next(runs) % 2 :],
    "^choices: found None, expected those of a traced step": lambda choices: None,
}


@pytest.mark.parametrize(("message", "tamper"), TAMPERED.items(), ids=TAMPERED)
def test_a_record_that_is_not_what_the_step_did_is_refused(message: str, tamper: Any) -> None:
    with pytest.raises(ValueError, match=message):
        distribution_of(tampered(tamper))


def test_a_choice_that_is_not_reported_shows_in_the_distribution() -> None:
    found = distribution_of(tampered(lambda choices: tuple(c for c in choices if c.column != 5)))
    assert found.total_variation(truth()) > 0.1


# --- States that are merged ---


def test_merging_states_that_differ_is_refused() -> None:
    """A cache row is spoiled only after some rejections: a path that merging alone might never continue."""

    class Leak(reference.PaSS):
        def step(self, state: Any, uniforms: Any, trace: bool = False) -> Any:
            state, record = super().step(state, uniforms, trace)
            if record.num_accepted == 0 and record.draft_tokens[1:2] == (2,) and state.end is None:
                state.cache.keys[:, :, state.cached - 1] = 0.25
            return state, record

    leak = on_table(Leak, seed=3)
    with pytest.raises(ValueError, match="expected merge=False or keys for them"):
        distribution_of(leak)
    assert distribution_of(leak, merge=False).total_variation(truth(3)) > 1e-3


class Carried:
    """Emit the coin of the step before: two states after the same tokens may hold different coins."""

    num_uniforms = 1

    class State:
        def __init__(self, new_tokens: tuple[int, ...], coin: int, keyed: bool):
            self.new_tokens, self.coin = new_tokens, coin
            self.end = "length" if len(new_tokens) == 3 else None
            if keyed:
                self.key = (new_tokens, coin)

    def __init__(self, keyed: bool):
        self.keyed = keyed

    def start(self, prompt: Any, ending: Any) -> Any:
        return self.State((), 0, self.keyed)

    def run(self, states: Any, uniforms: Any, trace: bool = True) -> Any:
        return [self.step(state, int(uniform >= 0.25)) for state, (uniform,) in zip(states, uniforms, strict=True)]

    def step(self, state: Any, coin: int) -> Any:
        record = reference.Record((), (), (), choices=(Choice(0, np.array([0.25, 1.0]), coin),))
        return self.State((*state.new_tokens, state.coin), coin, self.keyed), record


def test_keys_keep_states_apart() -> None:
    """A draft that is carried to the next step is part of a state's key, or the merged distribution is wrong."""
    right = distribution_of(Carried(keyed=False), merge=False)
    assert distribution_of(Carried(keyed=True)).largest_deviation(right) <= 1e-15
    assert distribution_of(Carried(keyed=False)).total_variation(right) > 0.1
    assert right[0, 1, 1] == 0.75**2


def test_an_enumeration_that_grows_too_large_is_refused() -> None:
    with pytest.raises(ValueError, match="max_executions: reached 50 after"):
        distribution_of(on_table(), max_executions=50)


# --- Rows that run beside one another, in the port ---


@pytest.mark.torch
def test_edges_that_depend_on_the_batch_are_refused_or_right() -> None:
    """In float32 a row's rounding depends on how many run beside it; then cells cannot be met again."""
    import torch

    gpu = package("gpu")
    config = gpu.ModelConfig(**TINY)
    model = gpu.Transformer(config, gpu.Weights.random(config, 0, torch.float32))
    method = gpu.PaSS(model, lookahead(gpu, model))
    with pytest.raises(ValueError, match=r"^batch: found edges that depend on what runs beside them"):
        output_distribution(method, PROMPT, gpu.Ending(5))
    assert abs(sum(output_distribution(method, PROMPT, gpu.Ending(4), batch=1).values()) - 1.0) <= 1e-12


@pytest.mark.torch
def test_rows_that_depend_on_one_another_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """A mistake in the third row of a batch and those after it."""
    from gallery_numbers import generous_in_later_rows
    from gallery_tools import Site

    gpu = package("gpu")
    generous_in_later_rows(Site("gpu", monkeypatch))
    with pytest.raises(ValueError, match=r"^batch: found edges that depend on what runs beside them"):
        output_distribution(on_table(gpu.PaSS, gpu, seed=3), PROMPT, gpu.Ending(5))


@pytest.mark.torch
@pytest.mark.parametrize("drop", [34.0, 35.5, 37.0])
@pytest.mark.parametrize("seed", range(3))
def test_cells_of_an_ulp_are_refused_or_right(drop: float, seed: int) -> None:
    def thin(prefix: tuple[int, ...], logits: Any) -> Any:
        logits[1] -= drop
        return logits

    gpu, config = package("gpu"), reference.SamplingConfig()
    model = transformer(gpu, seed=seed)
    method = gpu.PaSS(model, lookahead(gpu, model), processor=thin)
    truth = exact_target(transformer(reference, seed=seed), config, PROMPT, reference.Ending(4), None, thin)
    assert output_distribution(method, PROMPT, gpu.Ending(4), batch=1).largest_deviation(truth) <= 1e-12
    try:
        found = output_distribution(method, PROMPT, gpu.Ending(4))
    except ValueError as error:
        assert "or batch=1" in str(error)
    else:
        assert found.largest_deviation(truth) <= 1e-12
