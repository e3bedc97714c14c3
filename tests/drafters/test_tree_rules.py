"""Several candidates for one position: exact by every rule, accepted as often as theory says, the same in both."""

from collections.abc import Callable, Iterable, Iterator
from functools import partial
from typing import Any

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from adapters import REFERENCE, Port, Reference, each_impl
from pass_sampling.reference.methods.tree_rules import RULES, k_seq_division
from pass_sampling.reference.theory import candidate_acceptance
from strategies import DENORMAL, around, distribution_pairs, distributions, normalised

Array = np.ndarray
Draw = tuple[float, list[int], list[Array]]  # how probable some candidates are, the candidates, and their distributions
EXACT = 1e-12  # sums of at most a few thousand products, each wrong by a few times 2^-53

each_rule = pytest.mark.parametrize("rule", RULES)
in_turn = pytest.mark.parametrize("rule", ["without-replacement", "with-replacement", "k-seq"])


def logits_of(probs: Array) -> Array:
    """Return logits whose distribution this is, at temperature 1."""
    with np.errstate(divide="ignore"):
        return np.log(probs)


def generic(seed: int, vocab_size: int) -> tuple[Array, Array]:
    """Return a target and a draft without any structure."""
    generator = np.random.default_rng(seed)
    sides = []
    for _ in range(2):
        weights = generator.exponential(size=vocab_size) * (generator.random(vocab_size) >= 0)
        weights[generator.integers(vocab_size)] += 0.1
        sides.append(normalised(weights))
    return sides[0], sides[1]


def every_draw(draft: Array, num_candidates: int, replacement: bool) -> Iterator[Draw]:
    """Yield every sequence of candidates."""
    if num_candidates == 0 or not draft.any():
        yield 1.0, [], []
        return
    for token in np.flatnonzero(draft).tolist():
        rest = draft if replacement else np.where(np.arange(draft.size) == token, 0.0, draft)
        rest = rest / rest.sum() if rest.any() else rest
        for chance, tokens, rows in every_draw(rest, num_candidates - 1, replacement):
            yield float(draft[token]) * chance, [token, *tokens], [draft, *rows]


def probs_of(impl: Reference, rule: str, target: Array, rows: Array, tokens: Array) -> tuple[Array, Array]:
    """Return the chance of each candidate and the distribution if none is accepted."""
    function = getattr(impl.module("methods.tree_rules"), "k_seq_probs" if rule == "k-seq" else "recursive_probs")
    if not isinstance(impl, Port):
        return function(target, rows, tokens)
    count = () if rule == "k-seq" else (impl.tensor(np.array([len(tokens)])),)
    found = function(*(impl.tensor(array[None]) for array in (target, rows, tokens)), *count)
    return tuple(part[0].cpu().numpy() for part in found)


def added_up(target: Array, draws: Iterable[Draw], probs: Callable[..., tuple[Array, Array]]) -> tuple[Array, float]:
    """Return the distribution of the token, over every draw, acceptance and final token; and how many are accepted."""
    distribution, accepted = np.zeros(target.size), 0.0
    for chance, tokens, rows in draws:
        accept, final = probs(target, np.array(rows), np.array(tokens))
        assert np.all((accept >= 0) & (accept <= 1)) and np.all(accept[target[tokens] == 0] == 0)
        assert abs(final.sum() - 1) <= EXACT and np.all(final >= 0) and np.all(final[target == 0] == 0)
        rejected = chance
        for token, prob in zip(tokens, accept.tolist(), strict=True):
            distribution[token] += rejected * prob
            accepted += rejected * prob
            rejected *= 1 - prob
        distribution += rejected * final
    return distribution, accepted


@each_impl
@in_turn
@given(pair=distribution_pairs(3), num_candidates=st.integers(1, 3))
@example(pair=(np.array([0.0, 0.75, 0.25]), np.array([0.75, 0.25, 0.0])), num_candidates=3)
def test_the_target_comes_out_and_candidates_are_accepted_as_theory_says(impl, rule, pair, num_candidates):
    target, draft = pair
    draws = every_draw(draft, num_candidates, RULES[rule].replacement)
    distribution, accepted = added_up(target, draws, partial(probs_of, impl, rule))
    assert np.abs(distribution - target).max() <= EXACT
    assert abs(accepted - candidate_acceptance(target, draft, num_candidates, rule)) <= EXACT


