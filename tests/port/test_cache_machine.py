"""Both caches driven side by side through everything that decoding does to them, and checked after every step.

The truth is a fresh pass of the reference over the committed tokens. The reference has a cache per row, the port one of
the whole batch; of each there are two. Scratch beyond a row's length holds NaN in the first of the two and a large
number in the second, and no bit of a pass may depend on which.
"""

from collections.abc import Callable
from functools import cache
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import Phase, settings, stateful
from hypothesis import strategies as st
from hypothesis.stateful import invariant, rule

from folders import as_numpy, both_packages, module
from pass_sampling.gpu.model.cache import KVCache
from passes import KINDS, Passes, difference, same_bits

EXACT = 1e-12  # logits of order 1 to 10 from a few hundred roundings of 2^-53
VOCABULARY, CAPACITY, MOST_ROWS, LONGEST = 23, 40, 4, 28

seeds = st.integers(0, 2**16)
prompts = st.lists(st.integers(0, VOCABULARY - 1), min_size=1, max_size=6)
number_per_row = st.lists(st.integers(0, 59), min_size=MOST_ROWS, max_size=MOST_ROWS)
parents = st.lists(st.integers(0, 59), min_size=1, max_size=5).map(
    lambda drawn: [n % (i + 1) for i, n in enumerate(drawn)]
)
model_of = cache(lambda package, kind, *place: Passes(package, KINDS[kind], *place))


@cache
def truth(kind: str, sequence: tuple[int, ...]) -> np.ndarray:  # [T, V]
    """Return the logits of a fresh pass, by the model before any mistake was put into it."""
    return model_of("reference", kind).run(sequence)


