"""The structure of both packages: who imports whom, how long files are. `python tests/structure.py` prints it."""

import ast
from collections.abc import Iterator
from functools import cache
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PACKAGES = ("reference", "gpu")
HEART = tuple(
    f"reference.{name}"
    for name in (
        *("sampling", "uniforms", "verify", "generation", "ending", "record", "config"),
        *("methods.base", "methods.autoregressive", "methods.pass_two_call"),
    )
)
DECODING = (*HEART, "reference.model.transformer", "reference.model.config")


@cache
def modules() -> dict[str, Path]:
    """Every module of both packages but the packages' own files: `reference.verify` and its path."""
    return {
        ".".join(path.relative_to(ROOT).with_suffix("").parts): path
        for package in PACKAGES
        for path in sorted((ROOT / package).rglob("*.py"))
        if path.name != "__init__.py"
    }


def lines(module: str) -> int:
    """How many lines a module has."""
    return len(modules()[module].read_text(encoding="utf-8").splitlines())


@cache
def imports(module: str, anywhere: bool = False) -> frozenset[str]:
    """The modules that one imports when it is loaded, or `anywhere`: also in functions and for types."""
    tree = ast.parse(modules()[module].read_text(encoding="utf-8"))
    nodes = ast.walk(tree) if anywhere else _loaded(tree)
    return frozenset(name for node in nodes if isinstance(node, ast.ImportFrom) for name in _named(module, node))


def _loaded(tree: ast.Module) -> Iterator[ast.AST]:
    """The statements at the top of a module that run when it is loaded."""
    for node in tree.body:
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING":
            continue
        yield node


def _named(module: str, node: ast.ImportFrom) -> Iterator[str]:
    """The modules that an import names."""
    if node.level:
        base = module.split(".")[: -node.level]
        home = ".".join([*base, *([node.module] if node.module else [])])
    elif (node.module or "").startswith("pass_sampling."):
        home = (node.module or "").removeprefix("pass_sampling.")
    else:
        return
    if home in modules():
        yield home
        return
    for alias in node.names:
        if f"{home}.{alias.name}" in modules():
            yield f"{home}.{alias.name}"
        else:  # a name that a package's own file hands on
            yield from _handed_on(home, alias.name)


def _handed_on(package: str, name: str) -> Iterator[str]:
    path = ROOT / package.replace(".", "/") / "__init__.py"
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and name in {alias.asname or alias.name for alias in node.names}:
            yield from _named(f"{package}.__init__", node)


def closure(*roots: str, anywhere: bool = False) -> set[str]:
    """Every module that is loaded with some."""
    found: set[str] = set()
    waiting = list(roots)
    while waiting:
        module = waiting.pop()
        if module not in found:
            found.add(module)
            waiting += imports(module, anywhere)
    return found


def circles(anywhere: bool = False) -> list[set[str]]:
    """Sets of modules that import each other, however far around."""
    reached = {module: closure(*imports(module, anywhere), anywhere=anywhere) for module in modules()}
    found: list[set[str]] = []
    for module, others in reached.items():
        if module in others and not any(module in circle for circle in found):
            found.append({other for other in others if module in reached[other]})
    return found


def shared() -> set[str]:
    """The modules of the reference that the port imports."""
    return {
        other
        for module in modules()
        if module.startswith("gpu.")
        for other in imports(module, anywhere=True)
        if other.startswith("reference.")
    }


def main() -> None:
    """Print what the house rules bound."""
    for folder in (*PACKAGES, "tests"):
        texts = [path.read_text(encoding="utf-8") for path in (ROOT / folder).rglob("*.py")]
        print(f"{folder}: {len(texts)} files, {sum(len(text.splitlines()) for text in texts)} lines")
    print(f"heart: {len(HEART)} files, {sum(map(lines, HEART))} lines")
    found = closure(*DECODING)
    print(f"loaded with it and the transformer: {len(found)} files, {sum(map(lines, found))} lines")
    print(f"  {' '.join(sorted(found))}")
    print(f"import circles: {len(circles())} when loaded, {len(circles(anywhere=True))} with imports in functions")
    for circle in circles(anywhere=True):
        print(f"  {' '.join(sorted(circle))}")
    short = sorted(module for module in modules() if lines(module) < 40)
    print(f"files under 40 lines: {len(short)} {' '.join(short)}")
    long = {module: lines(module) for module in modules() if lines(module) > 400}
    print(f"files above 400 lines: {long}")
    print(f"the port imports of the reference: {' '.join(sorted(shared()))}")


if __name__ == "__main__":
    main()
