"""Change one thing in the heart at a time and run its tests: `python tests/mutation.py --results FILE [MODULE ...]`.

The tests are imported once. Each mutant replaces the code of the loaded module in a forked process, so it touches no
file and does not start Python. A first round is quick, a second one tries its survivors with all examples and more
tests. `FILE` keeps the outcomes: the same command resumes a run. `docs/mutants.md` must argue each survivor.
"""

import argparse
import ast
import json
import os
import re
import signal
import sys
from collections import Counter
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from types import FunctionType, ModuleType
from typing import Any

import pytest
from hypothesis import Phase, settings

ROOT = Path(__file__).resolve().parents[1]
METHODS = ["pass_two_call", "autoregressive", "base"]
TESTS = {  # of each module the test files that find most of its mutants, then others
    **dict.fromkeys(["reference/verify.py", "gpu/verify.py"], ("verify", "output_distribution")),
    **dict.fromkeys(["reference/sampling.py", "gpu/sampling.py"], ("sampling", "coupling")),
    **{
        f"reference/methods/{name}.py": ("generation", "trace coupling output_distribution pass_one_call")
        for name in METHODS
    },
    **{
        f"gpu/methods/{name}.py": ("generation", "trace coupling output_distribution pass_one_call")
        for name in METHODS[:2]
    },
    **dict.fromkeys(["reference/uniforms.py", "gpu/uniforms.py"], ("uniforms", "verify trace coupling")),
    **dict.fromkeys(["reference/record.py", "reference/generation.py"], ("generation", "coupling")),
    "reference/config.py": ("config generation", "uniforms ending coupling"),
    "reference/ending.py": ("ending generation", "coupling output_distribution"),
}
SECONDS = 120  # of a processor; a mutant that takes longer does not end
ROUNDS = {"quick": (10, 0), "thorough": (50, 1)}  # examples of a property, and the last of the tests above
OTHERS = {  # operators, and what they become
    **{ast.Lt: (ast.LtE, ast.GtE), ast.LtE: (ast.Lt, ast.Gt), ast.Gt: (ast.GtE, ast.LtE), ast.GtE: (ast.Gt, ast.Lt)},
    **{ast.Eq: (ast.NotEq,), ast.NotEq: (ast.Eq,), ast.Is: (ast.IsNot,), ast.IsNot: (ast.Is,), ast.In: (ast.NotIn,)},
    **{
        ast.NotIn: (ast.In,),
        ast.And: (ast.Or,),
        ast.Or: (ast.And,),
        ast.BitAnd: (ast.BitOr,),
        ast.BitOr: (ast.BitAnd,),
    },
    **{ast.Add: (ast.Sub,), ast.Sub: (ast.Add,), ast.Mult: (ast.Div,), ast.Div: (ast.Mult,), ast.FloorDiv: (ast.Mult,)},
    **{ast.Pow: (ast.Mult,), ast.Mod: (ast.Mult,), ast.MatMult: (), ast.LShift: (ast.RShift,)},
}


def changes(node: ast.AST) -> Iterator[tuple[ast.AST, ast.AST]]:
    """Yield what to replace in a node, and by what."""
    match node:
        case ast.Compare(left, ops, comparators):
            for i, op in enumerate(ops):
                for other in OTHERS[type(op)]:
                    yield node, ast.Compare(left, [*ops[:i], other(), *ops[i + 1 :]], comparators)
        case ast.BoolOp(op, values):
            yield from ((node, ast.BoolOp(other(), values)) for other in OTHERS[type(op)])
        case ast.BinOp(left, op, right):
            yield from ((node, ast.BinOp(left, other(), right)) for other in OTHERS[type(op)])
        case ast.UnaryOp(_, operand):
            yield node, operand
        case ast.Constant(bool(value)):
            yield node, ast.Constant(not value)
        case ast.Constant(int(value) | float(value)):
            yield node, ast.Constant(value + 1)
        case ast.Constant(str()) | ast.JoinedStr():
            yield node, ast.Constant("no such")
        case ast.Return(value) if value is not None:
            yield node, ast.Return(ast.Constant(None))
        case ast.Expr() | ast.AugAssign():
            yield node, ast.Pass()
        case ast.Call(function, arguments, keywords):
            for i in range(len(keywords)):
                yield node, ast.Call(function, arguments, keywords[:i] + keywords[i + 1 :])
        case ast.If() | ast.IfExp():
            yield from ((node.test, ast.Constant(value)) for value in (True, False))


