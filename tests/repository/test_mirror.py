"""The port mirrors the numerics of the reference: names, leading parameters, defaults, fields and error texts."""

import dataclasses
import inspect
from collections.abc import Callable
from functools import cached_property
from typing import Any

import numpy as np
import pytest

from folders import module
from pass_sampling.reference.config import SamplingConfig
from pass_sampling.reference.ending import Ending

pytestmark = pytest.mark.torch
PACKAGES = ("reference", "gpu")

# What is computed twice, independently, so that agreement is evidence.
CORE = """
    sampling verify uniforms generation model.layers model.cache model.transformer model.weights model.table
    methods.base methods.autoregressive methods.pass_two_call methods.pass_one_call methods.speculative methods.tree
    methods.tree_rules methods.tree_shape lookahead.vectors lookahead.adapter lookahead.head lookahead.refinement
    lookahead.rescoring lookahead.free_first methods.blockwise
    drafters.base drafters.first_of drafters.ngram drafters.prompt_lookup drafters.schedule
""".split()

# Names of the reference that the port has elsewhere, or does not need, and why.
ELSEWHERE = {
    "sampling.has_distribution": "the port asks `largest_logits`: a device cannot raise in the middle of a step",
    "methods.base.State": "state.State, a batch in tensors",
    **{f"methods.base.{name}_record": "methods.records" for name in ("exact", "drafting", "verified")},
    "methods.base.verify_drafts": "methods.records",
    "methods.base.draft_left_to_right": "methods.speculative",
    "methods.base.Drafts": "methods.speculative",
    "methods.pass_one_call.PaSSOneCall.chain_probs": "methods.records, where greedy verification needs no rows",
    "methods.base.Method.probs": "one prefix after another",
    "drafters.ngram.NgramOrder": "the reference's",
    "methods.tree_shape.NumCandidates": "the reference's",
    "methods.tree_shape.check_tree": "the reference's",
    **{f"lookahead.rescoring.{name}": "analyses" for name in ("lattice", "oracle_lengths", "repetition", "confidence")},
    "model.layers.rope": "`rotation` and `rotate`, in half as many operations",
    "model.weights.check_dtype": "model.precision",
    "model.weights.draw": "the reference's",
}

# Functions whose parameters do not begin with the reference's, and why.
OTHER_PARAMETERS = {
    "sampling.probs_from_logits": "`where` begins an error message, and the port keeps its faults in the state",
    "methods.base.Method.chain_probs": "the port reads the prefixes of a batch from its state",
    "methods.base.Method.process": "the port reads the prefixes of a batch from its state",
    "methods.tree_shape.layout": "rows of a batch have lengths of their own",
    "model.weights.LayerWeights": "the port fuses projections",
}


def public(package: str, name: str) -> dict[str, Any]:
    """The public functions and classes that a module defines, and the public methods of its classes, by dotted name."""
    home, found = module(package, name), {}
    for each, value in vars(home).items():
        defined = (inspect.isclass(value) or inspect.isfunction(value)) and value.__module__ == home.__name__
        if not defined or each.startswith("_"):
            continue
        found[f"{name}.{each}"] = value
        if inspect.isclass(value):
            kinds = (property, classmethod, staticmethod, cached_property)
            own = {key: it for key, it in vars(value).items() if inspect.isfunction(it) or isinstance(it, kinds)}
            found |= {f"{name}.{each}.{key}": it for key, it in own.items() if not key.startswith("_")}
    return found


def resolve(package: str, name: str) -> Any:
    home = next(each for each in sorted(CORE, key=len, reverse=True) if name.startswith(f"{each}."))
    thing: Any = module(package, home)
    for part in name.removeprefix(f"{home}.").split("."):
        thing = getattr(thing, part)
    return thing


def is_value(thing: Any) -> bool:
    return isinstance(thing, property | cached_property) or "_is_protocol" in getattr(thing, "__dict__", {})


def default_of(parameter: inspect.Parameter) -> str:
    return str(parameter.default).replace("<class 'numpy.float64'>", "torch.float64")


def is_elsewhere(name: str) -> bool:
    return any(name == each or name.startswith(f"{each}.") for each in ELSEWHERE)


@pytest.mark.parametrize("home", CORE)
def test_the_port_has_what_the_reference_has(home: str) -> None:
    port = module("gpu", home)
    missing = []
    for name in public("reference", home):
        thing: Any = port
        for part in name.removeprefix(f"{home}.").split("."):
            fields = getattr(thing, "__dataclass_fields__", {})
            thing = getattr(thing, part, fields.get(part))
        if thing is None and not is_elsewhere(name):
            missing.append(name)
    assert missing == []


