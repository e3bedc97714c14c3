"""The rules of verification: one block's tokens have the target's distribution, by every rule, in both packages."""

from fractions import Fraction
from itertools import product
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from hypothesis import assume, example, given
from hypothesis import strategies as st

from adapters import REFERENCE, Port, Reference, each_impl, each_port
from pass_sampling.reference.exactness.distribution import OutputDistribution, output_distribution
from pass_sampling.reference.record import Choice
from strategies import DENORMAL, LARGEST_UNIFORM, around, distribution_pairs, uniforms

Array = np.ndarray
Tokens = tuple[int, ...]
Rows = dict[Tokens, Array]  # a distribution after every sequence of drafts

each_rule = pytest.mark.parametrize("rule", ["token", "block", "match"])


class OneBlock:
    """A method of one step for the enumeration: drafts are drawn from given rows and verified against others."""

    def __init__(self, impl: Reference, rule: str, target: Rows, draft: Rows, num_draft: int):
        self.impl, self.target, self.draft, self.num_draft = impl, target, draft, num_draft
        self.verify = impl.module("verify").RULES[rule]
        self.named_uniforms = {"draft": num_draft, "accept": num_draft, "final": 1}
        self.num_uniforms = 2 * num_draft + 1

    def start(self, prompt: Any, ending: Any) -> Any:
        return SimpleNamespace(new_tokens=(), end=None)

    def run(self, states: Any, uniforms: Array, trace: bool = True) -> list[tuple[Any, Any]]:
        if isinstance(self.impl, Port):
            return self._run_batch(self.impl, uniforms, trace)
        return [self._run_row(row, trace) for row in uniforms]

    def _run_row(self, uniforms: Array, trace: bool) -> tuple[Any, Any]:
        draws = self.impl.module("uniforms").UniformRow(uniforms, self.named_uniforms, trace)
        tokens: Tokens = ()
        for i in range(self.num_draft):
            tokens += (draws.token("draft", self.draft[tokens], i),)
        found = self.verify(*self._rows(tokens), np.array(tokens, dtype=np.int64), draws)
        return self._outcome(tokens, found.num_accepted, found.final_token, draws.choices)

    def _run_batch(self, port: Port, uniforms: Array, trace: bool) -> list[tuple[Any, Any]]:
        count = len(uniforms)
        draws = port.module("uniforms").UniformRow(port.tensor(uniforms), self.named_uniforms, trace)
        tokens: list[Tokens] = [()] * count
        for i in range(self.num_draft):
            drawn = draws.token("draft", port.tensor(np.stack([self.draft[drafts] for drafts in tokens])), i)
            tokens = [(*drafts, token) for drafts, token in zip(tokens, drawn.tolist(), strict=True)]
        sides = [port.tensor(np.stack(side)) for side in zip(*map(self._rows, tokens), strict=True)]
        drafts = port.tensor(np.array(tokens, dtype=np.int64).reshape(count, self.num_draft))
        rows = np.full(count, self.num_draft), np.ones(count, dtype=np.bool_), np.ones(count, dtype=np.bool_)
        found = self.verify(*sides, drafts, draws, *map(port.tensor, rows))
        ends = zip(found.num_accepted.tolist(), found.final_token.tolist(), strict=True)
        made = [choices_of(draws.choices, n) for n in range(count)]
        return [self._outcome(*row) for row in ((tokens[n], *end, made[n]) for n, end in enumerate(ends))]

    def _rows(self, tokens: Tokens) -> tuple[Array, Array]:  # [K+1, V], [K, V]
        target = np.array([self.target[tokens[:i]] for i in range(self.num_draft + 1)])
        draft = np.array([self.draft[tokens[:i]] for i in range(self.num_draft)])
        return target, draft.reshape(self.num_draft, target.shape[1])

    def _outcome(self, tokens: Tokens, num_accepted: int, final_token: int, choices: Any) -> tuple[Any, Any]:
        state = SimpleNamespace(new_tokens=(*tokens[:num_accepted], final_token), end="length")
        return state, SimpleNamespace(draft_tokens=tokens, num_accepted=num_accepted, choices=choices)


