"""Several candidates for one position: exact by every rule, accepted as often as theory says, the same in both."""

from __future__ import annotations

import bisect
import inspect
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from adapters import PORT, REFERENCE, Port, Reference, each_impl, each_port
from pass_sampling.reference.exactness.distribution import OutputDistribution, output_distribution
from pass_sampling.reference.methods.tree_rules import RULES, k_seq_division
from pass_sampling.reference.theory import acceptance_rate, candidate_acceptance
from pass_sampling.reference.verify import accept_probs, residual_probs
from strategies import (
    DENORMAL,
    LARGEST_UNIFORM,
    around,
    distribution_pairs,
    distributions,
    integer_distributions,
    normalised,
)

Array = np.ndarray
EXACT = 1e-12  # sums of at most a few thousand products, each wrong by a few times 2^-53

each_rule = pytest.mark.parametrize("rule", RULES)
in_turn = pytest.mark.parametrize("rule", ["without-replacement", "with-replacement", "k-seq"])


def logits_of(probs: Array) -> Array:
    """Return logits whose distribution this is, at temperature 1."""
    with np.errstate(divide="ignore"):
        return np.log(probs)


# --- One position, as something that can be enumerated ---


@dataclass(frozen=True)
class Emitted:
    """What has come out: nothing, or one token."""

    new_tokens: tuple[int, ...] = ()

    @property
    def end(self) -> str | None:
        return "length" if self.new_tokens else None


@dataclass(frozen=True)
class Made:
    """What a run says about itself."""

    choices: tuple[Any, ...]
    draft_tokens: tuple[int, ...]
    num_accepted: int


class OnePosition:
    """Draw candidates from a draft, verify them against a target, emit a token."""

    def __init__(
        self,
        impl: Reference,
        rule: str,
        target: Array,
        logits: Array,
        num_candidates: int,
        **settings: Any,
    ):
        self.impl, self.target, self.logits, self.num_candidates = impl, target, logits, num_candidates
        self.home, self.rule = impl.module("methods.tree_rules"), impl.module("methods.tree_rules").RULES[rule]
        self.sampling = impl.sampling(**settings)
        self.named_uniforms = {"draft": num_candidates, "accept": num_candidates, "final": 1}
        self.num_uniforms = 2 * num_candidates + 1

    def start(self, prompt: Any, ending: Any) -> Emitted:
        return Emitted()

    def run(self, states: Sequence[Any], uniforms: Array, trace: bool = True) -> list[tuple[Emitted, Made]]:
        return self.port(uniforms) if isinstance(self.impl, Port) else [self.one(row) for row in uniforms]

    def one(self, row: Array) -> tuple[Emitted, Made]:
        draws = self.impl.module("uniforms").UniformRow(row, self.named_uniforms, trace=True)
        replacement = self.rule.replacement
        tokens, probs = self.home.draw_candidates(
            self.logits, self.sampling, self.num_candidates, draws, 0, replacement
        )
        found = self.rule.verify(self.target, probs, tokens, draws, 0)
        accepted = found.accepted
        token = draws.token("final", found.final_probs) if accepted is None else int(tokens[accepted])
        return Emitted((token,)), Made(draws.choices, tuple(tokens.tolist()), int(accepted is not None))

    def port(self, uniforms: Array) -> list[tuple[Emitted, Made]]:
        draws = self.impl.module("uniforms").UniformRow(self.impl.tensor(uniforms), self.named_uniforms, trace=True)
        logits, target = (self.impl.tensor(row).expand(len(uniforms), -1) for row in (self.logits, self.target))
        tokens, probs, used = self.home.draw_candidates(
            logits.unsqueeze(1), self.sampling, [self.num_candidates], draws, 0, self.rule.replacement
        )
        count = used.sum(dim=1)
        active = (count >= 0) & (count <= self.num_candidates)
        found = self.rule.verify(target, probs, tokens, draws, 0, count, active)
        final = draws.token("final", found.final_probs, active=found.accepted < 0)
        emitted = final.where(found.accepted < 0, tokens.gather(1, found.accepted.clamp(min=0)[:, None])[:, 0])
        batch = self.impl.module("batch_record")
        results = []
        for b, (token, accepted) in enumerate(zip(emitted.tolist(), found.accepted.tolist(), strict=True)):
            choices = tuple(
                batch.Choice(choice.column, choice.edges[b].cpu().numpy(), int(choice.outcome[b]))
                for choice in draws.choices
                if bool(choice.active[b])
            )
            drafts = tuple(tokens[b, : int(count[b])].tolist())
            results.append((Emitted((token,)), Made(choices, drafts, int(accepted >= 0))))
        return results


