"""What a cache refuses, and what the machine of test_cache_machine.py does not reach: its room, and rows that stay."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from folders import both_packages
from pass_sampling.gpu.model.cache import KVCache
from passes import KINDS, Passes, same_bits

ROWS = "rows: found {}, expected increasing slots from {} to {}"
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


def test_the_reference_doubles_its_room_so_that_growth_costs_little() -> None:
    model, rooms = Passes("reference", KINDS["full"]), []
    cached = model.cache(1)
    for token in range(20):
        model.run([token], cached)
        rooms.append(cached.capacity)
    assert rooms == [1, 2, *[4] * 2, *[8] * 4, *[16] * 8, *[32] * 4]


@both_packages
def test_a_new_cache_is_zero(package: str) -> None:
    cached = Passes(package, KINDS["full"]).cache(5)
    assert not cached.keys.any() and not cached.values.any()


@both_packages
@pytest.mark.parametrize("name, arguments, message, numbers", REFUSED)
def test_what_is_not_cached_is_refused(
    package: str, name: str, arguments: tuple[Any, ...], message: str, numbers: tuple[Any, ...]
) -> None:
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


BATCH: list[tuple[str, tuple[Any, ...], str]] = [
    *(("truncate", (lengths,), LENGTH.format(lengths, [3, 1])) for lengths in ([3, 2], [-1, 0])),
    *(
        ("keep", (rows,), ROWS.format(rows, [0, 0], [2, 0]))
        for rows in ([[0, 2], [0, 1]], [[1, 1], [0, 0]], [[-1, 0], [-1, 0]])
    ),
    ("keep", ([[0], [0]], [1, 1], [1, 0]), ROWS.format([[0], [0]], [1, 1], [2, 0])),
    ("keep", ([[2], [0]], [1, 2]), LENGTH.format([1, 2], [3, 1])),
]


@pytest.mark.parametrize("name, arguments, message", BATCH)
def test_a_refusal_names_the_lengths_of_all_rows(name: str, arguments: tuple[Any, ...], message: str) -> None:
    model = Passes("gpu", KINDS["full"]).model
    cached = model.new_cache(5, 2)
    model.forward([[1, 2, 3]] * 2, cached)
    cached.truncate(torch.tensor([3, 1]))
    with pytest.raises(ValueError) as error:
        getattr(cached, name)(*map(torch.tensor, arguments))
    assert str(error.value) == message
    cached.keep(torch.tensor([[2], [0]]))
    assert cached.lengths.tolist() == [1, 1]


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


def test_keep_moves_what_is_kept_and_touches_nothing_else(model: Any) -> None:
    cached = model.new_cache(8, 3)
    model.forward([[1, 2, 3, 4, 5, 6, 7]] * 3, cached)
    before = cached.copy()
    arguments = ([[4, 6], [3, -9], [99, 99]], [2, 3, 7], [2, 1, 0])
    cached.keep(*(torch.tensor(each, device=model.device) for each in arguments))
    assert cached.lengths.tolist() == [4, 4, 7]
    sources = torch.tensor([[0, 1, 4, 6, 4, 5, 6, 7], [*range(8)], [*range(8)]], device=model.device)
    for found, old in ((cached.keys, before.keys), (cached.values, before.values)):
        for b, source in enumerate(sources):
            assert torch.equal(found[:, b], old[:, b, :, source])
