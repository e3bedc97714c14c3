"""The formulas, against enumerated distributions and against sums over everything that can happen."""

import math
from collections.abc import Callable, Iterator, Sequence
from fractions import Fraction
from itertools import product
from typing import Any

import numpy as np
import pytest
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st

from exactness_tools import distribution_after
from pass_sampling.reference import Ending, PaSS, TableModel
from pass_sampling.reference.exactness.distribution import OutputDistribution, output_distribution
from pass_sampling.reference.methods.tree_shape import DraftTree, NumCandidates
from pass_sampling.reference.theory import (
    acceptance_rate,
    best_tree,
    candidate_acceptance,
    expected_tokens,
    lenient_distribution,
    lookahead_speed_up,
    operation_increase,
    optimal_num_draft,
    speed_up,
    tree_tokens,
)
from pass_sampling.reference.verify import accept_probs
from strategies import distribution_pairs

Array = np.ndarray
Pair = tuple[Array, Array]
EXACT = 1e-12  # sums of at most a few thousand products, each wrong by a few times 2^-53

rates = st.one_of(st.sampled_from([0.0, 0.5, 1.0, 1.0 - 2.0**-53]), st.floats(0, 1))
costs = st.one_of(st.just(0.0), st.floats(0.001, 2))
num_drafts = st.integers(0, 60)
leniences = st.one_of(st.sampled_from([1.0, 0.5, 0.1, 5e-324]), st.floats(0.01, 1))
pairs = distribution_pairs(5)


def step_cost(width: int, slope: float) -> Callable[[int], float]:
    """Return the cost of passes that are free up to some rows and dearer with each further one, in milliseconds."""
    return lambda num_rows: 2.7 * (1 + slope * max(0, num_rows - width))


pass_costs = st.one_of(st.none(), st.builds(step_cost, st.integers(1, 20), st.floats(0, 0.5)))


def close(one: float, other: float) -> bool:
    return abs(one - other) <= EXACT * max(1.0, abs(other))


def rate_of(target: Array, draft: Array, rule: str = "token", lenience: float = 1.0) -> float:
    """Return the acceptance rate of one place."""
    return float(acceptance_rate(target[None], draft[None], rule, lenience=lenience))


class Memoryless(TableModel):
    """Rows that depend on nothing but whether a token or a look-ahead vector is fed, so that acceptance is i.i.d."""

    def __init__(self, target_probs: Array, draft_probs: Array, num_lookahead: int):
        super().__init__(len(target_probs), num_lookahead)
        with np.errstate(divide="ignore"):
            self.target_row, self.draft_row = np.log(target_probs), np.log(draft_probs)

    def hidden(self, inputs: Array, cache: Any, positions: Any = None, visible: Any = None) -> Array:
        super().hidden(inputs, cache, positions, visible)
        fed_lookahead = inputs[:, self.vocab_size :].any(axis=1)
        return np.where(fed_lookahead[:, None], self.draft_row, self.target_row)


def one_step(model: TableModel, rule: str) -> OutputDistribution:
    """Return the distribution of PaSS's first step, too far from any end to be cut, with its expected counts."""
    return output_distribution(PaSS(model, model.lookahead(), rule=rule), [1], Ending(50), num_tokens=2)


def reached_rows(model: TableModel, rule: str) -> tuple[Array, Array, Array]:
    """Return both sides' distributions after every exact token and every run of drafts, and the chance to reach each.

    A run reaches position i by drafting and accepting each of its first i tokens. Runs that share these are the same
    place, and share its chance.
    """
    vocab_size, num_draft = model.vocab_size, model.num_lookahead
    drafts = [distribution_after(model, (1,), i + 1) for i in range(num_draft)]
    exact = distribution_after(model, (1,))
    target_rows, weights = [], []
    for first, *run in product(range(vocab_size), repeat=num_draft):
        targets = [distribution_after(model, (1, first, *run[:i])) for i in range(num_draft)]
        chance = [float(exact[first])]
        for target, draft, token in zip(targets, drafts, run, strict=False):
            both = min(target[token], draft[token]) if rule == "token" else target[token] * draft[token]
            chance.append(chance[-1] * float(both))
        target_rows.append(targets)
        weights.append([chance[i] / vocab_size ** (num_draft - 1 - i) for i in range(num_draft)])
    return np.array(target_rows), np.array([drafts] * len(target_rows)), np.array(weights)


