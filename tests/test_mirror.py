"""The two packages are mirrors: names, leading parameters, fields, errors; and neither knows of the other."""

from __future__ import annotations

import ast
import dataclasses
import inspect
import json
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from functools import cached_property
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from folders import both_packages, module, tiny_config
from shapes import fields as shape_fields
from shapes import functions_of, parse, signature

ROOT = Path(__file__).resolve().parents[1]
PACKAGES = ("reference", "gpu")
MOST_LINES = 230

# Files that only one package has. Everything else stands in both, under one name.
REFERENCE_FILES = {
    "law.py",
    "enumeration.py",
    "tree_size.py",
    "branching.py",
    "chooser.py",
    "uniforms.py",
    "numpy_draws.py",
    "suite.py",
    "cases.py",
    "theory.py",
    "candidate_theory.py",
}
PORT_FILES = {
    "batch_record.py",
    "batch_ending.py",
    "first_state.py",
    "drafters/ngram_index.py",
    "linear.py",
    "masks.py",
    "asking.py",
    "capture.py",
    "engine.py",
    "files/cache_folder.py",
    "fixed_shapes.py",
    "host.py",
    "memory.py",
    "plan.py",
    "rows.py",
    "written.py",
    "methods/judging.py",
    "underway.py",
    "train.py",
    "pretrain.py",
    "huggingface.py",
    "benchmark.py",
    "model_check.py",
    "torch_draws.py",
    "unknown.py",
    "__main__.py",
}
PORT_FOLDERS = ("benchmarking/", "checkpoints/", "commands/", "hf/", "planning/", "training/")

# What the port exports beyond the reference: the engine, and the way into another library, which computes in PyTorch.
PORT_EXPORTS = {
    "Engine",
    "Request",
    "TransformersModel",
    "decoder_of",
    "generate_with_pass",
    "pass_generate",
    "untrained_lookahead",
    "write_custom_generate",
}

# Public names that only one package has, by module or by class.
REFERENCE_ONLY = {
    "sampling": {"has_law"},  # the port asks `largest_logits`
    "files.lookahead_folder": {"bfloat16"},  # NumPy has none of its own
    "methods.base.Method": {"law", "check_reached"},  # one prefix after another
}
PORT_ONLY = {
    "sampling": {"largest_logits"},  # a device does not raise: it keeps the number that would be complained about
    "verify": {"drafted", "row"},  # batches are padded
    "precision": {"check_device"},
    "tape": {"check_uniforms", "tapes"},  # of many cycles at once
    "lookahead.LookAhead": {"save_pretrained", "from_pretrained", "push_to_hub"},  # the Hub's names, by its library
    "files.saving": {"replace_file"},  # of plans and comparisons
    "layers": {"rotation", "rotate"},  # half of `rope`
    "tape.Draws": {"tokens", "tokens_at", "restrict", "room"},  # several draws in one call, some of them idle
    "cache.KVCache": {"slots", "num_slots", "fix", "measure", "select", "stack"},  # rows of a batch
    "draft_tree.DraftTree": {"candidates", "levels", "paths", "order", "cut", "layouts"},  # tables for rows of a batch
    "methods.trees": {"rows_of_pass"},
    "methods.fused": {"Ahead"},
    "methods.candidates.Candidates": {"propose"},  # of which an expectation over acceptances is taken
    "methods.candidates_fused.FusedCandidates": {"propose"},
    "state.State": {"followed_by", "kept", "note_fault", "raise_fault", "complaint", "select", "stack", "check_fresh"},
    "methods.base.Method": {"scratch", "start_batch", "feed_pending", "feed_drafts"},  # of many rows, cycles
    "methods.language_model.LanguageModel": {"device", "dtype"},
    "transformer.Transformer": {"device", "dtype"},
    "drafters.ngram.NgramModel": {"to"},
    "drafters.ngram_order.NgramOrder": {"sums"},  # of counts, too, for the index of a batch
}

