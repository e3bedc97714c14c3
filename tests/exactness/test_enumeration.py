"""The distribution tool against samplers that lie: each fraud is refused, or its distribution is seen to be wrong."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

import pass_sampling.reference as reference
from models import exact_target, table
from pass_sampling.reference.exactness import distribution as distribution
from pass_sampling.reference.exactness.distribution import OutputDistribution, output_distribution
from pass_sampling.reference.record import Choice
from pass_sampling.reference.uniforms import UniformRow

PROMPT = (1, 0)
ENDING = reference.Ending(5)


def distribution_of(method: Any, **options: Any) -> OutputDistribution:
    return output_distribution(method, PROMPT, ENDING, **options)


def truth(seed: int = 0) -> OutputDistribution:
    return exact_target(table(reference, seed=seed), reference.SamplingConfig(), PROMPT, ENDING)


def a_method(seed: int = 0) -> Any:
    model = table(reference, seed=seed)
    return reference.PaSS(model, model.lookahead())


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
        distribution_of(a_method(), probe=True)


@pytest.mark.parametrize("seed", range(4))
def test_a_generous_acceptance_is_seen_without_the_probe_too(monkeypatch: pytest.MonkeyPatch, seed: int) -> None:
    monkeypatch.setattr(UniformRow, "accept", accept_more_than_reported)
    distribution = distribution_of(a_method(seed))
    monkeypatch.undo()
    assert distribution.total_variation(truth(seed)) > 1e-3


@pytest.mark.parametrize("package", ["reference", pytest.param("gpu", marks=pytest.mark.torch)])
@pytest.mark.parametrize("rule", ["token", "block", "match"])
def test_our_own_steps_pass_the_probe(package: str, rule: str) -> None:
    import models

    pkg = models.package(package)
    model = table(pkg, seed=3)
    distribution = output_distribution(pkg.PaSS(model, model.lookahead(), rule=rule), PROMPT, pkg.Ending(5), probe=True)
    assert distribution.largest_deviation(truth(3)) <= 1e-12


class Changed(reference.PaSS):
    """PaSS whose record of choices is tampered with."""

    def step(self, state: Any, uniforms: Any, trace: bool = False) -> Any:
        state, record = super().step(state, uniforms, trace)
        return state, (replace(record, choices=self.tamper(record.choices)) if trace else record)

    def tamper(self, choices: Any) -> Any:
        raise NotImplementedError


def tampered(tamper: Any) -> Any:
    model = table(reference, seed=0)
    kind = type("Fraud", (Changed,), {"tamper": lambda self, choices: tamper(choices)})
    return kind(model, model.lookahead())


def test_a_uniform_that_serves_twice_is_refused() -> None:
    def same_slot(choices: Any) -> Any:
        return (*choices[:-1], replace(choices[-1], column=choices[0].column))

    with pytest.raises(ValueError, match="expected one decision for each"):
        distribution_of(tampered(same_slot))


@pytest.mark.parametrize("scale", [0.9, 1.1])
def test_edges_that_do_not_grow_up_to_one_are_refused(scale: float) -> None:
    with pytest.raises(ValueError, match="expected them to grow up to exactly 1"):
        distribution_of(tampered(lambda choices: tuple(replace(c, edges=c.edges * scale) for c in choices)))


def test_another_outcome_than_the_uniforms_cell_is_refused() -> None:
    def other(choices: Any) -> Any:
        return tuple(replace(choice, outcome=(choice.outcome + 1) % 2) for choice in choices)

    with pytest.raises(ValueError, match="expected the outcome whose cell holds it"):
        distribution_of(tampered(other))


def test_choices_that_change_from_run_to_run_are_refused() -> None:
    runs = iter(range(10**9))

    def reordered(choices: Any) -> Any:
        return choices if next(runs) % 2 == 0 else choices[1:]

    with pytest.raises(ValueError, match=r"expected (a pure function|no randomness of its own)"):
        distribution_of(tampered(reordered))


def test_a_choice_that_is_not_reported_shows_in_the_distribution() -> None:
    distribution = distribution_of(tampered(lambda choices: tuple(c for c in choices if c.column != 5)))
    assert distribution.total_variation(truth()) > 0.1


def test_merging_states_that_differ_is_refused() -> None:
    """A cache row is spoiled only after some rejections: a path that merging alone might never continue."""

    class Leak(reference.PaSS):
        def step(self, state: Any, uniforms: Any, trace: bool = False) -> Any:
            state, record = super().step(state, uniforms, trace)
            if record.num_accepted == 0 and record.draft_tokens[1:2] == (2,) and state.end is None:
                state.cache.keys[:, :, state.cached - 1] = 0.25
            return state, record

    model = table(reference, seed=3)
    leak = Leak(model, model.lookahead())
    with pytest.raises(ValueError, match="expected merge=False or keys for them"):
        distribution_of(leak)
    assert distribution_of(leak, merge=False).total_variation(truth(3)) > 1e-3


def test_keys_keep_states_apart() -> None:
    """A draft that is carried to the next step is part of a state's key, or the merged distribution is wrong."""

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
            out = []
            for state, (uniform,) in zip(states, uniforms, strict=True):
                coin = int(uniform >= 0.25)
                record = reference.Record((), (), (), choices=(Choice(0, np.array([0.25, 1.0]), coin),))
                out.append((self.State((*state.new_tokens, state.coin), coin, self.keyed), record))
            return out

    right = distribution_of(Carried(keyed=False), merge=False)
    assert distribution_of(Carried(keyed=True)).largest_deviation(right) <= 1e-15
    assert distribution_of(Carried(keyed=False)).total_variation(right) > 0.1
    assert right[0, 1, 1] == 0.75**2


