"""The uniforms, and the row that hands each of them to one decision, in both packages."""

from collections.abc import Callable
from itertools import product
from typing import Any

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from adapters import REFERENCE, Port, Reference, each_impl, each_port
from strategies import LARGEST_UNIFORM, around, distributions

NUMBERS = st.one_of(st.sampled_from([0, 1, 2**53 + 1, 2**63 - 1, 2**63, 2**64 - 1]), st.integers(0, 2**64 - 1))

# Five uniforms times 2^53 for a seed, a request and a step. They hold for every version of NumPy that will ever be
# supported: a text must not change with an update.
LAST = 2**64 - 1
PINNED = {
    (0, 0, 0): [104003916602523, 2175681743263000, 1003634882753029, 5083794959104694, 4525033197209392],
    (1, 2, 3): [1236886896474691, 2028668988837233, 2298868676791975, 7538657032423538, 5721737903040024],
    (LAST, 2**63, LAST): [1634832996070395, 249100224534941, 5002306438823563, 5704760588398897, 5567751018719879],
}


@each_impl
@pytest.mark.parametrize("key", PINNED, ids=str)
def test_the_numbers_never_change(impl: Reference, key: tuple[int, int, int]) -> None:
    assert (impl.uniform_stream(*key, 5) * 2.0**53).astype(np.int64).tolist() == PINNED[key]


@each_impl
@given(NUMBERS, st.lists(NUMBERS, min_size=1, max_size=5), NUMBERS, st.integers(0, 40))
def test_a_number_is_made_of_a_word_of_philox(impl, seed, requests, step, num_uniforms):
    """The upper 53 bits of a word make a number; any step is one jump away; requests do not depend on one another."""
    words = np.zeros((len(requests), num_uniforms), dtype=np.uint64)
    for row, request in zip(words, requests, strict=True):
        generator = np.random.Philox(key=np.array([seed, request], dtype=np.uint64))
        generator.advance(step << 64)
        row[:] = generator.random_raw(num_uniforms)
    found = impl.stream_rows(seed, requests, step, num_uniforms)
    assert found.dtype == np.float64 and np.array_equal(found, (words >> np.uint64(11)) * 2.0**-53)
    assert np.array_equal(impl.uniform_stream(seed, requests[0], step, num_uniforms), found[0])


@each_port
@given(NUMBERS, st.lists(NUMBERS, min_size=1, max_size=3), NUMBERS, st.integers(0, 4), st.integers(0, 13))
@example(0, [1], 2**64 - 1, 2, 3)
def test_steps_made_together_are_those_made_one_by_one(port, seed, requests, step, num_steps, num_uniforms):
    make = port.module("uniforms").uniform_streams
    last = step + max(num_steps, 1) - 1
    if last >= 2**64:
        with pytest.raises(ValueError, match=f"^step: found {last}, expected an integer from 0 to {2**64 - 1}$"):
            make(seed, requests, step, num_steps, num_uniforms)
        return
    found = make(seed, requests, step, num_steps, num_uniforms)
    assert found.shape == (num_steps, len(requests), num_uniforms)
    for place, rows in enumerate(found.numpy()):
        assert np.array_equal(rows, REFERENCE.stream_rows(seed, requests, step + place, num_uniforms))


def test_seeds_requests_and_steps_share_no_number() -> None:
    # 250 000 numbers out of 2^53 that were drawn at random would repeat one with a chance of 4e-6.
    near = [0, 1, 2, 3, 2**32, 2**63, 2**63 + 1, 2**64 - 2, 2**64 - 1]
    rows = [REFERENCE.uniform_stream(*key, 343) for key in product(near, repeat=3)]
    numbers = np.concatenate(rows)
    assert numbers.size > 2e5
    assert np.unique(numbers).size == numbers.size


@each_impl
@pytest.mark.parametrize("name", ["seed", "request", "step"])
@pytest.mark.parametrize("value", [-1, 2**64, 1.0, 1.5, float("nan"), True, None, "1"], ids=repr)
def test_a_bad_number_is_refused(impl: Reference, name: str, value: Any) -> None:
    numbers = {"seed": 0, "request": 0, "step": 0} | {name: value}
    rows = [numbers] if impl is REFERENCE or name != "request" else [numbers, numbers | {"request": [0, value]}]
    for arguments in rows:  # the port takes requests of a batch
        with pytest.raises(ValueError) as error:
            impl.module("uniforms").uniform_stream(**arguments, num_uniforms=1)
        assert str(error.value) == f"{name}: found {value!r}, expected an integer from 0 to {LAST}"


