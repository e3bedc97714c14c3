"""Laws as short lists: the same laws, the same draws, the same verdicts, or it is said that a list is too short."""

from __future__ import annotations

from collections import Counter
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import pass_sampling.reference as reference
from models import exact_target, package, transformer
from pass_sampling.reference.law import output_law
from test_compiled import as_written
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


@given(rows_and_settings(3))
def test_a_list_is_the_law_or_said_to_be_too_short(case: tuple[Any, Any]) -> None:
    from pass_sampling.gpu.sampling import draw, probs_from_logits
    from pass_sampling.gpu.shortlist import whole

    logits, sampling = case
    size = logits.shape[-1]
    lists, probs = lists_for(sampling, size), probs_from_logits(logits, sampling)
    laws, largest = lists.laws(logits, sampling, torch.ones(len(logits), dtype=torch.bool))
    assert largest.tolist() == logits.amax(dim=-1).tolist()
    kth = logits.double().sort(dim=-1, descending=True).values[:, sampling.top_k - 1, None]
    survivors = ((logits >= kth) & (logits > float("-inf"))).sum(dim=-1)
    if sampling.temperature == 0:
        survivors = torch.ones_like(survivors)
    fits = bool((survivors <= laws.tokens.shape[-1]).all())
    if not bool(lists.some_too_short()):
        assert fits
        assert bool((laws.tokens.diff(dim=-1) > 0).all())
        np.testing.assert_allclose(whole(laws), probs, rtol=1e-14, atol=0)
        for uniform in (0.0, 0.3, 0.77, 1 - 2.0**-53):
            at = torch.full((len(logits),), uniform, dtype=torch.float64)
            assert draw(probs, at).tolist() == laws.tokens.gather(1, draw(laws.probs, at)[:, None])[:, 0].tolist()
    elif fits:  # a list that is just full may be called too short
        assert bool((survivors == laws.tokens.shape[-1]).any())


@given(st.lists(st.sampled_from([0.0, 0.0, 1e-17, 3e-9, 0.1, 0.3, 0.7, 1 / 3]), min_size=1, max_size=80))
def test_running_sums_made_in_loops_have_no_cells_that_overlap(weights: list[float]) -> None:
    """They never step back, and a token of probability 0 has no cell: no tolerance."""
    from pass_sampling.gpu import sampling

    probs = torch.tensor([[*weights, 1.0]], dtype=torch.float64)[:, -80:]
    probs = probs / probs.sum()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sampling, "is_written_down", lambda tensor: True)
        sums = sampling._running_sum(probs)
        at = [edge for each in sums[0].tolist() for edge in (np.nextafter(each, 0.0), each) if edge < 1.0]
        drawn = sampling.draw(probs.expand(len(at), -1), torch.tensor(at, dtype=torch.float64))
    steps = sums.diff(dim=-1, prepend=torch.zeros(1, 1, dtype=torch.float64))
    assert bool((steps >= 0).all()) and not steps[probs == 0].any()
    assert bool((probs[0, drawn] > 0).all())


@given(rows_and_settings(7), st.sampled_from(["token", "block", "match"]), st.integers(0, 999), st.integers(0, 3))
def test_a_rule_says_the_same_over_columns(case: tuple[Any, Any], rule: str, seed: int, num_draft: int) -> None:
    from pass_sampling.gpu.sampling import probs_from_logits
    from pass_sampling.gpu.shortlist import beside, prob_of, whole
    from pass_sampling.gpu.tape import Draws, tape
    from pass_sampling.gpu.verify import RULES

    logits, sampling = case
    lists = lists_for(sampling, logits.shape[-1])
    target, draft = (
        lists.laws(rows[None], sampling, torch.ones(1, len(rows), dtype=torch.bool))[0]
        for rows in (logits[:4], logits[4:])
    )
    if bool(lists.some_too_short()):
        return
    slots = {"draft": 3, "accept": 3, "final": 1}
    draws = [Draws(tape(seed, [0], 0, 7), slots, trace=True) for _ in range(2)]
    tokens = [each.tokens("draft", laws) for each, laws in zip(draws, (draft, whole(draft)), strict=True)]
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


