"""The documents: each block of Python in them runs, and the page of the command line is that of its options."""

import re
import runpy
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
BLOCKS = [
    pytest.param(block, id=f"{path.stem}-{number}")
    for path in sorted((ROOT / "docs").glob("*.md"))
    for number, block in enumerate(
        re.findall(r"^```python\n(.*?)^```", path.read_text("utf-8"), re.DOTALL | re.MULTILINE)
    )
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
