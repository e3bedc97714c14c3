"""The port's cache of a batch: rows of different lengths, and whatever happens to them, are each the row alone."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cache
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from folders import as_numpy
from pass_sampling.gpu.model.cache import KVCache
from passes import KINDS, Passes, difference, same_bits

CAPACITY = 24
EXACT = 1e-12  # logits of order 1 to 10 from a few hundred roundings of 2^-53

on_devices = pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
on_kinds = pytest.mark.parametrize("kind", KINDS)


@cache
def model_of(kind: str, device: str = "cpu", dtype: str = "float64") -> Passes:
    return Passes("gpu", KINDS[kind], device, dtype)


# What can happen to a batch of two rows or three: feed each row its own tokens, cut each to its own length, peek at a
# tree of continuations and forget it, keep one path of a tree, choose rows, take the batch apart and put it together.
numbers = st.integers(0, 1000)
fractions = st.lists(st.floats(0, 1), min_size=3, max_size=3)
parents = st.lists(numbers, min_size=1, max_size=5).map(
    lambda drawn: [n % (row + 1) - 1 for row, n in enumerate(drawn)]
)
events = st.one_of(
    st.tuples(st.just("feed"), st.integers(1, 5), numbers),
    st.tuples(st.just("cut"), fractions),
    st.tuples(st.just("peek"), parents, numbers),
    st.tuples(st.just("tree"), parents, numbers),
    st.tuples(st.just("choose"), st.lists(numbers, min_size=2, max_size=3)),
    st.tuples(st.just("restack")),
)
histories = st.lists(events, min_size=1, max_size=7)


@dataclass
class Batch:
    """A batch's cache, the tokens that each row should hold, and the logits of each row with those of the row alone."""

    model: Passes
    cache: KVCache
    rows: list[list[int]] = field(default_factory=lambda: [[], [], []])
    found: list[np.ndarray] = field(default_factory=list)
    expected: list[np.ndarray] = field(default_factory=list)
    after: Any = lambda batch: None  # called after each change of the cache
    alone: bool = True  # whether to compute what is expected

    @staticmethod
    def of(model: Passes, capacity: int = CAPACITY, **options: Any) -> Batch:
        return Batch(model, model.model.new_cache(capacity, 3), **options)

    def feed(self, count: int, seed: int) -> None:
        if not self._fits(count):
            return
        new = np.random.default_rng(seed).integers(23, size=(len(self.rows), count))
        logits = as_numpy(self.model.model.forward(self.model.tensor(new), self.cache))
        for row, mine, found in zip(self.rows, new.tolist(), logits, strict=True):
            row += mine
            self._compare(found, row)
        self.after(self)

    def cut(self, fractions: list[float]) -> None:
        self._truncate([round(part * len(row)) for part, row in zip(fractions, self.rows, strict=False)])

    def peek(self, parents: list[int], seed: int) -> None:
        if self._fits(len(parents)):
            lengths = [len(row) for row in self.rows]
            self._grow_tree(parents, seed)
            self._truncate(lengths)

    def tree(self, parents: list[int], seed: int) -> None:
        """Keep another path of each row, of whatever length, perhaps none; shorter ones are padded with anything."""
        if not self._fits(len(parents)):
            return
        starts = self.cache.lengths
        paths, new = self._grow_tree(parents, seed)
        kept = [[*paths, []][(seed + b) % (len(paths) + 1)] for b in range(len(self.rows))]
        cache_positions = np.random.default_rng(seed).integers(-5, 50, size=(len(self.rows), max(map(len, kept))))
        for row, path, start in zip(cache_positions, kept, starts.tolist(), strict=True):
            row[: len(path)] = [start + step for step in path]
        self.cache.keep(
            *map(self.model.tensor, (cache_positions, starts.cpu().numpy(), np.array([len(path) for path in kept])))
        )
        for row, mine, path in zip(self.rows, new.tolist(), kept, strict=True):
            row += [mine[step] for step in path]
        self.after(self)

    def choose(self, chosen: list[int]) -> None:
        places = [number % len(self.rows) for number in chosen]
        self.cache = self.cache.select(torch.tensor(places, device=self.model.device))
        self.rows = [list(self.rows[place]) for place in places]
        self.after(self)

    def restack(self) -> None:
        places = torch.arange(len(self.rows), device=self.model.device).unsqueeze(1)
        self.cache = KVCache.stack([self.cache.select(place) for place in places])
        self.after(self)

    def replay(self, history: Any) -> Batch:
        self.feed(2, 0)
        for name, *arguments in history:
            getattr(self, name)(*arguments)
        self.cut([0.5, 1.0, 0.3])
        self.feed(2, 1)
        assert self.cache.lengths.tolist() == [len(row) for row in self.rows]
        return self

    @property
    def worst(self) -> float:
        return max(difference(*pair) for pair in zip(self.found, self.expected, strict=True))

    def _fits(self, count: int) -> bool:
        return max(map(len, self.rows)) + count <= self.cache.capacity

    def _truncate(self, lengths: list[int]) -> None:
        self.cache.truncate(self.model.tensor(np.array(lengths)))
        self.rows = [row[:length] for row, length in zip(self.rows, lengths, strict=True)]
        self.after(self)

    def _grow_tree(self, parents: list[int], seed: int) -> tuple[list[list[int]], np.ndarray]:
        paths: list[list[int]] = []
        for row, parent in enumerate(parents):
            paths.append([*(paths[parent] if parent >= 0 else []), row])
        new = np.random.default_rng(seed).integers(23, size=(len(self.rows), len(parents)))
        visible = np.array([[row in path for row in range(len(parents))] for path in paths])
        positions = self.cache.lengths[:, None] + self.model.tensor(np.array([len(path) - 1 for path in paths]))
        tokens = self.model.tensor(new)
        logits = as_numpy(self.model.model.forward(tokens, self.cache, positions, self.model.tensor(visible)))
        for row, mine, rows_found in zip(self.rows, new.tolist(), logits, strict=True):
            for path, found in zip(paths, rows_found, strict=True):
                self._compare(found[None], row + [mine[step] for step in path])
        return paths, new

    def _compare(self, found: np.ndarray, sequence: list[int]) -> None:
        self.found.append(found.copy())
        if self.alone:
            self.expected.append(self.model.run(sequence)[-len(found) :])


