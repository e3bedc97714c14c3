"""A release: one version everywhere, a source archive with every file, and notebooks that install what they import."""

import ast
import importlib.util
import json
import re
import subprocess
import tomllib
from pathlib import Path
from types import SimpleNamespace

import pytest

ROOT = Path(__file__).resolve().parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))


def read(name: str) -> str:
    return (ROOT / name).read_text(encoding="utf-8")


def test_package_citation_and_newest_changes_have_one_version() -> None:
    cited = re.search(r"^version: (.+)$", read("CITATION.cff"), re.MULTILINE)
    released = re.search(r"^## \[(\d[^\]]*)\] - \d{4}-\d\d-\d\d$", read("CHANGELOG.md"), re.MULTILINE)
    assert cited and released and cited[1] == released[1] == PROJECT["version"]


def test_the_source_archive_holds_every_file() -> None:
    """Its tests read them, and its pages link to them."""
    command = ["git", "ls-files", "-z"]
    try:
        names = subprocess.run(command, cwd=ROOT, capture_output=True, check=True, text=True).stdout.split("\0")[:-1]
    except (FileNotFoundError, subprocess.CalledProcessError):
        pytest.skip("needs git and a clone, to know which files belong to the project")
    lines = [line.split() for line in read("MANIFEST.in").splitlines()]
    folders = {"reference", "gpu", *(name for command, *rest in lines if command == "graft" for name in rest)}
    files = {name for command, *rest in lines if command == "include" for name in rest}
    files |= {"README.md", "LICENSE", "MANIFEST.in", "pyproject.toml"}  # setuptools adds these
    assert len(names) > 300
    assert [name for name in names if name not in files and name.partition("/")[0] not in folders] == []


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
@pytest.mark.parametrize("installed", [True, False])
def test_a_notebook_installs_the_package_only_where_it_is_missing(
    path: Path, installed: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
    first = next("".join(cell["source"]) for cell in cells if cell["cell_type"] == "code")
    guard = ast.Module(ast.parse(first).body[:2], [])
    asked: list[tuple[str, str]] = []
    shell = SimpleNamespace(run_line_magic=lambda *words: asked.append(words))
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: object() if installed else None)
    exec(compile(guard, path.name, "exec"), {"get_ipython": lambda: shell})
    assert asked == ([] if installed else [("pip", "install -q '..[gpu,notebooks]'")])
    assert {"gpu", "notebooks"} <= PROJECT["optional-dependencies"].keys()