@given(pair=pairs)
def test_acceptance_adds_up_over_every_draft(pair: Pair) -> None:
    target, draft = pair
    by_token = by_match = 0.0
    for token in np.flatnonzero(draft).tolist():
        by_token += float(draft[token] * accept_probs(target[None], draft[None], np.array([token]))[0])
        by_match += float(draft[token] * target[token])
    assert close(rate_of(target, draft), by_token)
    assert close(rate_of(target, draft, "match"), by_match)
    assert by_match <= by_token + EXACT
    distance = np.abs(target - (target + draft) / 2).sum()  # Leviathan's D_LK, Theorem 3.5
    assert close(rate_of(target, draft), 1.0 - distance)
    assert close(rate_of(target, target), 1.0)
    assert rate_of(target * (1 + 1e-10), target * (1 + 1e-10)) <= 1


@given(rate=rates, num_draft=st.integers(0, 8))
def test_tokens_per_call_add_up_over_every_way_in_which_drafts_are_accepted(rate: float, num_draft: int) -> None:
    total = 0.0
    for outcome in product([True, False], repeat=num_draft):
        chance = math.prod(rate if accepted else 1.0 - rate for accepted in outcome)
        total += chance * (1 + [*outcome, False].index(False))
    assert close(expected_tokens(rate, num_draft), total)
    assert expected_tokens(np.full(num_draft, rate), num_draft) == expected_tokens(rate, num_draft)


@given(rate=rates, num_draft=num_drafts, cost=costs)
def test_equation_1_and_theorems_3_8_and_3_11_as_they_are_printed(rate: float, num_draft: int, cost: float) -> None:
    assume(rate < 0.999)  # 1 - a then has lost at most three of sixteen digits
    tokens = (1 - rate ** (num_draft + 1)) / (1 - rate)
    assert abs(expected_tokens(rate, num_draft) - tokens) < 1e-11
    assert expected_tokens(rate, num_draft) <= 1 / (1 - rate) * (1 + EXACT)
    assert abs(speed_up(rate, num_draft, cost) - tokens / (num_draft * cost + 1)) < 1e-11
    printed = (num_draft * cost + num_draft + 1) / tokens
    assert abs(operation_increase(rate, num_draft, cost) - printed) < 1e-11 * printed
    once = (min(num_draft, 1) * cost + num_draft + 1) / expected_tokens(rate, num_draft)
    assert close(operation_increase(rate, num_draft, cost, one_call=True), once)


@given(two_rates=st.tuples(rates, rates), num_draft=num_drafts, two_costs=st.tuples(costs, costs))
def test_more_drafts_better_ones_and_cheaper_ones_yield_more(two_rates: Any, num_draft: int, two_costs: Any) -> None:
    (low, high), (cost, dearer) = sorted(two_rates), sorted(two_costs)
    assert expected_tokens(low, num_draft) <= expected_tokens(high, num_draft) * (1 + EXACT)
    assert expected_tokens(low, num_draft) <= expected_tokens(low, num_draft + 1)
    assert operation_increase(two_rates[0], num_draft, two_costs[0]) >= 1 - EXACT  # operations never become fewer
    assert speed_up(two_rates[0], num_draft, cost) >= speed_up(two_rates[0], num_draft, dearer)
    once = speed_up(two_rates[0], num_draft, dearer, one_call=True)
    assert once >= speed_up(two_rates[0], num_draft, dearer) * (1 - EXACT)