# Functions whose parameters do not begin with the reference's, and why.
OTHER_PARAMETERS = {
    "sampling.probs_from_logits": "`where` begins an error message, and the port keeps its faults in the state",
    "methods.base.Method.laws": "the port reads the prefixes of a batch from its state",
    "methods.trees.layout": "rows of a batch have lengths of their own",
    "methods.base.Method.process": "the port reads the prefixes of a batch from its state",
    "state.State.keep": "rows of a batch have lengths of their own",
    "state.State": "a batch is tensors, not tuples",
    "weights.LayerWeights": "the port fuses projections",
}

# Dataclasses with the same fields in the same order, with the same defaults.
SAME_FIELDS = (
    "config.ModelConfig",
    "config.RopeScaling",
    "config.SamplingConfig",
    "ending.Ending",
    "ending.Reading",
    "record.Choice",
    "record.Record",
    "record.Generation",
    "lookahead.LookAhead",
    "verify.Verification",
    "candidates.Selection",
    "weights.Weights",
    "methods.autoregressive.Autoregressive",
    "methods.lookahead.PaSS",
    "methods.draft_model.SpeculativeSampling",
    "methods.candidates.Candidates",
    "methods.fused.Fused",
    "methods.lookahead_fused.FusedPaSS",
    "methods.candidates_fused.FusedCandidates",
    "adapter.LowRank",
    "adapter.LayerAdapter",
    "adapter.Adapter",
    "sampler_head.SamplerHead",
    "refine.HeadRefinement",
    "refine.NgramRefinement",
    "drafters.model.ModelDrafter",
    "drafters.ngram.NgramModel",
    "drafters.ngram_order.NgramOrder",
    "drafters.prompt_lookup.PromptLookup",
    "schedule.Schedule",
    "schedule.Heuristic",
    "schedule.EntropyBound",
)


def paths(package: str) -> set[str]:
    """Every Python file of a package, by its path in it."""
    return {path.relative_to(ROOT / package).as_posix() for path in (ROOT / package).rglob("*.py")}


def shared_modules() -> list[str]:
    """The modules that both packages have."""
    both = paths("reference") & paths("gpu")
    return sorted(path[:-3].replace("/", ".") for path in both if not path.endswith("__init__.py"))


# --- Files and names ---


def test_both_packages_have_the_same_files() -> None:
    reference, port = paths("reference"), {path for path in paths("gpu") if not path.startswith("checkpoints/")}
    assert reference - port <= REFERENCE_FILES
    assert {path for path in port - reference if not path.startswith(PORT_FOLDERS)} <= PORT_FILES


@pytest.mark.parametrize("name", SAME_FILES)
def test_what_is_not_numerics_is_the_same_file(name: str) -> None:
    reference, port = ((ROOT / package / name).read_text(encoding="utf-8") for package in PACKAGES)
    assert reference == port


def exported(name: str) -> set[str]:
    return set(import_module(name).__all__)


@pytest.mark.torch
@pytest.mark.parametrize("name", ["", ".methods"], ids=["package", "methods"])
def test_both_packages_export_the_same_names(name: str) -> None:
    reference, port = (exported(f"pass_sampling.{package}{name}") for package in PACKAGES)
    assert reference <= port <= reference | PORT_EXPORTS
    assert PORT_EXPORTS <= exported("pass_sampling.gpu")
    for package in PACKAGES:
        home = import_module(f"pass_sampling.{package}{name}")
        assert all(getattr(home, each) is not None for each in home.__all__)


def public_things(package: str, name: str) -> dict[str, Any]:
    """The public functions and classes that a module defines itself, by name."""
    home = module(package, name)
    return {
        each: value
        for each, value in vars(home).items()
        if (inspect.isclass(value) or inspect.isfunction(value))
        and value.__module__ == home.__name__
        and not each.startswith("_")
    }


def own_methods(cls: type) -> dict[str, Any]:
    """The public methods and properties that a class defines itself, by name; fields are neither."""
    kinds = (property, classmethod, staticmethod, cached_property)
    return {
        name: value
        for name, value in vars(cls).items()
        if (inspect.isfunction(value) or isinstance(value, kinds)) and not name.startswith("_")
    }


