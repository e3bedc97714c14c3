"""The pages in docs/: links lead somewhere, programs print what is shown, and the way in is as short as it says."""

import ast
import contextlib
import io
import json
import re
from dataclasses import dataclass
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


def definition(file: Path, name: str) -> str:
    """The source of a function or class."""
    source = file.read_text(encoding="utf-8")
    kinds = (ast.FunctionDef, ast.ClassDef)
    (found,) = (node for node in ast.walk(ast.parse(source)) if isinstance(node, kinds) and node.name == name)
    return ast.get_source_segment(source, found) or ""


def section(file: Path, heading: str) -> str:
    """The text of one section of a page or notebook."""
    _, found, after = f"\n{markdown(file)}\n".partition(f"\n## {heading}\n")
    assert found, f"{file.name} has no section {heading!r}"
    return after.partition("\n## ")[0]


def names(file: Path) -> set[str]:
    """The functions, classes and variables of a file or of a notebook's code; every word of a page."""
    if file.suffix == ".md":
        return set(re.findall(r"\w+", read(f"docs/{file.name}")))
    sources = (
        [source for kind, source in cells(file) if kind == "code"]
        if file.suffix == ".ipynb"
        else [file.read_text(encoding="utf-8")]
    )
    found: set[str] = set()
    for node in (node for source in sources for node in ast.walk(ast.parse(source))):
        if isinstance(node, ast.ClassDef):
            found |= {f"{node.name}.{each.name}" for each in node.body if isinstance(each, ast.FunctionDef)}
        if isinstance(node, ast.ClassDef | ast.FunctionDef):
            found.add(node.name)
        elif isinstance(node, ast.Name | ast.Attribute):
            found.add(ast.unparse(node))
    return found


@dataclass(frozen=True)
class Part:
    """A file of the route: up to a heading, or one function of it, or all."""

    file: Path
    heading: str
    function: str

    @property
    def lines(self) -> int:
        """The lines of the part: of a notebook those of its cells."""
        if self.function:
            return len(definition(self.file, self.function).splitlines())
        whole = cells(self.file) if self.file.suffix == ".ipynb" else [("", self.file.read_text(encoding="utf-8"))]
        found = [line for _, source in whole for line in source.splitlines()]
        return found.index(f"## {self.heading}") if self.heading else len(found)


def stops() -> list[tuple[list[Part], int]]:
    """The parts of every stop of the evening, and the number of lines that the table says."""
    rows = re.findall(r"^\| \d\. (.+?) \| (\d+) \| \d+ \|$", read("docs/evening.md"), re.MULTILINE)
    return [
        (
            [
                Part((ROOT / "docs" / file).resolve(), heading, function)
                for function, file, heading in re.findall(r"(?:`(\w+)` of )?\[.+?\]\((.+?)\)(?:, up to “(.+?)”)?", row)
            ],
            int(said),
        )
        for row, said in rows
    ]


def test_the_evening_has_at_most_1500_lines_and_says_how_many() -> None:
    found = [sum(part.lines for part in parts) for parts, _ in stops()]
    assert len(found) == 8 and sum(found) <= 1500, found
    assert all(abs(count - said) <= 10 for count, (_, said) in zip(found, stops(), strict=True)), found
    (total,) = re.findall(r"about ([\d,]+) lines", read("docs/evening.md"))
    assert abs(int(total.replace(",", "")) - sum(found)) <= 20, found


def test_every_name_of_the_evening_is_in_its_file() -> None:
    sections = re.split(r"^## ", read("docs/evening.md"), flags=re.MULTILINE)[1:9]
    named = 0
    for number, ((parts, _), text) in enumerate(zip(stops(), sections, strict=True), 1):
        assert text.startswith(f"{number}. ")
        files = [part.file for part in parts] + [ROOT / file for file in re.findall(r"`(\w+/[\w/]+\.py)`", text)]
        there = set[str]().union(*map(names, files))
        for name in re.findall(r"`([\w.]+)`", text):
            assert name in there, f"stop {number}: {name}"
            named += 1
    assert named > 15


def test_the_equations_of_the_evening_are_numbered_in_both_packages() -> None:
    """In the docstrings of the rules: those of the token rule, the block rule but for its proof, and the match rule."""
    for package in ("reference", "gpu"):
        numbers = re.findall(r"^    [^\n]*  \((\d+)\)$", read(f"{package}/verify.py"), re.MULTILINE)
        assert sorted(map(int, numbers)) == [*range(8, 15), 18], package


# What the answer to each question holds, in each of the places that questions.md gives.
ANSWERS = {
    1: ["The exact token is always kept: by (1) it is already a draw from the target"],
    2: ["must be the one that was drawn from", "may depend on x[0] … x[i-1] and on nothing later"],
    3: ["The denominator of the residual *is* the probability of a rejection"],
    4: ["the chance of acceptance is one minus the total variation"],
    5: ["the uniform 0 would accept a proposal to which the target gives probability 0"],
    6: [
        "the sum may be 0",
    ],
    7: ["Draw the bonus token after drafts that were all accepted, if the text continues there"],
    8: ["No row of the text attends to a look-ahead row", "state.cache.truncate(len(state.tokens))"],
    9: ["a token for position n+1+i"],
    10: ["not state.ends_with([*before, *tokens])", "Whether there is a draft x[i] at all may depend on"],
    11: ["min(len(self.vectors), state.remaining - 2)"],
    12: ["`2 + num_accepted` tokens for two calls, with two exceptions", "`1 + a` tokens for one call"],
    13: ["The requirement is conditional on the drafts kept so far"],
    14: [
        "the probability that at least i drafts are kept is `weights[i]`",
        "the probability that at least these are kept",
    ],
    15: ["every token of the text is the target's own draw"],
    16: ["there are finitely many combinations of cells", "one new script per other cell"],
    17: ["expected the edges that the step decides by"],
    18: ["the same tokens and the same `key`", "only one of the states with the same `key`"],
    19: ["taking a wrong row changes nothing", "How many texts does a chi-square test need"],
    20: ["exact relative to the logits of its own passes"],
}


def test_the_twenty_questions_are_answered_at_their_places_on_the_route() -> None:
    rows = re.findall(r"^\| (\d+) \| .+\? .*\| (.+) \|$", read("docs/questions.md"), re.MULTILINE)
    assert [int(number) for number, _ in rows] == [*ANSWERS] == [*range(1, 21)]
    route = {(part.file, part.function) for parts, _ in stops() for part in parts}
    for number, places in rows:
        texts = []
        for file, said in re.findall(r"\]\((.+?)\)([^\[]*)", places):
            there = (ROOT / "docs" / file).resolve()
            for heading, function in re.findall(r"“(.+?)”|`(\w+)`", said):
                assert (there, "") in route or (there, function) in route, f"question {number}: {file}"
                texts.append(section(there, heading) if heading else definition(there, function))
        for text, answer in zip(texts, ANSWERS[int(number)], strict=True):
            assert answer in " ".join(text.split()), f"question {number}: {answer}"