@settings(max_examples=15)
@given(pair=distribution_pairs(3), num_lookahead=st.integers(1, 2), rule=st.sampled_from(["token", "match"]))
def test_the_published_formula_is_exact_where_acceptance_is_iid(pair: Pair, num_lookahead: int, rule: str) -> None:
    tokens = expected_tokens(rate_of(*pair, rule), num_lookahead)
    counts = one_step(Memoryless(*pair, num_lookahead), rule).expected
    assert close(counts["num_tokens"], 1 + tokens)
    assert close(counts["num_accepted_tokens"], tokens - 1)


@pytest.mark.parametrize("rule", ["token", "match"])
@pytest.mark.parametrize("seed", range(4))
def test_rates_by_position_are_exact_on_a_table(seed: int, rule: str) -> None:
    """Where rows differ at every prefix, and only if places count as often as they are reached."""
    model = TableModel(vocab_size=3, num_lookahead=3, seed=seed)
    target, draft, weights = reached_rows(model, rule)
    accepted = one_step(model, rule).expected["num_accepted_tokens"]
    by_position = acceptance_rate(target, draft, rule, weights)
    assert by_position.shape == (3,)
    assert close(expected_tokens(by_position, 3), 1 + accepted)
    for wrong in (acceptance_rate(target, draft, rule), np.full(3, by_position.mean()), by_position[::-1]):
        assert abs(expected_tokens(wrong, 3) - 1 - accepted) > 1e-4


@pytest.mark.parametrize("num_lookahead", [0, 1, 2, 3])
def test_pass_gains_what_its_enumerated_step_gains(num_lookahead: int) -> None:
    model = TableModel(vocab_size=3, num_lookahead=num_lookahead, seed=1)
    counts = one_step(model, "token").expected
    assert counts["num_forward_passes"] == pytest.approx(2, abs=EXACT)
    for cost, spent in ((None, "num_forward_passes"), (float, "num_positions")):  # a pass costs 1, or each row does
        gain = lookahead_speed_up(counts["num_accepted_tokens"], num_lookahead, num_lookahead, cost)
        assert close(gain, counts["num_tokens"] / counts[spent])


def test_pass_gains_as_much_over_many_steps() -> None:
    """Steps repeat themselves on a memoryless model; those that the end of a text cuts are left out."""
    target, draft = np.array([0.7, 0.3]), np.array([0.2, 0.8])
    model = Memoryless(target, draft, 2)
    tokens_per_step = 1 + expected_tokens(rate_of(target, draft), 2)
    for num_tokens in (3, 6):  # Wald: the mean number of steps times the mean tokens of one
        method = PaSS(model, model.lookahead())
        counts = output_distribution(method, [1], Ending(50), num_tokens=num_tokens).expected
        assert close(counts["num_tokens"], counts["num_forward_passes"] / 2 * tokens_per_step)
    assert close(lookahead_speed_up(tokens_per_step - 2, 2, 2), tokens_per_step / 2)


@given(rate=rates, num_lookahead=st.integers(0, 12), cost=pass_costs)
def test_pass_in_one_call_feeds_every_verified_row_with_its_own_lookahead_rows(rate, num_lookahead, cost):
    accepted = expected_tokens(rate, num_lookahead) - 1
    fed = [("token", 0)]  # the last token of the text, then the drafts, each with its vectors after it
    for i in range(num_lookahead + 1):
        fed += [("draft", i)] * (i > 0) + [("look-ahead", j) for j in range(num_lookahead)]
    assert len(fed) == (num_lookahead + 1) ** 2
    relative = 1.0 if cost is None else cost(len(fed)) / cost(1)
    found = lookahead_speed_up(accepted, num_lookahead, num_lookahead, cost, one_call=True)
    assert close(found, (1 + accepted) / relative)


def summed_speed_up(rate: float, num_draft: int, draft_cost: float, pass_cost: Any, one_call: bool) -> float:
    """Return tokens over the cost of a step, both added up, call by call, in passes over one row."""
    tokens = sum(rate**i for i in range(num_draft + 1))
    calls = sum(draft_cost for i in range(num_draft) if i == 0 or not one_call)
    return tokens / (calls + (1.0 if pass_cost is None else pass_cost(num_draft + 1) / pass_cost(1)))


