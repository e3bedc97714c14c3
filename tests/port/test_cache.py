"""Whatever a cache went through, the next pass computes what a fresh one over the surviving tokens would."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cache
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from folders import both_packages, module
from passes import KINDS, Passes, difference, everywhere, same_bits

on_kinds = pytest.mark.parametrize("kind", KINDS)
# Logits of order 1 to 10 from a few hundred roundings of 2^-53, in whatever order the rows were computed.
EXACT = 1e-12
PROBE = (5, 7, 2)


@cache
def model_of(package: str, kind: str, device: str = "cpu", dtype: str = "float64") -> Passes:
    return Passes(package, KINDS[kind], device, dtype)


# What can happen to a cache: ("feed", tokens), ("cut", fraction kept), ("tree", parents, leaf). A tree is one pass of
# rows of which each sees the cache, its ancestors and itself; the path to one leaf is kept.

tokens = st.integers(0, 22)
feeds = st.tuples(st.just("feed"), st.lists(tokens, min_size=1, max_size=5))
cuts = st.tuples(st.just("cut"), st.floats(0, 1))


@st.composite
def trees(draw: Any) -> tuple[Any, ...]:
    size = draw(st.integers(1, 6))
    parents = [draw(st.integers(-1, row - 1)) for row in range(size)]
    return "tree", parents, draw(st.integers(0, size - 1))


histories = st.lists(st.one_of(feeds, cuts, trees()), max_size=6)


@dataclass
class Run:
    """A cache, the tokens that it should hold, and all logits that came out on the way, with those expected."""

    model: Passes
    cache: Any
    tokens: list[int] = field(default_factory=list)
    found: list[np.ndarray] = field(default_factory=list)
    expected: list[np.ndarray] = field(default_factory=list)
    after: Any = lambda run: None  # called after each change of the cache

    def feed(self, new: list[int] | tuple[int, ...]) -> None:
        self.found.append(self.model.run(new, self.cache))
        self.tokens += new
        self.expected.append(self.model.run(self.tokens)[-len(new) :])
        self.after(self)

    def cut(self, fraction: float) -> None:
        self.tokens = self.tokens[: round(fraction * len(self.tokens))]
        self.model.truncate(self.cache, len(self.tokens))
        self.after(self)

    def tree(self, parents: list[int], leaf: int) -> None:
        start, paths = len(self.tokens), []
        for row, parent in enumerate(parents):
            paths.append([*(paths[parent] if parent >= 0 else []), row])
        new = [(7 * start + 3 * row) % 23 for row in range(len(parents))]
        visible = np.array([[row in path for row in range(len(parents))] for path in paths])
        positions = start + np.array([len(path) - 1 for path in paths])
        logits = self.model.run(new, self.cache, positions, visible)
        for row, path in enumerate(paths):
            self.found.append(logits[row : row + 1])
            self.expected.append(self.model.run(self.tokens + [new[step] for step in path])[-1:])
        self.model.keep(self.cache, np.array([*range(start), *(start + row for row in paths[leaf])]))
        self.tokens += [new[step] for step in paths[leaf]]
        self.after(self)

    def replay(self, history: Any) -> Run:
        for name, *arguments in history:
            getattr(self, name)(*arguments)
        self.feed(PROBE)
        return self

    @property
    def worst(self) -> float:
        assert self.model.length(self.cache) == len(self.tokens)
        return max(difference(*pair) for pair in zip(self.found, self.expected, strict=True))


@everywhere
@on_kinds
@given(sequence=st.lists(tokens, min_size=1, max_size=16), data=st.data())
def test_cached_equals_uncached_however_a_sequence_is_split(package, device, kind, sequence, data):
    model = model_of(package, kind, device)
    ends = [*sorted(data.draw(st.sets(st.integers(1, len(sequence))))), len(sequence)]
    cached, start, parts = model.cache(), 0, []
    for end in ends:
        if end > start:
            parts.append(model.run(sequence[start:end], cached))
        start = end
    assert difference(np.concatenate(parts), model.run(sequence)) <= EXACT


@everywhere
@on_kinds
@given(history=histories)
def test_after_any_passes_rollbacks_and_trees_the_cache_is_that_of_the_surviving_tokens(package, device, kind, history):
    model = model_of(package, kind, device)
    assert Run(model, model.cache()).replay(history).worst <= EXACT


@on_kinds
@given(history=histories, capacity=st.integers(1, 8))
def test_the_reference_grows_its_cache_without_a_trace(kind, history, capacity):
    model = model_of("reference", kind)
    grown, roomy = Run(model, model.cache(capacity)).replay(history), Run(model, model.cache()).replay(history)
    assert all(same_bits(*pair) for pair in zip(grown.found, roomy.found, strict=True))
    assert all(same_bits(*pair) for pair in zip(model.cached(grown.cache), model.cached(roomy.cache), strict=True))
    assert grown.cache.length <= grown.cache.capacity


def test_the_reference_doubles_its_room_so_that_growth_costs_little():
    model, rooms = model_of("reference", "full"), []
    cached = model.cache(1)
    for token in range(20):
        model.run([token], cached)
        rooms.append(cached.capacity)
    assert rooms == [1, 2, *[4] * 2, *[8] * 4, *[16] * 8, *[32] * 4]


@everywhere
@on_kinds
@given(history=histories)
def test_a_copy_goes_its_own_way(package, device, kind, history):
    model = model_of(package, kind, device)
    original = Run(model, model.cache())
    original.replay(history)
    before = [part.copy() for part in model.cached(original.cache)]
    twin = Run(model, original.cache.copy(), list(original.tokens))
    assert all(same_bits(*pair) for pair in zip(model.cached(twin.cache), before, strict=True))
    assert twin.cache.capacity == original.cache.capacity
    twin.replay([("cut", 0.5), ("feed", [1, 2, 3])])
    assert all(same_bits(*pair) for pair in zip(model.cached(original.cache), before, strict=True))
    original.replay([("cut", 0.3), ("feed", [4, 5, 6, 7, 8])])
    assert max(twin.worst, original.worst) <= EXACT


# What is removed from a cache must not be read again.


def _poison(run: Run) -> None:
    run.cache.keys[:, :, run.cache.length :] = np.nan
    run.cache.values[:, :, run.cache.length :] = np.nan


@on_kinds
@given(history=histories, capacity=st.integers(1, 30))
def test_slots_removed_from_the_reference_s_cache_are_never_read(kind, history, capacity):
    model = model_of("reference", kind)
    clean, poisoned = (Run(model, model.cache(capacity), after=after) for after in (lambda run: None, _poison))
    _poison(poisoned)
    clean.replay(history)
    poisoned.replay(history)
    assert all(same_bits(*pair) for pair in zip(poisoned.found, clean.found, strict=True))


@both_packages
def test_a_new_cache_is_zero(package):
    cached = Passes(package, KINDS["full"]).cache(5)
    assert not cached.keys.any()
    assert not cached.values.any()


# Errors, of which each names the argument, what was found and what was expected.


@both_packages
@pytest.mark.parametrize("length", [-1, 4])
def test_truncate_refuses_what_is_not_cached(package, length):
    model = model_of(package, "full")
    cached = model.cache()
    model.run([1, 2, 3], cached)
    found, limit = (f"[{length}]", "[3]") if model.port else (length, 3)
    with pytest.raises(ValueError) as caught:
        model.truncate(cached, length)
    assert str(caught.value) == f"length: found {found}, expected 0 to {limit}, the number of cached positions"
    assert model.length(cached) == 3


@both_packages
@pytest.mark.parametrize("rows", [[0, 3], [-1, 1], [1, 0], [0, 0, 1], [2, 1, 2]])
def test_keep_refuses_slots_that_do_not_increase_or_are_not_cached(package, rows):
    model = model_of(package, "full")
    cached = model.cache()
    model.run([1, 2, 3], cached)
    before = [part.copy() for part in model.cached(cached)]
    found, limits = (f"[{rows}]", "[0] to [2]") if model.port else (rows, "0 to 2")
    with pytest.raises(ValueError) as caught:
        model.keep(cached, np.array(rows))
    assert str(caught.value) == f"rows: found {found}, expected increasing slots from {limits}"
    assert all(same_bits(*pair) for pair in zip(model.cached(cached), before, strict=True))


@both_packages
def test_keep_may_keep_nothing(package):
    model = model_of(package, "full")
    run = Run(model, model.cache())
    run.feed([1, 2, 3])
    model.keep(run.cache, np.array([], dtype=np.int64))
    run.tokens.clear()
    run.feed([4, 5])
    assert run.worst <= EXACT


# Mistakes that the histories above must notice, each in a method of the cache or in what the transformer makes of it.


def _cut_one_too_short(home: Any, monkeypatch: Any) -> None:
    truncate = home.KVCache.truncate
    monkeypatch.setattr(home.KVCache, "truncate", lambda self, length: truncate(self, length - 1))


def _cut_one_too_long(home: Any, monkeypatch: Any) -> None:
    truncate = home.KVCache.truncate
    monkeypatch.setattr(home.KVCache, "truncate", lambda self, length: truncate(self, length + 1))


def _kept_backwards(home: Any, monkeypatch: Any) -> None:
    keep = home.KVCache.keep

    def mutant(self: Any, rows: Any) -> None:
        keep(self, rows)
        order = list(range(rows.shape[-1]))[::-1]
        for array in (self.keys, self.values):
            array[..., : len(order), :] = array[..., order, :]

    monkeypatch.setattr(home.KVCache, "keep", mutant)


def _kept_as_a_prefix(home: Any, monkeypatch: Any) -> None:
    keep = home.KVCache.keep

    def mutant(self: Any, rows: Any) -> None:
        ordered = rows.argsort(axis=-1) if isinstance(rows, np.ndarray) else rows.argsort(dim=-1)
        keep(self, ordered)

    monkeypatch.setattr(home.KVCache, "keep", mutant)


def _values_not_kept(home: Any, monkeypatch: Any) -> None:
    keep = home.KVCache.keep

    def mutant(self: Any, rows: Any) -> None:
        values = self.values + 0
        keep(self, rows)
        self.values[...] = values

    monkeypatch.setattr(home.KVCache, "keep", mutant)


def _later_passes_one_position_on(home: Any, monkeypatch: Any) -> None:
    hidden = home.Transformer.hidden

    def mutant(self: Any, inputs: Any, cache: Any, positions: Any = None, visible: Any = None) -> Any:
        length = cache.lengths if hasattr(cache, "lengths") else cache.length
        if positions is None and int(length) > 0:
            positions = np.arange(int(length), int(length) + inputs.shape[-2]) + 1
            if hasattr(cache, "lengths"):
                positions = home.torch.from_numpy(positions)[None]
        return hidden(self, inputs, cache, positions, visible)

    monkeypatch.setattr(home.Transformer, "hidden", mutant)


def _tree_as_chain(home: Any, monkeypatch: Any) -> None:
    hidden = home.Transformer.hidden
    monkeypatch.setattr(
        home.Transformer, "hidden", lambda self, inputs, cache, positions, _: hidden(self, inputs, cache, positions)
    )


CUT = [("feed", [1, 2, 3, 4, 5]), ("cut", 0.6), ("feed", [6, 7])]
TREE = [("feed", [1, 2, 3, 4]), ("tree", [-1, -1, 0, 1, 1, 4], 5), ("feed", [6]), ("cut", 0.8)]
MUTANTS = [
    (_cut_one_too_short, CUT, "full"),
    (_cut_one_too_long, CUT, "full"),
    (_kept_backwards, TREE, "full"),
    (_kept_backwards, TREE, "window"),
    (_kept_as_a_prefix, TREE, "full"),
    (_values_not_kept, TREE, "full"),
    (_later_passes_one_position_on, CUT, "full"),
    (_tree_as_chain, TREE, "full"),
]


def _worst(package: str, kind: str, history: Any) -> float:
    """Return how far a history ends from the truth: that of the model before any mutation."""
    truth, model = model_of("reference", kind), Passes(package, KINDS[kind])
    run = Run(model, model.cache())
    for name, *arguments in history:
        getattr(run, name)(*arguments)
    found = model.run(PROBE, run.cache)
    return difference(found, truth.run([*run.tokens, *PROBE])[-len(PROBE) :])


@both_packages
@pytest.mark.parametrize("mutate, history, kind", MUTANTS)
def test_the_comparison_rejects_a_mistake_in_the_cache(package, mutate, history, kind, monkeypatch):
    assert _worst(package, kind, history) <= EXACT
    mutate(module(package, "model.transformer"), monkeypatch)
    assert _worst(package, kind, history) > 1e-6


def test_the_comparison_rejects_a_window_measured_in_slots(monkeypatch):
    """In a tree, slots are not positions: here windows go by slots, and rotations rightly by positions."""
    home = module("reference", "model.transformer")
    hidden, tables = home.Transformer.hidden, home.rope_tables

    def mutant(self: Any, inputs: Any, cache: Any, positions: Any = None, visible: Any = None) -> Any:
        if positions is None:
            return hidden(self, inputs, cache, positions, visible)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(home, "rope_tables", lambda frequencies, _: tables(frequencies, positions))
            return hidden(self, inputs, cache, None, visible)

    bushy = [("feed", [1, 2, 3]), ("tree", [-1, -1, -1, 0], 3)]
    assert _worst("reference", "window", bushy) <= EXACT
    monkeypatch.setattr(home.Transformer, "hidden", mutant)
    assert _worst("reference", "window", bushy) > 1e-6
