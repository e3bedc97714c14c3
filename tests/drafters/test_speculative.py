"""Speculative sampling with a draft model: its distribution, second cache, schedules, lenience."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import pass_sampling.reference as reference
from models import PACKAGES, exact_target, package, table, transformer
from pass_sampling.reference.exactness.distribution import OutputDistribution, output_distribution
from pass_sampling.reference.theory import acceptance_rate, lenient_distribution

EXACT = 1e-12
PROMPT = (1, 0)
SCHEDULES: dict[str, tuple[str, dict[str, Any]]] = {
    "fixed": ("Schedule", {}),
    "heuristic": ("Heuristic", {"initial": 1}),
    "entropy": ("EntropyBound", {"threshold": 0.55, "step": 0.4}),
}


@pytest.fixture(params=PACKAGES)
def pkg(request: pytest.FixtureRequest) -> Any:
    return package(request.param)


def schedule_of(pkg: Any, name: str) -> Any:
    kind, options = SCHEDULES[name]
    return getattr(pkg, kind)(**options)


def drafter_of(pkg: Any, kind: str, seed: int = 50) -> Any:
    """A draft model over three tokens, unlike any target here."""
    model = table(pkg, num_lookahead=0, seed=seed) if kind == "table" else transformer(pkg, seed, num_hidden_layers=1)
    return pkg.ModelDrafter(model)


def target_of(pkg: Any, kind: str, seed: int = 3) -> Any:
    return table(pkg, seed=seed) if kind == "table" else transformer(pkg, seed)


def distribution_of(pkg: Any, method: Any, ending: dict[str, Any], **options: Any) -> OutputDistribution:
    return output_distribution(method, PROMPT, pkg.Ending(**ending), **options)


def definition(kind: str, sampling: dict[str, Any], ending: dict[str, Any]) -> OutputDistribution:
    model = target_of(reference, kind)
    return exact_target(model, reference.SamplingConfig(**sampling), PROMPT, reference.Ending(**ending))


def distributions_behind_the_prompt() -> tuple[Any, Any]:
    """The table's distribution and its drafter's."""
    model, drafter = target_of(reference, "table"), drafter_of(reference, "table").model
    rows = [each.logits(each.hidden(each.embed(PROMPT), each.new_cache())[-1]) for each in (model, drafter)]
    target, draft = (reference.Autoregressive(model).probs(PROMPT, row) for row in rows)
    return target, draft


# --- The distribution ---


@pytest.mark.parametrize("kind", ["table", "transformer"])
@pytest.mark.parametrize("rule", ["token", "block", "match"])
@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("num_draft", [1, 3])
def test_the_distribution_is_the_targets_for_any_number_of_drafts_and_schedule(
    pkg: Any, kind: str, rule: str, schedule: str, num_draft: int
) -> None:
    ending = {"max_new_tokens": 5, "eos_token_ids": (2,)}
    method = pkg.SpeculativeSampling(
        target_of(pkg, kind),
        drafter_of(pkg, kind),
        pkg.SamplingConfig(0.9),
        rule=rule,
        num_draft=num_draft,
        schedule=schedule_of(pkg, schedule),
    )
    distribution = distribution_of(pkg, method, ending)
    assert distribution.largest_deviation(definition(kind, {"temperature": 0.9}, ending)) <= EXACT
    assert sum(count > 0 for count in distribution.verified) >= 2


@pytest.mark.parametrize("schedule", ["heuristic", "entropy"])
def test_states_are_merged_only_with_the_same_pace(pkg: Any, schedule: str) -> None:
    """An enumeration that merges nothing assumes nothing, and finds the same counts."""
    ending = {"max_new_tokens": 4}
    method = pkg.SpeculativeSampling(
        target_of(pkg, "table"), drafter_of(pkg, "table"), num_draft=2, schedule=schedule_of(pkg, schedule)
    )
    merged, unmerged = (distribution_of(pkg, method, ending, merge=merge) for merge in (True, False))
    assert merged.expected == pytest.approx(dict(unmerged.expected), abs=EXACT)
    assert merged.largest_deviation(unmerged) <= EXACT


def test_nothing_is_drafted_where_no_drafts_are_wanted(pkg: Any) -> None:
    model = target_of(pkg, "table")
    distribution = distribution_of(
        pkg, pkg.SpeculativeSampling(model, drafter_of(pkg, "table"), num_draft=0), {"max_new_tokens": 4}
    )
    assert distribution.largest_deviation(definition("table", {}, {"max_new_tokens": 4})) <= EXACT
    assert distribution.expected["num_draft_passes"] == distribution.expected["num_draft_tokens"] == 0


def test_the_steps_that_the_enumeration_accepts_are_those_that_run(pkg: Any) -> None:
    """At both ends of every cell a step goes the same way."""
    method = pkg.SpeculativeSampling(target_of(pkg, "transformer"), drafter_of(pkg, "transformer"), num_draft=2)
    distribution_of(pkg, method, {"max_new_tokens": 3}, probe=True)


@pytest.mark.parametrize("rule", ["token", "match"])
def test_expected_tokens_are_those_of_the_theory(pkg: Any, rule: str) -> None:
    """One draft, then one more token: 1 + E[sum min(target, draft)] tokens from one pass."""
    target, draft = distributions_behind_the_prompt()
    rate = float(acceptance_rate(target[None], draft[None], rule))
    method = pkg.SpeculativeSampling(target_of(pkg, "table"), drafter_of(pkg, "table"), rule=rule, num_draft=1)
    found = distribution_of(pkg, method, {"max_new_tokens": 2}).expected
    assert found["num_accepted_tokens"] == pytest.approx(rate, abs=EXACT)
    assert found["num_forward_passes"] == pytest.approx(2 - rate, abs=EXACT)


def test_a_drafter_that_is_the_target_is_always_believed(pkg: Any) -> None:
    model = target_of(pkg, "transformer")
    method = pkg.SpeculativeSampling(model, pkg.ModelDrafter(model), num_draft=3)
    result = pkg.generate(method, PROMPT, 40, (), seed=3)
    assert result.num_accepted_tokens == result.num_draft_tokens and result.num_forward_passes == 10
    assert result.num_draft_passes == 30


class Silent:
    """A drafter that has nothing to say after two tokens of three, and then NaN, which is no better."""

    name, vocab_size, passes_per_draft, max_position_embeddings = "silent", 3, 0, None

    def new_cache(self, capacity: int, batch_size: int = 1) -> None:
        return None

    def logits(self, tokens: Any, cache: Any, lengths: Any = None, max_pending: int = 0) -> Any:
        if lengths is None:
            return np.array(self._row(tokens[-1]))
        rows = [self._row(row[length - 1]) for row, length in zip(tokens.tolist(), lengths.tolist(), strict=True)]
        return tokens.new_tensor(rows, dtype=package("gpu").TableModel.dtype)

    def _row(self, last: int) -> list[float]:
        return [[0.5, 1.0, -math.inf], [-math.inf] * 3, [math.nan] * 3][last]


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_a_drafter_may_be_silent(pkg: Any, schedule: str) -> None:
    method = pkg.SpeculativeSampling(target_of(pkg, "table"), Silent(), schedule=schedule_of(pkg, schedule))
    distribution = distribution_of(pkg, method, {"max_new_tokens": 5})
    assert distribution.largest_deviation(definition("table", {}, {"max_new_tokens": 5})) <= EXACT
    assert 0 < distribution.expected["num_draft_tokens"] and distribution.expected["num_draft_passes"] == 0


# --- The second cache ---


@pytest.mark.parametrize("seed", range(4))
def test_the_drafters_cache_holds_the_committed_text_and_nothing_else(pkg: Any, seed: int) -> None:
    """After every step, each of its rows is the row that a fresh pass over the text computes."""
    method = pkg.SpeculativeSampling(
        target_of(pkg, "transformer"), drafter_of(pkg, "transformer"), num_draft=3, schedule=pkg.Heuristic(2)
    )
    port = pkg.__name__.endswith("gpu")
    state, drafter, rejected = method.start(PROMPT, pkg.Ending(30)), method.drafter.model, 0
    for step in range(8):
        uniforms = np.random.default_rng((seed, step)).random(method.num_uniforms)
        row = __import__("torch").tensor(uniforms[None]) if port else uniforms
        state, record = method.step(state, row)
        record = record.rows()[0] if port else record
        rejected += record.num_accepted < len(record.draft_tokens)
        text, cache = [*PROMPT, *state.new_tokens], state.draft_cache
        held = int(cache.lengths[0]) if port else cache.length
        assert len(text) - 2 <= held < len(text)
        fresh = drafter.new_cache(len(text))
        drafter.hidden(drafter.embed([text[:held]] if port else text[:held]), fresh)
        assert cache.agrees(fresh)
    assert rejected


def test_rows_side_by_side_are_the_rows_alone(pkg: Any) -> None:
    model = target_of(pkg, "transformer")
    for schedule in SCHEDULES:
        method = pkg.SpeculativeSampling(model, drafter_of(pkg, "transformer"), schedule=schedule_of(pkg, schedule))
        prompts = [[1], [2, 0, 1, 2, 2], [0, 0]]
        batch = pkg.generate_batch(method, prompts, 24, (), seed=5)
        for request, (prompt, result) in enumerate(zip(prompts, batch, strict=True)):
            alone = pkg.generate(method, prompt, 24, (), seed=5, request=request)
            assert [vars_of(record) for record in alone.records] == [vars_of(record) for record in result.records]


def vars_of(record: Any) -> dict[str, Any]:
    """What two runs of a step have in common to the last digit."""
    exact = ("tokens", "sources", "draft_tokens", "num_accepted", "final_token")
    counts = ("num_forward_passes", "num_positions", "num_draft_passes")
    return {name: getattr(record, name) for name in exact + counts}


@pytest.mark.torch
@settings(max_examples=25)
@given(
    seed=st.integers(0, 2**32),
    schedule=st.sampled_from(sorted(SCHEDULES)),
    rule=st.sampled_from(["token", "block", "match"]),
    kind=st.sampled_from(["table", "transformer"]),
    temperature=st.sampled_from([0.0, 0.7, 1.0]),
)
def test_both_packages_write_the_same_text(seed: int, schedule: str, rule: str, kind: str, temperature: float) -> None:
    """Float64 distributions differ by rounding alone, and no uniform here is that close to an edge."""
    results = []
    for name in PACKAGES:
        pkg = package(name)
        method = pkg.SpeculativeSampling(
            target_of(pkg, kind),
            drafter_of(pkg, kind),
            pkg.SamplingConfig(temperature),
            pkg.SamplingConfig(1.0),
            rule,
            schedule=schedule_of(pkg, schedule),
        )
        results.append(pkg.generate(method, [0, 2, 1], 20, (), seed=seed))
    one, two = results
    assert [vars_of(record) for record in one.records] == [vars_of(record) for record in two.records]
    assert np.allclose(one.log_probs, two.log_probs, rtol=0, atol=1e-10)


# --- Schedules ---


def test_the_heuristic_rises_by_two_and_falls_by_one(pkg: Any) -> None:
    """A drafter that is the target is always accepted; one that is its opposite, hardly ever."""
    model = target_of(pkg, "table")
    options = {"num_draft": 6, "schedule": pkg.Heuristic(3)}
    lengths = drafted(pkg, pkg.SpeculativeSampling(model, pkg.ModelDrafter(model), **options))
    assert lengths == [3, 5, 6, 6, 6, 6]
    greedy = pkg.SamplingConfig(0.0)
    last = len(greedy_text(pkg, model)) % 3

    class Wrong(Silent):
        def _row(self, token: int) -> list[float]:
            return [0.0 if each == last else -math.inf for each in range(3)]

    method = pkg.SpeculativeSampling(model, Wrong(), greedy, greedy, **options)
    for before, record in zip([3, *drafted(pkg, method)], pkg.generate(method, PROMPT, 30, ()).records, strict=False):
        wanted = len(record.draft_tokens)
        if record.num_accepted < wanted < before:
            assert wanted == before - 1
    assert set(drafted(pkg, method)[:4]) <= {1, 2, 3, 4, 5, 6}


def drafted(pkg: Any, method: Any) -> list[int]:
    return [len(record.draft_tokens) for record in pkg.generate(method, PROMPT, 38, ()).records][:6]


def greedy_text(pkg: Any, model: Any) -> Any:
    return pkg.generate(pkg.Autoregressive(model, pkg.SamplingConfig(0.0)), PROMPT, 6, ()).tokens


def test_drafting_stops_where_the_draft_distribution_is_flat(pkg: Any) -> None:
    """Worked by hand: weight 0.2, threshold 0.7: at most 0.45 nats of entropy; a coin flip has 0.69."""
    bound = pkg.EntropyBound(threshold=0.7)
    flat, sharp = [0.0, 0.0, -math.inf], [0.0, -3.0, -math.inf]  # 0.69 and 0.19 nats
    for row, wanted in ((flat, False), (sharp, True)):
        assert continues(pkg, bound, 1, row) is wanted
        assert continues(pkg, bound, 0, row) is True, "the first draft is unconditional"
    assert continues(pkg, bound, 1, [0.0, -math.inf, -math.inf]) is True


def continues(pkg: Any, bound: Any, depth: int, row: list[float]) -> bool:
    if pkg.__name__.endswith("reference"):
        return bool(bound.continues(bound.start(4), depth, np.array(row)))
    torch = __import__("torch")
    return bool(bound.continues(torch.tensor([bound.start(4)], dtype=torch.float64), depth, torch.tensor([row])))


@pytest.mark.parametrize(
    ("num_drafted", "num_accepted", "threshold", "rate"),
    [(4, 4, 0.5, 0.95), (4, 0, 0.501, 0.45), (2, 2, 0.499, 0.95), (3, 1, 0.501, 0.45 + 1 / 6), (0, 0, 0.5, 0.9)],
)
def test_the_threshold_follows_the_share_of_accepted_drafts(
    pkg: Any, num_drafted: int, num_accepted: int, threshold: float, rate: float
) -> None:
    """By hand, from threshold 0.5 and share 0.9, of 4 drafts at most."""
    bound = pkg.EntropyBound(threshold=0.5)
    pace = bound.start(4)
    if pkg.__name__.endswith("reference"):
        found = bound.follow(pace, 4, num_drafted, num_accepted)
    else:
        torch = __import__("torch")
        counts = torch.tensor([num_drafted]), torch.tensor([num_accepted])
        found = bound.follow(torch.tensor([pace], dtype=torch.float64), 4, *counts)[0].tolist()
    assert tuple(found) == pytest.approx((threshold, rate), abs=1e-12)


# --- Lenience ---


@pytest.mark.parametrize("lenience", [1.0, 0.5, 0.1])
def test_lenience_changes_the_distribution_as_the_theory_says_and_no_more(pkg: Any, lenience: float) -> None:
    """After the drafted token the text is exact again; its own distribution is `lenient_distribution`."""
    method = pkg.SpeculativeSampling(target_of(pkg, "table"), drafter_of(pkg, "table"), num_draft=1, lenience=lenience)
    found = distribution_of(pkg, method, {"max_new_tokens": 2})
    first = np.zeros(3)
    for tokens, prob in found.items():
        first[tokens[0]] += prob
    model, drafter = target_of(reference, "table"), drafter_of(reference, "table").model
    plain = reference.Autoregressive(model)
    target, draft = (
        plain.probs(PROMPT, each.logits(each.hidden(each.embed(PROMPT), each.new_cache())[-1]))
        for each in (model, drafter)
    )
    assert np.allclose(first, lenient_distribution(target, draft, lenience), rtol=0, atol=EXACT)
    assert np.all(first <= target / lenience + EXACT)
    damage = found.total_variation(definition("table", {}, {"max_new_tokens": 2}))
    assert damage <= EXACT if lenience == 1 else damage > 0.01


# --- Refusals ---


def test_what_does_not_fit_is_refused_by_name(pkg: Any) -> None:
    model, drafter = target_of(pkg, "table"), drafter_of(pkg, "table")
    other = pkg.ModelDrafter(table(pkg, vocab_size=4, num_lookahead=0))
    for options, message in (
        ({"drafter": other}, r"drafter: found 'table' with a vocabulary of 4, expected 3 as in the model 'table'"),
        ({"num_draft": -1}, r"num_draft: found -1, expected"),
        ({"rule": "guess"}, r"rule: found 'guess', expected one of block, match, token"),
        ({"lenience": 0.0}, r"lenience: found 0.0, expected a number above 0 and at most 1"),
        ({"lenience": math.nan}, r"lenience: found nan, expected a number above 0 and at most 1"),
        ({"lenience": 0.5, "rule": "block"}, r"lenience: found 0.5 with the rule 'block', expected the rule 'token'"),
        ({"draft_sampling": pkg.SamplingConfig(top_k=9)}, r"top_k"),
    ):
        with pytest.raises(ValueError, match=f"^{message}"):
            pkg.SpeculativeSampling(model, **{"drafter": drafter, **options})
    short = pkg.ModelDrafter(table(pkg, num_lookahead=0, max_position_embeddings=9))
    message = r"^max_new_tokens: found a prompt of 2 tokens and 8 new ones, expected at most 9 together, .*'table'$"
    with pytest.raises(ValueError, match=message):
        pkg.generate(pkg.SpeculativeSampling(model, short), PROMPT, 8)
    for schedule, options in (
        (pkg.Heuristic, {"initial": 0}),
        (pkg.EntropyBound, {"threshold": 1.5}),
        (pkg.EntropyBound, {"weight": math.nan}),
        (pkg.EntropyBound, {"step": "much"}),
    ):
        with pytest.raises(ValueError, match=rf"^{next(iter(options))}: found .*, expected "):
            schedule(**options)
