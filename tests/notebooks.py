"""Run a notebook in a fresh kernel, and compare what it prints with what is stored in it.

    python tests/notebooks.py                 run all notebooks and store what they print
    python tests/notebooks.py notebooks/05-pass.ipynb

A cell tagged `measured` is run, but its output is not compared: it holds seconds, or what follows from them; no other
reason counts. A picture is compared by its being there, not pixel by pixel: fonts and anti-aliasing differ between
systems. Warnings and progress bars are not kept.
"""

import ast
import json
import re
import sys
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
FOLDER = ROOT / "notebooks"
SECONDS = 60  # of one notebook, on 2 cores
MEASURED = "measured"
CLOCKS = {"perf_counter", "thread_time"}


def run(path: Path, timeout: int = 300) -> Any:
    """Return the notebook with fresh outputs; an error in a cell is raised with its traceback."""
    import nbformat
    from nbclient import NotebookClient

    notebook = nbformat.read(path, as_version=4)
    NotebookClient(notebook, timeout=timeout, kernel_name="python3", resources={"metadata": {"path": FOLDER}}).execute()
    return notebook


def printed(cell: Any) -> list[Any]:
    """Return what a cell has put out, as far as it is the same everywhere."""
    found: list[Any] = []
    for output in cell.get("outputs", []):
        if output["output_type"] == "stream":
            found += [("stdout", output["text"])] if output["name"] == "stdout" else []
            continue
        for kind, content in sorted(output.get("data", {}).items()):
            if kind.startswith("image/"):
                found.append(kind)
            elif kind in ("text/html", "text/plain") and "image/png" not in output["data"]:
                found.append((kind, re.sub(r"0x[0-9a-f]+", "0x", content)))
    return joined(found)


def joined(found: list[Any]) -> list[Any]:
    """Put neighbouring pieces of one stream together: where a kernel cuts them is chance."""
    pieces: list[Any] = []
    for piece in found:
        if pieces and isinstance(piece, tuple) and isinstance(pieces[-1], tuple) and piece[0] == pieces[-1][0]:
            pieces[-1] = (piece[0], pieces[-1][1] + piece[1])
        else:
            pieces.append(piece)
    return pieces


def stale_cells(stored: Any, fresh: Any) -> list[str]:
    """Return, for every compared cell whose stored output is not the fresh one, what differs."""
    complaints = []
    for number, (old, new) in enumerate(zip(stored.cells, fresh.cells, strict=True)):
        if old.cell_type != "code" or MEASURED in old.metadata.get("tags", []):
            continue
        if printed(old) != printed(new):
            complaints.append(f"cell {number}: stored {printed(old)!r:.600}, fresh {printed(new)!r:.600}")
    return complaints


def cells_without_times(notebook: Any) -> list[int]:
    """Return the cells tagged as measured that neither read a clock nor use what was read from one before."""
    times, found = set(CLOCKS), []
    for number, cell in enumerate(notebook.cells):
        if cell.cell_type != "code":
            continue
        holds_times = False
        for statement in ast.parse(cell.source).body:
            nodes = list(ast.walk(statement))
            used = {node.id for node in nodes if isinstance(node, ast.Name)}
            used |= {node.attr for node in nodes if isinstance(node, ast.Attribute)}
            if used & times:
                holds_times = True
                times |= names_bound(statement)
        if MEASURED in cell.metadata.get("tags", []) and not holds_times:
            found.append(number)
    return found


def names_bound(statement: ast.stmt) -> set[str]:
    """Return the names that a statement gives a value, wholly or in part; those within a function are its own."""
    if isinstance(statement, ast.FunctionDef):
        return {statement.name}
    assignments = [node for node in ast.walk(statement) if isinstance(node, ast.Assign)]
    targets = [name for node in assignments for target in node.targets for name in ast.walk(target)]
    return {name.id for name in targets if isinstance(name, ast.Name)}


def store(path: Path, notebook: Any) -> None:
    """Write a notebook without what changes from run to run and nobody reads."""
    import nbformat

    for number, cell in enumerate(notebook.cells):
        cell["id"] = f"cell-{number}"
        cell.metadata.pop("execution", None)
        if cell.cell_type == "code":
            cell.outputs = [output for output in cell.outputs if output.get("name") != "stderr"]
            for output in cell.outputs:
                output.get("metadata", {}).clear()
    notebook.metadata = {
        "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
        "language_info": {"name": "python"},
    }
    nbformat.validate(notebook)
    path.write_text(json.dumps(notebook, indent=1, ensure_ascii=False, sort_keys=True) + "\n", encoding="utf-8")


def main(names: list[str]) -> None:
    for path in [Path(name) for name in names] or sorted(FOLDER.glob("*.ipynb")):
        started = time.monotonic()
        store(path, run(path))
        print(f"{path.name}: {time.monotonic() - started:.0f} seconds, {path.stat().st_size / 1000:.0f} kB")


if __name__ == "__main__":
    main(sys.argv[1:])
