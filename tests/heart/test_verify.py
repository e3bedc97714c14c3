"""The rules of verification: the target's distribution comes out, in both packages."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Hashable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import product
from typing import Any

import numpy as np
import pytest
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st

from adapters import PORT, REFERENCE, Port, Reference, each_impl, each_port
from strategies import (
    DENORMAL,
    LARGEST_UNIFORM,
    around,
    distribution_pairs,
    distributions,
    integer_distributions,
    normalised,
    uniforms,
)

Array = np.ndarray
Tokens = tuple[int, ...]
Rows = dict[Tokens, Array]  # a distribution after every sequence of drafts

each_rule = pytest.mark.parametrize("rule", ["token", "match"])


# --- The distribution of a rule, measured from outside: it is run, and nothing that it says about itself is used ---


def measure(
    outcomes: Callable[[Array, Array], Sequence[Hashable]],
    count: int,
) -> list[dict[Hashable, tuple[float, float]]]:
    """Return, for each of `count` step functions of a uniform, the width of every outcome and a uniform inside it.

    `outcomes(which, uniforms)` evaluates many functions, each at one uniform. An outcome must fill one interval; its
    end is found by halving, to the last multiple of 2^-53.
    """
    grid = 2**53
    found: list[dict[Hashable, tuple[float, float]]] = [{} for _ in range(count)]
    which, start = np.arange(count), np.zeros(count, dtype=np.int64)
    while len(which):
        first = outcomes(which, start / grid)
        last, beyond = start, np.full(len(which), grid)
        probe = beyond - 1
        while np.any(beyond - last > 1):
            same = np.array([now == then for now, then in zip(outcomes(which, probe / grid), first, strict=True)])
            last, beyond = np.where(same, probe, last), np.where(same, beyond, probe)
            probe = (last + beyond) // 2
        for i, outcome in enumerate(first):
            width = found[which[i]].get(outcome, (0.0,))[0] + float(beyond[i] - start[i]) / grid
            found[which[i]][outcome] = (width, float((start[i] + last[i]) // 2) / grid)
        which, start = which[beyond < grid], beyond[beyond < grid]
    return found


@dataclass(frozen=True)
class Path:
    """One way that a step can go: the drafts, the uniforms so far, and the chance of it."""

    drafts: Tokens
    uniforms: tuple[float, ...]
    weight: float
    num_accepted: int = 0
    final_token: int = -1


def every_path(impl: Reference, rule: str, target: Rows, draft: Rows, num_draft: int) -> list[Path]:
    """Run a rule through all its outcomes, for all drafts that can be drawn from `draft`."""
    vocab_size = target[()].size
    paths = []
    for drafts in product(range(vocab_size), repeat=num_draft):
        weight = float(np.prod([draft[drafts[:i]][token] for i, token in enumerate(drafts)]))
        if weight > 0:
            paths.append(Path(drafts, (0.5,) * (num_draft + 1), weight))

    def run(some: list[Path], columns: Array, column: int) -> tuple[Array, Array]:
        rows = np.array([path.uniforms for path in some])
        rows[:, column] = columns
        tokens = np.array([path.drafts for path in some], dtype=np.int64).reshape(len(some), num_draft)
        target_probs = np.array([[target[path.drafts[:i]] for i in range(num_draft + 1)] for path in some])
        draft_probs = np.array([[draft[path.drafts[:i]] for i in range(num_draft)] for path in some])
        shape = (len(some), num_draft, vocab_size)
        return impl.verify(rule, target_probs, draft_probs.reshape(shape), tokens, rows)[:2]

    def split(some: list[Path], column: int, key: Callable[[int, int], Hashable]) -> Iterator[tuple[Path, Any]]:
        """Yield every outcome of one uniform of each path, as `key(num_accepted, final_token)` tells them apart."""

        def outcomes(which: Array, columns: Array) -> list[Hashable]:
            ends = run([some[n] for n in which], columns, column)
            return [key(int(accepted), int(final)) for accepted, final in zip(*ends, strict=True)]

        for path, found in zip(some, measure(outcomes, len(some)), strict=True):
            for outcome, (width, inside) in found.items():
                row = (*path.uniforms[:column], inside, *path.uniforms[column + 1 :])
                yield replace(path, uniforms=row, weight=path.weight * width), outcome

    stopped: list[Path] = []
    for i in range(num_draft):  # a path goes on where draft i is accepted
        ends = list(split(paths, i, lambda accepted, final, i=i: "on" if accepted > i else final))
        stopped += [path for path, outcome in ends if outcome != "on"]
        paths = [path for path, outcome in ends if outcome == "on"]
    ends = split([*stopped, *paths], num_draft, lambda *end: end)
    return [replace(path, num_accepted=accepted, final_token=final) for path, (accepted, final) in ends]


def joint_distribution(rows: Rows, behind: Tokens, length: int) -> dict[Tokens, float]:
    """Return the distribution of the first `length` tokens of a text that begins with `behind`."""
    distribution = {behind: 1.0}
    while any(len(tokens) < length for tokens in distribution):
        distribution = {
            (*tokens, i): p * float(q) for tokens, p in distribution.items() for i, q in enumerate(rows[tokens])
        }
    return distribution


def assert_the_target_comes_out(paths: list[Path], target: Rows, num_draft: int) -> None:
    """Complete every block to the longest by the target; compare the distribution of the whole with the target's."""
    distribution: dict[Tokens, float] = defaultdict(float)
    for path in paths:
        block = (*path.drafts[: path.num_accepted], path.final_token)
        for tokens, weight in joint_distribution(target, block, num_draft + 1).items():
            distribution[tokens] += path.weight * weight
    expected = joint_distribution(target, (), num_draft + 1)
    assert max(abs(distribution[tokens] - weight) for tokens, weight in expected.items()) < 1e-12
    assert abs(sum(distribution.values()) - 1) < 1e-12


