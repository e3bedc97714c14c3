"""The repository: what its files promise about one another, and who imports whom."""

import ast
import dataclasses
import inspect
import json
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

import structure
from folders import both_packages, module
from shapes import fields as shape_fields
from shapes import functions_of, signature

ROOT = Path(__file__).resolve().parents[2]
FOLDERS = {"reference": "pass_sampling.reference", "gpu": "pass_sampling.gpu"}
PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
PROJECT = PYPROJECT["project"]


def read(name: str) -> str:
    return (ROOT / name).read_text(encoding="utf-8")


def modules() -> set[str]:
    """Every Python file of both packages, as a path from the repository root."""
    return {path.relative_to(ROOT).as_posix() for folder in FOLDERS for path in (ROOT / folder).rglob("*.py")}


def test_the_package_list_names_every_folder_with_python_files() -> None:
    folders = {Path(module).parent for module in modules()}
    assert [folder for folder in folders if not (ROOT / folder / "__init__.py").is_file()] == []
    expected = {".".join([FOLDERS[folder.parts[0]], *folder.parts[1:]]) for folder in folders}
    listed = PYPROJECT["tool"]["setuptools"]["packages"]
    assert sorted(listed) == sorted(expected)
    mapping = {package: folder for folder, package in FOLDERS.items()}
    assert PYPROJECT["tool"]["setuptools"]["package-dir"] == mapping


def test_both_packages_are_marked_as_typed() -> None:
    assert all((ROOT / folder / "py.typed").is_file() for folder in FOLDERS)


def pins() -> dict[str, str]:
    """The exact version of each package in constraints.txt."""
    found = {}
    for line in read("constraints.txt").splitlines():
        if line and not line.startswith("#"):
            match = re.fullmatch(r"([\w.-]+)==([\w.]+)( ; .+)?", line)
            assert match, f"constraints.txt: found {line!r}, expected name==version without index or local version"
            found[canonicalize_name(match[1])] = match[2]
    return found


def direct_dependencies() -> list[Requirement]:
    extras = PROJECT["optional-dependencies"].values()
    lines = [*PROJECT["dependencies"], *(line for extra in extras for line in extra)]
    return [requirement for requirement in map(Requirement, lines) if requirement.name != PROJECT["name"]]


@pytest.mark.parametrize("requirement", direct_dependencies(), ids=str)
def test_constraints_pin_every_direct_dependency_within_its_bounds(requirement: Requirement) -> None:
    version = pins()[canonicalize_name(requirement.name)]
    assert requirement.specifier.contains(version)


def test_the_core_needs_three_packages() -> None:
    names = {Requirement(line).name for line in PROJECT["dependencies"]}
    assert names == {"numpy", "safetensors", "ml_dtypes"}


def test_the_citation_gives_the_version_of_the_package() -> None:
    match = re.search(r"^version: \"?([^\"\n]+)", read("CITATION.cff"), re.MULTILINE)
    assert match and match[1] == PROJECT["version"]


def test_the_workflow_runs_on_every_python_that_the_package_claims() -> None:
    claimed = {
        line.rpartition(" ")[2]
        for line in PROJECT["classifiers"]
        if re.fullmatch(r"Programming Language :: Python :: 3\.\d+", line)
    }
    matrix = re.search(r"^ +python: \[(.+)\]$", read(".github/workflows/ci.yml"), re.MULTILINE)
    assert matrix and set(re.findall(r"3\.\d+", matrix[1])) == claimed


def tracked_files() -> list[Path]:
    """What git tracks or would track."""
    command = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    try:
        listing = subprocess.run(command, cwd=ROOT, capture_output=True, check=True).stdout
    except (FileNotFoundError, subprocess.CalledProcessError):
        pytest.skip("needs git and a clone, to know which files belong to the project")
    return [ROOT / name for name in listing.decode().split("\0") if name and (ROOT / name).is_file()]


def test_no_file_mentions_a_place_on_somebodys_machine() -> None:
    homes = "|".join(["work", "root", "home", "Users"])  # pieces, so that this file does not match itself
    places = re.compile(rf"(?<![\w.~-])/({homes})/|[.][.]/" + "shared" + r"\b|\b[A-Z]:\\+" + "Users")
    found = []
    for path in tracked_files():
        try:
            lines = path.read_text(encoding="utf-8").splitlines()
        except UnicodeDecodeError:
            continue  # not text
        found += [
            f"{path.relative_to(ROOT)}:{i}: {line.strip()}" for i, line in enumerate(lines, 1) if places.search(line)
        ]
    assert found == []


