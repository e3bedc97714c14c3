"""The pages in docs/: links lead somewhere, programs print what is shown, and the way in is as short as it says."""

import contextlib
import io
import json
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md"), ROOT / "tests" / "README.md"])
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))


def read(name: str) -> str:
    return (ROOT / name).read_text(encoding="utf-8")


def cells(notebook: Path) -> list[tuple[str, str]]:
    """The kind and source of every cell."""
    found = json.loads(notebook.read_text(encoding="utf-8"))["cells"]
    return [(cell["cell_type"], "".join(cell["source"])) for cell in found]


def markdown(file: Path) -> str:
    """The text of a page, or of a notebook's markdown cells."""
    if file.suffix == ".ipynb":
        return "\n".join(source for kind, source in cells(file) if kind == "markdown")
    return file.read_text(encoding="utf-8")


def anchors(page: str) -> set[str]:
    """The names by which GitHub links to the headings of a page."""
    headings = re.findall(r"^#+ (.+)$", re.sub(r"^```.*?^```", "", page, flags=re.DOTALL | re.MULTILINE), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", [*PAGES, *NOTEBOOKS], ids=lambda page: page.relative_to(ROOT).as_posix())
def test_every_link_between_pages_leads_somewhere(page: Path) -> None:
    dead = []
    for target in re.findall(r"\]\(([^)\s]+)\)", markdown(page)):
        if re.match(r"https?:", target):
            continue
        file, _, anchor = target.partition("#")
        there = page.parent / file if file else page
        if not there.exists() or (anchor and anchor not in anchors(there.read_text(encoding="utf-8"))):
            dead.append(target)
    assert dead == []


def test_the_files_that_pages_name_are_there() -> None:
    named = {
        (page.name, file)
        for page in PAGES
        if page.name not in ("CHANGELOG.md", "decisions.md")  # which name what was there once
        for file in re.findall(
            r"`((?:reference|gpu|tests|docs|notebooks)/[\w/.-]+\.(?:py|md|ipynb|txt|jsonl))",
            page.read_text(encoding="utf-8"),
        )
    }
    assert len(named) > 80 and sorted((page, file) for page, file in named if not (ROOT / file).is_file()) == []


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


def test_the_index_of_decisions_lists_every_entry_once() -> None:
    index, _, entries = read("docs/decisions.md").partition("\n## The house\n")
    titles = re.findall(r"^### (.+)$", entries, re.MULTILINE)
    listed = re.findall(r"\[([^\]]+)\]\(#", index.partition("## Index")[2])
    assert len(titles) > 80 and len(set(titles)) == len(titles)
    assert [title for title in listed if title in titles] == titles


def test_the_notebooks_are_one_story() -> None:
    """Each says what it assumes and what it teaches, and ends with the next one."""
    assert len(NOTEBOOKS) == 8
    for number, notebook in enumerate(NOTEBOOKS, 1):
        title, empty, *said = cells(notebook)[0][1].splitlines()
        assert title.startswith(f"# {number:02} · ") and not empty
        assert [line.partition(" ")[0] for line in said[:2]] == ["**Assumes:**", "**Teaches:**"], notebook.name
        following = NOTEBOOKS[number].name if number < len(NOTEBOOKS) else ""
        assert f"({following})" in cells(notebook)[-1][1].splitlines()[-1] or not following, notebook.name


def test_the_readme_is_short() -> None:
    assert len(read("README.md").splitlines()) <= 150


def lines(stop: Path, heading: str) -> int:
    """The lines of a stop up to a heading, or all: of a notebook those of its cells."""
    count = 0
    for kind, source in cells(stop) if stop.suffix == ".ipynb" else [("", stop.read_text(encoding="utf-8"))]:
        if heading and kind == "markdown" and source.startswith(f"## {heading}"):
            return count
        count += len(source.splitlines())
    assert not heading, f"{stop.name} has no section {heading!r}"
    return count


def stops() -> list[tuple[Path, str]]:
    """The stops of the evening, and the heading at which each ends."""
    rows = re.findall(r"^\| \d\. \[.+?\]\((.+?)\)(?:, up to “(.+?)”)? \|", read("docs/evening.md"), re.MULTILINE)
    return [((ROOT / "docs" / file).resolve(), heading) for file, heading in rows]


def test_the_evening_has_at_most_1500_lines() -> None:
    found = {stop.name: lines(stop, heading) for stop, heading in stops()}
    assert len(found) == 8 and sum(found.values()) <= 1500, found


def test_the_twenty_questions_are_answered_on_the_route() -> None:
    rows = re.findall(r"^\| (\d+) \| .+\? .*\| (.+) \|$", read("docs/questions.md"), re.MULTILINE)
    assert [number for number, _ in rows] == [str(number) for number in range(1, 21)]
    route = {stop for stop, _ in stops()}
    for number, places in rows:
        links = re.findall(r"\]\((.+?)\)([^\[]*)", places)
        assert links, number
        for file, said in links:
            there = (ROOT / "docs" / file).resolve()
            headings, functions = re.findall(r"“(.+?)”", said), re.findall(r"`(\w+)`", said)
            assert there in route and (headings or functions), f"question {number}: {file}"
            assert all(f"\n## {heading}\n" in markdown(there) for heading in headings), f"question {number}"
            assert all(f"def {name}(" in there.read_text(encoding="utf-8") for name in functions), f"question {number}"
