"""The tree of drafts that yields most, against every tree."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import product
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pass_sampling.reference.methods.tree_shape import DraftTree, NumCandidates
from pass_sampling.reference.theory import best_tree, expected_tokens, tree_tokens


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


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (([[1.5]], 3), "accept_rates: found 1.5, expected numbers from 0 to 1"),
        (([[0.5]], -1), "num_rows: found -1, expected an integer from 0 to 16384"),
        (([[0.5]], 3, (-1,)), "rows_behind: found -1, expected an integer from 0 to 16384"),
    ],
)
def test_what_makes_no_tree_is_refused(arguments: Any, message: str) -> None:
    with pytest.raises(ValueError, match=f"^{message}$"):
        best_tree(*arguments)
