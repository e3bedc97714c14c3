"""Execute shape comments: read them from the source, bind their letters anew in every call, and compare.

A shape comment is a trailing comment that begins with a bracket, after an argument, after the return annotation,
after the field of a dataclass, or after an assignment:

    draft_probs: Probs,  # [K, V]
    ) -> tuple[Array, Array]:  # [T, E/2], [T, E/2]

Its dimensions are sums and products of numbers and names, such as `K+1`, `2L+2`, `(H+2G)*E` or `len(states)`; `...`
stands for any dimensions, the same throughout a call; `or` separates alternatives; words after it are prose.
"""

import ast
import inspect
import re
import sys
import textwrap
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, is_dataclass, replace
from fractions import Fraction
from functools import cache
from types import CodeType, FrameType
from typing import Any

import numpy as np

Shape = tuple[str, ...]  # the dimensions, as expressions


class ShapeError(AssertionError):
    """An array has another shape than the comment says, or the comment cannot be understood."""


@dataclass(frozen=True)
class Comment:
    """The shapes of one array, or of several in a tuple; or alternatives for one array."""

    text: str
    shapes: tuple[Shape, ...]
    alternatives: bool = False

    @property
    def symbols(self) -> set[str]:
        """The names that dimensions are made of."""
        return {name for shape in self.shapes for dim in shape if dim != "..." for name in names(dim)}


def parse(text: str) -> Comment | None:
    """Return what a trailing comment says about shapes, or None if it is about something else."""
    text = text.removeprefix("#").strip()
    if not text.startswith("["):
        return None
    shapes, rest, alternatives = [], text, False
    while match := re.match(r"(,? or |, |)\[([^]]*)\]", rest):
        shapes.append(tuple(dim.strip() for dim in match[2].split(",") if dim.strip()))
        alternatives |= "or" in match[1]
        rest = rest[match.end() :]
        if " or [" in rest and not alternatives:  # words before the alternative
            rest = rest[rest.index(" or [") :]
    for dim in {dim for shape in shapes for dim in shape} - {"..."}:
        compiled(dim)
    return Comment(text, tuple(shapes), alternatives)


@cache
def compiled(dim: str) -> CodeType:
    """Compile a dimension; `2G` means `2*G`, a prime is part of a name, and `len(x)` is the name `len_x`.

    Raises:
        ShapeError: it is something else than a sum or product of numbers, names and len(name).
    """
    source = re.sub(r"\blen\((\w+)\)", r"len_\1", dim.replace("'", "_prime"))
    source = re.sub(r"\b(\d+)(?=[A-Za-z(])", r"\1*", source)
    try:
        if not re.fullmatch(r"[\w+*/()-]+", source) or re.search(r"\w\(", source):
            raise SyntaxError
        return compile(source, dim, "eval")
    except SyntaxError:
        raise ShapeError(f"shape comment: found the dimension {dim!r}, expected a sum or product of names") from None


def names(dim: str) -> tuple[str, ...]:
    """Return the names in a dimension."""
    return compiled(dim).co_names


def evaluate(dim: str, values: Mapping[str, int]) -> Fraction:
    """Return a dimension whose names all have a value."""
    return Fraction(eval(compiled(dim), {}, {name: Fraction(values[name]) for name in names(dim)}))


