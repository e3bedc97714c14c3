"""Speculative sampling with a drafter: its distribution, second cache, schedules, lenience."""

import math
from typing import Any

import numpy as np
import pytest

import pass_sampling.reference as reference
from models import table
from pass_sampling.reference.theory import lenient_distribution
from trees import (
    EXACT,
    PROMPT,
    RowDrafter,
    array_of,
    assert_exact,
    assert_states_may_be_merged,
    checked_steps,
    definition,
    distribution_of,
    distributions_after,
    drafter_of,
    home,
    is_port,
    method_of,
    target_of,
)

SCHEDULES = {"fixed": {}, "heuristic": {"initial": 1}, "entropy": {"threshold": 0.55, "step": 0.4}}
each_schedule = pytest.mark.parametrize("schedule", SCHEDULES)
SILENT = [[0.5, 1.0, -math.inf], [-math.inf] * 3, [math.nan] * 3]  # no distribution after two tokens of three


def schedule_of(pkg: Any, name: str) -> Any:
    return home(pkg, "drafters.schedule").SCHEDULES[name](**SCHEDULES[name])


@pytest.mark.parametrize("rule", ["token", "block"])
@each_schedule
@pytest.mark.parametrize(("kind", "num_draft"), [("table", 1), ("transformer", 3)])
def test_the_distribution_is_the_targets_for_any_number_of_drafts_and_schedule(pkg, kind, rule, schedule, num_draft):
    options = {"sampling": {"temperature": 0.9}, "num_draft": num_draft, "schedule": schedule_of(pkg, schedule)}
    method = method_of(pkg, "draft-model", kind, rule=rule, **options)
    assert_exact(pkg, method, {"max_new_tokens": 5, "eos_token_ids": (2,)}, kind)


@each_schedule
def test_a_drafter_may_have_no_distribution(pkg: Any, schedule: str) -> None:
    method = method_of(pkg, "draft-model", drafter=RowDrafter(SILENT), schedule=schedule_of(pkg, schedule))
    distribution = assert_exact(pkg, method, {"max_new_tokens": 5})
    assert 0 < distribution.expected["num_draft_tokens"] and distribution.expected["num_draft_passes"] == 0


@pytest.mark.parametrize(("kind", "schedule"), [("transformer", "fixed"), ("table", "heuristic"), ("table", "entropy")])
def test_states_are_merged_only_with_the_same_pace(pkg: Any, kind: str, schedule: str) -> None:
    method = method_of(pkg, "draft-model", kind, num_draft=2, schedule=schedule_of(pkg, schedule))
    assert_states_may_be_merged(pkg, method, {"max_new_tokens": 4})


@pytest.mark.parametrize(("name", "options"), [("draft-model", {"num_draft": 0}), ("draft-model-tree", {"shape": ()})])
def test_without_drafts_it_is_plain_decoding(pkg: Any, name: str, options: dict[str, Any]) -> None:
    distribution = assert_exact(pkg, method_of(pkg, name, **options), {"max_new_tokens": 4}, verified_steps=0)
    assert distribution.expected["num_draft_passes"] == distribution.expected["num_draft_tokens"] == 0


def test_both_caches_hold_the_committed_text_and_nothing_else(pkg: Any) -> None:
    method = method_of(pkg, "draft-model", "windowed", num_draft=3, schedule=pkg.Heuristic(2))
    for state, _ in checked_steps(pkg, method, 24):
        lengths = (each.lengths[0] if is_port(pkg) else each.length for each in state.caches)
        assert all(length >= len(PROMPT) + len(state.new_tokens) - 2 for length in lengths)


def drafted(pkg: Any, method: Any) -> tuple[list[int], list[int]]:
    """Return how many drafts some steps made, and how many they accepted."""
    records = pkg.generate(method, PROMPT, 38, ()).records[:6]
    return [len(record.draft_tokens) for record in records], [record.num_accepted for record in records]


def test_the_heuristic_rises_by_two_and_falls_by_one(pkg: Any) -> None:
    """A drafter that is the target is always accepted; one that proposes a token which the target bans, never."""
    model, options = target_of(pkg, zeros=0.0), {"num_draft": 6, "schedule": pkg.Heuristic(3)}
    method = method_of(pkg, "draft-model", model=model, drafter=pkg.ModelDrafter(model), **options)
    assert drafted(pkg, method) == ([3, 5, 6, 6, 6, 6],) * 2
    greedy = pkg.generate(pkg.Autoregressive(model, pkg.SamplingConfig(0.0)), PROMPT, 38, ()).tokens
    unlikely = min(range(3), key=greedy.count)
    wrong = RowDrafter([[0.0 if token == unlikely else -math.inf for token in range(3)]] * 3)
    method = method_of(pkg, "draft-model", model=model, drafter=wrong, sampling={"temperature": 0.0}, **options)
    lengths, accepted = drafted(pkg, method)
    assert lengths[0] == 3 and 0 in accepted
    for before, after, kept in zip(lengths, lengths[1:], accepted, strict=False):
        assert after == (min(before + 2, 6) if kept == before else max(before - 1, 1))


