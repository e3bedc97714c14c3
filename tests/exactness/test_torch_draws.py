"""Programs that draw with PyTorch, run once for every way their draws can fall: as in `test_branching`."""

import itertools
import random
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import distributions, tensor

import exactness_tools
from exactness_tools import DISTRIBUTION, EXACT, TENTHS, assert_draws, assert_refused, close
from pass_sampling.gpu.exactness.symbolic_tensor import SymbolicTensor
from pass_sampling.gpu.exactness.torch_draws import torch_random
from pass_sampling.reference.exactness.program import HiddenRandomness, numpy_random, program_distribution

PROBS = tensor(DISTRIBUTION, dtype=torch.float64)
CDF = PROBS.cumsum(-1)
distribution_of = partial(exactness_tools.distribution_of, replace=[torch_random])


def noise_of(weights: torch.Tensor) -> torch.Tensor:
    return torch.empty_like(weights).exponential_(1)


def in_place(weights: torch.Tensor) -> torch.Tensor:
    """As vLLM does: the noise is filled in place, and the weights divided in place."""
    noise, weights = torch.empty_like(weights), weights.clone()
    noise.exponential_()
    weights.div_(noise)
    return weights.argmax(dim=-1)


def filled(shape: tuple[int, ...]) -> torch.Tensor:
    numbers = torch.empty(shape)
    numbers.uniform_()
    return numbers


DRAWS: dict[str, Callable[[], Any]] = {
    "multinomial": lambda: torch.multinomial(PROBS, 1),
    "multinomial of a batch": lambda: torch.multinomial(PROBS.expand(2, 4) * 3, num_samples=1)[1, 0],
    "several draws with replacement": lambda: torch.multinomial(PROBS, 2, replacement=True)[1],
    "Tensor.multinomial": lambda: PROBS.multinomial(1),
    "multinomial with a generator": lambda: torch.multinomial(PROBS, 1, generator=torch.Generator().manual_seed(3)),
    "rand and a cdf": lambda: (CDF > torch.rand(1)).int().argmax(),
    "counting": lambda: (torch.rand(()) >= CDF).sum(-1),
    "cumsum of comparisons": lambda: (torch.rand((1,), dtype=torch.float64) > CDF).cumsum(-1)[-1],
    "searchsorted": lambda: torch.searchsorted(CDF, torch.rand([1]), right=True),
    "searchsorted in rows": lambda: torch.searchsorted(CDF.expand(2, 4), torch.rand(2, 1))[1, 0],
    "bucketize": lambda: torch.bucketize(torch.rand(size=(1,)), CDF),
    "rand_like": lambda: (torch.rand_like(CDF[:1]) >= CDF).sum(),
    "a number in Python": lambda: int(np.argmax(CDF.numpy() > torch.rand(1).item())),
    "numbers in Python": lambda: _walk(torch.rand(2, 1).tolist()[1][0]),
    "iteration": lambda: _walk(next(iter(torch.rand(2)))),
    "indexing": lambda: _walk(torch.rand(3, 2)[1:].T[0, -1]),
    "reshaping": lambda: _walk(torch.rand(2, 3).view(-1).unsqueeze(0).expand(2, 6).t()[4, 1].to(torch.float32)),
    "one minus": lambda: _walk(1 - torch.rand(1)),
    "scaled": lambda: _walk((torch.rand(1) * 4 - 2) / 4 + 0.5),
    "uniform_": lambda: _walk(filled((2,))[1]),
    "uniform_ between limits": lambda: _walk((torch.empty(1).uniform_(-1, to=1) + 1) / 2),
    "randint": lambda: TENTHS[int(torch.randint(10, (1,)))],
    "randint between limits": lambda: TENTHS[torch.randint(low=3, high=13, size=(2,), dtype=torch.int32)[1] - 3],
    "bernoulli": lambda: (2, 3, 0, 0)[int(torch.bernoulli(CDF[:1]) * 2 + torch.bernoulli(CDF[:1] * 0 + 0.375))],
    "bernoulli with p": lambda: (2, 3, 0, 0)[int(2 * torch.bernoulli(CDF[0], 0.2) + CDF[:1].bernoulli(p=0.375))],
    "noise": lambda: torch.argmax(PROBS / noise_of(PROBS), dim=-1),
    "noise in rows": lambda: (PROBS.expand(2, 4).clone() / noise_of(PROBS.expand(2, 4).clone())).argmax(-1)[1],
    "noise in place": lambda: in_place(PROBS),
    "Categorical": lambda: distributions.Categorical(probs=PROBS).sample(),
    "Categorical of a shape": lambda: distributions.Categorical(PROBS).sample((2, 1))[1, 0],
    "Bernoulli": lambda: (2, 3, 0, 0)[int(_flip(0.375) + 2 * _flip(0.2))],
    "Uniform": lambda: _walk(distributions.Uniform(1.0, 3.0).sample() / 2 - 0.5),
}  # fmt: skip


def _flip(prob: float) -> torch.Tensor:
    return distributions.Bernoulli(tensor(prob, dtype=torch.float64)).sample()


def _walk(uniform: Any) -> int:
    return next(token for token, edge in enumerate(CDF.tolist()) if uniform < edge)


@pytest.mark.parametrize("draw", DRAWS.values(), ids=DRAWS)
def test_every_way_of_drawing_from_a_distribution_has_that_distribution(draw: Callable[[], Any]) -> None:
    assert_draws(draw, replace=[torch_random])