def all_methods(cls: type) -> dict[str, Any]:
    """The same with what is inherited inside the package."""
    bases = [base for base in reversed(cls.__mro__) if base.__module__.startswith("pass_sampling.")]
    return {name: value for base in bases for name, value in own_methods(base).items()}


@pytest.mark.torch
@pytest.mark.parametrize("name", shared_modules())
def test_a_module_defines_the_same_things(name: str) -> None:
    reference, port = (public_things(package, name) for package in PACKAGES)
    assert reference.keys() - port.keys() <= REFERENCE_ONLY.get(name, set())
    assert port.keys() - reference.keys() <= PORT_ONLY.get(name, set())
    for each in reference.keys() & port.keys():
        assert inspect.isclass(reference[each]) == inspect.isclass(port[each])
    exports = [getattr(module(package, name), "__all__", None) for package in PACKAGES]
    assert (exports[0] is None) == (exports[1] is None)
    if exports[0] is not None:
        assert set(exports[0]) <= set(exports[1]) <= set(exports[0]) | PORT_ONLY.get(name, set())


def shared_classes() -> list[str]:
    return [f"{name}.{each}" for name in shared_modules() for each in _classes(name)]


def _classes(name: str) -> list[str]:
    return [each for each, value in public_things("reference", name).items() if inspect.isclass(value)]


@pytest.mark.torch
@pytest.mark.parametrize("name", shared_classes())
def test_a_class_has_the_same_methods(name: str) -> None:
    home, _, cls = name.rpartition(".")
    reference, port = (getattr(module(package, home), cls) for package in PACKAGES)
    ours, theirs = all_methods(reference), all_methods(port)
    stored = set(getattr(reference, "__dataclass_fields__", ()))  # a field there may be a property here
    homes = [base.__module__.removeprefix("pass_sampling.gpu.") + "." + base.__qualname__ for base in port.__mro__]
    assert ours.keys() - theirs.keys() <= set().union(*(REFERENCE_ONLY.get(home, set()) for home in homes))
    assert theirs.keys() - ours.keys() - stored <= set().union(*(PORT_ONLY.get(home, set()) for home in homes))
    assert all(_is_property(ours[each]) == _is_property(theirs[each]) for each in ours.keys() & theirs.keys())


# --- Parameters ---


def shared_callables() -> list[str]:
    """Every public function, class and method that both packages have, by name."""
    found = []
    for name in shared_modules():
        for each, value in public_things("reference", name).items():
            found.append(f"{name}.{each}")
            if inspect.isclass(value):
                own = {method: it for method, it in own_methods(value).items() if not _is_property(it)}
                found += [f"{name}.{each}.{method}" for method in own]
    return [name for name in found if name.rpartition(".")[2] not in REFERENCE_ONLY.get(name.rpartition(".")[0], set())]


def _is_property(value: Any) -> bool:
    return isinstance(value, property | cached_property)


def resolve(package: str, name: str) -> Any:
    """Return a thing by its dotted name below a package."""
    parts = name.split(".")
    for count in range(len(parts), 0, -1):
        if ".".join(parts[:count]) in shared_modules():
            thing = module(package, ".".join(parts[:count]))
            for part in parts[count:]:
                thing = getattr(thing, part)
            return thing
    raise LookupError(name)


def parameters(package: str, name: str) -> list[str]:
    thing = resolve(package, name)
    if inspect.isclass(thing) and getattr(thing, "_is_protocol", False):
        return []
    return list(inspect.signature(thing).parameters)


@pytest.mark.torch
@pytest.mark.parametrize("name", shared_callables())
def test_the_ports_parameters_begin_with_the_references(name: str) -> None:
    reference, port = (parameters(package, name) for package in PACKAGES)
    agree = port[: len(reference)] == reference
    assert agree or name in OTHER_PARAMETERS, f"reference {reference}, port {port}"


@pytest.mark.torch
def test_every_exception_is_one() -> None:
    for package, other, exceptions in (("reference", "gpu", REFERENCE_ONLY), ("gpu", "reference", PORT_ONLY)):
        for home, names in exceptions.items():
            missing = {name for name in names if hasattr(resolve(other, home), name)}
            found = {name for name in names if hasattr(resolve(package, home), name)}
            assert (found, missing) == (names, set()), f"{home} needs no exception any more"
    for name in OTHER_PARAMETERS:
        reference, port = (parameters(package, name) for package in PACKAGES)
        assert port[: len(reference)] != reference, f"{name} needs no exception any more"