def test_drafting_stops_where_the_draft_distribution_is_flat(pkg: Any) -> None:
    """Worked by hand: weight 0.2, threshold 0.7: at most 0.45 nats of entropy; a coin flip has 0.69."""
    bound = pkg.EntropyBound(threshold=0.7)

    def continues(depth: int, row: list[float]) -> bool:
        if not is_port(pkg):
            return bool(bound.continues(bound.start(4), depth, np.array(row)))
        return bool(bound.continues(array_of(pkg, np.array([bound.start(4)])), depth, array_of(pkg, np.array([row]))))

    flat, sharp = [0.0, 0.0, -math.inf], [0.0, -3.0, -math.inf]  # 0.69 and 0.19 nats
    assert not continues(1, flat) and continues(1, sharp) and continues(1, [0.0, -math.inf, -math.inf])
    assert continues(0, flat) and continues(0, sharp), "the first draft is unconditional"


@pytest.mark.parametrize(
    ("num_drafted", "num_accepted", "threshold", "rate"),
    [(4, 4, 0.5, 0.95), (4, 0, 0.501, 0.45), (2, 2, 0.499, 0.95), (3, 1, 0.501, 0.45 + 1 / 6), (0, 0, 0.5, 0.9)],
)
def test_the_threshold_follows_the_share_of_accepted_drafts(pkg, num_drafted, num_accepted, threshold, rate):
    """By hand, from threshold 0.5 and share 0.9, of 4 drafts at most."""
    bound = pkg.EntropyBound(threshold=0.5)
    pace, counts = bound.start(4), (num_drafted, num_accepted)
    if is_port(pkg):
        pace, *counts = (array_of(pkg, np.array([each])) for each in (pace, *counts))
        found = bound.follow(pace, 4, *counts)[0].tolist()
    else:
        found = bound.follow(pace, 4, *counts)
    assert tuple(found) == pytest.approx((threshold, rate), abs=1e-12)


@pytest.mark.parametrize("lenience", [1.0, 0.5, 0.1])
def test_lenience_changes_the_distribution_as_the_theory_says_and_no_more(pkg: Any, lenience: float) -> None:
    """After the drafted token the text is exact again; its own distribution is `lenient_distribution`."""
    method, ending = method_of(pkg, "draft-model", num_draft=1, lenience=lenience), {"max_new_tokens": 2}
    found = distribution_of(pkg, method, ending)
    first = np.zeros(3)
    for tokens, prob in found.items():
        first[tokens[0]] += prob
    target, draft = distributions_after(target_of(reference), drafter_of(reference), PROMPT)
    assert np.allclose(first, lenient_distribution(target, draft, lenience), rtol=0, atol=EXACT)
    assert np.all(first <= target / lenience + EXACT)
    damage = found.total_variation(definition(method, ending))
    assert damage <= EXACT if lenience == 1 else damage > 0.01


def test_what_does_not_fit_is_refused_by_name(pkg: Any) -> None:
    for options, message in (
        ({"num_draft": -1}, r"num_draft: found -1, expected"),
        ({"rule": "guess"}, r"rule: found 'guess', expected one of block, match, token"),
        ({"lenience": 0.0}, r"lenience: found 0.0, expected a number above 0 and at most 1"),
        ({"lenience": math.nan}, r"lenience: found nan, expected a number above 0 and at most 1"),
        ({"lenience": 0.5, "rule": "block"}, r"lenience: found 0.5 with the rule 'block', expected the rule 'token'"),
        ({"draft_sampling": {"top_k": 9}}, r"top_k"),
    ):
        with pytest.raises(ValueError, match=f"^{message}"):
            method_of(pkg, "draft-model", **options)
    for kind, name, value in (
        ("heuristic", "initial", 0),
        ("entropy", "threshold", 1.5),
        ("entropy", "weight", math.nan),
        ("entropy", "step", "much"),
    ):
        with pytest.raises(ValueError, match=rf"^{name}: found .*, expected "):
            home(pkg, "drafters.schedule").SCHEDULES[kind](**{name: value})


@pytest.mark.parametrize("name", ["draft-model", "draft-model-tree"])
def test_a_drafter_that_does_not_fit_is_refused_by_name(pkg: Any, name: str) -> None:
    other = pkg.ModelDrafter(table(pkg, vocab_size=4, num_lookahead=0))
    with pytest.raises(ValueError) as error:
        method_of(pkg, name, drafter=other)
    assert str(error.value) == "drafter: found 'table' with a vocabulary of 4, expected 3 as in the model 'table'"
    short = pkg.ModelDrafter(table(pkg, num_lookahead=0, max_position_embeddings=9))
    message = r"^max_new_tokens: found a prompt of 2 tokens and 8 new ones, expected at most 9 together, .*'table'$"
    with pytest.raises(ValueError, match=message):
        method_of(pkg, name, drafter=short).start(PROMPT, pkg.Ending(8))