def prefixes(vocab_size: int, longest: int) -> list[Tokens]:
    return [tokens for length in range(longest + 1) for tokens in product(range(vocab_size), repeat=length)]


def every_row(vocab_size: int, num_draft: int, make: Callable[[Tokens], Array]) -> Rows:
    """Return a distribution for every prefix that a block of drafts can leave."""
    return {tokens: make(tokens) for tokens in prefixes(vocab_size, num_draft)}


def random_row(seed: int, vocab_size: int, zeros: float = 0.0) -> Callable[[Tokens], Array]:
    """Return a maker of unrelated distributions, one for every prefix."""

    def row(tokens: Tokens) -> Array:
        generator = np.random.default_rng([seed, len(tokens), *tokens])
        weights = generator.exponential(size=vocab_size) * (generator.random(vocab_size) >= zeros)
        weights[generator.integers(vocab_size)] += 0.1
        return normalised(weights)

    return row


def nudged(rows: Rows) -> Rows:
    """Return distributions whose numbers are one unit in the last place away, up and down in turn."""
    return {
        tokens: np.where(np.arange(distribution.size) % 2, np.nextafter(distribution, 0), np.nextafter(distribution, 1))
        for tokens, distribution in rows.items()
    }


def greedy(rows: Rows) -> Rows:
    return {tokens: np.eye(distribution.size)[distribution.argmax()] for tokens, distribution in rows.items()}