def places(node: ast.AST, scope: str = "") -> Iterator[tuple[str, ast.AST]]:
    """Yield every node that runs, and the function that it is in; not types, docstrings and parts of f-strings."""
    scope = f"{scope}.{node.name}".strip(".") if isinstance(node, ast.FunctionDef | ast.ClassDef) else scope
    yield scope, node
    for field, value in ast.iter_fields(node):
        if field not in ("annotation", "returns", "decorator_list", "bases") and not isinstance(node, ast.JoinedStr):
            for child in value if isinstance(value, list) else [value]:
                is_text = isinstance(child, ast.Expr) and isinstance(child.value, ast.Constant)
                is_for_types = isinstance(child, ast.If) and ast.unparse(child.test) == "TYPE_CHECKING"
                if isinstance(child, ast.AST) and not is_text and not is_for_types:
                    yield from places(child, scope)


def mutants(module: str) -> dict[str, str]:
    """Return the text of a module with each change, by the name that `docs/mutants.md` gives to it."""
    source, found, seen = (ROOT / module).read_text(encoding="utf-8"), dict[str, str](), Counter[str]()
    text, starts = source.encode(), [0]
    for line in text.splitlines(keepends=True):
        starts.append(starts[-1] + len(line))
    for scope, node in places(ast.parse(source)):
        for old, new in changes(node):
            start, end = starts[old.lineno - 1] + old.col_offset, starts[old.end_lineno - 1] + old.end_col_offset
            written = f"({ast.unparse(new)})" if isinstance(new, ast.expr) else ast.unparse(new)
            name = f"{module} {scope}: {short(old)} -> {short(new)}"
            if isinstance(old, ast.Call) and isinstance(new, ast.Call):
                (left_out,) = {*map(ast.unparse, old.keywords)} - {*map(ast.unparse, new.keywords)}
                name = f"{module} {scope}: {short(old.func)} without {left_out}"
            seen[name] += 1
            name += f" (#{seen[name]})" if seen[name] > 1 else ""
            found[name] = (text[:start] + written.encode() + text[end:]).decode()
    return found


def short(node: ast.AST) -> str:
    """Return the beginning of a node's text, in one line."""
    text = " ".join(ast.unparse(node).split())
    return text if len(text) <= 70 else f"{text[:70]}…"


def put(text: str, home: ModuleType) -> None:
    """Give the functions, classes and constants of a loaded module the code and the values of another text."""
    fresh = ModuleType(home.__name__)
    vars(fresh).update({name: value for name, value in vars(home).items() if name.startswith("__")})
    exec(compile(text, home.__file__ or "", "exec"), vars(fresh))
    _transplant(home, fresh, home.__name__)


def _transplant(old: Any, new: Any, module: str) -> None:
    for name, value in list(vars(new).items()):
        mine = vars(old).get(name)
        for part in ("fget", "func", "__func__"):  # of a property, a cached one, a static method
            if isinstance(getattr(value, part, None), FunctionType):
                mine, value = getattr(mine, part), getattr(value, part)
        if isinstance(value, type) and value.__module__ == module:
            _transplant(mine, value, module)
        elif isinstance(value, FunctionType) and value.__module__ in (module, "builtins"):
            for attribute in ("__code__", "__defaults__", "__kwdefaults__"):
                setattr(mine, attribute, getattr(value, attribute))
        elif isinstance(value, int | float | str) and not name.startswith("__"):
            setattr(old, name, value)
        elif isinstance(value, dict) and name.isupper():
            for key in mine.keys() - value.keys():
                del mine[key]


