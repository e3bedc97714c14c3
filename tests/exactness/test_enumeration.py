"""The distribution tool: frauds are refused or seen, its size is known beforehand, and what it counts is right."""

import itertools
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

import pass_sampling.reference as reference
from exactness_tools import distribution_after
from models import PACKAGES, TINY, exact_target, lookahead, package, table, transformer
from pass_sampling.reference.exactness.cases import PROMPT
from pass_sampling.reference.exactness.distribution import OutputDistribution, output_distribution
from pass_sampling.reference.record import Choice
from pass_sampling.reference.uniforms import UniformRow

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
def test_deciding_by_other_edges_than_reported_is_refused_by_the_probe(monkeypatch, name, fraud):
    monkeypatch.setattr(UniformRow, name, fraud)
    with pytest.raises(ValueError, match="expected the edges that the step decides by"):
        distribution_of(on_table(), probe=True)


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


@pytest.mark.parametrize("merge", [True, False])
def test_an_enumeration_that_grows_too_large_is_refused(merge: bool) -> None:
    with pytest.raises(ValueError, match="max_executions: reached 50 after"):
        distribution_of(on_table(), merge=merge, max_executions=50)


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
@pytest.mark.parametrize(("seed", "drop"), [(0, 34.0), (1, 35.5), (2, 37.0)])
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


@pytest.mark.parametrize("package_name", PACKAGES)
@pytest.mark.parametrize("seed", range(3))
def test_one_draft_is_accepted_as_often_as_its_distribution_and_the_targets_overlap(package_name, seed):
    """An exact token, a draft, and, if it is accepted, the last token; if it is not, one more pass."""
    pkg, model = package(package_name), table(reference, num_lookahead=1, seed=seed)
    draft = distribution_after(model, PROMPT, 1)
    overlaps = [np.minimum(distribution_after(model, (*PROMPT, token)), draft).sum() for token in range(3)]
    accepted = float(distribution_after(model, PROMPT) @ overlaps)
    run = table(pkg, num_lookahead=1, seed=seed)
    found = output_distribution(pkg.PaSS(run, run.lookahead()), PROMPT, pkg.Ending(3))
    expected = {
        "num_tokens": 3,
        "num_draft_tokens": 1,
        "num_accepted_tokens": accepted,
        "num_forward_passes": 2 + (1 - accepted),
        "num_draft_passes": 0,
        # the prompt and a vector; the exact token and its draft; the token after a rejected draft
        "num_positions": (len(PROMPT) + 1) + 2 + (1 - accepted),
    }
    assert found.expected == pytest.approx(expected, abs=1e-12)