def cases() -> dict[str, tuple[Rows, Rows, int]]:
    """Target, draft and number of drafts, of every kind."""
    distinct = every_row(3, 2, random_row(0, 3))
    other = every_row(3, 2, random_row(1, 3))
    halves = [
        every_row(4, 2, lambda _, distribution=distribution: np.array(distribution))
        for distribution in ([0.5, 0.5, 0, 0], [0, 0, 0.25, 0.75])
    ]
    tiny = np.array([DENORMAL, 0.5, 0.5])
    return {
        "distinct rows": (distinct, other, 2),
        "the same rows everywhere": (every_row(3, 2, lambda _: distinct[()]), every_row(3, 2, lambda _: other[()]), 2),
        "zeros": (every_row(3, 2, random_row(2, 3, zeros=0.5)), every_row(3, 2, random_row(3, 3, zeros=0.5)), 2),
        "disjoint": (*halves, 2),
        "equal": (distinct, distinct, 2),
        "nearly equal": (distinct, nudged(distinct), 2),
        "greedy draft": (distinct, greedy(other), 2),
        "greedy both": (greedy(distinct), greedy(other), 2),
        "a draft of almost no probability": (distinct, every_row(3, 2, lambda _: tiny), 2),
        "a target of almost no probability": (every_row(3, 2, lambda _: tiny), distinct, 2),
        "three drafts": (every_row(2, 3, random_row(4, 2)), every_row(2, 3, random_row(5, 2)), 3),
        "no drafts": (every_row(5, 0, random_row(6, 5)), every_row(5, 0, random_row(7, 5)), 0),
    }


CASES = cases()


@each_impl
@each_rule
@pytest.mark.parametrize("name", CASES)
def test_the_target_comes_out_of_a_block(impl: Reference, rule: str, name: str) -> None:
    target, draft, num_draft = CASES[name]
    assert_the_target_comes_out(every_path(impl, rule, target, draft, num_draft), target, num_draft)


@each_impl
@each_rule
@settings(max_examples=8)
@given(st.integers(1, 2), st.data())
def test_the_target_comes_out_whatever_the_distributions(
    impl: Reference, rule: str, num_draft: int, data: st.DataObject
) -> None:
    pairs = {tokens: data.draw(distribution_pairs(2)) for tokens in prefixes(2, num_draft)}
    target, draft = ({tokens: pair[side] for tokens, pair in pairs.items()} for side in (0, 1))
    assert_the_target_comes_out(every_path(impl, rule, target, draft, num_draft), target, num_draft)


def test_a_wrong_rule_is_seen() -> None:
    class Wrong(Reference):
        """Takes the residual of the next row, as a sampler that is off by one would."""

        def verify(self, rule: str, target: Array, draft: Array, *rest: Array) -> tuple[Array, Array, Array]:
            return super().verify(rule, target, np.roll(draft, 1, axis=1), *rest)

    target, draft, num_draft = CASES["distinct rows"]
    with pytest.raises(AssertionError):
        assert_the_target_comes_out(every_path(Wrong(), "token", target, draft, num_draft), target, num_draft)


@each_impl
@each_rule
@pytest.mark.parametrize("seed", range(3))
def test_as_many_drafts_are_accepted_as_the_formula_says(impl: Reference, rule: str, seed: int) -> None:
    # Drafts drawn independently, rows that depend on the place alone: the chance to get past place i is a product.
    places = [[random_row(seed, 3, zeros=0.2)((place, side)) for place in range(3)] for side in range(2)]
    target, draft = (
        every_row(3, 2, lambda tokens, distributions=distributions: distributions[len(tokens)])
        for distributions in places
    )
    overlap = [np.minimum(t, d).sum() if rule == "token" else (t * d).sum() for t, d in zip(*places, strict=True)]
    expected = overlap[0] + overlap[0] * overlap[1]
    paths = every_path(impl, rule, target, draft, 2)
    assert abs(sum(path.weight * path.num_accepted for path in paths) - expected) < 1e-12


# --- The parts of a rule ---


def one_draft(impl: Reference, rule: str, target: Any, draft: Any, token: int, *row: float) -> tuple[int, int, float]:
    """Verify a single draft; the target after it is the same again."""
    target, draft = np.asarray(target, dtype=np.float64), np.asarray(draft, dtype=np.float64)
    accepted, final, accept = impl.verify(
        rule, np.stack([target, target])[None], draft[None, None], np.array([[token]]), np.array([row])
    )
    return int(accepted[0]), int(final[0]), float(accept[0, 0])