SHARED = {  # what the port imports of the reference: nothing that computes with logits
    *("reference.config", "reference.record", "reference.ending", "reference.model.config"),
    *(
        f"reference.checkpoint.{name}"
        for name in ("folder", "generation_settings", "lookahead_folder", "model_settings", "ngram_folder", "tensors")
    ),
    "reference.methods.blockwise",  # the grid of its scores
    *("reference.methods.settings", "reference.methods.pass_two_call"),  # fields and checks
    "reference.methods.tree_rules",  # the form of a rule
    "reference.methods.tree_shape",  # the shape of a tree, and its check
    "reference.model.language_model",  # the protocol of a model's sizes and names
    "reference.model.layers",  # the frequencies of rotary positions, which are constants of a configuration
    "reference.model.table",  # a table that replaces a model in tests
    "reference.model.weights",  # the names of checkpoint tensors, and random ones
    # Fields, checks, shapes of tensors, and folders.
    *(
        f"reference.lookahead.{name}"
        for name in ("adapter", "free_first", "head", "refinement", "rescoring", "vectors")
    ),
    *(f"reference.drafters.{name}" for name in ("first_of", "ngram", "prompt_lookup", "schedule")),
    *("reference.text.decoder", "reference.text.token_decoder", "reference.text.trace"),
    "reference.theory",  # formulas of rates
    *("reference.exactness.chooser", "reference.exactness.unknown_uniform"),  # draws that branch
}


def test_the_port_imports_of_the_reference_what_computes_nothing() -> None:
    assert structure.shared() <= SHARED


def test_the_reference_needs_numpy_alone_and_never_the_port() -> None:
    for home, path in structure.modules().items():
        if home.startswith("reference."):
            tree = ast.parse(path.read_text(encoding="utf-8"))
            roots = {name.partition(".")[0] for dots, name in imports(tree) if not dots}
            reads_files = ".checkpoint." in home or home.endswith(".vectors")
            allowed = {"numpy"} | ({"safetensors", "ml_dtypes"} if reads_files else set())
            assert roots - sys.stdlib_module_names <= allowed, home


def test_nothing_imports_in_a_circle() -> None:
    assert structure.circles() == []


def test_no_file_is_very_long_and_few_are_very_short() -> None:
    lengths = {module: structure.lines(module) for module in structure.modules()}
    assert {module: length for module, length in lengths.items() if length > 420} == {}
    assert len([module for module, length in lengths.items() if length < 40]) <= 6


def imports(tree: ast.AST) -> Iterator[tuple[int, str]]:
    """Yield (dots, module) of every import in a syntax tree, wherever it stands."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((0, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield node.level, node.module or ""


def code_elsewhere() -> Iterator[tuple[str, str]]:
    """Yield the Python outside the packages: tests, notebooks, and the examples in documents."""
    for path in sorted((ROOT / "tests").rglob("*.py")):
        yield path.name, path.read_text(encoding="utf-8")
    for path in sorted((ROOT / "notebooks").rglob("*.ipynb")):
        cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
        code = "\n".join("".join(cell["source"]) for cell in cells if cell["cell_type"] == "code")
        yield path.name, re.sub(r"^[%!].*$", "", code, flags=re.MULTILINE)
    for path in [*sorted(ROOT.glob("*.md")), *sorted((ROOT / "docs").rglob("*.md"))]:
        for block in re.findall(r"^```python\n(.*?)^```", path.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL):
            yield path.name, block


def test_everything_else_imports_the_packages_by_their_installed_names() -> None:
    for name, code in code_elsewhere():
        roots = {imported.partition(".")[0] for dots, imported in imports(ast.parse(code)) if not dots}
        assert not roots & set(FOLDERS), f"{name}: expected pass_sampling.reference or pass_sampling.gpu"


@pytest.mark.parametrize("package", FOLDERS)
def test_importing_a_package_is_quick_and_loads_no_torch(package: str) -> None:
    code = f"""
import sys, time
start = time.process_time()  # other work does not count
import pass_sampling.{package}
print(time.process_time() - start, *[name for name in ("torch", "transformers", "safetensors") if name in sys.modules])
"""
    command = [sys.executable, "-c", code]
    runs = [subprocess.run(command, capture_output=True, text=True, check=True).stdout.split() for _ in range(3)]
    assert [loaded for _, *loaded in runs] == [[], [], []]


ARRAY_TYPES = {"Array", "Probs", "Tokens", "Mask", "Codes", "Inputs", "Tensor", "NDArray"}


def is_array(annotation: Any) -> bool:
    """Say whether a value of this type is an array, or a tuple of some."""
    if not isinstance(annotation, str) or re.match(r"(Callable|Mapping|dict|list|Iterator|Sequence)\b", annotation):
        return False
    return bool(set(re.findall(r"\w+", annotation)) & ARRAY_TYPES)


@both_packages
def test_every_public_array_says_its_shape(package: str) -> None:
    missing = []
    names = [name.partition(".")[2] for name in structure.modules() if name.startswith(f"{package}.")]
    for name in names:
        if name == "__main__":
            continue
        home = module(package, name)
        for function in functions_of(home):
            if any(part.startswith("_") and part != "__init__" for part in function.__qualname__.split(".")):
                continue
            said = signature(function)
            for argument, annotation in function.__annotations__.items():
                has = said.returns is not None if argument == "return" else argument in said.arguments
                if is_array(annotation) and not has:
                    missing.append(f"{name}.{function.__qualname__}, {argument}: {annotation}")
        for each, value in vars(home).items():
            if (
                inspect.isclass(value)
                and dataclasses.is_dataclass(value)
                and value.__module__ == home.__name__
                and not each.startswith("_")
            ):
                arrays = {key for key, annotation in value.__annotations__.items() if is_array(annotation)}
                missing += [f"{name}.{each}.{key}" for key in sorted(arrays - shape_fields(value).keys())]
    assert missing == []
