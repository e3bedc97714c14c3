"""Execute shape comments: read them from the source, bind their letters anew in every call, and compare.

A shape comment is a trailing comment that begins with a bracket, after an argument, after the return annotation,
after the field of a dataclass, or after an assignment:

    draft_probs: Probs,  # [K, V]
    ) -> tuple[Array, Array]:  # [T, E/2], [T, E/2]

Its dimensions are sums and products of numbers and names, such as `K+1`, `2L+2`, `(H+2G)*E` or `len(states)`; `...`
stands for any dimensions, the same throughout a call; `or` separates alternatives; words after it are prose.
"""

from __future__ import annotations

import ast
import inspect
import io
import re
import sys
import textwrap
import tokenize
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, is_dataclass
from fractions import Fraction
from functools import cache
from types import CodeType, FrameType
from typing import Any

import numpy as np

Shape = tuple[str, ...]  # the dimensions, as expressions
GROUP = re.compile(r"\[([^\]]*)\]")


class ShapeError(AssertionError):
    """An array has another shape than the comment says, or the comment cannot be understood."""


# --- Comments ---


@dataclass(frozen=True)
class Comment:
    """What a comment says: the shapes of one array, or of several in a tuple; or alternatives for one array."""

    text: str
    shapes: tuple[Shape, ...]
    alternatives: bool = False

    @property
    def symbols(self) -> set[str]:
        """The names that dimensions are made of."""
        return {name for shape in self.shapes for dim in shape if dim != "..." for name in names(expression(dim))}


def parse(text: str) -> Comment | None:
    """Return what a trailing comment says about shapes, or None if it is about something else."""
    text = text.removeprefix("#").strip()
    if not text.startswith("["):
        return None
    groups: list[re.Match[str]] = []
    alternatives = False
    for match in GROUP.finditer(text):
        between = text[groups[-1].end() : match.start()] if groups else ", "
        if between != ", " and " or " not in between:
            break  # prose
        alternatives |= between != ", "
        groups.append(match)
    shapes = tuple(_dimensions(match[1]) for match in groups)
    return Comment(text, shapes, alternatives)


def _dimensions(inside: str) -> Shape:
    dims = tuple(part.strip() for part in inside.split(",") if part.strip())
    for dim in dims:
        if dim != "...":
            expression(dim)
    return dims


@cache
def expression(dim: str) -> ast.expr:
    """Parse a dimension; `2G` means `2*G`, and a prime is part of a name.

    Raises:
        ShapeError: it is something else than a sum or product of numbers, names and len(name).
    """
    source = re.sub(r"(?<![\w.])(\d+)(?=[A-Za-z(])", r"\1*", dim).replace("'", "_prime")
    try:
        tree = ast.parse(source, mode="eval").body
        names(tree)
    except (SyntaxError, TypeError):
        raise ShapeError(f"shape comment: found the dimension {dim!r}, expected a sum or product of names") from None
    return tree


def names(tree: ast.expr) -> set[str]:
    """Return the names in an expression; `len(x)` counts as one."""
    match tree:
        case ast.Constant(value=int()):
            return set()
        case ast.Name(id=name):
            return {name}
        case ast.Call(func=ast.Name(id="len"), args=[ast.Name()]):
            return {ast.unparse(tree)}
        case ast.BinOp(left=left, right=right, op=ast.Add() | ast.Sub() | ast.Mult() | ast.Div()):
            return names(left) | names(right)
    raise TypeError(ast.dump(tree))


def evaluate(tree: ast.expr, values: Mapping[str, int | Fraction]) -> Fraction:
    """Return the value of an expression whose names all have one."""
    match tree:
        case ast.Constant(value=int() as number):
            return Fraction(number)
        case ast.BinOp(left=left, right=right, op=op):
            one, two = evaluate(left, values), evaluate(right, values)
            match op:
                case ast.Add():
                    return one + two
                case ast.Sub():
                    return one - two
                case ast.Mult():
                    return one * two
            return one / two
    return Fraction(values[ast.unparse(tree)])


# --- Shapes ---