@given(rate=rates, num_draft=num_drafts, cost=costs, pass_cost=pass_costs, one_call=st.booleans())
def test_the_speed_up_is_tokens_over_the_cost_of_every_call(rate, num_draft, cost, pass_cost, one_call):
    arguments = rate, num_draft, cost, pass_cost, one_call
    assert close(speed_up(*arguments), summed_speed_up(*arguments))


@given(rate=rates, cost=costs)
def test_one_draft_gains_if_and_only_if_it_is_accepted_more_often_than_it_costs(rate: float, cost: float) -> None:
    """Leviathan's Corollary 3.9: the gain is then at least (1 + a) / (1 + c). Rounding decides what is nearly equal."""
    assert close(speed_up(rate, 1, cost), (1 + rate) / (1 + cost))
    if abs(rate - cost) > EXACT:
        assert (optimal_num_draft(rate, cost, max_num_draft=60) > 0) == (rate > cost)


@given(rate=rates, cost=costs, pass_cost=pass_costs, one_call=st.booleans())
def test_the_best_number_of_drafts_is_the_best_of_all_up_to_a_limit(rate, cost, pass_cost, one_call):
    speeds = np.array([summed_speed_up(rate, n, cost, pass_cost, one_call) for n in range(61)])
    found = optimal_num_draft(rate, cost, pass_cost, one_call, max_num_draft=60)
    assert speeds[found] >= speeds.max() * (1 - EXACT)
    if np.sum(speeds >= speeds.max() * (1 - EXACT)) == 1:  # no other is as good, up to rounding
        assert found == int(speeds.argmax())


@given(rate=st.floats(0, 0.95), cost=st.floats(0.02, 1), pass_cost=pass_costs)
def test_without_a_limit_nothing_beyond_the_bound_is_better(rate: float, cost: float, pass_cost: Any) -> None:
    """The bound is at most 0.95 / (0.05 0.02) = 950; tried is as far again as the best, and to 100 at least."""
    found = optimal_num_draft(rate, cost, pass_cost)
    best = speed_up(rate, found, cost, pass_cost)
    tried = range(max(100, 2 * found))
    assert all(speed_up(rate, num_draft, cost, pass_cost) <= best * (1 + EXACT) for num_draft in tried)
    assert speed_up(rate, 951, cost, pass_cost) < 1


@example(pair=(np.array([0.5, 0.4, 0.1]), np.array([0.1, 0.1, 0.8])), lenience=0.5)  # two tokens share what is left
@given(pair=pairs, lenience=leniences)
def test_lenience_accepts_as_its_rule_says(pair: Pair, lenience: float) -> None:
    """Draft by draft, accepted with min(1, target / (lenience draft)), the rest from what is left; in fractions."""
    target, draft, share = [Fraction(x) for x in pair[0]], [Fraction(x) for x in pair[1]], Fraction(lenience)
    accepted = [x * min(Fraction(1), y / (share * x)) if x else Fraction(0) for x, y in zip(draft, target, strict=True)]
    left = [max(Fraction(0), y - share * x) for x, y in zip(draft, target, strict=True)]
    rejected = max(Fraction(0), 1 - sum(accepted)) / (sum(left) or 1)
    distribution = np.array([float(one + rejected * other) for one, other in zip(accepted, left, strict=True)])
    assert close(rate_of(*pair, lenience=lenience), float(sum(accepted)))
    assert np.abs(distribution - lenient_distribution(*pair, lenience)).max() < EXACT


@given(pair=pairs, one=leniences, other=leniences)
def test_lenience_makes_no_token_likelier_than_its_share_allows(pair: Pair, one: float, other: float) -> None:
    """The less strict, the more is accepted; with a lenience of 1 the distribution is the target's."""
    target, draft = pair
    chances = [rate_of(target, draft, lenience=lenience) for lenience in (*sorted([one, other]), 1.0)]
    assert chances[0] >= chances[1] >= chances[2]
    assert np.abs(lenient_distribution(target, draft, 1.0) - target).max() < EXACT
    distribution = lenient_distribution(target, draft, one)
    assert abs(distribution.sum() - 1) < EXACT and distribution.min() >= 0
    with np.errstate(over="ignore"):
        assert np.all(distribution <= target / one + EXACT)
        assert np.all(distribution[target == 0] == 0)


