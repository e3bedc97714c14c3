"""What the files at the top promise about one another: packages, versions, pins, the file tree, paths."""

from __future__ import annotations

import re
import subprocess
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).resolve().parents[1]
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
