"""The site: `make docs` builds it into docs/_build.

The sources of the site are those of the repository, so that links between documents, notebooks and files are the same
in both. The pages of the API are written from the docstrings at build time, one for each folder of a package.
"""

import contextlib
import dataclasses
import inspect
import re
import shutil
import sys
from pathlib import Path
from typing import Any

from docutils.statemachine import StringList
from sphinx.directives.other import TocTree

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT / "tests"), str(ROOT / "tests" / "support")]
import shapes  # noqa: E402
import structure  # noqa: E402

project = html_title = "pass-sampling"
author = copyright = "The pass-sampling authors"
root_doc = "docs/index"
extensions = ["myst_nb", "sphinx.ext.autodoc", "sphinx.ext.napoleon", "sphinx.ext.viewcode"]
include_patterns = [
    "*.md",
    "docs/*.md",
    "docs/api/*.md",
    "notebooks/*.ipynb",
    "tests/README.md",
    "gpu/checkpoints/README.md",
]
exclude_patterns = [".venv", "build", "dist", "docs/_build", "**/.*"]
html_theme = "furo"
html_copy_source = html_show_copyright = smartquotes = False
suppress_warnings = ["ref.python"]  # the packages have the same names, so a bare name may mean two things

nb_execution_mode = "off"  # notebooks are stored with what they print
myst_enable_extensions = ["dollarmath"]
myst_heading_anchors = 4

default_role = "code"
add_module_names = False
autodoc_member_order = "bysource"
autodoc_default_options = {"members": True}
autodoc_preserve_defaults = True
napoleon_numpy_docstring = False


class Pages(TocTree):
    """A toctree of titles, without the patterns that match no file."""

    def run(self) -> Any:
        """Keep the patterns of files that are there."""
        found = [line for line in self.content if any((ROOT / "docs").glob(f"{line}.*"))]
        self.content = StringList(found, source=self.state.document.current_source)
        self.options |= {"glob": None, "titlesonly": None}
        return super().run()


def write_api(app: Any) -> None:
    """Write a page for each folder of both packages but the command line, with all of its modules."""
    pages: dict[str, str] = {}
    for module in structure.modules():
        room, _, name = module.rpartition(".")
        if room != "gpu.cli" and not name.startswith("_"):
            shown = f"\n## {name}\n\n```{{eval-rst}}\n.. automodule:: pass_sampling.{module}\n```\n"
            pages[room] = pages.get(room, f"# {room}\n") + shown
    folder = ROOT / "docs" / "api"
    folder.mkdir(exist_ok=True)
    for path in folder.glob("*.md"):
        if path.stem not in pages:
            path.unlink()
    for room, text in pages.items():
        path = folder / f"{room}.md"
        if not path.is_file() or path.read_text(encoding="utf-8") != text:  # a page that is newer is read again
            path.write_text(text, encoding="utf-8")


def mend(app: Any, what: str, name: str, each: Any, options: Any, lines: list[str]) -> None:
    """Add the shapes that comments give, and keep | and a final _ outside of backquotes as they are."""
    for number, line in enumerate(lines):
        parts = line.split("`")
        parts[::2] = [re.sub(r"\||(?<=\w)_(?!\w)", r"\\\g<0>", part) for part in parts[::2]]
        lines[number] = "`".join(parts)
    found: dict[str, Any] = {}
    with contextlib.suppress(OSError):  # what is generated has no source
        if what in ("function", "method") and inspect.isfunction(each):
            said = shapes.signature(each)
            found = said.arguments | ({} if said.returns is None else {"returned": said.returns})
        elif what == "class" and dataclasses.is_dataclass(each):
            found = shapes.fields(each)
    if found:
        lines += ["", "Shapes: " + ", ".join(f"`{argument}` {said.text}" for argument, said in found.items())]


def write_entrance(app: Any, error: Exception | None) -> None:
    """Let the top folder of the site lead to its first page, and copy the figures, which pages name in HTML."""
    shutil.copytree(ROOT / "docs" / "figures", Path(app.outdir) / "docs" / "figures", dirs_exist_ok=True)
    link = f'<meta http-equiv="refresh" content="0; url={root_doc}.html"><a href="{root_doc}.html">{project}</a>'
    (Path(app.outdir) / "index.html").write_text(f"<!doctype html>{link}\n", encoding="utf-8")


def setup(app: Any) -> dict[str, bool]:
    """Register all of these."""
    app.add_directive("pages", Pages)
    app.connect("builder-inited", write_api)
    app.connect("autodoc-process-docstring", mend)
    app.connect("build-finished", write_entrance)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