@each_impl
@given(distribution_pairs(3), st.integers(0, 2))
@example((np.array([0.25, 0.75, 0.0]), np.array([0.5, 0.25, 0.25])), 0)
@example((np.array([0.5, 0.5, 0.0]), np.array([DENORMAL, 0.5, 0.5])), 0)
def test_a_draft_is_accepted_strictly_below_its_ratio(impl: Reference, pair: tuple[Array, Array], token: int) -> None:
    target, draft = pair
    assume(draft[token] > 0)
    expected = min(1.0, float(target[token]) / float(draft[token]))
    for uniform in around(expected):
        accepted, final, accept = one_draft(impl, "token", target, draft, token, uniform, 0.5)
        assert accept == expected
        assert accepted == (uniform < expected)
        assert target[final] > 0, "a token that the target excludes"


@each_impl
def test_chances_of_0_and_1_leave_nothing_to_chance(impl: Reference) -> None:
    for uniform in (0.0, DENORMAL, 2.0**-53, 0.5, LARGEST_UNIFORM):
        assert one_draft(impl, "token", [0.0, 1.0], [1.0, 0.0], 0, uniform, 0.5) == (0, 1, 0.0)
        assert one_draft(impl, "token", [0.5, 0.5], [0.25, 0.75], 0, uniform, 0.0) == (1, 0, 1.0)
        assert one_draft(impl, "token", [0.5, 0.5], [0.5, 0.5], 1, uniform, 0.5) == (1, 1, 1.0)


@each_impl
@given(distribution_pairs(4))
@example((np.array([0.5, 0.5, 0.0, 0.0]), np.array([0.5, 0.5, 0.0, 0.0])))
def test_the_residual_is_what_the_draft_does_not_cover(impl: Reference, pair: tuple[Array, Array]) -> None:
    target, draft = pair
    residual = impl.residual(target, draft)
    over = np.array([max(0.0, float(t) - float(d)) for t, d in zip(target, draft, strict=True)])
    if over.sum() == 0:
        assert np.array_equal(residual, target), "nothing is left: the target's row stands in"
    else:
        np.testing.assert_allclose(residual, over / over.sum(), rtol=2.0**-50)
        assert np.array_equal(residual > 0, over / over.sum() > 0)
    assert abs(residual.sum() - 1) < 1e-15 * 8


@each_impl
def test_a_rejection_by_rounding_alone_draws_from_the_target(impl: Reference) -> None:
    target = np.array([0.5, np.nextafter(0.25, 0), 0.25])  # nowhere above the draft, and the ratio is below 1
    for uniform, token in ((0.0, 0), (0.6, 1), (0.9, 2)):
        assert one_draft(impl, "token", target, [0.5, 0.25, 0.25], 1, LARGEST_UNIFORM, uniform)[:2] == (0, token)


@pytest.mark.parametrize("tokens", [[1, 0], [0, 1]], ids=str)
def test_a_draft_that_cannot_have_been_drawn_is_refused_by_the_reference(tokens: list[int]) -> None:
    target, draft = np.full((3, 2), 0.5), np.array([[0.0, 1.0], [0.0, 1.0]])
    with pytest.raises(ValueError) as error:
        REFERENCE.module("verify").accept_probs(target, draft, np.array(tokens))
    assert (
        str(error.value)
        == f"draft_probs: found 0 at draft token {tokens.index(0)}, expected a distribution it came from"
    )


@each_impl
@given(distributions(3), distributions(3), st.integers(0, 2), st.data())
def test_the_match_rule_draws_from_the_target_and_compares(
    impl: Reference, target: Array, draft: Array, token: int, data: st.DataObject
) -> None:
    edges = REFERENCE.cell_edges(target)
    first, second = data.draw(uniforms(edges)), data.draw(uniforms(edges))
    drawn, bonus = REFERENCE.draw(target, np.array([first, second]))
    expected = (1, bonus) if drawn == token else (0, drawn)
    assert one_draft(impl, "match", target, draft, token, first, second) == (*expected, target[token])