@pytest.mark.torch
@pytest.mark.parametrize("name", shared_callables())
def test_shared_parameters_have_the_same_defaults(name: str) -> None:
    if name in OTHER_PARAMETERS:
        return
    if inspect.isclass(resolve("reference", name)) and not dataclasses.is_dataclass(resolve("reference", name)):
        name += ".__init__"
    ours, theirs = (inspect.signature(resolve(package, name)).parameters for package in PACKAGES)
    for each in ours.keys() & theirs.keys():
        one, two = (
            str(some[each].default).replace("<class 'numpy.float64'>", "torch.float64") for some in (ours, theirs)
        )
        assert one == two
        assert ours[each].kind == theirs[each].kind


@pytest.mark.torch
@pytest.mark.parametrize("name", SAME_FIELDS)
def test_a_dataclass_has_the_same_fields_and_defaults(name: str) -> None:
    def described(package: str) -> list[tuple[Any, ...]]:
        cls = resolve(package, name)
        described = []
        for each in dataclasses.fields(cls):
            factory = each.default_factory
            made = "missing" if factory is dataclasses.MISSING else getattr(factory, "__name__", str(factory))
            described.append((each.name, each.default, made, each.init, each.compare, each.repr))
        return [(cls.__dataclass_params__.frozen,), *described]

    assert described("reference") == described("gpu")


# --- Errors ---


def table(package: str, **settings: Any) -> Any:
    return module(package, "model.table").TableModel(**{"vocab_size": 4, "num_lookahead": 2, **settings})


def pass_(package: str, model: Any = None, vectors: Any = ..., **settings: Any) -> Any:
    model = table(package) if model is None else model
    return module(package, "methods.pass_two_call").PaSS(
        model, model.lookahead() if vectors is ... else vectors, **settings
    )


def plain(package: str, **settings: Any) -> Any:
    return module(package, "methods.autoregressive").Autoregressive(table(package), **settings)


def sampling(package: str, *settings: Any) -> Any:
    return module(package, "config").SamplingConfig(*settings)


def generate(package: str, prompt: Any = (1, 2), limit: Any = 3, method: Any = None, **settings: Any) -> Any:
    method = pass_(package) if method is None else method
    return module(package, "generation").generate(method, prompt, limit, **settings)


def vectors(package: str, *shape: int, fill: float = 0.0) -> Any:
    rows = np.full(shape, fill, dtype=np.float32)
    if package == "gpu":
        import torch

        rows = torch.from_numpy(rows)
    return module(package, "lookahead.vectors").LookAhead(rows, base_model="other", fingerprint="f" * 64)


def spoilt(package: str, value: float) -> Callable[..., Any]:
    """A processor that returns logits without a law behind the third token."""

    def processor(prefix: tuple[int, ...], logits: Any) -> Any:
        return logits if len(prefix) < 4 else logits * 0 + value

    return processor


def tiny(package: str, **changes: Any) -> Any:
    """The configuration of a tiny model, with some fields changed."""
    return module(package, "config").ModelConfig(**{**vars(tiny_config()), **changes})


