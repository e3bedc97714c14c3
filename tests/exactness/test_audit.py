"""The page on other samplers says what its script finds, as far as the script runs in a second or two."""

import re
from pathlib import Path

import pytest
import transformers

import audit

PAGE = (Path(__file__).resolve().parents[2] / "docs" / "audit.md").read_text(encoding="utf-8")
ROWS = {key: sampler for key, sampler in audit.SAMPLERS.items() if key[0] == "transformers"}


@pytest.mark.skipif(f"transformers {transformers.__version__} " not in PAGE, reason="the page is about another version")
def test_the_page_says_what_the_script_finds_of_the_librarys_verification() -> None:
    (row,) = [audit.function_row(*key, sampler) for key, sampler in ROWS.items()]
    pages = [line for line in PAGE.splitlines() if "_speculative_sampling" in line]
    assert re.sub(r"\d+ of 2000", "some", row) in [re.sub(r"\d+ of 2000", "some", line) for line in pages]


@pytest.mark.parametrize("name", audit.GENERATORS)
def test_the_page_has_a_row_for_every_candidate_generator(name: str) -> None:
    kind, _, variant = name.partition(", ")
    assert f"| `{kind}`{', ' if variant else ''}{variant} |" in PAGE


def test_the_page_has_a_row_for_every_function() -> None:
    assert all(f"`{name}`" in PAGE and f"| {package} " in PAGE for package, name in audit.SAMPLERS)