@dataclass
class Bindings:
    """The letters of one call, and what is still to be solved for them."""

    values: dict[str, int]
    rest: tuple[int, ...] | None = None
    equations: list[tuple[str, int, str]] = field(default_factory=list)  # dimension, length, where

    def add(self, comment: Comment, value: Any, where: str) -> None:
        """Compare the shape of an array, or of the arrays in a tuple, with a comment."""
        if comment.alternatives:
            return self._add_either(comment, shape_of(value, where), where)
        values = [value]
        if isinstance(value, tuple):
            arrays = [part for part in value if hasattr(part, "shape")]
            values = arrays if len(arrays) == len(comment.shapes) else values
        if len(values) != len(comment.shapes):
            raise ShapeError(f"{where}: found {len(values)} arrays, expected {comment.text}")
        for dims, part in zip(comment.shapes, values, strict=True):
            self._add(dims, shape_of(part, where), where)
        return None

    def _add_either(self, comment: Comment, shape: tuple[int, ...], where: str) -> None:
        """Take the first alternative that agrees with all that is known."""
        for dims in comment.shapes:
            trial = Bindings(dict(self.values), self.rest, list(self.equations))
            try:
                trial._add(dims, shape, where)
            except ShapeError:
                continue
            self.values, self.rest, self.equations = trial.values, trial.rest, trial.equations
            return
        raise ShapeError(f"{where}: found shape {list(shape)}, expected {comment.text}")

    def _add(self, dims: Shape, shape: tuple[int, ...], where: str) -> None:
        if not _fits(dims, shape):
            raise ShapeError(f"{where}: found shape {list(shape)}, expected [{', '.join(dims)}]")
        if "..." in dims:
            place, extra = dims.index("..."), len(shape) - len(dims) + 1
            rest = shape[place : place + extra]
            if self.rest is not None and rest != self.rest:
                raise ShapeError(f"{where}: found {list(rest)} in the place of ..., expected {list(self.rest)}")
            self.rest = rest
            dims = dims[:place] + dims[place + 1 :]
            shape = shape[:place] + shape[place + extra :]
        self.equations += [(dim, length, where) for dim, length in zip(dims, shape, strict=True)]
        self.solve()

    def solve(self) -> None:
        """Bind what can be bound; check what is bound."""
        before = -1
        while before != len(self.equations):
            before = len(self.equations)
            self.equations = [equation for equation in self.equations if not self._settled(*equation)]

    def _settled(self, dim: str, length: int, where: str) -> bool:
        tree = expression(dim)
        unknown = names(tree) - self.values.keys()
        if len(unknown) > 1:
            return False
        for name in unknown:  # linear in one unknown
            at_0, at_1 = (evaluate(tree, {**self.values, name: value}) for value in (0, 1))
            solution = (length - at_0) / (at_1 - at_0) if at_0 != at_1 else Fraction(-1)
            if solution.denominator != 1 or solution < 0:
                raise ShapeError(f"{where}: found {length} for {dim}, expected a length of that form")
            self.values[name] = int(solution)
        if evaluate(tree, self.values) != length:
            known = ", ".join(f"{name}={self.values[name]}" for name in sorted(names(tree)))
            raise ShapeError(f"{where}: found {length} for {dim}, expected {evaluate(tree, self.values)} ({known})")
        return True

    def close(self) -> None:
        """Raise ShapeError if something was never settled, so that it was not checked."""
        self.solve()
        for dim, length, where in self.equations:
            raise ShapeError(f"{where}: found {length} for {dim}, expected names that the call determines")


def _fits(dims: Shape, shape: tuple[int, ...]) -> bool:
    return len(shape) >= len(dims) - 1 if "..." in dims else len(shape) == len(dims)


def shape_of(value: Any, where: str) -> tuple[int, ...]:
    """Return the shape of an array, a tensor, a number or nested sequences."""
    if hasattr(value, "shape"):
        return tuple(value.shape)
    try:
        return np.shape(value)
    except ValueError:
        raise ShapeError(f"{where}: found sequences of different lengths, expected an array") from None


# --- Where comments stand ---


@dataclass(frozen=True)
class Signature:
    """The shape comments of a function: on its arguments, its return line, and what it assigns."""

    name: str
    arguments: Mapping[str, Comment]
    returns: Comment | None
    locals: Mapping[str, Comment]  # "name" or "self.name"
    may_return_none: bool

    @property
    def comments(self) -> list[Comment]:
        """All of them."""
        last = [] if self.returns is None else [self.returns]
        return [*self.arguments.values(), *last, *self.locals.values()]


def _source(thing: Any) -> tuple[ast.Module, dict[int, Comment]]:
    """Return the syntax tree of a function or class, and its shape comments by line."""
    text = textwrap.dedent(inspect.getsource(thing))
    comments = {}
    for token in tokenize.generate_tokens(io.StringIO(text).readline):
        comment = parse(token.string) if token.type == tokenize.COMMENT else None
        if comment is not None:
            comments[token.start[0]] = comment
    return ast.parse(text), comments


@cache
def signature(function: Callable[..., Any]) -> Signature:
    """Read the shape comments of a function."""
    tree, comments = _source(function)
    node = tree.body[0]
    assert isinstance(node, ast.FunctionDef)
    last = node.returns.end_lineno if node.returns is not None else None
    parameters = [*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs]
    arguments = {
        parameter.arg: comments[parameter.lineno]
        for parameter in parameters
        if parameter.lineno in comments and parameter.lineno != last
    }
    assigned = {}
    for statement in ast.walk(node):
        if isinstance(statement, ast.Assign) and statement.end_lineno in comments:
            assigned[ast.unparse(statement.targets[0])] = comments[statement.end_lineno]
    annotation = "" if node.returns is None else ast.unparse(node.returns)
    returns = None if last is None else comments.get(last)
    return Signature(function.__qualname__, arguments, returns, assigned, "None" in annotation)