def choices_of(choices: Any, n: int) -> tuple[Choice, ...]:
    """Return the choices that one row of a batch made."""
    made = [choice for choice in choices or () if choice.active[n]]
    return tuple(Choice(choice.column, choice.edges[n].cpu().numpy(), int(choice.outcome[n])) for choice in made)


def one_block(impl: Reference, rule: str, target: Rows, draft: Rows, num_draft: int) -> OutputDistribution:
    """Return the distribution of one block; each uniform is tried at both ends of the cell that it should have."""
    return output_distribution(OneBlock(impl, rule, target, draft, num_draft), (), None, probe=True)


def completed(rows: Rows, distribution: dict[Tokens, float], length: int) -> dict[Tokens, float]:
    """Return a distribution of blocks as the target continues them up to a length."""
    found: dict[Tokens, float] = {}
    unfinished = list(distribution.items())
    while unfinished:
        tokens, prob = unfinished.pop()
        if len(tokens) == length:
            found[tokens] = found.get(tokens, 0.0) + prob
        else:
            unfinished += [((*tokens, i), prob * float(share)) for i, share in enumerate(rows[tokens])]
    return found


def every_prefix(size: tuple[int, int]) -> Any:
    """Draw target and draft after every prefix of a block, of a number of drafts and a size of the vocabulary."""
    num_draft, vocab_size = size
    prefixes = [tokens for length in range(num_draft + 1) for tokens in product(range(vocab_size), repeat=length)]
    return st.tuples(
        st.fixed_dictionaries({tokens: distribution_pairs(vocab_size) for tokens in prefixes}).map(
            lambda pairs: [{tokens: pair[side] for tokens, pair in pairs.items()} for side in (0, 1)]
        ),
        st.just(num_draft),
    )


blocks = st.sampled_from([(0, 5), (1, 2), (1, 4), (2, 2), (2, 3), (3, 2)]).flatmap(every_prefix)


@each_impl
@each_rule
@given(blocks)
def test_the_target_comes_out_whatever_the_distributions(impl: Reference, rule: str, block: Any) -> None:
    """One block, completed by the target to the longest that there can be, has the target's distribution."""
    (target, draft), num_draft = block
    found = completed(target, dict(one_block(impl, rule, target, draft, num_draft)), num_draft + 1)
    wanted = completed(target, {(): 1.0}, num_draft + 1)
    assert max(abs(found.get(tokens, 0.0) - prob) for tokens, prob in wanted.items()) < 1e-12
    assert abs(sum(found.values()) - 1) < 1e-12


@given(blocks)
def test_the_block_rule_accepts_at_least_as_many_drafts_as_the_token_rule(block: Any) -> None:
    (target, draft), num_draft = block
    by_rule = [one_block(REFERENCE, rule, target, draft, num_draft).expected for rule in ("block", "token")]
    assert by_rule[0]["num_accepted_tokens"] >= by_rule[1]["num_accepted_tokens"] - 1e-12


def one_draft(impl: Reference, rule: str, target: Any, draft: Any, token: int, *row: float) -> tuple[int, int, float]:
    """Verify a single draft; the target after it is the same again."""
    accepted, final, accept = impl.verify(
        rule, np.stack([target, target])[None], draft[None, None], np.array([[token]]), np.array([row])
    )
    return int(accepted[0]), int(final[0]), float(accept[0, 0])