def distribution_of(method: OnePosition) -> OutputDistribution:
    return output_distribution(method, (), None, probe=True)


def assert_exact(distribution: OutputDistribution, target: Array) -> None:
    assert distribution.largest_deviation({(token,): float(prob) for token, prob in enumerate(target)}) <= EXACT
    assert abs(sum(distribution.values()) - 1.0) <= EXACT
    assert all(target[token] > 0 for (token,) in distribution), "a token that the target excludes"


def generic(seed: int, vocab_size: int, zeros: float = 0.0) -> tuple[Array, Array]:
    """Return a target and a draft without any structure."""
    generator = np.random.default_rng(seed)
    sides = []
    for _ in range(2):
        weights = generator.exponential(size=vocab_size) * (generator.random(vocab_size) >= zeros)
        weights[generator.integers(vocab_size)] += 0.1
        sides.append(normalised(weights))
    return sides[0], sides[1]


CASES: dict[str, tuple[Array, Array]] = {
    "generic": generic(0, 4),
    "zeros": generic(3, 4, zeros=0.5),
    "disjoint": (np.array([0.5, 0.5, 0, 0]), np.array([0, 0, 0.25, 0.75])),
    "equal": (generic(1, 4)[0],) * 2,
    "nearly equal": (generic(1, 4)[0], np.nextafter(generic(1, 4)[0], [0, 1, 0, 1])),
    "a draft of almost no probability": (generic(2, 4)[0], np.array([DENORMAL, 0.5, 0.25, 0.25])),
    "a target of almost no probability": (np.array([DENORMAL, 0.5, 0.25, 0.25]), generic(2, 4)[0]),
    "one draft": (generic(5, 4)[0], np.eye(4)[2]),
    "one target": (np.eye(4)[1], generic(5, 4)[0]),
}


@each_impl
@each_rule
@pytest.mark.parametrize("num_candidates", [1, 2, 3])
@pytest.mark.parametrize("name", CASES)
def test_the_target_comes_out_and_candidates_are_accepted_as_theory_says(
    impl: Reference, rule: str, num_candidates: int, name: str
) -> None:
    target, draft = CASES[name]
    distribution = distribution_of(OnePosition(impl, rule, target, logits_of(draft), num_candidates))
    assert_exact(distribution, target)
    promised = candidate_acceptance(target, draft, num_candidates, rule)
    assert abs(distribution.expected["num_accepted_tokens"] - promised) <= EXACT


@each_impl
@each_rule
@pytest.mark.parametrize(
    "settings",
    [{"temperature": 0.0}, {"top_k": 2}, {"top_p": 0.7}, {"temperature": 0.5, "top_k": 3, "top_p": 0.9}],
    ids=str,
)
def test_the_target_comes_out_whatever_the_settings_of_the_drafts(
    impl: Reference, rule: str, settings: dict[str, Any]
) -> None:
    target, draft = generic(4, 4, zeros=0.2)
    assert_exact(distribution_of(OnePosition(impl, rule, target, logits_of(draft), 3, **settings)), target)


@each_impl
@pytest.mark.parametrize("rule", ["without-replacement", "match"])
def test_greedy_drafts_are_the_likeliest_tokens_in_order_each_a_point_mass(impl: Reference, rule: str) -> None:
    target, draft = generic(6, 5)
    order = np.argsort(-draft, kind="stable")
    for num_candidates in range(1, 6):
        method = OnePosition(impl, rule, target, logits_of(draft), num_candidates, temperature=0.0)
        ((_, made),) = method.run([None], np.full((1, method.num_uniforms), LARGEST_UNIFORM))
        assert made.draft_tokens == tuple(order[:num_candidates].tolist())
        distribution = distribution_of(method)
        assert_exact(distribution, target)
        covered = float(target[order[:num_candidates]].sum())
        assert abs(distribution.expected["num_accepted_tokens"] - covered) <= EXACT


