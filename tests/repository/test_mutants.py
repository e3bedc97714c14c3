"""The script that changes the heart: its mutants compile, and the survivors that the page argues are among them."""

import re
from pathlib import Path

import mutation

PAGE = Path(__file__).resolve().parents[2] / "docs" / "mutants.md"


def test_every_mutant_compiles_and_every_argued_one_exists() -> None:
    found = {name: text for module in mutation.TESTS for name, text in mutation.mutants(module).items()}
    for text in found.values():
        compile(text, "mutant", "exec")
    argued = re.findall(r"^- `(.+?)`: \S", PAGE.read_text(encoding="utf-8"), re.MULTILINE)
    assert argued and sorted(set(argued) - found.keys()) == [] and len(set(argued)) == len(argued)