class CacheMachine(stateful.RuleBasedStateMachine):
    """Rows of committed tokens; every cache holds all of them but the last, which the next pass feeds."""

    device, dtype = "cpu", "float64"

    def __init__(self) -> None:
        super().__init__()
        self.rows: list[list[int]] = []
        self.left: list[tuple[Any, list[Any]]] = []  # caches that were copied, and what they held

    @stateful.initialize(kind=st.sampled_from(sorted(KINDS)), given=st.lists(prompts, min_size=1, max_size=3))
    def prefill(self, kind: str, given: list[list[int]]) -> None:
        """Feed prompts of different lengths; in the port the shorter are padded, and the padding is cut off."""
        self.kind, self.rows = kind, [list(prompt) for prompt in given]
        self.reference, self.port = model_of("reference", kind), model_of("gpu", kind, self.device, self.dtype)
        self.sides = [  # caches of the reference, which must grow on one side, and one of the port
            ([self.reference.cache(room) for _ in given], self.port.model.new_cache(CAPACITY, len(given)))
            for room in (1, 64)
        ]
        self.poison = (np.nan, torch.finfo(self.port.model.dtype).max ** 0.5)  # a score of the latter is still finite
        self._poison()
        self._feed([prompt[:-1] for prompt in given])

    # What decoding does.

    @rule(numbers=number_per_row, seed=seeds)
    def go_on(self, numbers: list[int], seed: int) -> None:
        """Commit more tokens in one pass, another number in each row."""
        new = [more[: 1 + number % 6] for more, number in zip(self._tokens(seed, 6), numbers, strict=False)]
        self._feed([[row[-1], *more[:-1]] for row, more in zip(self.rows, new, strict=True)])
        self._commit(new)

    @rule(seed=seeds)
    def wrap(self, seed: int) -> None:
        """Move on token by token, by more than the longest window of the models."""
        for each in zip(*self._tokens(seed, 5), strict=True):
            self._feed([[row[-1]] for row in self.rows])
            self._commit([[token] for token in each])

    @rule(count=st.integers(1, 5), seed=seeds)
    def draft(self, count: int, seed: int) -> None:
        """Feed the last token and look-ahead vectors, forget these, and commit the exact token."""
        vectors = np.random.default_rng(seed).standard_normal((count, self.reference.model.hidden_size))
        inputs = [np.concatenate([self.reference.embed([row[-1]]), vectors]) for row in self.rows]
        for row, logits in zip(self.rows, self._pass(inputs), strict=True):
            self._agree(logits[:, :1], truth(self.kind, tuple(row))[-1:])
        self._truncate([len(row) for row in self.rows])
        self._commit(self._tokens(seed, 1))

    @rule(count=st.integers(0, 5), numbers=number_per_row, seed=seeds)
    def verify(self, count: int, numbers: list[int], seed: int) -> None:
        """Feed the last token and drafts, keep as many of them as each row accepts, and commit a final token."""
        new = self._tokens(seed, count + 1)
        blocks = [[row[-1], *drafts[:-1]] for row, drafts in zip(self.rows, new, strict=True)]
        for row, block, logits in zip(self.rows, blocks, self._pass(blocks), strict=True):
            self._agree(logits, truth(self.kind, (*row, *block[1:]))[-len(block) :])
        kept = [number % (count + 1) for number in numbers[: len(self.rows)]]
        self._truncate([len(row) + number for row, number in zip(self.rows, kept, strict=True)])
        self._commit([[*drafts[:number], drafts[-1]] for drafts, number in zip(new, kept, strict=True)])

    @rule(numbers=number_per_row)
    def roll_back(self, numbers: list[int]) -> None:
        """Take back committed tokens, another number in each row."""
        self._cut([1 + number % len(row) for number, row in zip(numbers, self.rows, strict=False)])

    @rule(parents=parents, leaf=st.integers(0, 59), seed=seeds)
    def tree(self, parents: list[int], leaf: int, seed: int) -> None:
        """Feed a tree after the last token, and keep one path of each row, of any length; or nothing, not the root."""
        paths = [[0]]
        for i, parent in enumerate(parents):
            paths.append([*paths[parent], i + 1])
        new = self._tokens(seed, len(paths))
        blocks = [[row[-1], *more[:-1]] for row, more in zip(self.rows, new, strict=True)]
        visible = np.array([[i in path for i in range(len(paths))] for path in paths])
        starts = np.array([len(row) - 1 for row in self.rows])
        positions = starts[:, None] + np.array([len(path) - 1 for path in paths])
        logits = self._pass(blocks, positions, visible)
        for row, block, found in zip(self.rows, blocks, logits, strict=True):
            for i, path in enumerate(paths):
                self._agree(found[:, i : i + 1], truth(self.kind, (*row, *(block[step] for step in path[1:])))[-1:])
        kept = [[*paths, []][(leaf + b) % (len(paths) + 1)] for b in range(len(self.rows))]
        places = np.random.default_rng(seed).integers(
            -5, 50, (len(kept), max(map(len, kept)))
        )  # after a path: anything
        for place, path, start in zip(places, kept, starts.tolist(), strict=True):
            place[: len(path)] = [start + i for i in path]
        for alone, batch in self.sides:
            for cached, place, path, start in zip(alone, places, kept, starts.tolist(), strict=True):
                cached.keep(place[: len(path)], start)
            batch.keep(*map(self.port.tensor, (places, starts, np.array([len(path) for path in kept]))))
        paths_and_new = zip(kept, new, strict=True)
        self._commit([[*(more[i - 1] for i in path[1:]), more[-1]] if path else [] for path, more in paths_and_new])

    @stateful.precondition(lambda self: self.rows and len(self.rows) < MOST_ROWS)
    @rule(prompt=prompts, first=st.booleans())
    def add(self, prompt: list[int], first: bool) -> None:
        """Take another row into the batch, before or after the others."""
        newcomer = type(self)()
        newcomer.prefill(self.kind, [prompt])
        one, other = (newcomer, self) if first else (self, newcomer)
        self._leave([batch for machine in (self, newcomer) for _, batch in machine.sides])
        self.rows = one.rows + other.rows
        self.sides = [
            (alone + others, KVCache.stack([batch, another]))
            for (alone, batch), (others, another) in zip(one.sides, other.sides, strict=True)
        ]

    @rule(chosen=st.lists(st.integers(0, 59), min_size=1, max_size=MOST_ROWS))
    def select(self, chosen: list[int]) -> None:
        """Choose rows of the batch in some order, some perhaps twice."""
        places = [number % len(self.rows) for number in chosen]
        self._leave([cached for alone, batch in self.sides for cached in (*alone, batch)])
        self.rows = [list(self.rows[place]) for place in places]
        rows = torch.tensor(places, device=self.device)
        self.sides = [([alone[place].copy() for place in places], batch.select(rows)) for alone, batch in self.sides]

    @rule(original=st.booleans())
    def copy(self, original: bool) -> None:
        """Go on with a copy, or with the original; the other one keeps what it holds."""
        twins = [([cached.copy() for cached in alone], batch.copy()) for alone, batch in self.sides]
        if not original:
            self.sides, twins = twins, self.sides
        self._leave([cached for alone, batch in twins for cached in (*alone, batch)])

    # What must be true at all times.

    @invariant()
    def the_next_row_is_that_of_the_committed_tokens(self) -> None:
        if not self.rows:
            return
        if max(map(len, self.rows)) > LONGEST - 9:  # the next rule commits or tries 9 more at most
            self._cut([min(len(row), LONGEST - 9) for row in self.rows])
        self._poison()
        sides = self.sides
        self.sides = [([cached.copy() for cached in alone], batch.copy()) for alone, batch in sides]
        for row, logits in zip(self.rows, self._pass([[row[-1]] for row in self.rows]), strict=True):
            self._agree(logits, truth(self.kind, tuple(row))[-1:])
        self.sides = sides

    @invariant()
    def the_host_knows_how_long_rows_are(self) -> None:
        """On a CPU exactly; elsewhere it has a bound."""
        lengths = [len(row) - 1 for row in self.rows]
        for _, batch in self.sides if self.rows else ():
            assert batch.lengths.tolist() == lengths and max(lengths) <= batch.max_length <= CAPACITY
            if batch._is_on_cpu:
                assert batch.max_length == max(lengths) and batch.equal_lengths == (len(set(lengths)) == 1)

    @invariant()
    def a_cache_that_was_copied_is_as_it_was(self) -> None:
        assert all(same_bits(*pair) for cached, before in self.left for pair in zip(held(cached), before, strict=True))

    # How it is done.

    def _leave(self, caches: list[Any]) -> None:
        self.left = [(cached, held(cached)) for cached in caches]

    def _tokens(self, seed: int, count: int) -> list[list[int]]:
        return np.random.default_rng(seed).integers(VOCABULARY, size=(len(self.rows), count)).tolist()

    def _commit(self, new: list[list[int]]) -> None:
        for row, more in zip(self.rows, new, strict=True):
            row += more

    def _cut(self, lengths: list[int]) -> None:
        self.rows = [row[:length] for row, length in zip(self.rows, lengths, strict=True)]
        self._truncate([length - 1 for length in lengths])

    def _truncate(self, lengths: list[int]) -> None:
        for alone, batch in self.sides:
            for cached, length in zip(alone, lengths, strict=True):
                cached.truncate(length)
            batch.truncate(torch.tensor(lengths, device=self.device))

    def _feed(self, blocks: list[list[int]]) -> None:
        """Put tokens of different numbers into the caches: the shorter are padded, and the padding is cut off."""
        width = max(map(len, blocks))
        lengths = self.sides[0][1].lengths.tolist()
        if width > 0:
            self._pass([[*block, *[0] * (width - len(block))] for block in blocks])
        if width > min(map(len, blocks)):
            self._truncate([length + len(block) for length, block in zip(lengths, blocks, strict=True)])

    def _pass(self, blocks: list[Any], positions: Any = None, visible: Any = None) -> np.ndarray:  # [B, 2, T, V]
        """Run a pass in every cache; it makes no difference to either package what scratch holds."""
        rows = [None] * len(blocks) if positions is None else positions
        options = [None if each is None else self.port.tensor(each) for each in (positions, visible)]
        sides = []
        for alone, batch in self.sides:
            found = [self.reference.run(*each, visible) for each in zip(blocks, alone, rows, strict=True)]
            together = as_numpy(self.port.model.forward(self.port.tensor(np.array(blocks)), batch, *options))
            sides.append(np.stack([np.stack(found), together], axis=1))
        assert same_bits(*sides), "what scratch holds was read"
        return sides[0]

    def _agree(self, found: np.ndarray, expected: np.ndarray) -> None:  # [2, T, V], [T, V]
        found = found if self.dtype == "float64" else found[:1]
        assert difference(found, np.broadcast_to(expected, found.shape)) <= EXACT

    def _poison(self) -> None:
        for (alone, batch), number in zip(self.sides, self.poison, strict=True):
            for cached in alone:
                cached.keys[:, :, cached.length :] = cached.values[:, :, cached.length :] = number
            scratch = torch.arange(CAPACITY, device=self.device) >= batch.lengths[:, None]
            for tensor in (batch.keys, batch.values):
                tensor.masked_fill_(scratch[None, :, None, :, None], number)