BAD_CALLS: dict[str, Callable[[str], Any]] = {
    "temperature below 0": lambda p: sampling(p, -1.0),
    "temperature that is no number": lambda p: sampling(p, float("nan")),
    "temperature in words": lambda p: sampling(p, "hot"),
    "top-k below 0": lambda p: sampling(p, 1.0, -1),
    "top-k that is no integer": lambda p: sampling(p, 1.0, 2.5),
    "top-p of 0": lambda p: sampling(p, 1.0, 0, 0.0),
    "top-p above 1": lambda p: sampling(p, 1.0, 0, 1.5),
    "top-k above the vocabulary": lambda p: plain(p, sampling=sampling(p, 1.0, 5)),
    "top-k above the vocabulary, PaSS": lambda p: pass_(p, sampling=sampling(p, 1.0, 5)),
    "top-k above the vocabulary, draft": lambda p: pass_(p, draft_sampling=sampling(p, 1.0, 5)),
    "rule": lambda p: pass_(p, rule="typical"),
    "look-ahead below 0": lambda p: pass_(p, num_lookahead=-1),
    "look-ahead below 0, fixed token": lambda p: pass_(p, vectors=None, num_lookahead=-1),
    "look-ahead beyond the vectors": lambda p: pass_(p, num_lookahead=3),
    "fixed token": lambda p: pass_(p, vectors=None, fixed_token=4),
    "fixed token below 0": lambda p: pass_(p, vectors=None, fixed_token=-1),
    "vectors of another width": lambda p: pass_(p, vectors=vectors(p, 2, 9)),
    "vectors of another model": lambda p: pass_(p, model=_named(table(p)), vectors=vectors(p, 2, 6)),
    "vectors with one axis": lambda p: vectors(p, 4),
    "vectors without width": lambda p: vectors(p, 2, 0),
    "vectors that are not finite": lambda p: vectors(p, 2, 3, fill=float("inf")),
    "random vectors below 0": lambda p: module(p, "lookahead.vectors").LookAhead.random(-1, 8, 0),
    "random vectors without width": lambda p: module(p, "lookahead.vectors").LookAhead.random(1, 0, 0),
    "random vectors, seed": lambda p: module(p, "lookahead.vectors").LookAhead.random(1, 8, -1),
    "random vectors, seed in words": lambda p: module(p, "lookahead.vectors").LookAhead.random(1, 8, "0"),
    "no n-gram folder": lambda p: module(p, "drafters.ngram").NgramModel.load("no such folder"),
    "n-grams without a vocabulary": lambda p: module(p, "drafters.ngram").NgramModel([]),
    "prompt lookup without tokens": lambda p: module(p, "drafters.prompt_lookup").PromptLookup(4, 0),
    "no look-ahead folder": lambda p: module(p, "lookahead.vectors").LookAhead.load("no such folder"),
    "no model folder": lambda p: module(p, "checkpoint.load").load_model("no such folder"),
    "no configuration folder": lambda p: module(p, "checkpoint.load").read_config("no such folder"),
    "no generation folder": lambda p: module(p, "checkpoint.load").read_generation_config("no such folder"),
    "no weights folder": lambda p: module(p, "checkpoint.load").read_weights("no such folder", tiny(p)),
    "empty prompt": lambda p: generate(p, ()),
    "token above the vocabulary": lambda p: generate(p, (1, 4)),
    "token below 0": lambda p: generate(p, (-1,)),
    "token that is no integer": lambda p: generate(p, (1, 2.0)),
    "token that is true": lambda p: generate(p, (1, True)),
    "prompt over the context": lambda p: generate(p, (1,) * 64, 1),
    "prompt and tokens over the context": lambda p: generate(p, (1, 2), 63),
    "no new tokens": lambda p: generate(p, limit=0),
    "half a token": lambda p: generate(p, limit=1.5),
    "stop strings without a decoder": lambda p: generate(p, stop_strings=["a"]),
    "stop string that is one string": lambda p: generate(p, stop_strings="ab", decode=str),
    "stop string that is empty": lambda p: generate(p, stop_strings=[""], decode=str),
    "stop string that is no string": lambda p: generate(p, stop_strings=[3], decode=str),
    "end of sequence that is one id": lambda p: generate(p, eos_token_ids=2),
    "seed below 0": lambda p: generate(p, seed=-1),
    "seed that is no integer": lambda p: generate(p, seed=1.5),
    "seed over 64 bits": lambda p: generate(p, seed=2**64),
    "request below 0": lambda p: generate(p, request=-1),
    "one prompt of many": lambda p: module(p, "generation").generate_batch(pass_(p), [[1], []], 3),
    "logits NaN, exact": lambda p: generate(p, (1, 2, 3), method=plain(p, processor=spoilt(p, float("nan")))),
    "logits NaN": lambda p: generate(p, (1, 2), 5, method=pass_(p, processor=spoilt(p, float("nan")))),
    "logits +inf": lambda p: generate(p, (1, 2), 5, method=pass_(p, processor=_constant(float("inf")))),
    "logits -inf": lambda p: generate(p, (1, 2), 5, method=pass_(p, rule="match", processor=_constant(-float("inf")))),
    "a uniform too many": lambda p: _step(p, 7),
    "a uniform too few": lambda p: _step(p, 5),
    "heads and groups": lambda p: tiny(p, num_key_value_heads=3),
    "head size": lambda p: tiny(p, head_dim=5),
    "window": lambda p: tiny(p, sliding_window=0),
    "windows without a window": lambda p: tiny(p, sliding_layers=(True, False)),
    "rope type": lambda p: module(p, "config").RopeScaling("yarn", 2.0),
    "rope factor": lambda p: module(p, "config").RopeScaling("linear", 0.0),
    "rope thresholds": lambda p: module(p, "config").RopeScaling("llama3", 2.0, 4.0, 4.0),
}