class Careless(OnePosition):
    """Verifies each candidate as if it had been drawn from the first one's distribution."""

    def one(self, row: Array) -> tuple[Emitted, Made]:
        right = self.rule

        def verify(target: Array, probs: Array, *rest: Any) -> Any:
            return right.verify(target, np.broadcast_to(probs[:1], probs.shape), *rest)

        self.rule = type(right)(right.replacement, verify)
        try:
            return super().one(row)
        finally:
            self.rule = right


class Hasty(OnePosition):
    """Draws from the target where it rejects all."""

    def one(self, row: Array) -> tuple[Emitted, Made]:
        right, target = self.rule, self.target

        def verify(*arguments: Any) -> Any:
            found = right.verify(*arguments)
            return type(found)(found.accepted, target, found.accept_probs)

        self.rule = type(right)(right.replacement, verify)
        try:
            return super().one(row)
        finally:
            self.rule = right


class Mixed(OnePosition):
    """Draws the candidates as the other kind of rule needs them."""

    def one(self, row: Array) -> tuple[Emitted, Made]:
        right = self.rule
        self.rule = type(right)(not right.replacement, right.verify)
        try:
            return super().one(row)
        finally:
            self.rule = right


@pytest.mark.parametrize(
    ("mistake", "rule"),
    [(Careless, "without-replacement"), (Mixed, "k-seq")] + [(Hasty, rule) for rule in RULES if rule != "match"],
)
def test_a_wrong_rule_is_seen(mistake: type[OnePosition], rule: str) -> None:
    target, draft = CASES["generic"]
    distribution = distribution_of(mistake(REFERENCE, rule, target, logits_of(draft), 2))
    assert distribution.largest_deviation({(token,): float(prob) for token, prob in enumerate(target)}) > 1e-3


# --- The formulas alone ---


def every_draw(draft: Array, num_candidates: int, replacement: bool) -> Iterator[tuple[float, list[int], list[Array]]]:
    """Yield every sequence of candidates: its probability, the tokens, and the distribution of each."""
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
    name, home = ("k_seq_probs", "methods.tree_rules") if rule == "k-seq" else ("recursive_probs", "methods.tree_rules")
    function = getattr(impl.module(home), name)
    if not isinstance(impl, Port):
        return function(target, rows, tokens)
    count = () if rule == "k-seq" else (impl.tensor(np.array([len(tokens)])),)
    found = function(*(impl.tensor(array[None]) for array in (target, rows, tokens)), *count)
    return tuple(part[0].cpu().numpy() for part in found)


@each_impl
@in_turn
@given(pair=distribution_pairs(3), num_candidates=st.integers(1, 3))
@example(pair=(np.array([0.0, 0.75, 0.25]), np.array([0.75, 0.25, 0.0])), num_candidates=3)
def test_the_target_comes_out_by_the_formulas_alone(
    impl: Reference, rule: str, pair: tuple[Array, Array], num_candidates: int
) -> None:
    """No uniform is drawn: the probabilities of every draw, acceptance and final token are added up."""
    target, draft = pair
    distribution, accepted = np.zeros(3), 0.0
    for chance, tokens, rows in every_draw(draft, num_candidates, RULES[rule].replacement):
        accept, final = probs_of(impl, rule, target, np.array(rows), np.array(tokens))
        assert np.all((accept >= 0) & (accept <= 1)) and np.all(accept[target[tokens] == 0] == 0)
        assert abs(final.sum() - 1) <= EXACT and np.all(final >= 0) and np.all(final[target == 0] == 0)
        rejected = chance
        for token, prob in zip(tokens, accept.tolist(), strict=True):
            distribution[token] += rejected * prob
            accepted += rejected * prob
            rejected *= 1 - prob
        distribution += rejected * final
    assert np.abs(distribution - target).max() <= EXACT
    assert abs(accepted - candidate_acceptance(target, draft, num_candidates, rule)) <= EXACT


@given(pair=distribution_pairs(4), num_candidates=st.integers(1, 4))
def test_the_match_rule_accepts_what_the_candidates_cover(pair: tuple[Array, Array], num_candidates: int) -> None:
    target, draft = pair
    covered = sum(
        chance * float(target[tokens].sum()) for chance, tokens, _ in every_draw(draft, num_candidates, False)
    )
    assert abs(candidate_acceptance(target, draft, num_candidates, "match") - covered) <= EXACT


