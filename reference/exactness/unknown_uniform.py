"""Uniform numbers of which only the comparisons so far are known."""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Sequence
from functools import partialmethod
from itertools import pairwise
from typing import Any, NoReturn

import numpy as np

Choose = Callable[[Sequence[float]], int]  # an outcome of a distribution: `Chooser.choose`
MOST_INTEGERS = 1_000_000  # that a number may be cut to
COMPARISONS = dict(lt=np.less, le=np.less_equal, gt=np.greater, ge=np.greater_equal, eq=np.equal, ne=np.not_equal)
COMBINED = ("mod", "floordiv", "pow", "rtruediv", "rmod", "rfloordiv", "rpow", "matmul", "rmatmul", "divmod")
ASKED = ("float", "bool", "index", "complex", "round", "abs", "ceil", "format", "reduce_ex")
FUNCTIONS = (
    "log", "log2", "log10", "log1p", "exp", "exp2", "expm1", "sqrt", "sin", "cos", "tan", "arcsin", "arccos", "arctan",
    "rint", "ceil", "square", "reciprocal", "conjugate", "fabs",
)  # fmt: skip  # those that NumPy looks for as methods of the objects in an array


class Uniform:
    """A uniform number of which only an interval is known: each comparison is a choice that narrows it.

    It can be moved, scaled, compared with numbers and cut to an integer. Everything else needs its value, which has no
    finite set of outcomes, and is refused. It is a real number: the grid of a generator's floats (equality, and 2^-24
    or 2^-53 of probability) is ignored.
    """

    def __init__(self, choose: Choose, known: list[float] | None = None, scale: float = 1.0, shift: float = 0.0):
        """Represent scale * u + shift; `known` is the interval of u, shared by all numbers made from it."""
        self._choose = choose
        self._known = [0.0, 1.0] if known is None else known
        self._scale, self._shift = scale, shift

    def below(self, threshold: float) -> bool:
        """Choose whether the number is less than a threshold; a single point has no probability."""
        threshold = float(threshold)
        if math.isnan(threshold):
            return False
        low, high = self._known
        edge = (threshold - self._shift) / self._scale
        less = edge > low and (edge >= high or self._cell([edge]) == 0)
        return less if self._scale > 0 else not less

    def floor(self) -> int:
        """Choose the largest integer that is not above the number."""
        ends = sorted(self._scale * end + self._shift for end in self._known)
        first, last = math.floor(ends[0]), math.ceil(ends[1]) - 1
        if last - first >= MOST_INTEGERS:
            raise ValueError(f"a uniform number: found {self!r} cut to an integer, expected fewer of them")
        low, high = self._known
        steps = range(first, last + 1) if self._scale > 0 else range(last, first - 1, -1)
        later = [((step if self._scale > 0 else step + 1) - self._shift) / self._scale for step in steps[1:]]
        kept = [edge for edge in later if low < edge < high]
        begin = sum(edge <= low for edge in later)
        return steps[begin + (self._cell(kept) if kept else 0)]

    def _cell(self, edges: Sequence[float]) -> int:
        """Choose the cell of u between some increasing edges inside the known interval."""
        low, high = self._known
        bounds = [low, *edges, high]
        shares = [(right - left) / (high - low) for left, right in pairwise(bounds)]
        if len(edges) == 1:
            shares[1] = 1.0 - shares[0]
        cell = self._choose(shares)
        self._known[:] = bounds[cell : cell + 2]
        return cell

    def __array_ufunc__(self, function: np.ufunc, method: str, *inputs: Any, **options: Any) -> Any:
        if method != "__call__":
            raise ValueError(f"numpy.{function.__name__}: found a uniform number in its {method}, expected none")
        boxed = [_boxed(each) if isinstance(each, Uniform) else each for each in inputs]
        try:
            return function(*boxed, **options)
        except TypeError:
            return _refusal(f"numpy.{function.__name__}")(self)

    def _compared(self, function: np.ufunc, other: Any) -> Any:
        if isinstance(other, np.ndarray):
            return function(_boxed(self), other)
        if isinstance(other, Uniform) and other._known is self._known:  # NumPy compares a key with itself
            scale, shift = self._scale - other._scale, self._shift - other._shift
            return function(Uniform(self._choose, self._known, scale, shift) if scale else shift, 0.0)
        equality = function in (np.equal, np.not_equal)  # an event of probability 0, whatever the other is
        number = math.nan if equality and not isinstance(other, Uniform) else _known_number(other, function.__name__)
        if math.isnan(number):
            return function is np.not_equal
        return self.below(number) == (function in (np.less, np.less_equal))

    def _moved(self, function: np.ufunc, other: Any, scale: float, shift: float, times: bool = False) -> Any:
        """Return scale * self + shift, with `other` in the place of the scale (or its inverse) or of the shift."""
        if isinstance(other, np.ndarray):
            return function(_boxed(self), other)
        number = _known_number(other, function.__name__)
        scale, shift = (scale * number, shift) if times else (scale, shift * number)
        if scale == 0 or not math.isfinite(scale) or not math.isfinite(shift):
            raise ValueError(f"a uniform number: found {function.__name__} with {number}, expected a finite result")
        return Uniform(self._choose, self._known, self._scale * scale, self._shift * scale + shift)

    def __add__(self, other: Any) -> Any:
        return self._moved(np.add, other, 1.0, 1.0)

    def __sub__(self, other: Any) -> Any:
        return self._moved(np.subtract, other, 1.0, -1.0)

    def __rsub__(self, other: Any) -> Any:
        return other - _boxed(self) if isinstance(other, np.ndarray) else self._moved(np.subtract, other, -1.0, 1.0)

    def __mul__(self, other: Any) -> Any:
        return self._moved(np.multiply, other, 1.0, 0.0, times=True)

    def __truediv__(self, other: Any) -> Any:
        if isinstance(other, np.ndarray):
            return _boxed(self) / other
        number = _known_number(other, "divide")
        return self * (1.0 / number if number else math.inf)

    def __neg__(self) -> Any:
        return self * -1.0

    __radd__, __rmul__ = __add__, __mul__
    __floor__ = floor

    def __int__(self) -> int:
        return -(-self).floor() if self.below(0.0) else self.floor()

    __trunc__ = __int__

    def __copy__(self) -> Uniform:
        return self

    def __deepcopy__(self, memo: object) -> Uniform:  # what is learnt of a number holds for its copies
        return self

    def __repr__(self) -> str:
        low, high = sorted(self._scale * edge + self._shift for edge in self._known)
        return f"Uniform[{low:.6g}, {high:.6g})"

    __hash__ = None  # type: ignore[assignment]  # its value is not known