@each_impl
@given(distribution_pairs(4), st.integers(0, 3))
def test_the_match_rule_never_accepts_more_than_the_token_rule(
    impl: Reference, pair: tuple[Array, Array], token: int
) -> None:
    assume(pair[1][token] > 0)
    chances = [one_draft(impl, rule, *pair, token, 0.5, 0.5)[2] for rule in ("match", "token")]
    assert 0 <= chances[0] <= chances[1] <= 1


@each_impl
@given(st.lists(integer_distributions(3), min_size=3, max_size=3), st.integers(0, 2**32))
def test_drafts_from_the_target_itself_are_all_accepted(impl: Reference, rows: list[Array], seed: int) -> None:
    target, row = np.stack(rows), np.random.default_rng(seed).random(3)
    tokens = np.array([int(distribution.argmax()) for distribution in rows[:2]])
    accepted, _, _ = impl.verify("token", target[None], target[None, :2], tokens[None], row[None])
    assert accepted[0] == 2


# --- The port: rows of a batch, and what stands after their drafts ---


@st.composite
def batches(draw: Any, num_rows: int, num_draft: int, vocab_size: int) -> dict[str, Array]:
    """Distributions, drafts drawn from them and uniforms of a batch, often where a decision turns."""
    pairs = [[draw(distribution_pairs(vocab_size)) for _ in range(num_draft + 1)] for _ in range(num_rows)]
    target = np.array([[pair[0] for pair in row] for row in pairs])
    draft = np.array([[pair[1] for pair in row[:-1]] for row in pairs]).reshape(num_rows, num_draft, vocab_size)
    seed = draw(st.integers(0, 2**32))
    generator = np.random.default_rng(seed)
    tokens = [[generator.choice(np.flatnonzero(distribution)) for distribution in row] for row in draft]
    columns = [[draw(uniforms(REFERENCE.cell_edges(distribution))) for distribution in row] for row in target]
    return {
        "target": target,
        "draft": draft,
        "tokens": np.array(tokens, dtype=np.int64).reshape(num_rows, num_draft),
        "uniforms": np.array(columns),
    }


@each_rule
@pytest.mark.torch
@given(st.integers(0, 3).flatmap(lambda depth: batches(4, depth, 4)))
def test_both_packages_decide_alike(rule: str, batch: dict[str, Array]) -> None:
    ours, theirs = REFERENCE.verify(rule, **batch), PORT.verify(rule, **batch)
    assert np.array_equal(ours[2], theirs[2]), "other chances"
    for n, row in enumerate(batch["uniforms"]):
        if (ours[0][n], ours[1][n]) != (theirs[0][n], theirs[1][n]):  # a residual's sum may round differently
            assert rule == "token" and ours[0][n] == theirs[0][n] < batch["tokens"].shape[1]
            place = ours[0][n]
            edges = REFERENCE.cell_edges(REFERENCE.residual(batch["target"][n, place], batch["draft"][n, place]))
            assert np.abs(edges - row[-1]).min() <= 8 * 2.0**-52


@each_rule
@each_port
def test_only_what_a_row_decided_is_traced(port: Port, rule: str) -> None:
    # Three rows with 2, 1 and 2 drafts, of which the last has ended; the uniforms accept every draft.
    distribution, tokens = np.full((3, 3, 2), 0.5), np.zeros((3, 2), dtype=np.int64)
    draws = port.module("uniforms").UniformRow(
        port.tensor(np.full((3, 3), 0.25)), {"accept": 2, "final": 1}, trace=True
    )
    rows = np.array([2, 1, 2]), np.array([True, True, True]), np.array([True, True, False])
    arguments = [port.tensor(array) for array in (distribution, distribution[:, :2], tokens)]
    verification = port.module("verify").RULES[rule](*arguments, draws, *map(port.tensor, rows))
    assert verification.num_accepted.tolist()[:2] == [2, 1]
    made = [(choice.column, choice.active.tolist()) for choice in draws.choices]
    assert made == [(0, [True, True, False]), (1, [True, False, False]), (2, [True, True, False])]