class Row:
    """One step's row of either package: scalars in and out, the port with a batch of one."""

    def __init__(self, impl: Reference, uniforms: Any, named_uniforms: dict[str, int], trace: bool = False):
        self.port = impl if isinstance(impl, Port) else None
        row = np.asarray(uniforms, dtype=np.float64)
        self.draws = impl.module("uniforms").UniformRow(
            self.port.tensor(row[None]) if self.port else row, named_uniforms, trace
        )

    def token(self, name: str, distribution: Any, index: int = 0) -> int:
        distribution = np.asarray(distribution, dtype=np.float64)
        return int(self.draws.token(name, self.port.tensor(distribution[None]) if self.port else distribution, index))

    def accept(self, name: str, prob: float, index: int = 0) -> bool:
        return bool(self.draws.accept(name, self.port.tensor(np.array([[prob]])) if self.port else prob, index))

    def choices(self) -> list[tuple[int, list[float], int]]:
        """Slot, edges and outcome of every choice traced."""
        if not self.port:
            return [(choice.column, choice.edges.tolist(), choice.outcome) for choice in self.draws.choices]
        return [(choice.column, choice.edges[0].tolist(), int(choice.outcome)) for choice in self.draws.choices]


SLOTS = {"exact": 1, "draft": 2, "accept": 2, "final": 1}
ROW = np.arange(6) / 8 + 0.0625


DECISIONS: dict[str, Callable[[Row], object]] = {
    "token": lambda row: row.token("draft", [0.5, 0.5], 1),
    "accept": lambda row: row.accept("draft", 0.5, 1),
}


@each_impl
@pytest.mark.parametrize("first", DECISIONS)
@pytest.mark.parametrize("second", DECISIONS)
def test_a_uniform_serves_one_decision(impl: Reference, first: str, second: str) -> None:
    row = Row(impl, ROW, SLOTS)
    DECISIONS[first](row)
    with pytest.raises(RuntimeError) as error:
        DECISIONS[second](row)
    assert str(error.value) == "uniform draft[1] would serve two decisions"
    row.token("draft", [1.0], 0)  # its neighbours are free


@each_impl
@pytest.mark.parametrize("index", [-1, 2])
def test_a_uniform_that_a_name_does_not_have_is_refused(impl: Reference, index: int) -> None:
    with pytest.raises(RuntimeError) as error:
        Row(impl, ROW, SLOTS).token("draft", [0.5, 0.5], index)
    assert str(error.value) == f"uniform draft[{index}] is not among its 2 uniforms"


@each_impl
def test_by_default_the_first_uniform_of_a_name_serves_and_nothing_is_traced(impl: Reference) -> None:
    uniforms, half, chance = ROW, np.full(2, 0.5), 0.5
    if isinstance(impl, Port):
        uniforms, half, chance = (impl.tensor(np.array([each])) for each in (uniforms, half, [chance]))
    draws = impl.module("uniforms").UniformRow(uniforms, SLOTS)
    draws.token("draft", half)
    draws.accept("accept", chance)
    assert draws.choices is None
    for name in ("draft", "accept"):
        with pytest.raises(RuntimeError, match=rf"^uniform {name}\[0\] would serve two decisions$"):
            draws.accept(name, chance, 0)


@each_impl
@pytest.mark.parametrize(
    ("row", "message"),
    [
        *((np.zeros(length), rf"found shape \({length},\), expected \(6,\)") for length in (0, 5, 7)),
        *(
            (np.full(6, value), "found .*, expected numbers from 0 to 1, without 1")
            for value in (1.0, -(2.0**-53), float("nan"), 2.0)
        ),
    ],
)
def test_what_are_no_uniforms_of_a_step_is_refused(impl: Reference, row: Any, message: str) -> None:
    if impl.device != "cpu" and len(row) == 6:
        pytest.skip("not asked of a device, which would have to wait")
    with pytest.raises(ValueError, match=f"^uniforms: {message}$"):
        Row(impl, row, SLOTS)


@each_impl
@given(distributions(4), distributions(3), st.sampled_from([0.0, 5e-324, 0.25, 0.5, LARGEST_UNIFORM, 1.0]), st.data())
def test_a_trace_tells_what_each_uniform_was_compared_with(impl, one, other, accept_prob, data):
    edges = np.concatenate([impl.cell_edges(one), impl.cell_edges(other), [accept_prob]])
    uniforms = data.draw(st.lists(st.sampled_from(around(edges).tolist()), min_size=6, max_size=6))
    row, untraced = Row(impl, uniforms, SLOTS, trace=True), Row(impl, uniforms, SLOTS)
    outcomes = [row.token("final", other), 1 - row.accept("accept", accept_prob, 1), row.token("exact", one)]
    assert untraced.token("final", other) == outcomes[0] and untraced.draws.choices is None
    expected_edges = [impl.cell_edges(other).tolist(), [accept_prob, 1.0], impl.cell_edges(one).tolist()]
    assert row.choices() == list(zip([5, 4, 0], expected_edges, outcomes, strict=True))
    for name, cells, outcome in row.choices():
        assert [0.0, *cells][outcome] <= uniforms[name] < cells[outcome], "the uniform is not in the outcome's cell"