@on_devices
@on_kinds
@given(history=histories)
def test_each_row_of_a_batch_is_the_row_alone(device, kind, history):
    assert Batch.of(model_of(kind, device)).replay(history).worst <= EXACT


@on_kinds
@given(history=histories, capacity=st.integers(5, 20))
def test_it_is_so_where_the_host_does_not_know_the_lengths(kind, history, capacity):
    """On a device the host has only a bound on the lengths. Here the CPU is treated like one."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(KVCache, "_is_on_cpu", False)
        batch = Batch.of(model_of(kind), capacity).replay(history)
    assert batch.worst <= EXACT
    assert max(map(len, batch.rows)) <= batch.cache.max_length <= capacity


@on_devices
@pytest.mark.parametrize("is_on_cpu", [True, False])
def test_drafts_that_are_cut_again_and_again_never_fill_the_cache(device, is_on_cpu, monkeypatch):
    if not is_on_cpu:
        monkeypatch.setattr(KVCache, "_is_on_cpu", False)
    batch = Batch.of(model_of("full", device), 8)
    batch.feed(4, 0)
    for seed in range(20):
        lengths = [len(row) for row in batch.rows]
        batch.feed(4, seed)
        batch.cut([(length - (seed == 9)) / 8 for length in lengths])
    assert batch.worst <= EXACT
    assert batch.cache.lengths.tolist() == [3, 3, 3]


@given(history=histories)
def test_on_a_cpu_the_host_knows_the_lengths(history):
    def check(batch: Batch) -> None:
        lengths = batch.cache.lengths.tolist()
        assert batch.cache.max_length == max(lengths)
        assert batch.cache.equal_lengths == (min(lengths) == max(lengths))

    Batch.of(model_of("full"), after=check, alone=False).replay(history)


@on_devices
@pytest.mark.parametrize("dtype", ["float64", "float32", "bfloat16", "float16"])
@pytest.mark.parametrize("kind", ["full", "window"])
@given(history=histories)
def test_what_masked_slots_hold_changes_no_bit(device, dtype, kind, history):
    """They hold the square root of the dtype's largest number: a score made of it is still finite."""
    model = model_of(kind, device, dtype)
    large = torch.finfo(model.model.dtype).max ** 0.5
    runs = []
    for poison in (0.0, large, -large / 3):

        def fill(batch: Batch, poison: float = poison) -> None:
            places = torch.arange(CAPACITY, device=device)
            masked = (places >= batch.cache.lengths[:, None])[None, :, None, :, None]
            batch.cache.keys.masked_fill_(masked, poison)
            batch.cache.values.masked_fill_(masked, poison)

        batch = Batch.of(model, after=fill, alone=False)
        fill(batch)
        runs.append(batch.replay(history).found)
    for clean, *poisoned in zip(*runs, strict=True):
        assert np.isfinite(clean).all()
        assert all(same_bits(found, clean) for found in poisoned)