@given(pair=distribution_pairs(4))
def test_one_candidate_is_judged_as_by_the_ordinary_rules(pair: tuple[Array, Array]) -> None:
    target, draft = pair
    for rule in RULES:
        ordinary = acceptance_rate(target[None], draft[None], "match" if rule == "match" else "token")
        assert abs(candidate_acceptance(target, draft, 1, rule) - float(ordinary)) <= EXACT
    token = np.array([int(np.argmax(draft))])
    for rule in ("without-replacement", "k-seq"):
        accept, final = probs_of(REFERENCE, rule, target, draft[None], token)
        assert accept == accept_probs(target[None], draft[None], token)
        assert final.tobytes() == residual_probs(target, draft).tobytes()


@each_rule
@given(pair=distribution_pairs(4), num_candidates=st.integers(1, 3))
def test_more_candidates_are_accepted_more_often(rule: str, pair: tuple[Array, Array], num_candidates: int) -> None:
    fewer, more = (candidate_acceptance(*pair, count, rule) for count in (num_candidates, num_candidates + 1))
    assert -EXACT <= fewer <= more + EXACT <= 1 + 2 * EXACT


@given(distribution=integer_distributions(4), num_candidates=st.integers(1, 4))
def test_candidates_from_the_target_itself_need_but_one(distribution: Array, num_candidates: int) -> None:
    for rule in ("without-replacement", "with-replacement", "k-seq"):
        assert abs(candidate_acceptance(distribution, distribution, num_candidates, rule) - 1) <= EXACT


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((0,), "num_candidates: found 0, expected an integer from 1 to 16384"),
        ((2, "typical"), "rule: found 'typical', expected one of k-seq, match, with-replacement, without-replacement"),
    ],
)
def test_theory_refuses_what_it_does_not_know(arguments: tuple[Any, ...], message: str) -> None:
    distribution = np.array([0.5, 0.5])
    with pytest.raises(ValueError) as error:
        candidate_acceptance(distribution, distribution, *arguments)
    assert str(error.value) == message
    with pytest.raises(ValueError, match=r"^target_probs: found numbers from 0.5 with sum 1.5"):
        candidate_acceptance(np.full(3, 0.5), np.full(3, 1 / 3), 2)


# --- What K-SEQ divides by ---


@given(pair=distribution_pairs(4), num_candidates=st.integers(1, 9))
def test_the_division_is_the_smallest_that_keeps_the_distribution(
    pair: tuple[Array, Array], num_candidates: int
) -> None:
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


@given(distribution=distributions(4), num_candidates=st.integers(1, 9))
def test_nothing_is_divided_where_draft_and_target_are_equal(distribution: Array, num_candidates: int) -> None:
    """The equation is flat there: to a few units in the last place, much larger numbers would do as well."""
    assert k_seq_division(distribution, distribution, num_candidates) == 1


# --- Draws ---


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


@each_impl
@given(distribution=distributions(5), count=st.integers(1, 6), seed=st.integers(0, 2**32), data=st.data())
def test_each_candidate_comes_from_what_those_before_it_have_left(
    impl: Reference, distribution: Array, count: int, seed: int, data: st.DataObject
) -> None:
    settings = data.draw(
        st.sampled_from([{}, {"top_k": 2}, {"top_p": 0.6}, {"temperature": 0.7}, {"temperature": 1.5, "top_k": 4}])
    )
    uniforms = np.random.default_rng(seed).random(count)
    distribution = distribution[np.isfinite(logits_of(distribution))] if data.draw(st.booleans()) else distribution
    tokens, probs = draw(impl, logits_of(distribution), count, uniforms, False, **settings)
    rest = REFERENCE.probs(logits_of(distribution), **settings)
    assert len(tokens) == min(count, np.count_nonzero(rest)) and len(set(tokens.tolist())) == len(tokens)
    for token, row, uniform in zip(tokens.tolist(), probs, uniforms, strict=False):
        np.testing.assert_allclose(row, rest, rtol=1e-9, atol=DENORMAL)
        assert np.array_equal(row > 0, rest > 0)
        assert token == REFERENCE.draw(row, np.array([uniform]))[0] or impl is not REFERENCE
        rest = np.where(np.arange(rest.size) == token, 0.0, rest)
        rest = rest / rest.sum() if rest.any() else rest


