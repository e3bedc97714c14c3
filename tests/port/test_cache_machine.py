"""Both caches driven side by side through anything that decoding does to them; after every step they tell the truth.

The truth is a fresh pass of the reference over the committed tokens. The reference has a cache per row; the port has
one of the whole batch, twice. What lies beyond a row's length, dropped or never there, is filled with NaN: in the
reference, and in the first of the port's. In the second it is a large number, and no bit may depend on which.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from itertools import count
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from folders import as_numpy, module
from pass_sampling.gpu.model.cache import KVCache
from passes import KINDS, Passes, difference, same_bits

EXACT = 1e-12  # logits of order 1 to 10 from a few hundred roundings of 2^-53
VOCABULARY, CAPACITY, MOST_ROWS, LONGEST = 23, 40, 4, 28
LARGE = torch.finfo(torch.float64).max ** 0.5  # a score made of it is still finite
POISON = (np.nan, LARGE)

tokens = st.integers(0, VOCABULARY - 1)
seeds = st.integers(0, 2**16)
prompts = st.lists(tokens, min_size=1, max_size=6)
parents = st.lists(st.integers(0, 100), min_size=1, max_size=5).map(
    lambda drawn: [n % (i + 1) for i, n in enumerate(drawn)]
)


@cache
def model_of(package: str, kind: str) -> Passes:
    return Passes(package, KINDS[kind])


@cache
def truth(kind: str, sequence: tuple[int, ...]) -> np.ndarray:  # [T, V]
    """Return the logits of a fresh pass, from the model before anybody could have changed it."""
    return model_of("reference", kind).run(sequence)


class Interrupted(Exception):
    """Raised in the middle of a pass."""


@contextmanager
def interrupted(package: str, name: str, layer: int) -> Iterator[None]:
    """Let a function of the transformer fail in one layer of the pass inside."""
    home, calls = module(package, "model.transformer"), count()
    right = getattr(home, name)

    def broken(*args: Any) -> Any:
        if next(calls) == layer:
            raise Interrupted
        return right(*args)

    with pytest.MonkeyPatch.context() as patch, pytest.raises(Interrupted):
        patch.setattr(home, name, broken)
        yield


class CacheMachine(RuleBasedStateMachine):
    """Rows of committed tokens, of which every cache holds all but the last, which the next pass feeds."""

    def __init__(self) -> None:
        super().__init__()
        self.rows: list[list[int]] = []

    @initialize(kind=st.sampled_from(sorted(KINDS)), given=st.lists(prompts, min_size=1, max_size=3))
    def prefill(self, kind: str, given: list[list[int]]) -> None:
        """Feed prompts of different lengths; in the port the shorter are padded, and the padding is cut off."""
        self.kind, self.rows = kind, [list(prompt) for prompt in given]
        self.reference, self.port = model_of("reference", kind), model_of("gpu", kind)
        self.alone = [self.reference.cache(1) for _ in given]
        self.batches = [self.port.model.new_cache(CAPACITY, len(given)) for _ in POISON]
        self._feed([prompt[:-1] for prompt in given])

    # What decoding does.

    @rule(new=st.lists(st.lists(tokens, min_size=1, max_size=6), min_size=MOST_ROWS, max_size=MOST_ROWS))
    def go_on(self, new: list[list[int]]) -> None:
        """Commit more tokens, another number in each row."""
        self._make_room()
        self._feed([[row[-1], *more[:-1]] for row, more in zip(self.rows, new, strict=False)])
        self._commit(new)

    @rule(count=st.integers(1, 5), seed=seeds, exact=st.lists(tokens, min_size=MOST_ROWS, max_size=MOST_ROWS))
    def draft(self, count: int, seed: int, exact: list[int]) -> None:
        """Feed the last token and look-ahead vectors, forget these, and commit the exact token."""
        self._make_room()
        vectors = np.random.default_rng(seed).standard_normal((count, self.reference.model.hidden_size))
        inputs = [np.concatenate([self.reference.embed([row[-1]]), vectors]) for row in self.rows]
        for row, logits in zip(self.rows, self._pass(inputs), strict=True):
            self._agree(logits[:, :1], truth(self.kind, tuple(row))[-1:])
        self._truncate([len(row) for row in self.rows])
        self._commit([[token] for token in exact])

    @rule(
        drafts=st.lists(st.lists(tokens, min_size=5, max_size=5), min_size=MOST_ROWS, max_size=MOST_ROWS),
        count=st.integers(0, 5),
        accepted=st.lists(st.integers(0, 5), min_size=MOST_ROWS, max_size=MOST_ROWS),
        final=st.lists(tokens, min_size=MOST_ROWS, max_size=MOST_ROWS),
    )
    def verify(self, drafts: list[list[int]], count: int, accepted: list[int], final: list[int]) -> None:
        """Feed the last token and drafts, keep as many of them as each row accepts, and commit a final token."""
        self._make_room()
        blocks = [[row[-1], *row_drafts[:count]] for row, row_drafts in zip(self.rows, drafts, strict=False)]
        for row, block, logits in zip(self.rows, blocks, self._pass(blocks), strict=True):
            self._agree(logits, truth(self.kind, (*row, *block[1:]))[-len(block) :])
        kept = [min(number, count) for number in accepted[: len(self.rows)]]
        self._truncate([len(row) + number for row, number in zip(self.rows, kept, strict=True)])
        self._commit([[*block[1 : 1 + n], token] for block, n, token in zip(blocks, kept, final, strict=False)])

    @rule(parts=st.lists(st.floats(0, 1), min_size=MOST_ROWS, max_size=MOST_ROWS))
    def roll_back(self, parts: list[float]) -> None:
        """Take back committed tokens, another number in each row."""
        self._cut([max(1, round(part * len(row))) for part, row in zip(parts, self.rows, strict=False)])

    @rule(parents=parents, leaf=st.integers(0, 100), seed=seeds)
    def tree(self, parents: list[int], leaf: int, seed: int) -> None:
        """Feed a tree after the last token, and keep one path of each row, of any length."""
        self._make_room()
        paths = [[0]]
        for i, parent in enumerate(parents):
            paths.append([*paths[parent], i + 1])
        new = np.random.default_rng(seed).integers(VOCABULARY, size=(len(self.rows), len(paths) + 1)).tolist()
        blocks = [[row[-1], *more[1:-1]] for row, more in zip(self.rows, new, strict=True)]
        visible = np.array([[i in path for i in range(len(paths))] for path in paths])
        starts = np.array([len(row) - 1 for row in self.rows])
        positions = starts[:, None] + np.array([len(path) - 1 for path in paths])
        logits = self._pass(blocks, positions, visible)
        for row, block, found in zip(self.rows, blocks, logits, strict=True):
            for i, path in enumerate(paths):
                self._agree(found[:, i : i + 1], truth(self.kind, (*row, *(block[step] for step in path[1:])))[-1:])
        kept = [paths[(leaf + b) % len(paths)] for b in range(len(self.rows))]
        cache_positions = np.zeros((len(kept), max(map(len, kept))), dtype=np.int64)
        for cached, row, path, start in zip(self.alone, cache_positions, kept, starts.tolist(), strict=True):
            row[: len(path)] = [start + i for i in path]
            cached.keep(row[: len(path)], start)
        for batch in self.batches:
            batch.keep(*map(torch.from_numpy, (cache_positions, starts, np.array([len(path) for path in kept]))))
        self._commit([[*(block[i] for i in path[1:]), m[-1]] for block, path, m in zip(blocks, kept, new, strict=True)])

    @rule(more=st.integers(1, 8), call=st.integers(0, 3), name=st.sampled_from(["swiglu", "attention"]))
    def abort(self, more: int, call: int, name: str) -> None:
        """Interrupt a pass in some layer, and return to the committed tokens."""
        self._make_room()
        blocks = [[row[-1], *[(7 * i + len(row)) % VOCABULARY for i in range(more)]] for row in self.rows]
        layer = call % KINDS[self.kind].num_hidden_layers
        for cached, block in zip(self.alone, blocks, strict=True):
            with interrupted("reference", name, layer):
                self.reference.run(block, cached)
        for batch in self.batches:
            with interrupted("gpu", name, layer):
                self.port.model.forward(blocks, batch)
        self._truncate([len(row) - 1 for row in self.rows])

    @rule(seed=seeds)
    def wrap(self, seed: int) -> None:
        """Move on token by token, by more than the longest window of the models."""
        self._make_room()
        for token in np.random.default_rng(seed).integers(VOCABULARY, size=(5, MOST_ROWS)).tolist():
            self._feed([[row[-1]] for row in self.rows])
            self._commit([[each] for each in token])

    @precondition(lambda self: self.rows and len(self.rows) < MOST_ROWS)
    @rule(prompt=prompts, first=st.booleans())
    def add(self, prompt: list[int], first: bool) -> None:
        """Take another row into the batch, before or after the others."""
        newcomer = CacheMachine()
        newcomer.prefill(self.kind, [prompt])
        one, other = (newcomer, self) if first else (self, newcomer)
        self.rows, self.alone = one.rows + other.rows, one.alone + other.alone
        self.batches = [KVCache.stack(list(pair)) for pair in zip(one.batches, other.batches, strict=True)]

    @rule(chosen=st.lists(st.integers(0, 100), min_size=1, max_size=MOST_ROWS))
    def select(self, chosen: list[int]) -> None:
        """Choose rows of the batch in some order, some perhaps twice."""
        places = [number % len(self.rows) for number in chosen]
        self.rows = [list(self.rows[place]) for place in places]
        self.alone = [self.alone[place].copy() for place in places]
        self.batches = [batch.select(torch.tensor(places)) for batch in self.batches]

    # What must be true at all times.

    @invariant()
    def the_next_row_is_that_of_the_committed_tokens(self) -> None:
        if not self.rows:
            return
        self._poison()
        found = self._pass([[row[-1]] for row in self.rows])
        self._truncate([len(row) - 1 for row in self.rows])
        for row, logits in zip(self.rows, found, strict=True):
            self._agree(logits, truth(self.kind, tuple(row))[-1:])
        self._poison()

    # How it is done.

    def _make_room(self) -> None:
        """Take back so many tokens that a rule may commit or try 9 more."""
        self._cut([min(len(row), LONGEST - 9) for row in self.rows])

    def _commit(self, new: list[list[int]]) -> None:
        for row, more in zip(self.rows, new, strict=False):
            row += more

    def _cut(self, lengths: list[int]) -> None:
        self.rows = [row[:length] for row, length in zip(self.rows, lengths, strict=True)]
        self._truncate([length - 1 for length in lengths])

    def _truncate(self, lengths: list[int]) -> None:
        for cached, length in zip(self.alone, lengths, strict=True):
            cached.truncate(length)
        for batch in self.batches:
            batch.truncate(torch.tensor(lengths))

    def _feed(self, blocks: list[list[int]]) -> None:
        """Put tokens of different numbers into the caches; the port's pass is as wide as the longest."""
        for cached, block in zip(self.alone, blocks, strict=True):
            if block:
                self.reference.run(block, cached)
        width = max(map(len, blocks))
        if width == 0:
            return
        padded = [[*block, *[0] * (width - len(block))] for block in blocks]
        for batch in self.batches:
            lengths = batch.lengths + torch.tensor([len(block) for block in blocks])
            self.port.model.forward(padded, batch)
            batch.truncate(lengths)

    def _pass(
        self, blocks: list[Any], positions: Any = None, visible: Any = None
    ) -> list[np.ndarray]:  # B of [2, T, V]
        """Run a pass in every cache; to the two of the port it makes no difference what masked slots hold."""
        rows = [None] * len(blocks) if positions is None else positions
        alone = [self.reference.run(*each, visible) for each in zip(blocks, self.alone, rows, strict=True)]
        inputs = self.port.tensor(np.array(blocks))
        places = None if positions is None else torch.from_numpy(positions)
        seen = None if visible is None else torch.from_numpy(visible)
        one, other = (as_numpy(self.port.model.forward(inputs, batch, places, seen)) for batch in self.batches)
        assert same_bits(one, other), "what masked slots hold was read"
        return [np.stack(pair) for pair in zip(alone, one, strict=True)]

    def _agree(self, found: np.ndarray, expected: np.ndarray) -> None:  # [2, T, V], [T, V]
        assert difference(found, np.broadcast_to(expected, found.shape)) <= EXACT

    def _poison(self) -> None:
        for cached in self.alone:
            cached.keys[:, :, cached.length :] = np.nan
            cached.values[:, :, cached.length :] = np.nan
        for batch, number in zip(self.batches, POISON, strict=True):
            masked = (torch.arange(CAPACITY) >= batch.lengths[:, None])[None, :, None, :, None]
            batch.keys.masked_fill_(masked, number)
            batch.values.masked_fill_(masked, number)


