"""Find the words that this project does not use: `python tests/prose.py` prints each with its place and a better one.

Checked are the documents, the notebooks, and the docstrings and other strings of both packages, without code: text
between backquotes and blocks. Pages that name what was renamed are not checked.
"""

import ast
import json
import re
import sys
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
UNCHECKED = {"CHANGELOG.md", "docs/decisions.md", "docs/glossary.md"}
RETIRED = {  # a pattern, and what to write in its place
    r"laws?": "distribution",
    r"tapes?": "uniforms",
    r"cycles?": "step",
    r"slots?": "named uniform, or cache position",
    r"judge[sd]?|judging": "verify",
    r"verdicts?": "outcome",
    r"in the box": "bundled",
    r"behind (?:the|its|their|a) (?:text|prompt|tokens?|drafts?|last|rows?)": "after",
    r"(?:stands?|hangs?|lies?) (?:behind|beside)": "is after, or is with",
    r"goes on|go on|going on": "continues",
    r"so many": "the number itself",
    r"as far as": "if, or up to",
    r"where there (?:is|are) (?:one|some|none)": "if there is one",
    r"of yours": "your",
    r"in sight": "visible",
    r"at hand": "available",
    r"hosts? (?:looks?|asks?|sees?)": "is read on the CPU",
    r"rows? (?:sees?|looks?) ": "attends to",
    r"says?": "states, explains, or the fact itself",
    r"(?<!there )(?<!where )(?:is|are) no(?! more| longer| larger| higher| other)": "is not a",
    r"is there already|are there already": "exists",
    r"all the same(?! \w)": "nevertheless",
    r"anew": "again",
    r"(?:stands?|hangs?|lies?)(?! for)": "is",
    r"nothing but|but for": "only, or except",
    r"(?:and )?what (?:it|that|this) costs?|what it cost": "the cost",
    r"the very (?!end)\w+": "the",
    r"merely|simply|obviously|of course": "a sentence without it",
    r"will do": "is allowed",
    r"look-ahead tokens?": "look-ahead vector, or row",
    r"thereby|therein|whereby|wherein|thereof|albeit|lest": "a plain word",
    r"utili[sz]e[sd]?|leverag(?:e|es|ing)": "use",
    r"behaviors?|(?<!-)colors?(?!-)|(?:normal|initial|vector|optim|synchron)iz(?:e|es|ed|ing)": "the British spelling",
}
ALLOWED = re.compile(r"Amdahl's law")  # where a word is another one
WORDS = re.compile(
    "|".join(rf"(?P<w{number}>\b(?:{word}))(?!\w)" for number, word in enumerate(RETIRED)), re.IGNORECASE
)
# A sentence that begins with "What" and is no question.
OPENING = re.compile(r"(?:\A|\n\n|(?<=[.!:] ))What(?= [^.?]*\.)")
CODE = re.compile(r"```.*?```|`[^`]*`|\]\([^)]*\)", re.DOTALL)  # and links


def findings(text: str) -> Iterator[tuple[int, str, str]]:
    """Yield the line of each retired word in a text, counted from 0, the word, and what to write."""
    prose = CODE.sub(lambda code: re.sub(r"[^\n]", " ", code[0]), text)
    for match in WORDS.finditer(prose.replace("\n", " ")):
        if not ALLOWED.search(prose[max(0, match.start() - 12) : match.end() + 12]):
            better = list(RETIRED.values())[int(str(match.lastgroup)[1:])]
            yield prose.count("\n", 0, match.start()), match[0], better
    for match in OPENING.finditer(prose):
        yield prose.count("\n", 0, match.start()), match[0], "the noun; only a question begins with it"


def texts() -> Iterator[tuple[str, int, str]]:
    """Yield every text that is checked: its file, the line where it begins, and the text itself."""
    pages = [
        *ROOT.glob("*.md"),
        *(ROOT / "docs").glob("*.md"),
        *ROOT.glob("*/README.md"),
        *ROOT.glob("gpu/*/README.md"),
    ]
    for path in sorted(pages):
        if (name := path.relative_to(ROOT).as_posix()) not in UNCHECKED:
            yield name, 1, path.read_text(encoding="utf-8")
    for path in sorted((ROOT / "notebooks").glob("*.ipynb")):
        for number, cell in enumerate(json.loads(path.read_text(encoding="utf-8"))["cells"]):
            if cell["cell_type"] == "markdown":
                yield f"{path.relative_to(ROOT).as_posix()}, cell {number}", 1, "".join(cell["source"])
    for path in sorted([*(ROOT / "reference").rglob("*.py"), *(ROOT / "gpu").rglob("*.py")]):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Constant) and isinstance(node.value, str) and " " in node.value:
                yield path.relative_to(ROOT).as_posix(), node.lineno, node.value


def main() -> int:
    """Print what is found, and return 1 if there is something."""
    found = [(f"{file}:{start + line}", *words) for file, start, text in texts() for line, *words in findings(text)]
    for place, word, better in found:
        print(f"{place}: found {word.strip()!r}, expected {better}")
    return int(bool(found))


if __name__ == "__main__":
    sys.exit(main())
