"""The README's Python runs as it stands, in both packages, on the bundled model; so do the programs of the pages."""

import re
from pathlib import Path
from typing import Any

import pytest

from models import PACKAGES

ROOT = Path(__file__).resolve().parents[2]
README = ROOT / "README.md"
METHODS = (ROOT / "docs" / "methods.md").read_text(encoding="utf-8")
PROGRAMS = re.findall(r"^```python\n(.*?)^```\n\n```\n(.*?)^```", METHODS, flags=re.DOTALL | re.MULTILINE)
BLOCKS = re.findall(r"^```python\n(.*?)^```", README.read_text(encoding="utf-8"), flags=re.DOTALL | re.MULTILINE)


@pytest.mark.torch  # the tokenizer is transformers'
@pytest.mark.parametrize("name", PACKAGES)
def test_the_ten_lines_run_on_the_bundled_model(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    scope: dict[str, Any] = {}
    assert len(BLOCKS) == 2 and len([line for line in BLOCKS[0].splitlines() if line.strip()]) <= 10
    exec(BLOCKS[0].replace("pass_sampling.reference", f"pass_sampling.{name}"), scope)
    assert 0 < len(scope["result"].tokens) <= 64
    assert "tokens per pass" in capsys.readouterr().out


def test_the_proof_runs_and_adds_up(capsys: pytest.CaptureFixture[str]) -> None:
    scope: dict[str, Any] = {}
    exec(BLOCKS[1], scope)
    assert abs(sum(scope["distribution"].values()) - 1.0) < 1e-12
    assert scope["distribution"].largest_deviation(scope["plain"]) < 1e-15
    printed = capsys.readouterr().out.splitlines()
    assert f"It prints {printed[0]}," in README.read_text(encoding="utf-8")


@pytest.mark.torch
def test_the_example_of_the_page_on_verification_prints_what_it_says(capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("torch")
    page = (README.parent / "docs" / "verification.md").read_text(encoding="utf-8")
    (block,) = re.findall(r"^```python\n(.*?)^```", page, flags=re.DOTALL | re.MULTILINE)
    exec(block, {})
    printed = capsys.readouterr().out
    assert printed == "11 executions; distribution of the first token: [0.5, 0.3, 0.2]\n"
    assert "It prints 11 executions, and 0.5, 0.3, 0.2." in page


@pytest.mark.torch
def test_pages_name_methods_of_the_command_and_the_table_of_methods_names_all() -> None:
    from pass_sampling.gpu.decode_options import method_names

    pages = [README, ROOT / "CONTRIBUTING.md", *(ROOT / "docs").glob("*.md"), *(ROOT / "notebooks").glob("*.ipynb")]
    text = "\n".join(page.read_text(encoding="utf-8") for page in pages)
    named = re.findall(r"--method ([a-z-]+)", text)
    (listed,) = re.findall(r"`generate --method` takes(.*?);", text, flags=re.DOTALL)
    named += re.findall(r"`([a-z-]+)`", listed)
    assert len(named) > 10 and set(named) <= set(method_names()), set(named) - set(method_names())
    table = re.search(r"\| system \|.+?\n\n", METHODS, re.DOTALL)
    assert table is not None and set(re.findall(r"--method ([a-z-]+)", table[0])) == set(method_names())


@pytest.mark.parametrize(("program", "printed"), PROGRAMS, ids=["verification", "lenience", "candidates"])
def test_the_programs_of_the_page_on_methods_print_the_output_below_them(program, printed, capsys):
    assert METHODS.count("```python") == len(PROGRAMS)
    exec(program, {})
    assert capsys.readouterr().out == printed


@pytest.mark.torch
def test_the_examples_of_the_page_on_samplers_print_the_output_below_them(capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("torch")
    page = (README.parent / "docs" / "test-your-sampler.md").read_text(encoding="utf-8")
    examples = re.findall(r"^```python\n(.*?)^```\n\n```\n(.*?)^```", page, flags=re.DOTALL | re.MULTILINE)
    assert len(examples) == page.count("```python") == 3
    for program, printed in examples:
        exec(program, {})
        assert capsys.readouterr().out == printed


def test_no_damage_of_lenience_on_that_page_is_above_its_bound() -> None:
    figures = re.findall(r"damage ([\d.]+), at most ([\d.]+);", PROGRAMS[1][1])
    assert len(figures) == 4 and all(float(damage) <= float(most) for damage, most in figures)


@pytest.mark.parametrize("page", ["methods", "verification"])
def test_the_tests_and_files_that_a_page_names_are_there(page: str) -> None:
    text = (ROOT / "docs" / f"{page}.md").read_text(encoding="utf-8")
    files = re.findall(r"`((?:reference|gpu|tests)/[\w/.-]+?\.py)\b", text)
    tests = re.findall(r"`(?:(test_\w+)\.py::)?(test_\w+)`", text)
    assert [name for name in files if not (ROOT / name).is_file()] == []
    assert len(files) + len(tests) > 30
    for file, test in tests:
        source = next((ROOT / "tests").rglob(f"{file or 'test_theory'}.py")).read_text(encoding="utf-8")
        assert f"def {test}(" in source, f"docs/{page}.md: {file or 'test_theory'}.py has no {test}"