def test_after_every_step_the_next_row_is_that_of_the_committed_tokens() -> None:
    run_state_machine_as_test(CacheMachine, settings=settings(stateful_step_count=12))


# Mistakes that the machine must find: each is put into a cache, or into what surrounds it, before the machine starts.


def _never_cut_to_nothing(patch: pytest.MonkeyPatch, home: Any) -> None:
    right = home.KVCache.truncate

    def wrong(self: Any, length: Any) -> None:
        if isinstance(length, torch.Tensor):
            right(self, torch.maximum(length, self.lengths.clamp(max=1)))
        else:
            right(self, max(length, min(1, self.length)))

    patch.setattr(home.KVCache, "truncate", wrong)


def _kept_as_a_prefix(patch: pytest.MonkeyPatch, home: Any) -> None:
    right = home.KVCache.keep

    def wrong(self: Any, rows: Any, length: Any, *count: Any) -> None:
        in_numpy = isinstance(rows, np.ndarray)
        order = np.arange(rows.size) + length if in_numpy else torch.arange(rows.shape[1]) + length[:, None]
        right(self, order, length, *count)

    patch.setattr(home.KVCache, "keep", wrong)


def _copies_share_their_arrays(patch: pytest.MonkeyPatch, home: Any) -> None:
    def wrong(self: Any) -> Any:
        twin = object.__new__(type(self))
        twin.__dict__ |= self.__dict__
        return twin

    patch.setattr(home.KVCache, "copy", wrong)