def held(cached: Any) -> list[np.ndarray]:
    """Return all that a cache holds, scratch included."""
    lengths = cached.lengths if isinstance(cached, KVCache) else np.array(cached.length)
    return [as_numpy(part).copy() for part in (cached.keys, cached.values, lengths)]


@pytest.mark.parametrize(
    ("device", "dtype"),
    [("cpu", "float64"), ("cpu", "float32"), ("cpu", "bfloat16"), ("cpu", "float16"), ("lengths unknown", "float64")]
    + [pytest.param("cuda", dtype, marks=pytest.mark.gpu) for dtype in ("float64", "float32", "bfloat16", "float16")],
)
def test_after_every_step_the_next_row_is_that_of_the_committed_tokens(device, dtype, monkeypatch):
    """On a CPU; on one that is treated like a device, whose lengths the host does not read; and on a device.

    Float64 is compared with the truth. Of other dtypes no more is asked than that scratch is not read.
    """
    if device == "lengths unknown":
        monkeypatch.setattr(KVCache, "_is_on_cpu", False)
        device = "cpu"
    examples = settings().max_examples // (1 if dtype == "float64" else 3)
    machine = type("Machine", (CacheMachine,), {"device": device, "dtype": dtype})
    stateful.run_state_machine_as_test(machine, settings=settings(max_examples=examples, stateful_step_count=12))