def test_published_figures_that_follow_from_the_formulas() -> None:
    # Leviathan et al., Sec. 3.6: T5-XXL, English to German, drafts from a bigram table: alpha near 0.2, 3 drafts, 1.25.
    assert round(speed_up(0.2, 3, 0.0), 2) == 1.25
    # The same, Sec. 3.3: with drafts that cost nothing the gain stays below 1 / (1 - alpha).
    assert round(speed_up(0.2, 60, 0.0), 12) == 1.25
    # PaSS reports up to 30 % and no counts; a gain of 1.30 takes 0.6 accepted drafts where passes cost the same.
    assert lookahead_speed_up(0.6, 4, 4) == 1.3
    # Prompt tokens on Vicuna-7B (arXiv 2405.18628, released calibration): right in 48.3, 26.3 and 16.4 % of places.
    accepted = expected_tokens(np.array([0.483, 0.263, 0.164]), 3) - 1
    assert round(accepted, 2) == 0.63
    assert round(lookahead_speed_up(accepted, 3, 3), 2) == 1.32
    assert round(lookahead_speed_up(accepted, 3, 3, one_call=True), 2) == 1.63


def every_tree(depth: int, ranks: int, level: int = 1) -> Iterator[tuple[tuple[int, ...], ...]]:
    """Yield the shape of every tree of at most so many depths and candidates after a place."""
    yield ()
    if depth:
        for counts in product(range(ranks + 1), repeat=level):
            if any(counts):
                yield from ((counts, *rest) for rest in every_tree(depth - 1, ranks, sum(counts)))


def rows_of(shape: NumCandidates, rows_behind: Sequence[int]) -> int:
    """Return how many rows the drafts of a tree take, with what hangs after them."""
    depths = DraftTree(shape).depths[1:].tolist()
    return len(depths) + sum(rows_behind[depth] for depth in depths if depth < len(rows_behind))


@given(
    rates=st.lists(st.lists(st.floats(0, 1), min_size=0, max_size=2), min_size=0, max_size=3),
    num_rows=st.integers(0, 12),
    rows_behind=st.sampled_from([(), (9,), (0, 1, 0, 2), (4, 2, 2, 2)]),
)
def test_the_best_tree_is_the_best_of_all(rates: list[list[float]], num_rows: int, rows_behind: Any) -> None:
    """Within 1e-12: sums of at most 14 products of three numbers in [0, 1]."""
    found = best_tree(rates, num_rows, rows_behind)
    assert rows_of(found, rows_behind) <= num_rows
    yields = [
        tree_tokens(rates, shape)
        for shape in every_tree(len(rates), 2)
        if all(max(counts) <= len(rates[depth]) for depth, counts in enumerate(shape))
        and rows_of(shape, rows_behind) <= num_rows
    ]
    assert tree_tokens(rates, found) == pytest.approx(max(yields), abs=1e-12)


def test_a_tree_yields_what_a_chain_does_and_its_siblings_more() -> None:
    rates = [[0.7, 0.1], [0.6, 0.2], [0.5]]
    assert tree_tokens(rates, (1, 1, 1)) == pytest.approx(expected_tokens(np.array([0.7, 0.6, 0.5]), 3))
    assert tree_tokens(rates, (2, (1, 0))) == pytest.approx(1 + 0.8 + 0.7 * 0.6)
    assert best_tree(rates, 0) == () and best_tree(rates, 1) == (1,)
    assert best_tree(rates, 4) == (1, 2, (1, 0)) and best_tree(rates, 100) == (2, 2, 1)
    assert best_tree(rates, 12, (3, 3, 3, 3)) == (1, 1, 1)


HALF = np.full((2, 4), 0.25)
SPOILT = np.array([[0.25] * 4, [0.25, 0.25, 0.25, 0.15]])
NEGATIVE = np.array([[[0.5, 0.5]], [[1.5, -0.5]]])


