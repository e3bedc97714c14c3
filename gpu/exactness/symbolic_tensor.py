"""Tensors of random numbers that are not known yet: each comparison decides a little more about them."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from operator import add, mul, sub, truediv
from typing import Any

import torch
from torch import Tensor

from pass_sampling.reference.exactness.unknown_uniform import Uniform

BELOW = {"lt": True, "le": True, "gt": False, "ge": False}  # the value of the comparison if the left side is below
EXCHANGED = {"lt": "gt", "le": "ge", "gt": "lt", "ge": "le"}
ARITHMETIC: dict[str, Callable[[Any, float], Any]] = {
    "add": add,
    "sub": sub,
    "rsub": lambda number, other: other - number,
    "mul": mul,
    "neg": mul,  # by -1
    "div": truediv,
    "true_divide": truediv,
}
SHAPES = (
    "__getitem__", "view", "reshape", "squeeze", "unsqueeze", "flatten", "expand", "expand_as", "transpose", "permute",
    "contiguous", "clone", "detach", "select", "narrow", "gather", "index_select", "broadcast_to", "unbind", "chunk",
    "split", "view_as", "reshape_as", "repeat", "t", "flip", "roll", "cpu", "cuda", "movedim", "swapaxes", "take",
)  # fmt: skip
ASKED = ("size", "dim", "numel", "element_size", "is_floating_point", "stride", "ndimension", "__len__")
CASTS = ("to", "float", "double", "half", "bfloat16", "type", "type_as")


class SymbolicTensor(Tensor):
    """A tensor of numbers that are not known yet: `numbers[places]`, where only the places are in memory."""

    numbers: list[Uniform]
    places: Tensor

    @classmethod
    def of(
        cls,
        numbers: list[Uniform],
        places: Tensor,  # [...]
        kind: torch.dtype,
    ) -> SymbolicTensor:  # [...]
        """Return the tensor whose elements are the numbers at these places."""
        made: SymbolicTensor = become(torch.empty(places.shape, dtype=kind), cls, numbers=numbers, places=places)
        return made

    @classmethod
    def __torch_function__(
        cls, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        name, kwargs = _name(func), kwargs or {}
        if name == "__get__" or name in ASKED:
            found = plain(func, args, kwargs)
            return _reshaped(func, args, kwargs) if isinstance(found, Tensor) else found  # of `.T` and its like
        if name in BELOW and len(args) == 2 and not kwargs:
            return _compare(name, *args)
        if name in ARITHMETIC and not kwargs:
            return _moved(name, args)
        if name in ("searchsorted", "bucketize"):
            return _searched(name, args, kwargs)
        if args and isinstance(args[0], SymbolicTensor):
            if name in SHAPES:
                return _reshaped(func, args, kwargs)
            if name in CASTS:
                kind = plain(func, (torch.empty(0, dtype=args[0].dtype), *args[1:]), kwargs).dtype
                return SymbolicTensor.of(args[0].numbers, args[0].places, kind)
            if name == "__iter__":
                return iter(args[0].unbind(0))
            if name == "item" and args[0].places.numel() == 1:
                return args[0].numbers[int(args[0].places.reshape(()))]
            if name == "tolist":
                return _listed(args[0].numbers, args[0].places.tolist())
        raise ValueError(
            f"torch.{name}: found it used on random numbers that are not known yet, expected them only compared, "
            "moved, scaled and reshaped"
        )

    def __repr__(self, *, tensor_contents: Any = None) -> str:  # type: ignore[override]
        return f"{type(self).__name__}{tuple(self.places.shape)}"


def become(
    tensor: Tensor,  # [...]
    cls: type[Any],
    **attributes: Any,
) -> Any:  # [...]
    """Turn a tensor into one of a subclass, in place; its memory holds NaN."""
    with torch._C.DisableTorchFunctionSubclass(), torch.no_grad():
        if tensor.untyped_storage().nbytes() != tensor.numel() * tensor.element_size():
            raise ValueError("Tensor: found random numbers written into a part of one, expected them in a whole one")
        tensor.fill_(math.nan)
    tensor.__class__ = cls
    vars(tensor).update(attributes)
    return tensor


def _name(func: Callable[..., Any]) -> str:
    """Return the name of a function, the same for an operator and its method; `add_` and `add` are two."""
    name = func.__name__
    plain = name.removeprefix("__").removesuffix("__").replace("truediv", "div")
    alias = {"greater": "gt", "greater_equal": "ge", "less": "lt", "less_equal": "le", "subtract": "sub",
             "multiply": "mul", "divide": "div", "negative": "neg", "radd": "add", "rmul": "mul"}  # fmt: skip
    plain = alias.get(plain, plain)
    return plain if plain in (*BELOW, *ARITHMETIC) else name


def plain(func: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Call a function of PyTorch on the tensors in memory."""
    with torch._C.DisableTorchFunctionSubclass():
        return func(*args, **kwargs)