def _chosen_rows_keep_their_places(patch: pytest.MonkeyPatch, home: Any) -> None:
    right = home.KVCache.select
    patch.setattr(home.KVCache, "select", lambda self, rows: right(self, rows.sort().values))


def _stacked_with_one_length(patch: pytest.MonkeyPatch, home: Any) -> None:
    right = home.KVCache.stack

    def wrong(caches: Any) -> Any:
        stacked = right(caches)
        stacked.lengths = stacked.lengths.clamp(max=int(caches[0].lengths.min()))
        stacked.measure()
        return stacked

    patch.setattr(home.KVCache, "stack", staticmethod(wrong))


def _a_broken_pass_leaves_a_row(patch: pytest.MonkeyPatch, home: Any) -> None:
    """Leave a row of a pass that broke after the committed ones; it broke at an odd number of writes."""
    write = home.KVCache.write
    truncate = home.KVCache.truncate

    def early(self: Any, layer: int, *rest: Any) -> Any:
        self.dirty = getattr(self, "dirty", 0) + 1
        return write(self, layer, *rest)

    def wrong(self: Any, length: Any) -> None:
        broken, self.dirty = getattr(self, "dirty", 0) % 2 == 1, 0
        truncate(self, length)
        if broken:  # a row of the pass that broke stays after the committed ones
            self.advance(1)

    patch.setattr(home.KVCache, "write", early)
    patch.setattr(home.KVCache, "truncate", wrong)


