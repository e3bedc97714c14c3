"""The pages in docs/: links lead somewhere, programs print what is shown, and the way in is as short as it says."""

import contextlib
import io
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md"), ROOT / "tests" / "README.md"])


def read(name: str) -> str:
    return (ROOT / name).read_text(encoding="utf-8")


def anchors(page: str) -> set[str]:
    """The names by which GitHub links to the headings of a page."""
    headings = re.findall(r"^#+ (.+)$", re.sub(r"^```.*?^```", "", page, flags=re.DOTALL | re.MULTILINE), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_every_link_between_pages_leads_somewhere(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    dead = []
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        if re.match(r"https?:", target):
            continue
        file, _, anchor = target.partition("#")
        there = page.parent / file if file else page
        if not there.exists() or (anchor and anchor not in anchors(there.read_text(encoding="utf-8"))):
            dead.append(target)
    assert dead == []


def test_the_check_of_the_proof_runs_and_prints_what_is_shown() -> None:
    ((program, shown),) = re.findall(
        r"^```python\n(.*?)^```\n\n```\n(.*?)^```", read("docs/algorithm.md"), re.DOTALL | re.MULTILINE
    )
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        exec(program, {})
    assert printed.getvalue() == shown and "False" not in shown


def test_equations_are_numbered_in_order() -> None:
    numbers = re.findall(r"^ {4}.* {2,}\((\d+)\)$", read("docs/algorithm.md"), re.MULTILINE)
    assert numbers == [str(number) for number in range(1, len(numbers) + 1)] and len(numbers) > 10


def test_the_glossary_defines_every_term_once() -> None:
    terms = [
        term.strip()
        for row in re.findall(r"^\| (.+?) \| .+ \| .+ \|$", read("docs/glossary.md"), re.MULTILINE)
        for term in row.split(",")
        if row not in ("term", "---")
    ]
    assert len(terms) > 60 and sorted(terms) == sorted(set(terms))
