"""What is enumerated is what runs: a step traces what it does, and does the same without."""

import ast
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import pass_sampling.reference as reference
from models import PACKAGES, package
from pass_sampling.reference.exactness import cases
from pass_sampling.reference.uniforms import uniform_stream

ROOT = Path(__file__).resolve().parents[2]
RECORDING = {  # the only functions that ask whether there is a trace, by file
    "reference/uniforms.py": {"UniformRow.__init__", "UniformRow._record"},
    "gpu/uniforms.py": {"UniformRow.__init__", "UniformRow._record"},
    "gpu/generation.py": {"_generate"},  # an engine keeps no distributions; its texts are the eager loop's
    "gpu/batch_record.py": {"Packed._choices"},  # reads a record for the host, after the step
}
PASSED_TO = {"UniformRow", "step", "generate", "_generate", "Record", "BatchRecord", "Packed", "replace"}
READERS = {"reference/exactness/enumeration.py", "reference/text/trace.py"}  # of finished records, which need a trace
CHOSEN = ("all three", "penalty and filters", "80 tokens", "ties")
NAMES = {*(f"table, {name}" for name in CHOSEN), "transformer, sliding window"}
CASES = [case for case in cases.configurations() if case.name in NAMES]


def uses_of_a_trace(source: str) -> set[str]:
    """Name the functions that use `trace`, or a traced step's `choices`, otherwise than to pass them to `PASSED_TO`."""
    found = set()

    def visit(node: ast.AST, scope: str, passed_on: bool) -> None:
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            scope = f"{scope}.{node.name}".lstrip(".")
        is_trace = isinstance(node, ast.Name) and node.id == "trace"
        is_choices = isinstance(node, ast.Attribute) and node.attr in ("choices", "_choices")
        if (is_trace or is_choices) and isinstance(node.ctx, ast.Load) and not passed_on:
            found.add(scope)
        callee = getattr(node, "func", None)
        passes = getattr(callee, "id", getattr(callee, "attr", "")) in PASSED_TO
        for child in ast.iter_child_nodes(node):
            visit(child, scope, passes or child is callee or (passed_on and isinstance(node, ast.keyword)))

    visit(ast.parse(source), "", False)
    return found


def test_nothing_but_the_recording_depends_on_a_trace() -> None:
    paths = [path for folder in PACKAGES for path in (ROOT / folder).rglob("*.py")]
    found = {path.relative_to(ROOT).as_posix(): uses_of_a_trace(path.read_text(encoding="utf-8")) for path in paths}
    assert {path: uses for path, uses in found.items() if uses and path not in READERS} == RECORDING


@pytest.mark.parametrize(
    "line",
    ["if trace: pass", "x = 1 if trace else 2", "y = trace", "x[trace]", "while not trace: pass", "f(not trace)",
     "[x for x in y if trace]", "trace and g()", "step(a=trace or b)", "g(trace)", "if draws.choices is None: pass"],
)  # fmt: skip
def test_a_use_of_a_trace_is_found(line: str) -> None:
    assert uses_of_a_trace(f"def f(trace):\n    {line}") == {"f"}
    assert uses_of_a_trace("def f(trace):\n    step(trace)\n    Record(1, trace=trace, choices=draws.choices)") == set()


def bits(thing: Any, name: str = "") -> dict[str, Any]:
    """Return everything in a state or record, to the last bit, but for its choices."""
    if hasattr(thing, "shape"):
        array = np.asarray(thing)
        return {name: (array.shape, array.dtype, array.tobytes())}
    if not hasattr(thing, "__dict__"):
        return {name: repr(thing)}
    parts = [bits(value, f"{name}.{key}") for key, value in vars(thing).items() if key[0] != "_" and key != "choices"]
    return {key: value for part in parts for key, value in part.items()}


@pytest.mark.parametrize(("name", "size"), [("reference", 1), ("gpu", 1), ("gpu", 3)])
@pytest.mark.parametrize(("method", "rule"), cases.methods_of(reference))
def test_a_step_does_the_same_without_a_trace_to_the_last_bit(name, size, method, rule):
    pkg = package(name)
    for case in CASES:
        running, ending = case.method(pkg, method, rule), pkg.Ending(9)
        prompts = [(1, 0), (0, 1, 1), (2,)][:size]
        state = running.start(*prompts, ending) if size == 1 else running.start_batch(prompts, ending)
        for step in range(3):
            uniforms = np.stack([uniform_stream(1, request, step, running.num_uniforms) for request in range(size)])
            twin = state.copy()
            row = uniforms[0] if name == "reference" else import_module("torch").from_numpy(uniforms)
            (state, record), (other, traced) = running.step(state, row), running.step(twin, row, trace=True)
            assert record.choices is None and traced.choices
            assert bits(state) == bits(other) and bits(record) == bits(traced)
