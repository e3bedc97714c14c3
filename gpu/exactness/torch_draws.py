"""PyTorch's random calls, replaced by branching ones while a program runs.

For `reference.exactness.program.program_distribution(program, replace=[torch_random])`: code that samples with
torch.rand, torch.multinomial, Tensor.exponential_ and their like runs unchanged, once for every outcome of its draws.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor

from pass_sampling.reference.exactness.chooser import Chooser, refused, replaced

from .symbolic_tensor import ASKED, SymbolicTensor, become, plain

MOST_VALUES = 1_000_000  # of one integer
REFUSED = {
    torch: ("randn", "randn_like", "randperm", "normal", "poisson", "binomial", "randint_like"),
    Tensor: ("normal_", "bernoulli_", "random_", "log_normal_", "cauchy_", "geometric_"),
}


class Noise(SymbolicTensor):
    """Exponential noise: weights divided by it race for the first arrival."""

    @classmethod
    def __torch_function__(
        cls, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        name = func.__name__.removeprefix("__").removesuffix("__")
        if name in ("div", "truediv", "true_divide", "div_", "itruediv") and len(args) == 2 and type(args[1]) is Noise:
            weights, noise = args
            if type(weights) is not Tensor or not noise.numbers or weights.shape != noise.places.shape:
                raise ValueError("torch.div: found noise that is shared, expected a number of its own for each weight")
            target = weights if name in ("div_", "itruediv") else weights.new_empty(weights.shape)
            return become(target, Race, weights=weights.detach().clone(), chooser=noise.numbers.pop(), drawn=None)
        if name in ("__get__", *ASKED) and not isinstance(found := plain(func, args, kwargs or {}), Tensor):
            return found
        raise ValueError(f"torch.{name}: found it used on exponential noise, expected weights divided by it")


class Race(Tensor):
    """Weights over exponential noise: the argmax of a row is a draw from its normalised weights."""

    weights: Tensor
    chooser: Chooser
    drawn: Tensor | None

    @classmethod
    def __torch_function__(
        cls, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        name, kwargs = func.__name__, kwargs or {}
        if name in ("__get__", *ASKED) and not isinstance(found := plain(func, args, kwargs), Tensor):
            return found
        if name != "argmax":
            raise ValueError(f"torch.{name}: found it used on weights over noise, expected only their argmax")
        race = args[0]
        axis = kwargs.get("dim", args[1] if len(args) > 1 else None)
        keep = kwargs.get("keepdim", args[2] if len(args) > 2 else False)
        if axis not in (-1, race.weights.ndim - 1) and race.weights.ndim > 1:
            raise ValueError(f"torch.argmax: found dim={axis} on weights over noise, expected the last one")
        if race.drawn is None:
            race.drawn = draw_rows(race.weights, 1, race.chooser)
        return race.drawn.clone() if keep else race.drawn.squeeze(-1).clone()


def draw_rows(
    weights: Tensor,  # [..., V]
    count: int,
    chooser: Chooser,
) -> Tensor:  # [..., count]
    """Draw from every row of weights, with replacement."""
    rows = weights.detach().to("cpu", torch.float64).reshape(-1, weights.shape[-1])
    drawn = [[chooser.choose((row / row.sum()).tolist()) for _ in range(count)] for row in rows]
    return torch.tensor(drawn, dtype=torch.int64, device=weights.device).reshape(*weights.shape[:-1], count)


@contextmanager
def torch_random(chooser: Chooser) -> Iterator[None]:
    """Replace torch.rand, rand_like, multinomial, bernoulli, randint, Tensor.uniform_ and exponential_ in a context.

    Numbers are drawn as real numbers, whatever their dtype: a float32 of PyTorch has a grid of 2^-24. Generators and
    seeds have no effect.
    """

    def uniforms(shape: Sequence[int], kind: torch.dtype) -> Tensor:
        places = torch.arange(torch.Size(shape).numel()).reshape(tuple(shape))
        numbers = [chooser.uniform() for _ in range(places.numel())]
        if chooser.kind is float:  # a replay
            return copied(numbers, dtype=kind).reshape(places.shape)
        return SymbolicTensor.of(numbers, places, kind)

    def rand(*shape: Any, dtype: torch.dtype | None = None, **options: Any) -> Tensor:
        _check(options, "torch.rand")
        sizes = shape[0] if len(shape) == 1 and isinstance(shape[0], Sequence) else options.get("size", shape)
        return uniforms(sizes, dtype or torch.get_default_dtype())

    def rand_like(input: Tensor, *, dtype: torch.dtype | None = None, **options: Any) -> Tensor:
        return uniforms(input.shape, dtype or input.dtype)

    def uniform_(self: Tensor, *limits: float, **options: Any) -> Tensor:
        low, high = (*limits, *(options.get(name, default) for name, default in (("from", 0.0), ("to", 1.0))))[:2]
        if len(limits) == 1:
            high = options.get("to", 1.0)
        made = uniforms(self.shape, self.dtype)
        if not isinstance(made, SymbolicTensor):
            return self.copy_(made * (high - low) + low)
        numbers = [number * (high - low) + low for number in made.numbers]
        return become(self, SymbolicTensor, numbers=numbers, places=made.places)  # type: ignore[no-any-return]

    def exponential_(self: Tensor, lambd: float = 1.0, **options: Any) -> Noise:
        return become(self, Noise, numbers=[chooser], places=torch.zeros(self.shape))  # type: ignore[no-any-return]

    def multinomial(input: Tensor, num_samples: int, replacement: bool = False, **options: Any) -> Tensor:
        _check(options, "torch.multinomial")
        if num_samples > 1 and not replacement:
            raise ValueError("torch.multinomial: found several draws without replacement, expected one draw at a time")
        return draw_rows(input, num_samples, chooser)

    def bernoulli(input: Tensor, p: float | None = None, **options: Any) -> Tensor:
        _check(options, "torch.bernoulli")
        flat = input.detach().double().cpu().flatten().tolist() if p is None else [float(p)] * input.numel()
        drawn = [1 - chooser.choose((prob, 1.0 - prob)) for prob in flat]
        return torch.tensor(drawn, dtype=input.dtype, device=input.device).reshape(input.shape)

    def randint(*limits: Any, dtype: torch.dtype | None = None, **options: Any) -> Tensor:
        _check(options, "torch.randint")
        *numbers, size = (*limits, options["size"]) if "size" in options else limits
        numbers = [*([options["low"]] if "low" in options else []), *numbers]
        numbers += [options["high"]] if "high" in options else []
        low, high = (0, *numbers)[-2:]
        if not 0 < high - low <= MOST_VALUES:
            raise ValueError(f"torch.randint: found {high - low} possible values, expected 1 to {MOST_VALUES}")
        distribution = [1.0 / (high - low)] * (high - low)
        drawn = [low + chooser.choose(distribution) for _ in range(torch.Size(size).numel())]
        return torch.tensor(drawn, dtype=dtype or torch.int64, device=options.get("device")).reshape(tuple(size))

    copied = torch.tensor

    def tensor(data: Any, **options: Any) -> Tensor:
        if isinstance(data, SymbolicTensor | Race):
            raise ValueError("torch.tensor: found it copy random numbers that are not known yet, expected known ones")
        return copied(data, **options)

    of_torch = [tensor, rand, rand_like, multinomial, bernoulli, randint]
    methods = [uniform_, exponential_, multinomial, bernoulli]
    with ExitStack() as stack:
        for home, drawing in ((torch, of_torch), (Tensor, methods)):
            functions = {name: refused(f"{home.__name__}.{name}") for name in REFUSED[home] if hasattr(home, name)}
            stack.enter_context(replaced(home, functions | {each.__name__: each for each in drawing}))
        stack.enter_context(replaced(torch, {"manual_seed": lambda seed: torch.default_generator}))
        yield


def _check(options: Mapping[str, Any], name: str) -> None:
    if options.get("out") is not None:
        raise ValueError(f"{name}: found `out`, expected a new tensor to hold what is drawn")