@pytest.mark.parametrize("home", CORE)
def test_parameters_begin_with_the_references_and_have_its_defaults(home: str) -> None:
    wrong = []
    for name in public("reference", home):
        if name in OTHER_PARAMETERS or is_elsewhere(name):
            continue
        things = [resolve(package, name) for package in PACKAGES]
        if any(map(is_value, things)) or not all(map(callable, things)):
            continue
        ours, theirs = (inspect.signature(thing).parameters for thing in things)
        same = list(theirs)[: len(ours)] == list(ours)
        defaults = [[default_of(some[each]) for each in ours if each in some] for some in (ours, theirs)]
        if not same or defaults[0] != defaults[1]:
            wrong.append((name, list(ours), list(theirs)))
    assert wrong == []


@pytest.mark.parametrize("home", CORE)
def test_dataclasses_have_the_same_fields_and_defaults(home: str) -> None:
    for name, cls in public("reference", home).items():
        if dataclasses.is_dataclass(cls) and name not in {**ELSEWHERE, **OTHER_PARAMETERS}:
            described = [
                [(each.name, each.default, each.init) for each in dataclasses.fields(resolve(package, name))]
                for package in PACKAGES
            ]
            assert described[0] == described[1][: len(described[0])], name


def table(package: str) -> Any:
    return module(package, "model.table").TableModel(vocab_size=4, num_lookahead=2)


def pass_(package: str, model: Any = None, vectors: Any = ..., **settings: Any) -> Any:
    model = table(package) if model is None else model
    vectors = model.lookahead() if vectors is ... else vectors
    return module(package, "methods.pass_two_call").PaSS(model, vectors, **settings)


def generate(package: str, prompt: Any = (1, 2), limit: Any = 3, **settings: Any) -> Any:
    return module(package, "generation").generate(pass_(package, **settings), prompt, limit)


def vectors(package: str, *shape: int, fill: float = 0.0) -> Any:
    rows: Any = np.full(shape, fill, dtype=np.float32)
    rows = rows if package == "reference" else pytest.importorskip("torch").from_numpy(rows)
    return module(package, "lookahead.vectors").LookAhead(rows, base_model="other", fingerprint="f" * 64)


def another_model(package: str) -> Any:
    model = table(package)
    model.fingerprint, model.name = "e" * 64, "this"
    return model


def logits_of(value: float, after: int = 0) -> Callable[..., Any]:
    return lambda prefix, logits: logits if len(prefix) < after else logits * 0 + value


def step(package: str, num_uniforms: int) -> Any:
    method = pass_(package)
    return method.run([method.start([1, 2], Ending(4))], np.full((1, num_uniforms), 0.5))


BAD_CALLS: dict[str, Callable[[str], Any]] = {
    "top-k above the vocabulary": lambda p: pass_(p, sampling=SamplingConfig(1.0, 5)),
    "top-k above the vocabulary, draft": lambda p: pass_(p, draft_sampling=SamplingConfig(1.0, 5)),
    "rule": lambda p: pass_(p, rule="typical"),
    "look-ahead below 0": lambda p: pass_(p, num_lookahead=-1),
    "look-ahead beyond the vectors": lambda p: pass_(p, num_lookahead=3),
    "fixed token": lambda p: pass_(p, vectors=None, fixed_token=4),
    "vectors of another width": lambda p: pass_(p, vectors=vectors(p, 2, 9)),
    "vectors of another model": lambda p: pass_(p, model=another_model(p), vectors=vectors(p, 2, 6)),
    "vectors with one axis": lambda p: vectors(p, 4),
    "vectors that are not finite": lambda p: vectors(p, 2, 3, fill=float("inf")),
    "random vectors without width": lambda p: module(p, "lookahead.vectors").LookAhead.random(1, 0, 0),
    "token above the vocabulary": lambda p: generate(p, (1, 4)),
    "prompt and tokens over the context": lambda p: generate(p, (1, 2), 63),
    "one prompt of many": lambda p: module(p, "generation").generate_batch(pass_(p), [[1], []], 3),
    "logits NaN": lambda p: generate(p, (1, 2), 5, processor=logits_of(float("nan"), 4)),
    "logits +inf": lambda p: generate(p, (1, 2), 5, processor=logits_of(float("inf"))),
    "logits -inf": lambda p: generate(p, (1, 2), 5, rule="match", processor=logits_of(-float("inf"))),
    "a uniform too many": lambda p: step(p, 7),
    "a uniform too few": lambda p: step(p, 5),
}


@pytest.mark.parametrize("call", BAD_CALLS.values(), ids=list(BAD_CALLS))
def test_bad_calls_fail_alike(call: Callable[[str], Any]) -> None:
    said = []
    for package in PACKAGES:
        with pytest.raises((ValueError, FileNotFoundError)) as error:
            call(package)
        said.append((type(error.value), str(error.value)))
    assert said[0] == said[1]
    assert "expected" in said[0][1] and "\n" not in said[0][1] and not said[0][1].endswith(".")