def _named(model: Any) -> Any:
    model.fingerprint, model.name = "e" * 64, "this"
    return model


def _constant(value: float) -> Callable[..., Any]:
    return lambda prefix, logits: logits * 0 + value


def _step(package: str, num_uniforms: int) -> Any:
    method = pass_(package)
    state = method.start([1, 2], module(package, "ending").Ending(4))
    return method.run([state], np.full((1, num_uniforms), 0.5))


@pytest.mark.torch
@pytest.mark.parametrize("call", BAD_CALLS.values(), ids=list(BAD_CALLS))
def test_bad_calls_fail_alike(call: Callable[[str], Any]) -> None:
    said = []
    for package in PACKAGES:
        with pytest.raises((ValueError, FileNotFoundError)) as error:
            call(package)
        said.append((type(error.value), str(error.value)))
    assert said[0] == said[1]
    assert "expected" in said[0][1] and "\n" not in said[0][1] and not said[0][1].endswith(".")


# --- Imports ---

STANDARD = sys.stdlib_module_names
READS_FILES = {"checkpoint.py", "lookahead.py"}  # and what lies in files/


def imports(tree: ast.AST) -> Iterator[tuple[int, str]]:
    """Yield (dots, module) of every import in a syntax tree, wherever it stands."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((0, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield node.level, node.module or ""


@pytest.mark.parametrize("path", sorted(paths("reference")))
def test_the_reference_needs_numpy_alone(path: str) -> None:
    allowed = {"numpy"} | ({"safetensors", "ml_dtypes"} if path in READS_FILES or path.startswith("files/") else set())
    tree = ast.parse((ROOT / "reference" / path).read_text(encoding="utf-8"))
    absolute = {name.partition(".")[0] for dots, name in imports(tree) if not dots}
    assert absolute - STANDARD <= allowed


@both_packages
def test_a_package_imports_its_own_modules_relatively_and_stays_inside(package: str) -> None:
    for path in sorted(paths(package)):
        depth = path.count("/")
        for dots, name in imports(ast.parse((ROOT / package / path).read_text(encoding="utf-8"))):
            assert dots <= depth + 1, f"{path} reaches out of the package"
            if not dots:
                assert name.partition(".")[0] not in {"pass_sampling", *PACKAGES}, f"{path} imports {name}"


def code_elsewhere() -> Iterator[tuple[str, str]]:
    """Yield the Python outside the packages: tests, notebooks, and the examples in documents."""
    for path in sorted((ROOT / "tests").rglob("*.py")):
        yield path.name, path.read_text(encoding="utf-8")
    for path in sorted((ROOT / "notebooks").rglob("*.ipynb")):
        cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
        code = "\n".join("".join(cell["source"]) for cell in cells if cell["cell_type"] == "code")
        yield path.name, re.sub(r"^[%!].*$", "", code, flags=re.MULTILINE)
    for path in [*sorted(ROOT.glob("*.md")), *sorted((ROOT / "docs").rglob("*.md"))]:
        for block in re.findall(r"^```python\n(.*?)^```", path.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL):
            yield path.name, block


def test_everything_else_imports_the_packages_by_their_installed_names() -> None:
    for name, code in code_elsewhere():
        roots = {imported.partition(".")[0] for dots, imported in imports(ast.parse(code)) if not dots}
        assert not roots & set(PACKAGES), f"{name}: expected pass_sampling.reference or pass_sampling.gpu"


def run_python(code: str) -> str:
    command = [sys.executable, "-c", code]
    return subprocess.run(command, capture_output=True, text=True, check=True, cwd=ROOT.parent).stdout


@both_packages
def test_importing_a_package_is_quick_and_loads_no_torch(package: str) -> None:
    code = f"""