@cache
def fields(cls: type) -> dict[str, Comment]:
    """Read the shape comments on the fields of a dataclass."""
    tree, comments = _source(cls)
    node = tree.body[0]
    assert isinstance(node, ast.ClassDef)
    return {
        statement.target.id: comments[statement.end_lineno]
        for statement in node.body
        if isinstance(statement, ast.AnnAssign)
        and isinstance(statement.target, ast.Name)
        and statement.end_lineno in comments
    }


def functions_of(module: Any) -> Iterator[Callable[..., Any]]:
    """Yield every function and method that a module defines, properties and static methods included."""
    for thing in vars(module).values():
        if getattr(thing, "__module__", None) == module.__name__:
            yield from _functions(thing, module.__name__)


def _functions(thing: Any, home: str) -> Iterator[Callable[..., Any]]:
    if inspect.isclass(thing):
        for member in vars(thing).values():
            yield from _functions(member, home)
    for name in ("fget", "func", "__func__", "__wrapped__"):
        thing = getattr(thing, name, thing)
    if inspect.isfunction(thing) and thing.__module__ == home and not thing.__code__.co_filename.startswith("<"):
        yield thing


# --- Execution ---

CONFIG_LETTERS = {
    "V": "vocab_size",
    "D": "hidden_size",
    "F": "intermediate_size",
    "H": "num_attention_heads",
    "G": "num_key_value_heads",
    "E": "head_dim",
}


def constants(arguments: Mapping[str, Any]) -> dict[str, int]:
    """Return the letters that a call knows before it looks at an array.

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
            known[f"len({name})"] = len(value) if getattr(value, "shape", (0,)) else 0
    return known


def check_fields(instance: Any, known: Mapping[str, int]) -> None:
    """Compare the fields of a dataclass with their comments."""
    comments = fields(type(instance))
    bindings = Bindings(dict(known))
    for name, comment in comments.items():
        value = getattr(instance, name, None)
        if value is not None:
            bindings.add(comment, value, f"{type(instance).__name__}.{name}")
    bindings.close()


@contextmanager
def checked(functions: Iterable[Callable[..., Any]]) -> Iterator[Counter[str]]:
    """Compare every call of the functions with their comments; yield how often each was called.

    Dataclasses that go in or come out are compared with the comments on their fields.

    Raises:
        ShapeError: out of the call that is at fault.
    """
    specs: dict[CodeType, Signature] = {
        function.__code__: signature(function) for function in functions if not inspect.isgeneratorfunction(function)
    }
    calls: Counter[str] = Counter()
    running: dict[FrameType, Bindings] = {}

    def profile(frame: FrameType, event: str, result: Any) -> None:
        spec = specs.get(frame.f_code)
        if spec is None or event not in ("call", "return"):
            return
        here = frame.f_locals
        if event == "call":
            arguments = {name: here[name] for name in frame.f_code.co_varnames[: _arity(frame.f_code)]}
            bindings = running[frame] = Bindings(constants(arguments))
            calls[f"{frame.f_globals['__name__']}.{spec.name}"] += 1
            for name, comment in sorted(spec.arguments.items(), key=lambda item: item[1].alternatives):
                if arguments[name] is not None:
                    bindings.add(comment, arguments[name], f"{spec.name}, argument {name}")
            for value in arguments.values():
                _check_dataclass(value, arguments, specs)
            return
        bindings = running.pop(frame)
        if spec.returns is not None and not (result is None and spec.may_return_none):
            bindings.add(spec.returns, result, f"{spec.name}, return value")
        for name, comment in spec.locals.items():
            value = getattr(here["self"], name[5:]) if name.startswith("self.") else here.get(name)
            if value is not None:
                bindings.add(comment, value, f"{spec.name}, {name}")
        bindings.close()
        for value in result if isinstance(result, tuple) else (result,):
            _check_dataclass(value, here, specs)

    before = sys.getprofile()
    sys.setprofile(profile)
    try:
        yield calls
    finally:
        sys.setprofile(before)


def _arity(code: CodeType) -> int:
    return code.co_argcount + code.co_kwonlyargcount


def _check_dataclass(value: Any, arguments: Mapping[str, Any], specs: Mapping[CodeType, Signature]) -> None:
    if is_dataclass(value) and not isinstance(value, type) and fields(type(value)):
        check_fields(value, {name: length for name, length in constants(arguments).items() if len(name) == 1})