@each_impl
@given(distribution=distributions(4), count=st.integers(1, 5), seed=st.integers(0, 2**32))
def test_with_replacement_all_come_from_one_distribution(
    impl: Reference, distribution: Array, count: int, seed: int
) -> None:
    uniforms = np.random.default_rng(seed).random(count)
    for settings in ({}, {"temperature": 0.0}, {"top_k": 2}):
        tokens, probs = draw(impl, logits_of(distribution), count, uniforms, True, **settings)
        expected = impl.probs(logits_of(distribution), **settings)
        np.testing.assert_allclose(probs, np.broadcast_to(expected, (count, 4)), rtol=1e-15, atol=0)
        assert tokens.tolist() == impl.draw(probs[0], uniforms).tolist()


@each_impl
def test_greedy_candidates_run_out_where_all_others_are_masked(impl: Reference) -> None:
    logits = np.array([-np.inf, 1.0, 1.0, -np.inf, 3.0])
    tokens, probs = draw(impl, logits, 5, np.full(5, 0.5), False, temperature=0.0)
    assert tokens.tolist() == [4, 1, 2], "likeliest first, of equals the lowest id"
    assert np.array_equal(probs, np.eye(5)[tokens])


@pytest.mark.torch
@given(distribution=distributions(6), count=st.integers(1, 4), seed=st.integers(0, 2**32), replacement=st.booleans())
def test_both_packages_draw_the_same_candidates(distribution: Array, count: int, seed: int, replacement: bool) -> None:
    uniforms = np.random.default_rng(seed).random(count)
    for settings in ({}, {"temperature": 0.0}, {"top_k": 3}, {"top_p": 0.8}):
        ours, theirs = (
            draw(impl, logits_of(distribution), count, uniforms, replacement, **settings) for impl in (REFERENCE, PORT)
        )
        assert ours[0].tolist() == theirs[0].tolist()
        np.testing.assert_allclose(ours[1], theirs[1], rtol=1e-12, atol=DENORMAL)


# --- Verification ---


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
def test_the_match_rule_draws_from_the_target_and_looks_for_it(
    impl: Reference, case: tuple[Array, Array, Array], uniform: float
) -> None:
    target, rows, tokens = case
    accepted, final, chances = verify(impl, "match", target, rows, tokens, np.full(len(tokens), uniform))
    drawn = int(REFERENCE.draw(target, np.array([uniform]))[0])
    assert accepted == (tokens.tolist().index(drawn) if drawn in tokens else -1)
    assert np.array_equal(final, np.eye(4)[drawn]) and np.array_equal(chances, target[tokens])


@pytest.mark.parametrize("rule", ["without-replacement", "k-seq"])
def test_a_candidate_that_cannot_have_been_drawn_is_refused_by_the_reference(rule: str) -> None:
    rows = np.array([[0.5, 0.5, 0.0], [0.0, 1.0, 0.0]]) if rule != "k-seq" else np.array([[0.5, 0.5, 0.0]] * 2)
    with pytest.raises(
        ValueError, match=r"^draft_probs: found 0 at draft token \d, expected a distribution it came from$"
    ):
        verify(REFERENCE, rule, np.full(3, 1 / 3), rows, np.array([0, 2]), np.full(2, 0.5))


@pytest.mark.torch
@each_rule
@given(data=st.data())
def test_both_packages_decide_alike(rule: str, data: st.DataObject) -> None:
    target, rows, tokens = data.draw(positions(4, RULES[rule].replacement))
    uniforms = np.random.default_rng(data.draw(st.integers(0, 2**32))).random(len(tokens))
    ours, theirs = (verify(impl, rule, target, rows, tokens, uniforms) for impl in (REFERENCE, PORT))
    np.testing.assert_allclose(ours[2], theirs[2], rtol=1e-12, atol=0)
    rejected = float(np.prod(1 - ours[2])) if rule != "match" else 1.0
    np.testing.assert_allclose(rejected * ours[1], rejected * theirs[1], rtol=1e-9, atol=1e-15)
    assert ours[0] == theirs[0] or np.abs(uniforms - ours[2]).min() <= 8 * 2.0**-52