def written(method: Any, monkeypatch: pytest.MonkeyPatch, seldom: int = 16, **settings: Any) -> Any:
    """The method with its step written down, and run as written."""
    from pass_sampling.gpu.compiled import Compiled

    monkeypatch.setattr("pass_sampling.gpu.compiling.recent.SELDOM", seldom)
    monkeypatch.setattr("pass_sampling.gpu.compiled.has_compiler", lambda: True)
    monkeypatch.setattr("pass_sampling.gpu.compiled.compiled_package", as_written)
    return Compiled(method, **{"least_sight": 32} | settings)


def few_tokens(kind: str, vocab_size: int = 3, seed: int = 4, **settings: Any) -> Any:
    """A method of each kind with such settings."""
    pkg = package("gpu")
    method = method_of(kind, pkg, transformer(pkg, seed, vocab_size=vocab_size))
    object.__setattr__(method, "sampling", pkg.SamplingConfig(**settings))
    return method


def with_ties(kind: str, seed: int, top_k: int) -> Any:
    """A method over a model to which nine of thirteen tokens are always as likely as one another."""
    method = few_tokens(kind, 13, seed, temperature=0.9, top_k=top_k)
    with torch.no_grad():
        method.model.weights.output[4:] = method.model.weights.output[4]
    return method


@pytest.fixture
def outcomes(monkeypatch: pytest.MonkeyPatch) -> Counter[bool]:
    """How many written steps were valid, and how many not."""
    from pass_sampling.gpu.compiling.recent import Tally
    from pass_sampling.gpu.compiling.written import Layout

    counted: Counter[bool] = Counter()

    def count(owner: Any, name: str, valid: bool) -> None:
        does = getattr(owner, name)

        def counting(*arguments: Any) -> Any:
            counted[valid] += 1
            return does(*arguments)

        monkeypatch.setattr(owner, name, counting)

    count(Layout, "follow", True)
    count(Tally, "count_again", False)
    return counted


def deviation(method: Any, monkeypatch: pytest.MonkeyPatch, max_new_tokens: int = 4) -> float:
    """How far the law of the written step is from the definition, in the specification, with the same weights."""
    pkg, sampling = package("gpu"), method.sampling
    native = written(method, monkeypatch)
    law = output_law(native, (1, 0), pkg.Ending(max_new_tokens, (2,)))
    assert native.is_native
    target = transformer(reference, 4, vocab_size=method.model.vocab_size)
    definition = reference.SamplingConfig(sampling.temperature, sampling.top_k)
    ending = reference.Ending(max_new_tokens, (2,))
    return law.largest_deviation(exact_target(target, definition, (1, 0), ending))


@pytest.mark.parametrize("settings", [{"temperature": 0.9, "top_k": 2}, {"temperature": 0.0}], ids=["top-k", "greedy"])
@pytest.mark.parametrize("kind", KINDS)
def test_the_law_of_a_step_with_short_lists_is_the_targets(
    kind: str, settings: dict[str, Any], monkeypatch: pytest.MonkeyPatch, outcomes: Counter[bool]
) -> None:
    """Lists of 8 of 13 tokens, or of one."""
    assert deviation(few_tokens(kind, 13, **settings), monkeypatch) <= 1e-12
    assert outcomes[True] > 1 and not outcomes[False]


@pytest.mark.parametrize("kind", ["plain", "block", "fused head"])
def test_so_is_that_of_a_large_vocabulary(kind: str, monkeypatch: pytest.MonkeyPatch, outcomes: Counter[bool]) -> None:
    """Of which only likely parts are searched."""
    assert deviation(few_tokens(kind, 1024, temperature=0.9, top_k=2), monkeypatch, max_new_tokens=3) <= 1e-12
    assert outcomes[True] > 1 and not outcomes[False]


@pytest.mark.parametrize("draft", [(1.0, 4), (0.0, 0), (0.7, 1)], ids=["wider", "greedy", "narrower"])
def test_so_is_that_of_drafts_with_settings_of_their_own(
    draft: tuple[float, int], monkeypatch: pytest.MonkeyPatch, outcomes: Counter[bool]
) -> None:
    method = few_tokens("draft model", 13, temperature=0.9, top_k=2)
    object.__setattr__(method, "draft_sampling", package("gpu").SamplingConfig(*draft))
    assert deviation(method, monkeypatch, 3) <= 1e-12
    assert outcomes[True] > 1 and not outcomes[False]