def _scratch_is_seen(patch: pytest.MonkeyPatch, home: Any) -> None:
    """Let the last row of a pass see the last slot in sight, which in a shorter sequence is scratch."""
    masks = module("gpu", "model.masks").Masks
    right = masks._in_sight

    def wrong(self: Any, window: Any) -> Any:
        seen = right(self, window).clone()
        seen[:, -1:, -1] = True
        return seen

    patch.setattr(masks, "_in_sight", wrong)


MISTAKES: list[tuple[str, Callable[..., None]]] = [
    ("reference", _never_cut_to_nothing),
    ("gpu", _never_cut_to_nothing),
    ("reference", _kept_as_a_prefix),
    ("gpu", _kept_as_a_prefix),
    ("reference", _copies_share_their_arrays),
    ("gpu", _chosen_rows_keep_their_places),
    ("gpu", _stacked_with_one_length),
    ("reference", _a_broken_pass_leaves_a_row),
    ("gpu", _a_broken_pass_leaves_a_row),
    ("gpu", _scratch_is_seen),
]


@pytest.mark.parametrize(("package", "mistake"), MISTAKES)
def test_the_machine_finds_a_mistake(
    package: str, mistake: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    mistake(monkeypatch, module(package, "model.cache"))
    search = settings(
        max_examples=200,
        stateful_step_count=15,
        deadline=None,
        derandomize=True,
        database=None,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
        print_blob=False,
    )
    with pytest.raises((AssertionError, ValueError, IndexError, RuntimeError)):
        run_state_machine_as_test(CacheMachine, settings=search)