@pytest.mark.parametrize(
    ("mistake", "rule"),
    [("verified by the first distribution", "without-replacement"), ("drawn without replacement", "k-seq")]
    + [("replaced from the target", rule) for rule in RULES if rule != "match"],
)
def test_a_wrong_rule_is_seen(mistake: str, rule: str) -> None:
    def wrong(target: Array, rows: Array, tokens: Array) -> tuple[Array, Array]:
        rows = np.broadcast_to(rows[:1], rows.shape) if mistake.startswith("verified") else rows
        accept, final = probs_of(REFERENCE, rule, target, rows, tokens)
        return accept, target if mistake.startswith("replaced") else final

    target, draft = generic(0, 4)
    draws = every_draw(draft, 2, RULES[rule].replacement and not mistake.startswith("drawn"))
    assert np.abs(added_up(target, draws, wrong)[0] - target).max() > 1e-3


@given(pair=distribution_pairs(4), num_candidates=st.integers(1, 9))
def test_the_division_is_the_smallest_that_keeps_the_distribution(pair, num_candidates):
    target, draft = pair
    division = k_seq_division(target, draft, num_candidates)
    assert 1 <= division <= num_candidates

    def missing(number: float) -> float:
        """Return the mass that is accepted too often, 1 - (1 - s)^C - number s: above 0 the distribution is lost."""
        rejected = float(np.maximum(draft - target / number, 0).sum())
        return 1 - rejected**num_candidates - number * (1 - rejected)

    slack = 8 * np.finfo(float).eps * num_candidates
    assert abs(missing(division)) <= slack
    for fraction in (0.0, 0.5, 0.99):
        assert missing(1 + fraction * (division - 1)) >= -slack, "a smaller one would keep the distribution, too"
    # At least 1 - (1 - 1/C)^C, which is above 1 - 1/e, of a bound on what any rule can accept: Sun et al. 2023.
    bound = float(np.minimum(target, num_candidates * draft).sum())
    share = 1 - (1 - 1 / num_candidates) ** num_candidates
    assert candidate_acceptance(target, draft, num_candidates, "k-seq") >= share * bound - EXACT


def draw(impl: Reference, logits: Array, count: int, uniforms: Array, replacement: bool, **settings: Any) -> Any:
    """Return the candidates of one position, with the distributions they were drawn from."""
    draws = impl.module("uniforms").UniformRow
    sampling = impl.sampling(**settings)
    function = impl.module("methods.tree_rules").draw_candidates
    if not isinstance(impl, Port):
        return function(logits, sampling, count, draws(uniforms, {"draft": count}), 0, replacement)
    one = draws(impl.tensor(uniforms[None]), {"draft": count})
    tokens, probs, used = function(impl.tensor(logits[None, None]), sampling, [count], one, 0, replacement)
    number = int(used.sum())
    return tokens[0, :number].cpu().numpy(), probs[0, :number].cpu().numpy()


SETTINGS: list[dict[str, Any]] = [{}, {"top_k": 2}, {"top_p": 0.6}, {"temperature": 0.7}]
SETTINGS += [{"temperature": 1.5, "top_k": 4}, {"temperature": 0.0}]


@each_impl
@given(
    distribution=distributions(5),
    count=st.integers(1, 6),
    seed=st.integers(0, 2**32),
    replacement=st.booleans(),
    settings=st.sampled_from(SETTINGS),
)
def test_each_candidate_comes_from_what_those_before_it_have_left(
    impl: Reference, distribution: Array, count: int, seed: int, replacement: bool, settings: dict[str, Any]
) -> None:
    """With replacement that is the first one's distribution."""
    count = (
        1 if settings.get("temperature") == 0 and not replacement else count
    )  # below: nothing is left of a point mass
    uniforms = np.random.default_rng(seed).random(count)
    tokens, probs = draw(impl, logits_of(distribution), count, uniforms, replacement, **settings)
    rest = REFERENCE.probs(logits_of(distribution), **settings)
    assert len(tokens) == (count if replacement else min(count, np.count_nonzero(rest)))
    assert replacement or len(set(tokens.tolist())) == len(tokens)
    for token, row, uniform in zip(tokens.tolist(), probs, uniforms, strict=False):
        np.testing.assert_allclose(row, rest, rtol=1e-12, atol=count * DENORMAL)  # rounded for each of them
        assert np.array_equal(row > 0, rest > 0)
        assert token == REFERENCE.draw(row, np.array([uniform]))[0]
        if replacement:
            assert row.tobytes() == probs[0].tobytes()
        else:
            rest = np.where(np.arange(rest.size) == token, 0.0, rest)
            rest = rest / rest.sum() if rest.any() else rest