@on_devices
@given(history=histories, chosen=st.lists(numbers, min_size=1, max_size=4))
def test_copies_chosen_rows_and_stacks_are_independent(device, history, chosen):
    model = model_of("some", device)
    batch = Batch.of(model, alone=False).replay(history)
    before = [part.clone() for part in (batch.cache.keys, batch.cache.values, batch.cache.lengths)]
    places = [number % len(batch.rows) for number in chosen]
    rows = torch.tensor(places, device=device)
    twins = [batch.cache.copy(), batch.cache.select(rows), KVCache.stack([batch.cache, batch.cache.select(rows)])]
    expected = [batch.rows, [batch.rows[place] for place in places]]
    expected.append(expected[0] + expected[1])
    for twin, contents in zip(twins, expected, strict=True):
        assert twin.capacity == CAPACITY
        assert twin.lengths.tolist() == [len(row) for row in contents]
        twin.truncate(twin.lengths // 2)
        model.model.forward(model.tensor(np.ones((len(contents), 3), dtype=np.int64)), twin)
        twin.keys.fill_(1.0)
        twin.values.fill_(1.0)
        twin.lengths += 1
    for part, old in zip((batch.cache.keys, batch.cache.values, batch.cache.lengths), before, strict=True):
        assert torch.equal(part, old)


@on_devices
@pytest.mark.parametrize("is_on_cpu", [True, False])
def test_a_pass_beyond_the_capacity_is_refused(device, is_on_cpu, monkeypatch):
    if not is_on_cpu:
        monkeypatch.setattr(KVCache, "_is_on_cpu", False)
    model = model_of("full", device)
    cached = model.model.new_cache(5, 2)
    model.model.forward([[1, 2, 3]] * 2, cached)
    cached.truncate(torch.tensor([1, 2], device=device))
    for refused in (4, 5):
        for _ in range(2):
            with pytest.raises(ValueError) as caught:
                model.model.forward([[1] * refused] * 2, cached)
            assert str(caught.value) == f"capacity: found 5, expected at least {refused + 2}"
    assert cached.lengths.tolist() == [1, 2]
    model.model.forward([[1, 2, 3]] * 2, cached)
    assert cached.lengths.tolist() == [4, 5]


def test_truncate_names_the_lengths_of_all_rows():
    model = model_of("full")
    cached = model.model.new_cache(5, 2)
    model.model.forward([[1, 2, 3]] * 2, cached)
    cached.truncate(torch.tensor([3, 1]))
    for wrong in ([3, 2], [-1, 0]):
        with pytest.raises(ValueError) as caught:
            cached.truncate(torch.tensor(wrong))
        assert str(caught.value) == f"length: found {wrong}, expected 0 to [3, 1], the number of cached positions"


def test_keep_names_the_lengths_of_all_rows():
    model = model_of("full")
    cached = model.model.new_cache(5, 2)
    model.model.forward([[1, 2, 3]] * 2, cached)
    cached.truncate(torch.tensor([3, 1]))
    for wrong in ([[0, 2], [0, 1]], [[1, 1], [0, 0]], [[-1, 0], [-1, 0]]):
        with pytest.raises(ValueError) as caught:
            cached.keep(torch.tensor(wrong))
        assert str(caught.value) == f"rows: found {wrong}, expected increasing slots from [0, 0] to [2, 0]"
    with pytest.raises(ValueError) as caught:
        cached.keep(torch.tensor([[0], [0]]), torch.tensor([1, 1]), torch.tensor([1, 0]))
    assert str(caught.value) == "rows: found [[0], [0]], expected increasing slots from [1, 1] to [2, 0]"
    with pytest.raises(ValueError) as caught:
        cached.keep(torch.tensor([[2], [0]]), torch.tensor([1, 2]))
    assert str(caught.value) == "length: found [1, 2], expected 0 to [3, 1], the number of cached positions"
    cached.keep(torch.tensor([[2], [0]]))
    assert cached.lengths.tolist() == [1, 1]


@on_devices
@pytest.mark.parametrize("is_on_cpu", [True, False])
def test_keep_moves_what_is_kept_and_touches_nothing_else(device, is_on_cpu, monkeypatch):
    if not is_on_cpu:
        monkeypatch.setattr(KVCache, "_is_on_cpu", False)
    model = model_of("full", device)
    cached = model.model.new_cache(8, 3)
    model.model.forward([[1, 2, 3, 4, 5, 6, 7]] * 3, cached)
    before = cached.copy()
    rows = torch.tensor([[4, 6], [3, -9], [99, 99]], device=device)
    cached.keep(rows, torch.tensor([2, 3, 7], device=device), torch.tensor([2, 1, 0], device=device))
    assert cached.lengths.tolist() == [4, 4, 7]
    sources = torch.tensor([[0, 1, 4, 6, 4, 5, 6, 7], [*range(8)], [*range(8)]], device=device)
    for found, old in ((cached.keys, before.keys), (cached.values, before.values)):
        for b, source in enumerate(sources):
            assert torch.equal(found[:, b], old[:, b, :, source])