@pytest.mark.parametrize("kind", ["plain", "lookahead", "fused head", "draft model", "block"])
def test_so_is_that_of_a_step_that_is_run_again_now_and_then(
    kind: str, monkeypatch: pytest.MonkeyPatch, outcomes: Counter[bool]
) -> None:
    """Nine tokens are always as likely as one another: where they are among the likeliest two, no list holds them."""
    ending = package("gpu").Ending(3, (2,))
    method = with_ties(kind, 11, 2)
    native = written(method, monkeypatch, seldom=1000)
    assert output_law(native, (1, 0), ending).largest_deviation(output_law(method, (1, 0), ending)) <= 1e-12
    assert native.is_native and outcomes[True] > 10 and outcomes[False] > 10


@pytest.mark.parametrize("kind", KINDS)
def test_a_text_is_the_same_whether_steps_are_run_again_or_not(
    kind: str, monkeypatch: pytest.MonkeyPatch, outcomes: Counter[bool]
) -> None:
    """Lists of two, where nine tokens share the largest logit, or one is alone in front; three texts side by side."""
    monkeypatch.setattr("pass_sampling.gpu.shortlist.SLACK", 0)
    monkeypatch.setattr("pass_sampling.gpu.shortlist.MULTIPLE", 2)
    pkg = package("gpu")
    method = with_ties(kind, 4, 1)
    native = written(method, monkeypatch, seldom=1000)
    for number, prompt in enumerate(PROMPTS[:3]):
        found = pkg.generate(native, prompt, 9, (), seed=3, request=number)
        same_records(found, pkg.generate(method, prompt, 9, (), seed=3, request=number))
    beside = pkg.generate_batch(native, PROMPTS[:3], 9, (2,), seed=3)
    for found, alone in zip(beside, pkg.generate_batch(method, PROMPTS[:3], 9, (2,), seed=3), strict=True):
        assert found.tokens == alone.tokens
    assert native.is_native and outcomes[True] and outcomes[False]


def test_lists_that_are_often_too_short_are_given_up(monkeypatch: pytest.MonkeyPatch, outcomes: Counter[bool]) -> None:
    monkeypatch.setattr("pass_sampling.gpu.shortlist.SLACK", 0)
    monkeypatch.setattr("pass_sampling.gpu.shortlist.MULTIPLE", 1)  # no list knows that it is long enough
    pkg = package("gpu")
    native = written(few_tokens("plain", 13, temperature=0.9, top_k=2), monkeypatch)
    text = pkg.generate(native, (1, 0), 40, (), seed=3)
    same_records(text, pkg.generate(native.method, (1, 0), 40, (), seed=3))
    assert outcomes == {False: 17, True: 23} and native.is_native


def test_choices_of_a_written_step_are_tokens(monkeypatch: pytest.MonkeyPatch) -> None:
    """As of the step as it is: what they are compared with has a cell per token."""
    pkg = package("gpu")
    for kind in ("plain", "block", "lookahead", "fused head"):
        method = few_tokens(kind, 13, temperature=0.9, top_k=2)
        texts = [
            pkg.generate(each, (1, 0), 9, (2,), seed=3, trace=True) for each in (written(method, monkeypatch), method)
        ]
        for mine, yours in zip(*(text.records for text in texts), strict=True):
            for here, there in zip(mine.choices, yours.choices, strict=True):
                assert (here.slot, here.outcome) == (there.slot, there.outcome)
                np.testing.assert_allclose(here.edges, there.edges, atol=1e-12)


def test_packages_do_not_depend_on_how_long_a_text_may_become(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nor on the longest one before it: all that see as far are one package."""
    from pass_sampling.gpu.compiling import packages

    pkg, digests = package("gpu"), []

    def kept(graph: Any, examples: Any, begins: Any) -> Any:
        digests.append(packages._digest(graph, examples))
        return graph

    model = transformer(pkg, 4, max_position_embeddings=512)
    for longest in (40, 41, 60, 300, 50):
        model.new_cache(longest)
        native = written(pkg.Autoregressive(model, pkg.SamplingConfig(0.9)), monkeypatch, least_sight=32)
        monkeypatch.setattr("pass_sampling.gpu.compiled.compiled_package", kept)
        state = native.start((1, 0), pkg.Ending(max_new_tokens=40))  # in a cache of 64
        native.step(state, torch.full((1, 1), 0.3, dtype=torch.float64))
    assert len(digests) == 5 and len(set(digests)) == 1