import sys, time
start = time.process_time()  # other work does not count
import pass_sampling.{package}
print(time.process_time() - start, *[name for name in ("torch", "transformers", "safetensors") if name in sys.modules])
"""
    runs = [run_python(code).split() for _ in range(3)]
    assert [loaded for _, *loaded in runs] == [[], [], []]
    assert min(float(seconds) for seconds, *_ in runs) < 0.3


def test_neither_package_loads_the_other() -> None:
    code = """
import sys, importlib, pkgutil
home = importlib.import_module("pass_sampling.{0}")
for module in pkgutil.walk_packages(home.__path__, home.__name__ + "."):
    if not module.name.endswith("__main__"):
        importlib.import_module(module.name)
print(*[name for name in sys.modules if name.startswith("pass_sampling.{1}") or name == "torch"])
"""
    assert run_python(code.format("reference", "gpu")).split() == []


# --- How the source is written ---


@both_packages
def test_no_file_is_long(package: str) -> None:
    lengths = {path: len((ROOT / package / path).read_text(encoding="utf-8").splitlines()) for path in paths(package)}
    assert {path: length for path, length in lengths.items() if length > MOST_LINES} == {}


def all_modules(package: str) -> list[str]:
    return sorted(
        path[:-3].replace("/", ".") for path in paths(package) if not path.endswith(("__init__.py", "__main__.py"))
    )


@both_packages
def test_everything_public_says_what_it_does(package: str) -> None:
    silent = []
    for name in all_modules(package):
        home = module(package, name)
        public = [(name, home)]
        for each, value in public_things(package, name).items():
            public.append((f"{name}.{each}", value))
            if inspect.isclass(value):
                public += [(f"{name}.{each}.{method}", it) for method, it in own_methods(value).items()]
        silent += [place for place, thing in public if not (getattr(thing, "__doc__", None) or "").strip()]
    assert silent == []


ARRAY_TYPES = {"Array", "Probs", "Tokens", "Mask", "Codes", "Inputs", "Tensor", "NDArray"}


def is_array(annotation: Any) -> bool:
    """Say whether a value of this type is an array, or a tuple of some."""
    if not isinstance(annotation, str) or re.match(r"(Callable|Mapping|dict|list|Iterator|Sequence)\b", annotation):
        return False
    return bool(set(re.findall(r"\w+", annotation)) & ARRAY_TYPES)


@both_packages
def test_every_public_array_says_its_shape(package: str) -> None:
    missing = []
    for name in all_modules(package):
        home = module(package, name)
        for function in functions_of(home):
            if any(part.startswith("_") and part != "__init__" for part in function.__qualname__.split(".")):
                continue
            said = signature(function)
            for argument, annotation in function.__annotations__.items():
                has = said.returns is not None if argument == "return" else argument in said.arguments
                if is_array(annotation) and not has:
                    missing.append(f"{name}.{function.__qualname__}, {argument}: {annotation}")
        for each, value in public_things(package, name).items():
            if dataclasses.is_dataclass(value):
                arrays = {key for key, annotation in value.__annotations__.items() if is_array(annotation)}
                missing += [f"{name}.{each}.{key}" for key in sorted(arrays - shape_fields(value).keys())]
    assert missing == []


def test_what_counts_as_an_array() -> None:
    assert is_array("npt.NDArray[np.integer] | Sequence[int]") and is_array("tuple[Tensor, Tensor]")
    assert not is_array("Callable[[Tensor], Tensor]") and not is_array("Sequence[int]") and not is_array("int")
    assert parse("# [V]") is not None
