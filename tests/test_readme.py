"""The README's Python runs as it stands, in both packages, on the model in the box."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

from models import PACKAGES

README = Path(__file__).parent.parent / "README.md"
BLOCKS = re.findall(r"^```python\n(.*?)^```", README.read_text(encoding="utf-8"), flags=re.DOTALL | re.MULTILINE)


def test_there_is_an_example_of_use_and_one_of_the_proof() -> None:
    assert len(BLOCKS) == 2
    lines = [line for line in BLOCKS[0].splitlines() if line.strip()]
    assert len(lines) <= 10


@pytest.mark.torch  # the tokenizer is transformers'
@pytest.mark.parametrize("name", PACKAGES)
def test_the_ten_lines_run_on_the_model_in_the_box(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    scope: dict[str, Any] = {}
    exec(BLOCKS[0].replace("pass_sampling.reference", f"pass_sampling.{name}"), scope)
    assert 0 < len(scope["result"].tokens) <= 64
    assert "tokens per pass" in capsys.readouterr().out


def test_the_proof_runs_and_adds_up(capsys: pytest.CaptureFixture[str]) -> None:
    scope: dict[str, Any] = {}
    exec(BLOCKS[1], scope)
    assert abs(sum(scope["law"].values()) - 1.0) < 1e-12
    assert scope["law"].largest_deviation(scope["plain"]) < 1e-15
    printed = capsys.readouterr().out.splitlines()
    assert f"It prints {printed[0]}," in README.read_text(encoding="utf-8")


@pytest.mark.torch
def test_the_example_of_the_page_on_verification_prints_what_it_says(capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("torch")
    page = (README.parent / "docs" / "verification.md").read_text(encoding="utf-8")
    (block,) = re.findall(r"^```python\n(.*?)^```", page, flags=re.DOTALL | re.MULTILINE)
    exec(block, {})
    printed = capsys.readouterr().out
    assert printed == "11 executions; law of the first token: [0.5, 0.3, 0.2]\n"
    assert "It prints 11 executions, and 0.5, 0.3, 0.2." in page
