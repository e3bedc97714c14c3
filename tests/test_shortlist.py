"""Laws as short lists: the same laws, the same draws, the same verdicts, or it is said that a list is too short."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import pass_sampling.reference as reference
from models import exact_target, package, transformer
from pass_sampling.reference.law import output_law
from test_engine import KINDS, PROMPTS, method_of, same_records

pytestmark = pytest.mark.torch

torch = pytest.importorskip("torch")
LEVELS = [-2.0, -1.0, -0.5, 0.0, 0.25, 1.0, 3.0, float("-inf")]  # few, so that there are ties


@st.composite
def rows_and_settings(draw: Any, num_rows: int) -> tuple[Any, Any]:
    """Rows of logits with ties and masked tokens, short or so long that only parts are searched, and settings."""
    size = draw(st.sampled_from([1, 2, 5, 9, 30, 1024]))
    if size > 100:
        generator = np.random.default_rng(draw(st.integers(0, 99)))
        logits = torch.from_numpy(generator.choice(LEVELS + [4.0 + i / 8 for i in range(90)], (num_rows, size)))
    else:
        numbers = draw(st.lists(st.sampled_from(LEVELS), min_size=num_rows * size, max_size=num_rows * size))
        logits = torch.tensor(numbers, dtype=torch.float64).reshape(num_rows, size)
    logits[:, draw(st.integers(0, size - 1))] = 5.0  # every row has a law
    temperature, top_k = draw(st.sampled_from([0.0, 0.7, 1.0])), draw(st.integers(1, min(size, 20)))
    settings_of = package("gpu").SamplingConfig
    return logits.to(draw(st.sampled_from([torch.float64, torch.bfloat16]))), settings_of(temperature, top_k)


def lists_for(sampling: Any, size: int) -> Any:
    from pass_sampling.gpu.shortlist import Shortlists

    return Shortlists.of(SimpleNamespace(model=SimpleNamespace(vocab_size=size), sampling=sampling))  # type: ignore[arg-type]


def whole(laws: Any, size: int) -> Any:
    return torch.zeros((*laws.probs.shape[:-1], size), dtype=torch.float64).scatter(-1, laws.tokens, laws.probs)


@given(rows_and_settings(3))
def test_a_list_is_the_law_or_said_to_be_too_short(case: tuple[Any, Any]) -> None:
    from pass_sampling.gpu.sampling import draw, probs_from_logits

    logits, sampling = case
    size = logits.shape[-1]
    lists, probs = lists_for(sampling, size), probs_from_logits(logits, sampling)
    laws = lists.laws(logits, sampling)
    kth = logits.double().sort(dim=-1, descending=True).values[:, sampling.top_k - 1, None]
    survivors = ((logits >= kth) & (logits > float("-inf"))).sum(dim=-1)
    if sampling.temperature == 0:
        survivors = torch.ones_like(survivors)
    fits = bool((survivors <= laws.tokens.shape[-1]).all())
    if not bool(lists.some_too_short()):
        assert fits
        assert bool((laws.tokens.diff(dim=-1) > 0).all())
        np.testing.assert_allclose(whole(laws, size), probs, rtol=1e-14, atol=0)
        for uniform in (0.0, 0.3, 0.77, 1 - 2.0**-53):
            at = torch.full((len(logits),), uniform, dtype=torch.float64)
            assert draw(probs, at).tolist() == laws.tokens.gather(1, draw(laws.probs, at)[:, None])[:, 0].tolist()
    elif fits:  # a list that is just full may be called too short
        assert bool((survivors == laws.tokens.shape[-1]).any())


@given(rows_and_settings(7), st.sampled_from(["token", "block", "match"]), st.integers(0, 999), st.integers(0, 3))
def test_a_rule_says_the_same_over_columns(case: tuple[Any, Any], rule: str, seed: int, num_draft: int) -> None:
    from pass_sampling.gpu.sampling import probs_from_logits
    from pass_sampling.gpu.shortlist import beside, prob_of
    from pass_sampling.gpu.tape import Draws, tape
    from pass_sampling.gpu.verify import RULES

    logits, sampling = case
    lists, size = lists_for(sampling, logits.shape[-1]), logits.shape[-1]
    target, draft = (lists.laws(rows[None], sampling) for rows in (logits[:4], logits[4:]))
    if bool(lists.some_too_short()):
        return
    slots = {"draft": 3, "accept": 3, "final": 1}
    draws = [Draws(tape(seed, [0], 0, 7), slots, trace=True) for _ in range(2)]
    tokens = [each.tokens("draft", laws) for each, laws in zip(draws, (draft, whole(draft, size)), strict=True)]
    assert tokens[0].tolist() == tokens[1].tolist()
    one = torch.ones(1, dtype=torch.int64)
    rest = one * num_draft, one > 0, one > 0
    laws = beside(target, draft, tokens[0])
    assert laws.tokens_of(laws.draft_columns).tolist() == tokens[0].tolist()
    found = RULES[rule](*laws[:3], draws[0], *rest)
    dense = probs_from_logits(logits[None, :4], sampling), probs_from_logits(logits[None, 4:], sampling)
    expected = RULES[rule](*dense, tokens[1], draws[1], *rest)
    assert found.num_accepted.tolist() == expected.num_accepted.tolist()
    np.testing.assert_allclose(found.accept_probs[:, :num_draft], expected.accept_probs[:, :num_draft], atol=1e-12)
    block = torch.zeros((1, 4), dtype=torch.int64).scatter(1, found.num_accepted[:, None], found.final_token[:, None])
    assert laws.tokens_of(block)[0, found.num_accepted].tolist() == expected.final_token.tolist()
    np.testing.assert_allclose(
        prob_of(target, tokens[0][:, :1].expand(-1, 4)), dense[0][:, :, tokens[0][0, 0]], atol=1e-15
    )
    assert len(draws[0].choices or ()) == len(draws[1].choices or ())


def written(method: Any, monkeypatch: pytest.MonkeyPatch, **settings: Any) -> Any:
    """The method with its step written down, and run as written."""
    from pass_sampling.gpu.compiled import Compiled

    monkeypatch.setattr("pass_sampling.gpu.compiled.has_compiler", lambda: True)
    monkeypatch.setattr("pass_sampling.gpu.compiled.compiled_package", lambda graph, examples, begins: graph)
    return Compiled(method, **{"least_sight": 32} | settings)


def few_tokens(kind: str, **settings: Any) -> Any:
    pkg = package("gpu")
    method = method_of(kind, pkg, transformer(pkg, 4))
    object.__setattr__(method, "sampling", pkg.SamplingConfig(**settings))
    return method


@pytest.mark.parametrize("settings", [{"temperature": 0.9, "top_k": 2}, {"temperature": 0.0}], ids=["top-k", "greedy"])
@pytest.mark.parametrize("kind", KINDS)
def test_the_law_of_a_step_with_short_lists_is_the_targets(
    kind: str, settings: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    pkg = package("gpu")
    native = written(few_tokens(kind, **settings), monkeypatch)
    law = output_law(native, (1, 0), pkg.Ending(4, (2,)))
    sampling, ending = reference.SamplingConfig(**settings), reference.Ending(4, (2,))
    assert law.largest_deviation(exact_target(transformer(reference, 4), sampling, (1, 0), ending)) <= 1e-12
    assert None not in native.steps.values() and native.steps


@pytest.mark.parametrize("kind", KINDS)
def test_a_step_whose_lists_are_too_short_is_run_again(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Lists of one token, of which many share the largest logit: the text is that of the step as it is."""
    monkeypatch.setattr("pass_sampling.gpu.shortlist.SLACK", 0)
    monkeypatch.setattr("pass_sampling.gpu.shortlist.MULTIPLE", 1)
    pkg = package("gpu")
    method = few_tokens(kind, temperature=0.9, top_k=1)
    output = method.model.weights.output
    with torch.no_grad():
        output[2] = output[1]  # two tokens that are always as likely
    native, again = written(method, monkeypatch), []
    step = type(method).step
    monkeypatch.setattr(type(method), "step", lambda *args: again.append(args) or step(*args))
    for number, prompt in enumerate(PROMPTS):
        before = len(again)
        found = pkg.generate(native, prompt, 9, (), seed=3, request=number)
        assert len(again) - before >= len(found.records)
        same_records(found, pkg.generate(method, prompt, 9, (), seed=3, request=number))
    assert None not in native.steps.values() and native.steps