class Bindings:
    """The letters of one call, and the equations that do not yet determine one."""

    def __init__(self, values: Mapping[str, Any]):
        self.values = dict(values)  # "..." holds a tuple
        self.equations: list[tuple[str, int, str]] = []  # dimension, length, where

    def add(self, comment: Comment, value: Any, where: str) -> None:
        """Compare the shape of an array, or of the arrays in a tuple, with a comment."""
        if comment.alternatives:
            self._add_either(comment, shape_of(value, where), where)
            return
        arrays = [part for part in value if hasattr(part, "shape")] if isinstance(value, tuple) else []
        values = arrays if len(arrays) == len(comment.shapes) else [value]
        if len(values) != len(comment.shapes):
            raise ShapeError(f"{where}: found {len(values)} arrays, expected {comment.text}")
        for dims, part in zip(comment.shapes, values, strict=True):
            self._add(dims, shape_of(part, where), where)

    def _add_either(self, comment: Comment, shape: tuple[int, ...], where: str) -> None:
        """Take the first alternative that agrees with all that is known."""
        before = dict(self.values), list(self.equations)
        for dims in comment.shapes:
            try:
                self._add(dims, shape, where)
                return
            except ShapeError:
                self.values, self.equations = dict(before[0]), list(before[1])
        raise ShapeError(f"{where}: found shape {list(shape)}, expected {comment.text}")

    def _add(self, dims: Shape, shape: tuple[int, ...], where: str) -> None:
        if "..." in dims and len(shape) >= len(dims) - 1:
            place, extra = dims.index("..."), len(shape) - len(dims) + 1
            rest = shape[place : place + extra]
            if self.values.setdefault("...", rest) != rest:
                raise ShapeError(f"{where}: found {list(rest)} for ..., expected {list(self.values['...'])}")
            dims, shape = dims[:place] + dims[place + 1 :], shape[:place] + shape[place + extra :]
        if "..." in dims or len(shape) != len(dims):
            raise ShapeError(f"{where}: found shape {list(shape)}, expected [{', '.join(dims)}]")
        self.equations += [(dim, length, where) for dim, length in zip(dims, shape, strict=True)]
        self.solve()

    def solve(self) -> None:
        """Bind what can be bound; check what is bound."""
        before = -1
        while before != len(self.equations):
            before = len(self.equations)
            self.equations = [equation for equation in self.equations if not self._settled(*equation)]

    def _settled(self, dim: str, length: int, where: str) -> bool:
        unknown = set(names(dim)) - self.values.keys()
        if len(unknown) > 1:
            return False
        for name in unknown:  # linear in one unknown
            at_0, at_1 = (evaluate(dim, {**self.values, name: value}) for value in (0, 1))
            solution = (length - at_0) / (at_1 - at_0) if at_0 != at_1 else Fraction(-1)
            if solution.denominator != 1 or solution < 0:
                raise ShapeError(f"{where}: found {length} for {dim}, expected a length of that form")
            self.values[name] = int(solution)
        if evaluate(dim, self.values) != length:
            known = ", ".join(f"{name}={self.values[name]}" for name in sorted(names(dim)))
            raise ShapeError(f"{where}: found {length} for {dim}, expected {evaluate(dim, self.values)} ({known})")
        return True

    def close(self) -> None:
        """Raise ShapeError if an equation was never settled, so that it was not checked."""
        self.solve()
        for dim, length, where in self.equations:
            raise ShapeError(f"{where}: found {length} for {dim}, expected names that the call determines")


def shape_of(value: Any, where: str) -> tuple[int, ...]:
    """Return the shape of an array, a tensor, a number or nested sequences."""
    try:
        return tuple(value.shape) if hasattr(value, "shape") else np.shape(value)
    except ValueError:
        raise ShapeError(f"{where}: found sequences of different lengths, expected an array") from None


@dataclass(frozen=True)
class Signature:
    """The shape comments of a function: on its arguments, its return line, and what it assigns."""

    name: str
    arguments: Mapping[str, Comment]
    returns: Comment | None
    locals: Mapping[str, Comment]  # "name" or "self.name"

    @property
    def comments(self) -> list[Comment]:
        """All of them."""
        last = [] if self.returns is None else [self.returns]
        return [*self.arguments.values(), *last, *self.locals.values()]


def _source(thing: Any) -> tuple[Any, dict[int | None, Comment]]:
    """Return the syntax tree of a function or class, and its shape comments by line."""
    text = textwrap.dedent(inspect.getsource(thing))
    found = {
        number: parse(match[1])
        for number, line in enumerate(text.splitlines(), 1)
        if (match := re.search(r"\S  # (\[.*)", line))
    }
    return ast.parse(text).body[0], {number: comment for number, comment in found.items() if comment is not None}


@cache
def signature(function: Callable[..., Any]) -> Signature:
    """Return the shape comments of a function; what it does not say itself, the method that it overrides says."""
    own, before = own_signature(function), overridden(function)
    if before is None:
        return own
    theirs, names = signature(before), inspect.signature(function).parameters
    arguments = {name: comment for name, comment in theirs.arguments.items() if name in names}
    return replace(own, arguments={**arguments, **own.arguments}, returns=own.returns or theirs.returns)


def overridden(function: Callable[..., Any]) -> Callable[..., Any] | None:
    """Return the method of a base class that a method overrides, if any."""
    owner, _, name = function.__qualname__.rpartition(".")
    bases = getattr(getattr(sys.modules[function.__module__], owner, None), "__mro__", ())[1:]
    found = next((vars(base)[name] for base in bases if name in vars(base)), None)
    return _plain(found) if inspect.isfunction(_plain(found)) else None


@cache
def own_signature(function: Callable[..., Any]) -> Signature:
    """Read the shape comments of a function."""
    node, comments = _source(function)
    last = None if node.returns is None else node.returns.end_lineno
    returns = comments.pop(last, None)
    parameters = [*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs]
    assignments = [each for each in ast.walk(node) if isinstance(each, ast.Assign)]
    return Signature(
        function.__qualname__,
        {each.arg: comments[each.lineno] for each in parameters if each.lineno in comments},
        returns,
        {
            ast.unparse(each.targets[0]): comments[each.end_lineno]
            for each in assignments
            if each.end_lineno in comments
        },
    )


