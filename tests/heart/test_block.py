"""Block verification: exact, never worse than the token rule, and the same in both packages."""

from __future__ import annotations

from itertools import product
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from adapters import PORT, REFERENCE
from models import PACKAGES, package
from pass_sampling.reference.exactness.distribution import output_distribution
from pass_sampling.reference.verify import accept_probs, block_probs, residual_probs

Array = np.ndarray
Tokens = tuple[int, ...]


@st.composite
def rows(draw: Any, dead_ends: bool = False) -> tuple[dict[Tokens, Array], dict[Tokens, Array], int]:
    """A target distribution and a draft distribution after every prefix of a block, with zeros, and the number of
    drafts.

    With dead ends there are drafts after which the target has no distribution.
    """
    vocab_size, num_draft = draw(st.integers(2, 3)), draw(st.integers(1, 3))
    generator = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    zeros, likeness = draw(st.sampled_from([0.0, 0.3, 0.6])), draw(st.sampled_from([0.0, 0.5, 0.99, 1.0]))

    def distribution() -> Array:
        weights = generator.exponential(size=vocab_size) * (generator.random(vocab_size) >= zeros)
        weights[generator.integers(vocab_size)] += 0.1
        return weights / weights.sum()

    prefixes = [tokens for length in range(num_draft + 1) for tokens in product(range(vocab_size), repeat=length)]
    target = {tokens: distribution() for tokens in prefixes}
    draft = {tokens: likeness * target[tokens] + (1 - likeness) * distribution() for tokens in prefixes}
    for tokens in prefixes[1:] if dead_ends else ():
        target[tokens] = np.full(vocab_size, np.nan) if generator.random() < 0.3 else target[tokens]
    return target, draft, num_draft


def blocks(case: Any) -> Any:
    """Yield every block of drafts that can be drawn: its probability, tokens, and both sides' rows."""
    target, draft, num_draft = case
    for drafts in product(range(target[()].size), repeat=num_draft):
        chance = float(np.prod([draft[drafts[:i]][token] for i, token in enumerate(drafts)]))
        if chance > 0:
            target_probs = np.array([target[drafts[:i]] for i in range(num_draft + 1)])
            yield chance, drafts, target_probs, np.array([draft[drafts[:i]] for i in range(num_draft)])


def lengths(accept: Array) -> Array:
    """Return the chance of each accepted length, asked from the longest down."""
    given_up = np.cumprod((1 - accept)[::-1])[::-1]  # all of at least this length
    return np.concatenate([given_up[:1], accept * np.append(given_up[1:], 1.0)])


def completed(target: dict[Tokens, Array], distribution: dict[Tokens, float], longest: int) -> dict[Tokens, float]:
    """Return a distribution of texts as the target continues them, up to a length or where it has none."""
    found: dict[Tokens, float] = {}
    while distribution:
        tokens, prob = distribution.popitem()
        if len(tokens) == longest or np.isnan(target[tokens]).any():
            found[tokens] = found.get(tokens, 0.0) + prob
            continue
        for token, share in enumerate(target[tokens].tolist()):
            distribution[(*tokens, token)] = distribution.get((*tokens, token), 0.0) + prob * share
    return found


@given(case=st.booleans().flatmap(rows))
def test_the_target_comes_out_by_the_formulas_alone(case: Any) -> None:
    """No uniform is drawn: probabilities of every block, every accepted length and every final token are added up.

    Where the target has no distribution after some drafts, a text ends there as often as the target's own.
    """
    target, _, num_draft = case
    distribution: dict[Tokens, float] = {}
    for chance, drafts, target_probs, draft_probs in blocks(case):
        weights, accept = block_probs(target_probs, draft_probs, np.array(drafts))
        for length, share in enumerate(lengths(accept)):
            final = target_probs[-1]
            if length < num_draft:
                final = residual_probs(target_probs[length], draft_probs[length], float(weights[length]))
            dead = [i for i in range(length + 1) if np.isnan(target_probs[i]).any()]
            texts = [(*drafts[:length], token) for token in range(len(final))]
            for text, prob in [(drafts[: dead[0]], 1.0)] if dead else zip(texts, final.tolist(), strict=True):
                distribution[text] = distribution.get(text, 0.0) + chance * share * prob
    found, wanted = (completed(target, each, num_draft + 1) for each in (distribution, {(): 1.0}))
    for tokens in {*found, *wanted}:
        assert abs(found.get(tokens, 0.0) - wanted.get(tokens, 0.0)) < 1e-12