# Mistakes that the machine must find. Each takes the right function and its package, and returns a wrong one.


def _kept_as_a_prefix(keep: Any, package: str) -> Any:
    def wrong(self: Any, rows: Any, length: Any, *count: Any) -> None:
        order = torch.arange(rows.shape[1]) + length[:, None] if package == "gpu" else np.arange(rows.size) + length
        keep(self, order, length, *count)

    return wrong


def _chosen_rows_keep_their_places(select: Any, _: str) -> Any:
    return lambda self, rows: select(self, rows.sort().values)


def _tree_as_chain(hidden: Any, _: str) -> Any:
    return lambda self, inputs, cache, positions=None, visible=None: hidden(self, inputs, cache, positions)


BOTH = ("reference", "gpu")
MISTAKES: list[tuple[str, Callable[..., Any], tuple[str, ...]]] = [
    ("cache.KVCache.keep", _kept_as_a_prefix, BOTH),
    ("cache.KVCache.select", _chosen_rows_keep_their_places, ("gpu",)),
    ("transformer.Transformer.hidden", _tree_as_chain, BOTH),
]


@pytest.mark.parametrize(
    "package, where, mistake", [(each, where, mistake) for where, mistake, packages in MISTAKES for each in packages]
)
def test_the_machine_finds_a_mistake(package, where, mistake, monkeypatch):
    home, kind, name = where.split(".")
    owner = getattr(module(package, f"model.{home}"), kind)
    monkeypatch.setattr(owner, name, mistake(getattr(owner, name), package))
    search = settings(settings.get_profile("ci"), max_examples=200, stateful_step_count=15, phases=[Phase.generate])
    with pytest.raises((AssertionError, ValueError)):
        stateful.run_state_machine_as_test(CacheMachine, settings=search)


ROWS = "rows: found {}, expected increasing positions from {} to {}"
LENGTH = "length: found {}, expected 0 to {}, the number of cached positions"
# Calls with which rows of 3 cached positions are refused, by what each package says of one row.
REFUSED: list[tuple[str, tuple[Any, ...], str, tuple[Any, ...]]] = [
    ("truncate", (-1,), LENGTH, (-1, 3)),
    ("truncate", (4,), LENGTH, (4, 3)),
    *(("keep", (rows,), ROWS, (rows, 0, 2)) for rows in ([0, 3], [-1, 1], [1, 0], [0, 0, 1], [2, 1, 2])),
    ("keep", ([0], 1), ROWS, ([0], 1, 2)),
    ("keep", ([0], 4), LENGTH, (4, 3)),
]


@pytest.fixture(params=["cpu", "lengths unknown", pytest.param("cuda", marks=pytest.mark.gpu)])
def model(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Any:
    """The port's model on a CPU, on one treated like a device whose lengths the host does not read, and on a device."""
    if request.param == "lengths unknown":
        monkeypatch.setattr(KVCache, "_is_on_cpu", False)
    return Passes("gpu", KINDS["full"], "cuda" if request.param == "cuda" else "cpu").model


@both_packages
@pytest.mark.parametrize("name, arguments, message, numbers", REFUSED)
def test_what_is_not_cached_is_refused(package, name, arguments, message, numbers):
    """By name, with what was found and what was expected; the cache is then as it was."""
    model = Passes(package, KINDS["full"])
    cached = model.cache()
    model.run([1, 2, 3], cached)
    before = [part.copy() for part in model.cached(cached)]
    if model.port:
        arguments, numbers = tuple(torch.tensor([each]) for each in arguments), tuple([each] for each in numbers)
    elif name == "keep":
        arguments = np.array(arguments[0]), *arguments[1:]
    with pytest.raises(ValueError) as error:
        getattr(cached, name)(*arguments)
    assert str(error.value) == message.format(*numbers)
    assert model.length(cached) == 3
    assert all(same_bits(*pair) for pair in zip(model.cached(cached), before, strict=True))


def test_a_pass_beyond_the_capacity_is_refused(model: Any) -> None:
    """Where the host has only a bound on the lengths, it first reads them back."""
    cached = model.new_cache(5, 2)
    model.forward([[1, 2, 3]] * 2, cached)
    cached.truncate(torch.tensor([1, 2], device=model.device))
    for refused in (4, 5, 4, 5):
        with pytest.raises(ValueError) as error:
            model.forward([[1] * refused] * 2, cached)
        assert str(error.value) == f"capacity: found 5, expected at least {refused + 2}"
    assert cached.lengths.tolist() == [1, 2]
    for _ in range(20):  # drafts that are cut again and again do not fill the cache
        model.forward([[1, 2, 3]] * 2, cached)
        assert cached.lengths.tolist() == [4, 5]
        cached.truncate(torch.tensor([1, 2], device=model.device))
