"""The documents: each block of Python in them runs, and what scripts write into docs/ is up to date."""

import re
import runpy
from pathlib import Path
from xml.etree import ElementTree

import pytest

ROOT = Path(__file__).resolve().parents[2]
BLOCKS = [
    pytest.param(block, id=f"{path.stem}-{number}")
    for path in sorted((ROOT / "docs").glob("*.md"))
    for number, block in enumerate(
        re.findall(r"^```python\n(.*?)^```", path.read_text("utf-8"), re.DOTALL | re.MULTILINE)
    )
    if not block.startswith('"""torchrun')  # which tests/port/test_several_devices.py runs
]


@pytest.mark.torch
@pytest.mark.parametrize("block", BLOCKS)
def test_every_block_of_python_in_the_documents_runs(
    block: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    exec(block, {"__name__": "__main__"})


@pytest.mark.torch
def test_the_page_of_the_command_line_is_that_of_its_options() -> None:
    maker = runpy.run_path(str(ROOT / "docs" / "make_cli.py"))
    page = maker["page"]()
    assert page == (ROOT / "docs" / "cli.md").read_text(encoding="utf-8"), "expected python docs/make_cli.py to be run"
    assert page.count("\n## ") == len(maker["COMMANDS"]) and page.count("| `--") > 80


def test_the_figures_are_those_that_the_script_draws() -> None:
    drawn = runpy.run_path(str(ROOT / "docs" / "figures.py"))["figures"]()
    stored = {path.name: path.read_text(encoding="utf-8") for path in (ROOT / "docs" / "figures").iterdir()}
    assert stored == drawn, "expected python docs/figures.py to be run"
    for text in drawn.values():
        assert ElementTree.fromstring(text).tag.endswith("svg") and len(text) < 10_000