@given(st.lists(st.floats(0, 1), min_size=4, max_size=4))
def test_broadcast_comparisons_share_their_numbers(limits: list[float]) -> None:
    """Two numbers against two rows of limits each: what is compared twice narrows once."""
    rows = np.reshape(limits, (2, 2))
    edges = tensor(rows)
    distribution = distribution_of(lambda: tuple((torch.rand(2) < edges).flatten().tolist()))
    expected: dict[Any, float] = {}
    cells = [itertools.pairwise(sorted({0.0, *column, 1.0})) for column in rows.T.tolist()]
    for (low, high), (left, right) in itertools.product(*cells):
        outcome = tuple((np.array([high, right]) <= rows).flatten().tolist())
        expected[outcome] = expected.get(outcome, 0.0) + (high - low) * (right - left)
    assert close(distribution, expected, 4 * EXACT)


def test_numbers_of_both_libraries_meet() -> None:
    half = tensor(0.5, dtype=torch.float64)
    distribution = distribution_of(
        lambda: (random.random() < half, half > random.random()), replace=[torch_random, numpy_random]
    )
    assert len(distribution) == 4 and set(distribution.values()) == {0.25}


REFUSED: dict[str, Callable[[], Any]] = {
    "torch.__float__": lambda: float(torch.rand(1)),
    "torch.__bool__": lambda: bool(torch.rand(1)),
    "torch.log": lambda: torch.rand(3).log(),
    "torch.add: found it between two": lambda: torch.rand(3) + torch.rand(3),
    "torch.lt: found it between two": lambda: torch.rand(3) < torch.rand(3),
    "torch.cat": lambda: torch.cat([torch.rand(1), torch.rand(1)]),
    "torch.where": lambda: torch.where(torch.rand(3) < 0.5, torch.rand(3), 0.0),
    "torch.__setitem__": lambda: torch.zeros(3).__setitem__(0, torch.rand(())),
    "torch.copy_": lambda: torch.zeros(3).copy_(torch.rand(3)),
    "torch.sort": lambda: torch.rand(3).sort(),
    "torch.__rdiv__": lambda: 1 / torch.rand(3),
    "torch.numpy": lambda: torch.rand(3).numpy(),
    "torch.randn: found it called": lambda: torch.randn(3),
    "torch.normal: found it called": lambda: distributions.Normal(0.0, 1.0).sample(),
    "Tensor.normal_: found it called": lambda: torch.empty(3).normal_(),
    "torch.randperm: found it called": lambda: torch.randperm(3),
    "torch.multinomial: found several draws without": lambda: torch.multinomial(PROBS, 2),
    "torch.rand: found `out`": lambda: torch.rand(3, out=torch.empty(3)),
    "torch.randint: found 4294967296 possible": lambda: torch.randint(2**32, (1,)),
    "Tensor: found random numbers written into a part": lambda: torch.empty(3)[0].uniform_(),
    "torch.log: found it used on exponential noise": lambda: noise_of(PROBS).log(),
    "torch.sort: found it used on weights over noise": lambda: (PROBS / noise_of(PROBS)).sort(),
    "torch.div: found noise that is shared, expected": lambda: PROBS.expand(2, 4) / noise_of(PROBS),
    "torch.div: found noise that is shared": lambda: [PROBS / noise for noise in [noise_of(PROBS)] * 2],
    "torch.argmax: found dim=0": lambda: (PROBS[None] / noise_of(PROBS[None])).argmax(0),
    "draw 0, probability 1: found -": lambda: torch.multinomial(tensor([1.5, -0.5]), 1),
    "draw 1, probability 1: found -0.5": lambda: torch.bernoulli(tensor([0.5, 1.5])),
    "program: found it return tensor": lambda: tensor(3.0),
}  # fmt: skip


@pytest.mark.parametrize(("message", "program"), REFUSED.items(), ids=REFUSED)
@pytest.mark.filterwarnings("ignore:To copy construct from a tensor")
def test_what_cannot_be_enumerated_is_refused_by_name(message: str, program: Callable[[], Any]) -> None:
    assert_refused(program, message, replace=[torch_random])


generator = torch.Generator()
drawn_by_name = torch.rand


def seeded_dropout() -> float:
    torch.manual_seed(0)
    return torch.nn.functional.dropout(torch.ones(64)).sum().item()


@pytest.mark.parametrize(
    ("program", "replace"),
    [
        (lambda: torch.rand(1).item() < 0.5, []),
        (lambda: drawn_by_name(1).item() < 0.5, [torch_random]),
        (lambda: torch.nn.functional.dropout(torch.ones(64)).sum().item(), [torch_random]),
        (lambda: drawn_by_name(1, generator=generator).item(), [torch_random]),
        (seeded_dropout, [torch_random]),
    ],
)
def test_randomness_that_is_not_replaced_is_found(program: Any, replace: Any) -> None:
    with pytest.raises(HiddenRandomness, match="no randomness but that of the replaced calls"):
        program_distribution(program, replace=replace)


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
def test_the_functions_come_back_after_an_exception(error: type[BaseException]) -> None:
    def program() -> None:
        assert isinstance(torch.rand(1), SymbolicTensor)
        raise error("on purpose")

    names = ("rand", "rand_like", "multinomial", "bernoulli", "randint", "randn", "tensor", "manual_seed")
    before = [getattr(torch, name) for name in names], dict(vars(torch.Tensor))
    with pytest.raises(error, match="on purpose"):
        distribution_of(program)
    assert ([getattr(torch, name) for name in names], dict(vars(torch.Tensor))) == before