@each_rule
@each_port
@given(data=st.data())
def test_a_row_does_not_depend_on_what_it_should_not_see(port: Port, rule: str, data: st.DataObject) -> None:
    """Neither on its neighbours, nor on what stands after its candidates; rows that have ended ask for nothing."""
    most, replacement = 3, RULES[rule].replacement
    cases = [data.draw(positions(4, replacement, most)) for _ in range(4)]
    if rule == "k-seq":  # all of its candidates, or none
        cases = [(target, np.resize(rows, (most, 4)), np.resize(tokens, most)) for target, rows, tokens in cases]
    active = np.array(data.draw(st.lists(st.booleans(), min_size=4, max_size=4)))
    junk = data.draw(st.sampled_from([np.nan, np.inf, -1.0, 0.0, 1e300]))
    uniforms = np.random.default_rng(data.draw(st.integers(0, 2**32))).random((4, most))
    target = np.array([case[0] for case in cases])
    target[~active] = junk
    rows, tokens = np.full((4, most, 4), junk), np.full((4, most), data.draw(st.integers(0, 3)))
    for b, case in enumerate(cases):
        rows[b, : len(case[2])], tokens[b, : len(case[2])] = case[1:]
    count = np.array([len(case[2]) for case in cases])
    draws = port.module("uniforms").UniformRow(port.tensor(uniforms), {"accept": most}, trace=True)
    found = (
        port.module("methods.tree_rules")
        .RULES[rule]
        .verify(*map(port.tensor, (target, rows, tokens)), draws, 0, port.tensor(count), port.tensor(active))
    )
    asked = np.array([choice.active.tolist() for choice in draws.choices])
    for b, case in enumerate(cases):
        if not active[b]:
            assert not asked[:, b].any() and int(found.accepted[b]) == -1
            continue
        accepted, final, chances = verify(port, rule, *case, uniforms[b, : len(case[2])])
        assert int(found.accepted[b]) == accepted
        assert found.final_probs[b].cpu().numpy().tobytes() == final.tobytes()
        assert found.accept_probs[b, : len(chances)].cpu().numpy().tobytes() == chances.tobytes()
        tried = 1 if rule == "match" else len(case[2]) if accepted < 0 else accepted + 1
        assert asked[:, b].tolist() == [c < tried for c in range(len(asked))]


# --- Figures, printed by `python -m pytest -rP tests/drafters/test_candidates.py -k figures` ---


def figures(pairs: Sequence[tuple[Array, Array]]) -> dict[str, list[float]]:
    """Return the mean acceptance by each rule with 1, 2, 3 and 4 candidates, over targets and drafts; print it."""
    found: dict[str, list[float]] = {}
    for rule in RULES:
        found[rule] = [
            float(np.mean([candidate_acceptance(*pair, count, rule) for pair in pairs])) for count in (1, 2, 3, 4)
        ]
        print(f"{rule:20}", *(f"{rate:.3f}" for rate in found[rule]))
    return found


def test_figures_on_a_random_example() -> None:
    found = figures([generic(0, 6)])
    assert all(np.all(np.diff(rates) > 0) for rates in found.values())
    assert found["without-replacement"][1] > found["k-seq"][1] > found["with-replacement"][1] > found["match"][1]


@pytest.mark.torch
def test_figures_on_the_bundled_model() -> None:
    """Its first look-ahead vector drafts, at 128 places of a held-out file, at temperature 0.8 with top-k 10."""
    transformers = pytest.importorskip("transformers")
    checkpoints = REFERENCE.module("checkpoint.load").load_model, REFERENCE.module("lookahead.vectors").LookAhead.load
    folders = pytest.importorskip("pass_sampling.gpu.checkpoints")
    model, vectors = checkpoints[0](folders.MODEL), checkpoints[1](folders.LOOKAHEAD).vectors[:1]
    text = transformers.AutoTokenizer.from_pretrained(str(folders.MODEL))(inspect.getsource(bisect), verbose=False)[
        "input_ids"
    ]
    pairs = []
    for place in np.linspace(64, len(text) - 2, 128).astype(int).tolist():
        inputs = model.embed(text[place - 64 : place])
        probs = []
        for last in (model.embed([text[place]]), vectors.astype(inputs.dtype)):
            hidden = model.hidden(np.concatenate([inputs, last]), model.new_cache(65))
            probs.append(REFERENCE.probs(model.logits(hidden[-1]).astype(np.float64), temperature=0.8, top_k=10))
        seen = (probs[0] > 0) | (probs[1] > 0)
        pairs.append((probs[0][seen], probs[1][seen]))
    found = figures(pairs)
    assert all(np.all(np.diff(rates) > 0) for rates in found.values())