class Mutation:
    """A plugin of pytest that runs the collected tests for each mutant that no test has killed, instead of once."""

    def __init__(self, module: str, results: Path, examples: int):
        """Take the mutants of a module."""
        self.module, self.results, self.examples, self.kills = module, results, examples, Counter[str]()

    def pytest_sessionstart(self) -> None:
        """Do not make examples smaller; conftest.py has loaded a profile, and tests are not imported yet."""
        quick: dict[str, Any] = {"phases": [Phase.explicit, Phase.generate], "report_multiple_bugs": False}
        settings.register_profile("mutants", settings.default, max_examples=self.examples, **quick)
        settings.load_profile("mutants")

    def pytest_runtestloop(self, session: pytest.Session) -> bool:
        """Run the tests without a mutant, then with each; a test that has killed one runs first."""
        home = import_module(f"pass_sampling.{self.module.removesuffix('.py').replace('/', '.')}")
        if killer := self._killer(session, home, (ROOT / self.module).read_text(encoding="utf-8")):
            raise pytest.UsageError(f"{self.module}: {killer} fails without a mutant")
        texts = mutants(self.module)
        for name in waiting(self.module, self.results, self.examples):
            killer = self._killer(session, home, texts[name])
            self.kills[killer] += 1
            session.items.sort(key=lambda item: -self.kills[item.nodeid])
            with self.results.open("a", encoding="utf-8") as file:
                print(json.dumps([name, killer, self.examples]), file=file)
        return True

    def _killer(self, session: pytest.Session, home: ModuleType, text: str) -> str:
        """Return the first test that fails with another text of the module, or nothing."""
        reading, writing = os.pipe()
        child = os.fork()
        if child == 0:
            signal.setitimer(signal.ITIMER_PROF, SECONDS)
            try:
                put(text, home)
                for item in session.items:
                    item.config.hook.pytest_runtest_protocol(item=item, nextitem=None)
                    if session.testsfailed:
                        os.write(writing, item.nodeid.encode())
                        break
            except BaseException as error:
                os.write(writing, repr(error).encode())
            os._exit(0)
        os.close(writing)
        with open(reading, "rb") as pipe:
            said = pipe.read().decode()
        status = os.waitpid(child, 0)[1]
        return said or ("it does not end" if status else "")


def outcomes(results: Path) -> dict[str, Any]:
    """Return the test that killed each mutant, or nothing, and the examples of its round."""
    lines = results.read_text(encoding="utf-8").splitlines() if results.exists() else []
    return {name: outcome for name, *outcome in map(json.loads, lines)}


def waiting(module: str, results: Path, examples: int) -> list[str]:
    """Return the mutants that no round with so many examples has tried and none has killed."""
    found = outcomes(results)
    return [name for name in mutants(module) if not found.get(name, [""])[0] and found.get(name, ["", 0])[1] < examples]


def main() -> int:
    """Run the mutants of some modules; return 1 if one survives that is not argued."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("modules", nargs="*", default=[*TESTS], metavar="MODULE")
    parser.add_argument("--results", type=Path, required=True, metavar="FILE")
    options = parser.parse_args()
    os.environ |= {"CI": "true", "OMP_NUM_THREADS": "1", "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"}  # always one example
    for module in options.modules:
        for examples, last in ROUNDS.values():
            if not waiting(module, options.results, examples):
                continue
            if (child := os.fork()) == 0:  # which loads the module afresh
                names = " ".join(TESTS[module][: last + 1]).split()
                command = ["-q", "--tb=no", "-p", "no:cacheprovider", "--rootdir", str(ROOT), "-m", "not slow"]
                own = (
                    ["-k", "not gpu" if module.startswith("reference") else "gpu or not reference"] if not last else []
                )
                files = [str(path) for name in names for path in (ROOT / "tests").glob(f"*/test_{name}.py")]
                os._exit(pytest.main([*command, *own, *files], plugins=[Mutation(module, options.results, examples)]))
            if os.waitpid(child, 0)[1]:
                return 1
    found, names = outcomes(options.results), [name for module in options.modules for name in mutants(module)]
    survivors = {name for name in names if not found[name][0]}
    page = (ROOT / "docs/mutants.md").read_text(encoding="utf-8")
    unknown = survivors - set(re.findall(r"^- `(.+?)`: \S", page, re.MULTILINE))
    print(f"{len(names)} mutants, {len(survivors)} survive: {1 - len(survivors) / len(names):.1%} are killed")
    print(
        "\n".join(f"docs/mutants.md: expected a test that kills it, or an argument: {name}" for name in sorted(unknown))
    )
    return int(bool(unknown))


if __name__ == "__main__":
    sys.exit(main())