@each_impl
@pytest.mark.parametrize("rule", ["token", "block"])  # of one draft they judge alike
@given(pair=distribution_pairs(3), token=st.integers(0, 2))
@example(pair=(np.array([0.25, 0.75, 0.0]), np.array([0.5, 0.25, 0.25])), token=0)
@example(pair=(np.array([0.5, 0.5, 0.0]), np.array([DENORMAL, 0.5, 0.5])), token=0)
@example(pair=(np.array([0.0, 1.0]), np.array([1.0, 0.0])), token=0)
@example(pair=(np.array([0.5, 0.5]), np.array([0.25, 0.75])), token=0)
def test_a_draft_is_accepted_strictly_below_its_ratio(impl, rule, pair, token):
    target, draft = pair
    assume(draft[token] > 0)
    expected = min(1.0, float(target[token]) / float(draft[token]))
    for uniform in around(expected):
        accepted, final, accept = one_draft(impl, rule, target, draft, token, uniform, 0.5)
        assert accept == expected
        assert accepted == (uniform < expected)
        assert target[final] > 0, "a token that the target excludes"


@each_impl
@given(distribution_pairs(4))
@example((np.array([0.5, 0.5, 0.0, 0.0]), np.array([0.5, 0.5, 0.0, 0.0])))
@example((np.array([0.5, np.nextafter(0.25, 0), 0.25]), np.array([0.5, 0.25, 0.25])))
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


@pytest.mark.parametrize("rule", ["token", "block"])
@pytest.mark.parametrize("tokens", [[1, 0], [0, 1]], ids=str)
def test_a_draft_that_cannot_have_been_drawn_is_refused_by_the_reference(rule: str, tokens: list[int]) -> None:
    target, draft = np.full((1, 3, 2), 0.5), np.array([[[0.0, 1.0], [0.0, 1.0]]])
    with pytest.raises(ValueError) as error:
        REFERENCE.verify(rule, target, draft, np.array([tokens]), np.zeros((1, 3)))
    place = tokens.index(0)
    assert str(error.value) == f"draft_probs: found 0 at draft token {place}, expected a distribution it came from"


@each_rule
def test_no_token_follows_accepted_drafts_of_which_the_last_ends_the_text(rule: str) -> None:
    half = np.full((1, 2), 0.5)
    draws = REFERENCE.module("uniforms").UniformRow(np.zeros(2), {"accept": 1, "final": 1})
    found = REFERENCE.module("verify").RULES[rule](half, half, np.array([0]), draws)
    assert (found.num_accepted, found.final_token, draws.choices) == (1, None, None)


# Batches: rows that drafted fewer, that have ended, or whose last draft ends the text.
@st.composite
def batches(draw: Any, num_rows: int, num_draft: int, vocab_size: int) -> list[Array]:
    """Target rows, draft rows, tokens drawn from them and uniforms of a batch, often where a decision turns."""
    pairs = [[draw(distribution_pairs(vocab_size)) for _ in range(num_draft + 1)] for _ in range(num_rows)]
    target = np.array([[pair[0] for pair in row] for row in pairs])
    draft = np.array([[pair[1] for pair in row[:-1]] for row in pairs]).reshape(num_rows, num_draft, vocab_size)
    generator = np.random.default_rng(draw(st.integers(0, 2**32)))
    tokens = [[generator.choice(np.flatnonzero(distribution)) for distribution in row] for row in draft]
    columns = [[draw(uniforms(REFERENCE.cell_edges(distribution))) for distribution in row] for row in target]
    return [target, draft, np.array(tokens, dtype=np.int64).reshape(num_rows, num_draft), np.array(columns)]


def traced(impl: Reference, rule: str, target: Any, draft: Any, tokens: Any, uniforms: Any, *rows: Any) -> Any:
    """Return the verification and the choices that it made."""
    named_uniforms = {"accept": tokens.shape[-1], "final": 1}
    draws = impl.module("uniforms").UniformRow(uniforms, named_uniforms, trace=True)
    return impl.module("verify").RULES[rule](target, draft, tokens, draws, *rows), draws.choices