@each_impl
def test_greedy_candidates_run_out_where_all_others_are_masked(impl: Reference) -> None:
    logits = np.array([-np.inf, 1.0, 1.0, -np.inf, 3.0])
    tokens, probs = draw(impl, logits, 5, np.full(5, 0.5), False, temperature=0.0)
    assert tokens.tolist() == [4, 1, 2], "likeliest first, of equals the lowest id"
    assert np.array_equal(probs, np.eye(5)[tokens])


def verify(impl: Reference, rule: str, target: Array, rows: Array, tokens: Array, uniforms: Array) -> Any:
    """Return which candidate is accepted (-1: none), the distribution if none is, and the chances."""
    draws, number = impl.module("uniforms").UniformRow, len(tokens)
    function = impl.module("methods.tree_rules").RULES[rule].verify
    if not isinstance(impl, Port):
        found = function(target, rows, tokens, draws(uniforms, {"accept": number}), 0)
        return -1 if found.accepted is None else found.accepted, found.final_probs, found.accept_probs
    count, active = impl.tensor(np.array([number])), impl.tensor(np.array([True]))
    one = draws(impl.tensor(uniforms[None]), {"accept": number})
    found = function(*(impl.tensor(array[None]) for array in (target, rows, tokens)), one, 0, count, active)
    return int(found.accepted[0]), found.final_probs[0].cpu().numpy(), found.accept_probs[0].cpu().numpy()


@st.composite
def positions(draw: Any, vocab_size: int, replacement: bool, most: int = 3) -> tuple[Array, Array, Array]:
    """A target distribution, and candidates with their distributions."""
    target, draft = draw(distribution_pairs(vocab_size))
    generator = np.random.default_rng(draw(st.integers(0, 2**32)))
    rows, tokens = [], []
    for _ in range(draw(st.integers(1, most))):
        rows.append(draft)
        tokens.append(int(generator.choice(np.flatnonzero(draft))))
        if not replacement:
            draft = np.where(np.arange(vocab_size) == tokens[-1], 0.0, draft)
            if not draft.any():
                break
            draft = draft / draft.sum()
    return target, np.array(rows), np.array(tokens)


@each_impl
@in_turn
@given(data=st.data())
def test_a_candidate_is_accepted_strictly_below_its_chance(impl: Reference, rule: str, data: st.DataObject) -> None:
    target, rows, tokens = data.draw(positions(4, RULES[rule].replacement))
    chances = verify(impl, rule, target, rows, tokens, np.full(len(tokens), 0.5))[2]
    uniforms = np.array([data.draw(st.sampled_from(around(chance).tolist())) for chance in chances])
    below = np.flatnonzero(uniforms < chances)
    accepted = verify(impl, rule, target, rows, tokens, uniforms)[0]
    assert accepted == (below[0] if below.size else -1)
    assert accepted < 0 or target[tokens[accepted]] > 0, "a token that the target excludes"


@each_impl
@given(case=positions(4, True), uniform=st.integers(0, 2**53 - 1).map(lambda n: n * 2.0**-53))
def test_the_match_rule_draws_from_the_target_and_looks_for_it(impl, case, uniform):
    target, rows, tokens = case
    accepted, final, chances = verify(impl, "match", target, rows, tokens, np.full(len(tokens), uniform))
    drawn = int(REFERENCE.draw(target, np.array([uniform]))[0])
    assert accepted == (tokens.tolist().index(drawn) if drawn in tokens else -1)
    assert np.array_equal(final, np.eye(4)[drawn]) and np.array_equal(chances, target[tokens])


@pytest.mark.parametrize("rule", ["without-replacement", "k-seq"])
def test_a_candidate_that_cannot_have_been_drawn_is_refused_by_the_reference(rule: str) -> None:
    rows = np.array([[0.5, 0.5, 0.0], [0.0, 1.0, 0.0]]) if rule != "k-seq" else np.array([[0.5, 0.5, 0.0]] * 2)
    message = r"^draft_probs: found 0 at draft token \d, expected a distribution it came from$"
    with pytest.raises(ValueError, match=message):
        verify(REFERENCE, rule, np.full(3, 1 / 3), rows, np.array([0, 2]), np.full(2, 0.5))


def test_figures_on_a_random_example() -> None:
    """Print the acceptance with 1 to 4 candidates: `python -m pytest -rP tests/drafters -k figures`."""
    found = {rule: [candidate_acceptance(*generic(0, 6), count, rule) for count in (1, 2, 3, 4)] for rule in RULES}
    for rule, rates in found.items():
        print(f"{rule:20}", *(f"{rate:.3f}" for rate in rates))
        assert np.all(np.diff(rates) > 0)
    assert found["without-replacement"][1] > found["k-seq"][1] > found["with-replacement"][1] > found["match"][1]