def search_each(searchsorted: Callable[..., Any]) -> Callable[..., Any]:
    """Return numpy.searchsorted for arrays of uniform numbers, too, which it would compare with one another."""

    def search(a: Any, v: Any, *settings: Any, **options: Any) -> Any:
        if isinstance(v, np.ndarray) and v.dtype == object and v.ndim:
            found = [searchsorted(a, each, *settings, **options) for each in v.flat]
            return np.array(found, dtype=np.int64).reshape(v.shape)
        return searchsorted(a, v, *settings, **options)

    return search


def _boxed(number: Uniform) -> Any:
    box = np.empty((), dtype=object)
    box[()] = number
    return box


def _known_number(other: Any, name: str) -> float:
    if isinstance(other, Uniform):
        raise ValueError(f"{name}: found it between two uniform numbers, expected one of them to be known")
    if isinstance(other, str):
        raise TypeError(f"{name}: found a uniform number and {other!r}, expected numbers")
    return float(other)


def _refusal(name: str) -> Callable[..., NoReturn]:
    def refuse(self: Uniform, *others: Any) -> NoReturn:
        frame = sys._getframe(1)
        while frame.f_back is not None and frame.f_code.co_filename == __file__:
            frame = frame.f_back
        raise ValueError(
            f"{name}: found the value of a uniform number asked for in {frame.f_code.co_filename}, line "
            f"{frame.f_lineno}, expected it only compared, moved, scaled and cut to an integer"
        )

    refuse.__doc__ = f"Refuse {name}."
    return refuse


for _name, _function in COMPARISONS.items():
    setattr(Uniform, f"__{_name}__", partialmethod(Uniform._compared, _function))
for _name in (*COMBINED, *ASKED):
    setattr(Uniform, f"__{_name}__", _refusal(_name))
for _name in FUNCTIONS:
    setattr(Uniform, _name, _refusal(f"numpy.{_name}"))