def test_an_enumeration_that_grows_larger_than_was_estimated_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(distribution, "estimated_executions", lambda *arguments, **options: 1.0)
    with pytest.raises(ValueError, match="max_executions: reached 50 after"):
        distribution_of(a_method(), max_executions=50)


def test_a_step_that_keeps_no_choices_is_refused() -> None:
    with pytest.raises(ValueError, match=r"^choices: found None, expected those of a traced step"):
        distribution_of(tampered(lambda choices: None))


@pytest.mark.torch
def test_edges_that_depend_on_the_batch_are_refused_or_right() -> None:
    """In float32 a row's rounding depends on how many run beside it; then cells cannot be met again."""
    import torch

    from models import TINY, lookahead, package

    gpu = package("gpu")
    config = gpu.ModelConfig(**TINY)
    model = gpu.Transformer(config, gpu.Weights.random(config, 0, torch.float32))
    method = gpu.PaSS(model, lookahead(gpu, model))
    with pytest.raises(ValueError, match=r"^batch: found edges that depend on what runs beside them"):
        output_distribution(method, PROMPT, gpu.Ending(5))
    assert abs(sum(output_distribution(method, PROMPT, gpu.Ending(4), batch=1).values()) - 1.0) <= 1e-12


@pytest.mark.torch
def test_rows_that_depend_on_one_another_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    """A mistake in the third row of a batch and those after it: `batch` is not to blame."""
    import models
    from gallery_numbers import generous_beside_others
    from gallery_tools import Site

    generous_beside_others(Site("gpu", monkeypatch))
    gpu = models.package("gpu")
    model = table(gpu, seed=3)
    with pytest.raises(
        ValueError, match=r"^rows of a batch: found \d+ of \d+, from row 2 on, with edges up to 0\.\d+ "
    ):
        output_distribution(gpu.PaSS(model, model.lookahead()), PROMPT, gpu.Ending(5))


@pytest.mark.torch
@pytest.mark.parametrize("drop", [34.0, 35.5, 37.0])
@pytest.mark.parametrize("seed", range(3))
def test_cells_of_an_ulp_are_refused_or_right(drop: float, seed: int) -> None:
    import models

    def thin(prefix: tuple[int, ...], logits: Any) -> Any:
        logits[1] -= drop
        return logits

    gpu = models.package("gpu")
    model = models.transformer(gpu, seed=seed)
    method = gpu.PaSS(model, models.lookahead(gpu, model), processor=thin)
    truth = exact_target(
        models.transformer(reference, seed=seed), reference.SamplingConfig(), PROMPT, reference.Ending(4), None, thin
    )
    assert output_distribution(method, PROMPT, gpu.Ending(4), batch=1).largest_deviation(truth) <= 1e-12
    try:
        distribution = output_distribution(method, PROMPT, gpu.Ending(4))
    except ValueError as error:
        assert "expected batch=1" in str(error)
    else:
        assert distribution.largest_deviation(truth) <= 1e-12
