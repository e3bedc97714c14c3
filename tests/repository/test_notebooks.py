"""The notebooks run from beginning to end, in time, and print what is stored in them."""

import ast
import time
from pathlib import Path

import pytest

import notebooks

pytestmark = pytest.mark.docs
nbformat = pytest.importorskip("nbformat", reason="needs the notebooks extra")
pytest.importorskip("nbclient", reason="needs the notebooks extra")
pytest.importorskip("torch", reason="the notebooks compare with the port, which needs torch")

SERIES = sorted(notebooks.FOLDER.glob("*.ipynb"))
assert SERIES
MOST_KILOBYTES = 900
INSTALLED = {"numpy", "torch", "transformers", "matplotlib", "pass_sampling"}
INSTALLED |= {"collections", "dataclasses", "html", "importlib", "itertools", "math", "pathlib", "statistics"}
INSTALLED |= {"tempfile", "time"}


@pytest.mark.parametrize("path", SERIES, ids=lambda path: path.stem)
def test_a_notebook_prints_what_is_stored_in_it(path: Path) -> None:
    stored = nbformat.read(path, as_version=4)
    started = time.monotonic()
    fresh = notebooks.run(path)
    assert notebooks.stale_cells(stored, fresh) == [], "python tests/notebooks.py stores fresh outputs"
    assert time.monotonic() - started < 3 * notebooks.SECONDS  # a busy machine may take three times as long


@pytest.mark.parametrize("path", SERIES, ids=lambda path: path.stem)
def test_a_notebook_is_stored_whole_and_small_and_imports_what_is_installed(path: Path) -> None:
    """Only cells that hold times are not compared."""
    notebook = nbformat.read(path, as_version=4)
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert [cell.execution_count for cell in code] == list(range(1, len(code) + 1)), "run from beginning to end"
    assert not any(output.output_type == "error" for cell in code for output in cell.outputs)
    assert notebook.cells[0].cell_type == "markdown" and notebook.cells[0].source.startswith("# ")
    assert path.stat().st_size < 1000 * MOST_KILOBYTES
    assert notebooks.cells_without_times(notebook) == []
    for node in (node for cell in code for node in ast.walk(ast.parse(cell.source))):
        names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
        names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
        assert {name.partition(".")[0] for name in names} <= INSTALLED


def test_a_stale_output_is_noticed_and_a_measured_one_is_not_compared() -> None:
    def notebook(text: str, tags: list[str]) -> object:
        output = nbformat.v4.new_output("stream", name="stdout", text=text)
        cell = nbformat.v4.new_code_cell("print()", outputs=[output], metadata={"tags": tags})
        return nbformat.v4.new_notebook(cells=[cell])

    assert notebooks.stale_cells(notebook("1\n", []), notebook("1\n", [])) == []
    assert len(notebooks.stale_cells(notebook("1\n", []), notebook("2\n", []))) == 1
    assert notebooks.stale_cells(notebook("1\n", ["measured"]), notebook("2\n", ["measured"])) == []