@each_rule
@each_port
@given(batches(4, 3, 3), st.data())
def test_a_row_does_not_depend_on_what_it_should_not_see(
    port: Port, rule: str, batch: dict[str, Array], data: st.DataObject
) -> None:
    num_draft = np.array(data.draw(st.lists(st.integers(0, 3), min_size=4, max_size=4)))
    active = np.array(data.draw(st.lists(st.booleans(), min_size=4, max_size=4)))
    has_bonus_row = np.array(data.draw(st.lists(st.booleans(), min_size=4, max_size=4)))
    junk = data.draw(st.sampled_from([np.nan, np.inf, -1.0, 0.0, 1e300]))
    spoilt = {name: array.copy() for name, array in batch.items()}
    for n in range(4):
        depth = num_draft[n] if active[n] else 0
        spoilt["target"][n, depth + (active[n] & has_bonus_row[n]) :] = junk
        spoilt["draft"][n, depth:] = junk
        spoilt["tokens"][n, depth:] = data.draw(st.integers(0, 2))
        spoilt["uniforms"][n, depth:-1] = data.draw(st.sampled_from([0.0, LARGEST_UNIFORM]))
    beyond = np.where(active, num_draft, data.draw(st.integers(0, 9)))
    accepted, final, accept = port.verify_some(
        rule, **spoilt, num_draft=beyond, has_bonus_row=has_bonus_row, active=active
    )
    for n in np.flatnonzero(active):
        depth = int(num_draft[n])
        alone = port.verify(
            rule,
            batch["target"][n : n + 1, : depth + 1],
            batch["draft"][n : n + 1, :depth],
            batch["tokens"][n : n + 1, :depth],
            batch["uniforms"][n : n + 1, [*range(depth), -1]],
        )
        assert accepted[n] == alone[0][0]
        assert final[n] == alone[1][0] or (accepted[n] == depth and not has_bonus_row[n]), "another final token"
        assert accept[n, :depth].tobytes() == alone[2][0].tobytes()


# --- Where the last draft ends the text ---


@each_rule
@given(batches(1, 2, 3))
def test_after_a_draft_that_ends_the_text_the_reference_draws_nothing(rule: str, batch: dict[str, Array]) -> None:
    verify, draws = REFERENCE.module("verify").RULES[rule], REFERENCE.module("uniforms").UniformRow
    target, draft, tokens, row = (array[0] for array in batch.values())
    verifications = []
    for rows in (target, target[:-1]):  # with and without a distribution after the last draft
        record = draws(row, {"accept": 2, "final": 1}, trace=True)
        verifications.append((verify(rows, draft, tokens, record), record.choices))
    (full, all_choices), (short, choices) = verifications
    assert short.num_accepted == full.num_accepted
    assert np.array_equal(short.accept_probs, full.accept_probs)
    if full.num_accepted == 2:
        assert short.final_token is None and len(choices) == len(all_choices) - 1
    else:
        assert short.final_token == full.final_token and len(choices) == len(all_choices)


@each_rule
@each_port
@given(batches(4, 2, 3), st.lists(st.booleans(), min_size=4, max_size=4))
def test_after_a_draft_that_ends_the_text_the_port_asks_for_nothing(
    port: Port, rule: str, batch: dict[str, Array], has_bonus_row: list[bool]
) -> None:
    target, draft, tokens, uniforms = (port.tensor(array) for array in batch.values())
    draws = port.module("uniforms").UniformRow(uniforms, {"accept": 2, "final": 1}, trace=True)
    rows = np.full(4, 2), np.array(has_bonus_row), np.ones(4, dtype=np.bool_)
    verification = port.module("verify").RULES[rule](target, draft, tokens, draws, *map(port.tensor, rows))
    (final,) = (choice for choice in draws.choices if choice.column == 2)
    all_accepted = (verification.num_accepted == 2).tolist()
    rejected_first = rule == "token"  # the other rule has drawn its correction with an acceptance's uniform
    expected = [on if all_ else rejected_first for on, all_ in zip(has_bonus_row, all_accepted, strict=True)]
    assert final.active.tolist() == expected