@given(case=rows())
def test_it_accepts_at_least_as_many_drafts_as_the_token_rule(case: Any) -> None:
    by_block = by_token = 0.0
    for chance, drafts, target_probs, draft_probs in blocks(case):
        _, accept = block_probs(target_probs, draft_probs, np.array(drafts))
        by_block += chance * float(lengths(accept) @ np.arange(len(drafts) + 1))
        by_token += chance * float(np.cumprod(accept_probs(target_probs, draft_probs, np.array(drafts))).sum())
    assert by_block >= by_token - 1e-12


@pytest.mark.parametrize("name", PACKAGES)
def test_it_accepts_more_on_a_table_and_as_many_where_all_is_greedy(name: str) -> None:
    pkg = package(name)
    model = pkg.TableModel(vocab_size=3, num_lookahead=3, seed=5)
    ending = pkg.Ending(max_new_tokens=5)

    def accepted(rule: str, **settings: Any) -> float:
        method = pkg.PaSS(model, model.lookahead(), pkg.SamplingConfig(**settings), rule=rule)
        return output_distribution(method, [0], ending).expected["num_accepted_tokens"]

    assert accepted("block") > accepted("token") + 1e-3
    assert accepted("block", temperature=0.0) == accepted("token", temperature=0.0)


@given(case=rows(), data=st.data())
def test_one_draft_is_judged_as_by_the_token_rule(case: Any, data: st.DataObject) -> None:
    target, draft, _ = case
    token = data.draw(st.sampled_from(np.flatnonzero(draft[()] > 0).tolist()))
    distributions = np.array([target[()], target[(token,)]]), draft[()][None], np.array([token])
    assert block_probs(*distributions)[1] == accept_probs(*distributions)


@pytest.mark.torch
@given(case=st.booleans().flatmap(rows), data=st.data())
def test_both_packages_decide_alike_also_in_ragged_batches(case: Any, data: st.DataObject) -> None:
    """Rows that drafted fewer, rows whose last draft ends the text, rows that have ended."""
    pytest.importorskip("torch")
    _, _, num_draft = case
    found = data.draw(st.lists(st.sampled_from(list(blocks(case))), min_size=1, max_size=4))
    one_row = st.lists(st.floats(0, 1, exclude_max=True), min_size=num_draft + 1, max_size=num_draft + 1)
    uniforms = np.array(data.draw(st.lists(one_row, min_size=len(found), max_size=len(found))))
    counts = np.array(data.draw(st.lists(st.integers(0, num_draft), min_size=len(found), max_size=len(found))))
    active = np.array(data.draw(st.lists(st.booleans(), min_size=len(found), max_size=len(found))))
    target, draft = np.array([each[2] for each in found]), np.array([each[3] for each in found])
    tokens = np.array([each[1] for each in found])
    accepted, final, chances = PORT.verify_some("block", target, draft, tokens, uniforms, counts, active)
    for row, count in enumerate(counts.tolist()):
        if active[row]:
            columns = [*range(count), num_draft]
            part = slice(row, row + 1)
            alone = REFERENCE.verify(
                "block",
                target[part, : count + 1],
                draft[part, :count],
                tokens[part, :count],
                uniforms[part][:, columns],
            )
            assert np.abs(alone[2][0] - chances[row, :count]).max(initial=0.0) < 1e-14
            near = np.abs(uniforms[row, :count] - alone[2][0]).min(initial=1.0) < 1e-14  # an edge, decided by rounding
            lawless = np.isnan(target[row, alone[0][0]]).any()  # nothing can be drawn there
            assert near or (alone[0][0] == accepted[row] and (lawless or alone[1][0] == final[row]))


def test_a_run_that_is_ruled_out_asks_nothing_of_the_rows_after_it() -> None:
    target = np.array([[0.0, 1.0], [np.nan, np.nan], [np.nan, np.nan]])
    draft = np.array([[0.5, 0.5], [0.5, 0.5]])
    weights, accept = block_probs(target, draft, np.array([0, 1]))
    assert weights.tolist() == [1.0, 0.0, 0.0] and accept.tolist() == [0.0, 0.0]