def _listed(numbers: list[Any], places: Any) -> Any:
    return [_listed(numbers, part) for part in places] if isinstance(places, list) else numbers[places]


def _reshaped(func: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Apply a change of shape to the places."""
    numbers, kind = args[0].numbers, args[0].dtype
    rest = [other.places if isinstance(other, SymbolicTensor) else other for other in args[1:]]
    moved = func(args[0].places, *rest, **kwargs)
    if isinstance(moved, Tensor):
        return SymbolicTensor.of(numbers, moved.clone(), kind)
    return tuple(SymbolicTensor.of(numbers, part.clone(), kind) for part in moved)


def _paired(name: str, unknown: SymbolicTensor, known: Any) -> tuple[list[tuple[Any, float]], torch.Size]:
    """Return the pairs of numbers and known ones, and their common shape."""
    if isinstance(known, SymbolicTensor):
        raise ValueError(f"torch.{name}: found it between two unknown numbers, expected one of them to be known")
    others = torch.as_tensor(known, dtype=torch.float64, device="cpu").detach()
    places, others = torch.broadcast_tensors(unknown.places, others)
    numbers = [unknown.numbers[place] for place in places.flatten().tolist()]
    return list(zip(numbers, others.flatten().tolist(), strict=True)), places.shape


def _compare(name: str, left: Any, right: Any) -> Tensor:
    """Choose for one number after another on which side of its threshold it is."""
    if not isinstance(left, SymbolicTensor):
        return _compare(EXCHANGED[name], right, left)
    pairs, shape = _paired(name, left, right)
    below = [number.below(other) == BELOW[name] and not math.isnan(other) for number, other in pairs]
    device = right.device if isinstance(right, Tensor) else None
    return torch.tensor(below, dtype=torch.bool, device=device).reshape(shape)


def _moved(name: str, args: Sequence[Any]) -> SymbolicTensor:
    """Add, subtract, multiply or divide by known numbers."""
    swapped = not isinstance(args[0], SymbolicTensor)
    unknown, known = (args[1], args[0]) if swapped else (args[0], args[-1] if len(args) > 1 else -1.0)
    if (swapped and name in ("div", "true_divide")) or type(unknown) is not SymbolicTensor:
        raise ValueError(f"torch.{name}: found a known number divided by unknown ones, expected the reverse")
    pairs, shape = _paired(name, unknown, known)
    change = ARITHMETIC["rsub" if name == "sub" and swapped else name]
    numbers = [change(number, other) for number, other in pairs]
    return SymbolicTensor.of(numbers, torch.arange(len(numbers)).reshape(shape), unknown.dtype)


def _searched(name: str, args: Sequence[Any], kwargs: dict[str, Any]) -> Tensor:
    """Count, for each number, the edges of its row that are not above it."""
    edges, numbers = args if name == "searchsorted" else reversed(args)
    if (
        not isinstance(numbers, SymbolicTensor)
        or isinstance(edges, SymbolicTensor)
        or kwargs.keys() - {"right", "side"}
    ):
        raise ValueError(f"torch.{name}: found options {sorted(kwargs)}, expected random numbers among known edges")
    aligned = edges.unsqueeze(-2) if edges.ndim > 1 else edges
    counts: Tensor = (numbers.unsqueeze(-1) >= aligned).sum(-1)
    return counts