RATE, COST, COUNT = "a finite number from 0 to 1", "a finite number from 0 to inf", "an integer from 0 to 16384"
PRICE, RULE = "finite numbers above 0", "token, or match with 1"
TREE_RULES = "one of k-seq, match, with-replacement, without-replacement"
PROBS, WEIGHTS = "probabilities with sum 1", "numbers from 0, one per row, some above per draft"
UNFIT: list[tuple[str, str, Callable[[], Any]]] = [
    ("accept_rate: found 1.1", RATE, lambda: expected_tokens(1.1, 2)),
    ("accept_rate: found 2.0", RATE, lambda: expected_tokens(np.array([0.5, 2.0]), 2)),
    ("accept_rate: found 'high'", RATE, lambda: speed_up("high", 2, 1.0)),  # type: ignore[arg-type]
    ("accept_rate: found shape (1,)", "one rate, or 2", lambda: expected_tokens(np.array([0.5]), 2)),
    ("draft_cost: found -1.0", COST, lambda: speed_up(0.5, 2, -1.0)),
    ("draft_cost: found inf", COST, lambda: speed_up(0.5, 2, math.inf)),
    ("num_accepted: found 2.5", "a finite number from 0 to 2", lambda: lookahead_speed_up(2.5, 4, 2)),
    ("max_num_draft: found None", COUNT, lambda: optimal_num_draft(0.5, 0.0)),  # more drafts may always be better
    ("pass_cost: found [1.0, -1.0] for 1 and 3 rows", PRICE, lambda: speed_up(0.5, 2, 0.0, lambda rows: 2.0 - rows)),
    ("draft_probs[1]: found numbers from 0.15 with sum 0.9", PROBS, lambda: acceptance_rate(HALF, SPOILT)),
    ("target_probs[1, 0]: found numbers from -0.5 with sum 1.0", PROBS, lambda: acceptance_rate(NEGATIVE, NEGATIVE)),
    ("target_probs: found numbers from 0.15 with sum 0.9", PROBS, lambda: lenient_distribution(SPOILT[1], HALF[0], 1)),
    ("draft_probs: found shape (1, 4)", "(2, 4), and some rows", lambda: acceptance_rate(HALF, HALF[:1])),
    ("rule: found 'block' with lenience 1.0", RULE, lambda: acceptance_rate(HALF, HALF, "block")),
    ("rule: found 'match' with lenience 0.5", RULE, lambda: acceptance_rate(HALF, HALF, "match", lenience=0.5)),
    ("weights: found [ 1. -1.]", WEIGHTS, lambda: acceptance_rate(HALF, HALF, weights=np.array([1.0, -1.0]))),
    ("target_probs: found numbers from 0.5 with sum 2.0", PROBS, lambda: candidate_acceptance(HALF[0] * 2, HALF[0], 2)),
    ("num_candidates: found 0", "an integer from 1 to 16384", lambda: candidate_acceptance(HALF[0], HALF[0], 0)),
    ("rule: found 'typical'", TREE_RULES, lambda: candidate_acceptance(HALF[0], HALF[0], 2, "typical")),
    ("accept_rates: found 1.5", "numbers from 0 to 1", lambda: best_tree([[1.5]], 3)),
    ("num_rows: found -1", COUNT, lambda: best_tree([[0.5]], -1)),
    ("rows_behind: found -1", COUNT, lambda: best_tree([[0.5]], 3, (-1,))),
    ("weights: found [1.]", WEIGHTS, lambda: acceptance_rate(HALF, HALF, weights=np.ones(1))),
    ("weights: found [ 1. nan]", WEIGHTS, lambda: acceptance_rate(HALF, HALF, weights=np.array([1.0, math.nan]))),
]


@pytest.mark.parametrize(("found", "expected", "call"), UNFIT)
def test_what_makes_no_sense_is_refused_with_what_was_found_and_expected(found, expected, call):
    with pytest.raises(ValueError) as error:
        call()
    assert str(error.value) == f"{found}, expected {expected}"