@each_rule
@each_port
@given(st.integers(0, 3).flatmap(lambda depth: batches(4, depth, 3)), st.data())
def test_a_row_of_a_batch_is_decided_and_traced_as_by_the_reference_alone(port, rule, batch, data):
    """Rows ignore what they were not given: it is junk here."""
    target, draft, tokens, uniforms = batch
    most, four_of = tokens.shape[1], lambda each: np.array(data.draw(st.lists(each, min_size=4, max_size=4)))
    num_draft, active, has_bonus_row = four_of(st.integers(0, most)), four_of(st.booleans()), four_of(st.booleans())
    junk = data.draw(st.sampled_from([np.nan, np.inf, -1.0, 0.0, 1e300]))
    spoilt = [array.copy() for array in batch]
    for n, depth in enumerate(num_draft * active):
        spoilt[0][n, depth + (active[n] & has_bonus_row[n]) :] = junk
        spoilt[1][n, depth:] = junk
        spoilt[2][n, depth:] = data.draw(st.integers(0, 2))
        spoilt[3][n, depth:-1] = data.draw(st.sampled_from([0.0, LARGEST_UNIFORM]))
    counts = np.where(active, num_draft, data.draw(st.integers(0, 9)))
    found, all_choices = traced(port, rule, *map(port.tensor, (*spoilt, counts, has_bonus_row, active)))
    for n, depth in enumerate(num_draft):
        choices = choices_of(all_choices, n)
        if not active[n]:
            assert choices == ()
            continue
        row = uniforms[n, [*range(depth), -1]]
        parts = target[n, : depth + has_bonus_row[n]], draft[n, :depth], tokens[n, :depth]
        expected, made = traced(REFERENCE, rule, *parts, row)
        rounding = 1e-14 if rule == "block" else 0.0
        accept = found.accept_probs[n, :depth].cpu().numpy()
        np.testing.assert_allclose(accept, expected.accept_probs, rtol=0, atol=rounding)
        decisions = [(choice.column if choice.column < depth else most, choice.outcome) for choice in made]
        theirs = [(choice.column, choice.outcome) for choice in choices]
        if decisions == theirs:
            assert int(found.num_accepted[n]) == expected.num_accepted
            assert expected.final_token in (None, int(found.final_token[n]))
        else:  # sums may round differently: those of a residual, or of a block's chances
            first = next(made[i] for i, (one, other) in enumerate(zip(decisions, theirs, strict=False)) if one != other)
            assert rule == "block" or (rule == "token" and first.column == depth)
            assert np.abs(first.edges - row[first.column]).min() <= 1e-14


@each_impl
@given(batches(1, 3, 3), st.lists(st.booleans(), min_size=4, max_size=4))
def test_the_block_rule_takes_the_drafts_row_where_the_target_has_none(impl, batch, missing):
    """The tokens before such a row have the target's distribution: the rule is exact for any row in its place."""
    target, draft, tokens, row = batch
    without = target.copy()
    without[0, missing] = np.nan
    target[0, :3][missing[:3]] = draft[0][missing[:3]]
    (accepted, _, accept), (same_accepted, _, same_accept) = (
        impl.verify("block", rows, draft, tokens, row) for rows in (without, target)
    )
    assert np.array_equal(accept, same_accept) and np.array_equal(accepted, same_accepted)


@each_impl
@given(batches(1, 3, 3))
def test_a_run_of_drafts_is_kept_with_the_probability_of_equations_11_to_13(
    impl: Reference, batch: list[Array]
) -> None:
    """In exact fractions, where the denominator is not so small that rounding of 2^-53 would show."""
    _, _, accept = impl.verify("block", *batch)
    (target, draft), tokens = ([[[*map(Fraction, row)] for row in side[0].tolist()] for side in batch[:2]], batch[2][0])
    weight = Fraction(1)
    for i, token in enumerate(tokens):
        weight = min(Fraction(1), weight * target[i][token] / draft[i][token])
        following = zip(target[i + 1], draft[i + 1], strict=True) if i + 1 < len(tokens) else ()
        gained = sum((max(Fraction(0), weight * t - d) for t, d in following), Fraction(0))
        if i + 1 == len(tokens):
            assert accept[0, i] == pytest.approx(float(weight), abs=1e-14)
        elif gained + 1 - weight > 1e-3:
            assert accept[0, i] == pytest.approx(float(gained / (gained + 1 - weight)), abs=1e-12)