@cache
def fields(cls: type) -> dict[str, Comment]:
    """Read the shape comments on the fields of a dataclass."""
    node, comments = _source(cls)
    declared = [each for each in node.body if isinstance(each, ast.AnnAssign) and isinstance(each.target, ast.Name)]
    return {each.target.id: comments[each.end_lineno] for each in declared if each.end_lineno in comments}


def functions_of(module: Any) -> Iterator[Callable[..., Any]]:
    """Yield every function and method that a module defines, properties and static methods included."""
    for thing in vars(module).values():
        if getattr(thing, "__module__", None) == module.__name__:
            yield from _functions(thing, module.__name__)


def _functions(thing: Any, home: str) -> Iterator[Callable[..., Any]]:
    if inspect.isclass(thing):
        for member in vars(thing).values():
            yield from _functions(member, home)
    thing = _plain(thing)
    if inspect.isfunction(thing) and thing.__module__ == home and not thing.__code__.co_filename.startswith("<"):
        yield thing


def _plain(thing: Any) -> Any:
    """Return the function inside of a property, a static or a class method."""
    for name in ("fget", "func", "__func__", "__wrapped__"):
        thing = getattr(thing, name, thing)
    return thing


CONFIG_LETTERS = {
    "V": "vocab_size",
    "D": "hidden_size",
    "F": "intermediate_size",
    "H": "num_attention_heads",
    "G": "num_key_value_heads",
    "E": "head_dim",
}


def constants(arguments: Mapping[str, Any]) -> dict[str, int]:
    """Return the names that a call knows before it looks at an array.

    They come from the model that it is about, from its integer arguments under their own names, and from the lengths
    of its other arguments.
    """
    owner = arguments.get("self")
    model = getattr(owner, "model", owner)
    config = arguments.get("config", getattr(model, "config", model))
    known = {letter: getattr(config, name) for letter, name in CONFIG_LETTERS.items() if hasattr(config, name)}
    for name, value in arguments.items():
        if isinstance(value, int) and not isinstance(value, bool):
            known[name] = value
        elif hasattr(value, "__len__") and not isinstance(value, str):
            known[f"len_{name}"] = len(value) if getattr(value, "shape", (0,)) else 0
    return known


@contextmanager
def checked(functions: Iterable[Callable[..., Any]]) -> Iterator[Counter[str]]:
    """Compare every call of the functions with their comments; yield how often each was called.

    Dataclasses that go in or come out are compared with the comments on their fields.

    Raises:
        ShapeError: out of the call that is at fault.
    """
    signatures = {each.__code__: signature(each) for each in functions if not inspect.isgeneratorfunction(each)}
    calls: Counter[str] = Counter()
    running: dict[FrameType, Bindings] = {}

    def profile(frame: FrameType, event: str, result: Any) -> None:
        read = signatures.get(frame.f_code)
        if read is None or event not in ("call", "return"):
            return
        here, code = frame.f_locals, frame.f_code
        if event == "call":
            calls[f"{frame.f_globals['__name__']}.{read.name}"] += 1
            arguments = {name: here[name] for name in code.co_varnames[: code.co_argcount + code.co_kwonlyargcount]}
            bindings = running[frame] = Bindings(constants(arguments))
            for name, comment in sorted(read.arguments.items(), key=lambda item: item[1].alternatives):
                if arguments[name] is not None:
                    bindings.add(comment, arguments[name], f"{read.name}, argument {name}")
            _check_dataclasses(arguments.values(), arguments)
            return
        bindings = running.pop(frame)
        if read.returns is not None and result is not None:
            bindings.add(read.returns, result, f"{read.name}, return value")
        for name, comment in read.locals.items():
            value = getattr(here["self"], name[5:]) if name.startswith("self.") else here.get(name)
            if value is not None:
                bindings.add(comment, value, f"{read.name}, {name}")
        bindings.close()
        _check_dataclasses(result if isinstance(result, tuple) else (result,), here)

    before = sys.getprofile()
    sys.setprofile(profile)
    try:
        yield calls
    finally:
        sys.setprofile(before)


def _check_dataclasses(values: Iterable[Any], arguments: Mapping[str, Any]) -> None:
    """Compare the fields of the dataclasses among some values with their comments."""
    for value in values:
        if not is_dataclass(value) or isinstance(value, type) or not fields(type(value)):
            continue
        bindings = Bindings({name: number for name, number in constants(arguments).items() if len(name) == 1})
        for name, comment in fields(type(value)).items():
            if getattr(value, name, None) is not None:
                bindings.add(comment, getattr(value, name), f"{type(value).__name__}.{name}")
        bindings.close()
