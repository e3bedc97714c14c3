"""Shape comments, executed: short generations in both packages, in which every array is compared with its comment."""

import re
from collections.abc import Callable
from dataclasses import dataclass, replace
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import pass_sampling.reference as reference
from folders import LINEAR, LLAMA3, both_packages, module, tiny_config
from pass_sampling.reference.exactness.cases import Configuration, methods_of, penalty
from shapes import Bindings, Comment, ShapeError, checked, fields, functions_of, own_signature, parse, signature

ROOT = Path(__file__).resolve().parents[2]
Array = np.ndarray
EXECUTED = """
    sampling uniforms verify state generation batch_record theory model.layers model.cache model.transformer model.table
    drafters.schedule drafters.base drafters.ngram drafters.prompt_lookup
    methods.base methods.autoregressive methods.pass_two_call methods.pass_one_call methods.speculative methods.tree
    methods.tree_rules methods.tree_shape lookahead.adapter lookahead.head lookahead.refinement
""".split()
INTERFACES = ("LanguageModel.", "Drafter.", "Refinement.", "Method.step")  # declared, never called


def modules_of(package: str) -> dict[str, Any]:
    """Every module of a package, by its name below it."""
    paths = (path.relative_to(ROOT / package).with_suffix("") for path in sorted((ROOT / package).rglob("*.py")))
    names = (".".join(path.parts) for path in paths if path.name not in ("__init__", "__main__"))
    return {name: module(package, name) for name in names}


def tensor(package: str, array: Any) -> Any:
    """Return an array as the package takes it."""
    if package == "reference":
        return np.asarray(array)
    import torch

    return torch.as_tensor(np.asarray(array))


SHAPE = vars(tiny_config("qwen3", attention_output_bias=True, sliding_window=4, sliding_layers=(True, False)))
OTHER = vars(tiny_config("qwen2", rope_scaling=LINEAR))
CONFIGURATIONS = [  # with settings of every kind; no two sizes are equal
    Configuration("table", vocab_size=5, num_draft=3, num_candidates=(3, (2, 0, 1)), refine="ngram", processor=penalty),
    Configuration("greedy", vocab_size=5, num_draft=3, sampling={"temperature": 0.0}, schedule=("entropy", {})),
    Configuration("other", OTHER, num_draft=3, sampling={"top_k": 4}, refine="alone", num_candidates=(3, 2)),
    Configuration(
        "transformer",
        SHAPE | {"rope_scaling": LLAMA3},
        num_draft=3,
        sampling={"temperature": 0.8, "top_k": 4, "top_p": 0.9},
        draft_sampling={"top_k": 2},
        num_candidates=(2, 1),
        schedule=("heuristic", {}),
    ),
]


def methods(package: str, configuration: Configuration) -> list[Any]:
    """Every method with every rule; without vectors, with n-grams of two orders, and refined over some tokens."""
    home = import_module(f"pass_sampling.{package}")
    found = [configuration.method(home, name, rule) for name, rule in methods_of(reference)]
    model, one_call = found[0].model, next(each for each in found if isinstance(each, home.PaSSOneCall))
    pairs = np.tile([0, model.vocab_size - 1], model.vocab_size)  # two tokens after each, one after the first pair
    orders = (
        (np.full(model.vocab_size, 2), pairs, np.full(2 * model.vocab_size, 99)),
        (np.eye(1, 2 * model.vocab_size, dtype=int)[0], [1], [200]),
    )
    order = module(package, "drafters.ngram").NgramOrder
    ngram = home.NgramModel(np.ones(model.vocab_size, np.float32), tuple(order(*arrays) for arrays in orders))
    found += [home.PaSS(model, None, num_lookahead=2), home.SpeculativeSampling(model, ngram)]
    if configuration.shape is not None:
        head = home.SamplerHead.random(model.hidden_size, 6, 0).to(model.weights.embedding.dtype)
        refinement = module(package, "lookahead.refinement").HeadRefinement(head, tensor(package, np.array([0, 2])))
        found.append(replace(one_call, refinement=refinement))
    return found


def exercise(package: str) -> None:
    """Call everything that has a shape comment, most of it by generating texts."""
    generation, ending = module(package, "generation"), module(package, "ending").Ending
    sampling, uniforms = module(package, "sampling"), module(package, "uniforms")
    for configuration in CONFIGURATIONS:
        for method in methods(package, configuration):
            generation.generate(method, [1, 2, 3], 7, seed=1, trace=True)
            generation.generate_batch(method, [[1], [2, 3, 1], [4, 0]], 5, eos_token_ids=[2])
        model = method.model
        generation.generate(method, [1], 4, stop_strings=["aa"], decode=lambda tokens: "a" * len(tokens))
        hidden = np.ones((1, model.vocab_size if hasattr(model, "spread") else model.hidden_size))
        model.logits_of(tensor(package, hidden), tensor(package, np.array([2, 0])))
        state = method.start([1, 2], ending(4))
        method.run([state, state], np.full((2, method.num_uniforms), 0.5))
        assert state.agrees(state.copy())
        if hasattr(model, "forward"):
            batch: Callable[[Any], Any] = (lambda rows: rows) if package == "reference" else (lambda rows: [rows])
            model.forward(tensor(package, batch([1, 2, 3])), visible=tensor(package, np.tri(3, dtype=bool)))
            for number in (1.0, np.nan):
                model.forward(tensor(package, batch(np.full((4, model.hidden_size), number))))
    sampling.draw(sampling.cell_edges(tensor(package, [0.25, 0.75])), tensor(package, 0.5)[()])
    uniforms.uniform_stream(1, 2, 3, 4)
    if package == "gpu":
        uniforms.uniform_stream(1, [2, 3], 3, 4)
        sampling._sum_in_parts(tensor(package, [0.25, 0.75]))
        number = tensor(package, np.ones(1))
        row = tensor(package, np.full((1, method.num_uniforms), 0.5))
        method.step(method.start([1, 2], ending(4)), row)[1].pack()
        module(package, "drafters.schedule").Schedule().follow(number[None, :0], 2, number, number)
    else:
        theory, rows = module(package, "theory"), np.full((2, 3, 4), 0.25)
        theory.expected_tokens(theory.acceptance_rate(rows, rows, "match", np.ones((2, 3))), 3)
        theory.expected_tokens(theory.acceptance_rate(rows[:, 0], rows[:, 1], lenience=0.5), 2)
        theory.lenient_distribution(rows[0, 0], rows[0, 1], 0.5)
        for rule in module(package, "methods.tree_rules").RULES:
            theory.candidate_acceptance(rows[0, 0], rows[0, 1], 2, rule)
        theory.best_tree([[0.5, 0.25]], 4)
    state.keep(state.cached)
    cache = state.cache.copy()
    cache.advance(3)
    cache.keep(tensor(package, [0, 2] if package == "reference" else [[0, 2]]))


@both_packages
def test_every_array_has_the_shape_that_its_comment_says(package: str) -> None:
    functions = {
        f"{home.__name__}.{function.__qualname__}": function
        for name, home in modules_of(package).items()
        for function in functions_of(home)
        if name in EXECUTED and signature(function).comments and not function.__qualname__.startswith(INTERFACES)
    }
    for home in modules_of(package).values():
        for value in vars(home).values():
            getattr(value, "cache_clear", bool)()  # else what other tests have called is not called again
    with checked(functions.values()) as calls:
        exercise(package)
    assert functions.keys() - calls.keys() == set(), "never called, so never checked"
    assert len(functions) > 40


def all_comments(package: str) -> list[tuple[str, str, Comment]]:
    """Module, place and content of every shape comment of a package."""
    found = []
    for name, home in modules_of(package).items():
        for function in functions_of(home):
            found += [(name, function.__qualname__, comment) for comment in own_signature(function).comments]
        for cls in vars(home).values():
            if isinstance(cls, type) and cls.__module__ == home.__name__:
                found += [(name, cls.__qualname__, comment) for comment in fields(cls).values()]
    return found


@both_packages
def test_every_shape_comment_in_the_source_is_read(package: str) -> None:
    lines = [line for path in (ROOT / package).rglob("*.py") for line in path.read_text("utf-8").splitlines()]
    written = [line.partition("  # ")[2] for line in lines if re.search(r"\S  # \[", line)]
    assert sorted(written) == sorted(comment.text for _, _, comment in all_comments(package))


@both_packages
def test_every_axis_is_in_a_glossary(package: str) -> None:
    notation = (ROOT / "docs" / "notation.md").read_text(encoding="utf-8")
    axes = set(", ".join(re.findall(r"^\| ([A-Z](?:, [A-Z])*) \|", notation, re.MULTILINE)).split(", "))
    assert {"B", "T", "V"} <= axes
    unknown = []
    for name, place, comment in all_comments(package):
        own = module(package, name).__doc__.partition("Glossary of shapes:")[2]
        letters = {symbol for symbol in comment.symbols if re.fullmatch("[A-Z](_prime)?", symbol)}
        letters = {letter.replace("_prime", "'") for letter in letters} - axes
        unknown += [
            f"{name}, {place}: {letter}" for letter in letters - set(re.findall(r"\b([A-Z]'?)(?= [a-z(])", own))
        ]
    assert unknown == []


CHAIN = "[K+1, V], or [K, V] at the end; [K, V]"
SHAPES: list[tuple[str, list[tuple[int, ...]], str | None]] = [
    ("[H, T, E]; [G, S, E]", [(4, 5, 6), (2, 7, 6)], None),
    ("[H, T, E]; [G, S, E]", [(4, 5, 6), (2, 7, 5)], "found 5 for E, expected 6 (E=6)"),
    ("[K+1, V]; [K, V]", [(3, 4), (3, 4)], "found 3 for K, expected 2 (K=2)"),
    ("[..., (H+2G)*E]; [H]; [G]; [..., 2G, E]", [(9, 8, 40), (4,), (2,), (9, 8, 4, 5)], None),
    ("[..., V]; [..., V]", [(2, 3, 4), (3, 4)], "found [3] for ..., expected [2, 3]"),
    ("[T] tokens or [T, D] embeddings; [T]", [(3, 2), (3,)], None),
    (CHAIN, [(3, 4), (3, 4)], None),
    (CHAIN, [(5, 4), (3, 4)], "found shape [5, 4], expected [K+1, V], or [K, V] at the end"),
    ("[H*E]", [(6,)], "found 6 for H*E, expected names that the call determines"),
]


@pytest.mark.parametrize("comments, shapes, message", SHAPES)
def test_wrong_shapes_are_caught(comments: str, shapes: list[tuple[int, ...]], message: str | None) -> None:
    pairs = zip(map(parse, comments.split("; ")), map(np.zeros, shapes), strict=True)
    bindings = Bindings({})
    try:
        for comment, array in sorted(pairs, key=lambda pair: pair[0].alternatives):
            bindings.add(comment, array, "here")
        bindings.close()
    except ShapeError as error:
        assert str(error) == f"here: {message}"
    else:
        assert message is None


@dataclass(frozen=True)
class Pair:
    one: Array  # [B, K]
    two: Array  # [B]


def drifts(
    rows: Array,  # [B, K]
    mask: Array | None = None,  # [K]
    *,
    states: list[int],
    pair: Pair | None = None,
) -> Array:  # [K, len(states)]
    """Return the wrong shape where there are 3 states, and make it on the way where there are 4."""
    width = rows.shape[1]
    inner = np.zeros((len(states), width + (len(states) == 4)))  # [len(states), K]
    return inner if len(states) == 3 else inner[:, -width:].T


ROWS, THREE = np.zeros((5, 2)), np.zeros(3)
CALLS: list[tuple[tuple[Any, ...], dict[str, Any], str | None]] = [
    ((ROWS, np.zeros(2)), {"states": [1], "pair": Pair(ROWS, np.zeros(5))}, None),
    ((ROWS, THREE), {"states": []}, "drifts, argument mask: found 3 for K, expected 2 (K=2)"),
    (
        ([[1], [2, 3]],),
        {"states": []},
        "drifts, argument rows: found sequences of different lengths, expected an array",
    ),
    ((ROWS,), {"states": [1, 2, 3]}, "drifts, return value: found 3 for K, expected 2 (K=2)"),
    ((ROWS,), {"states": [0] * 4}, "drifts, inner: found 3 for K, expected 2 (K=2)"),
    ((ROWS,), {"states": [], "pair": Pair(ROWS, THREE)}, "Pair.two: found 3 for B, expected 5 (B=5)"),
]


@pytest.mark.parametrize("arguments, named, message", CALLS)
def test_drifted_comments_are_caught(arguments: tuple[Any, ...], named: dict[str, Any], message: str | None) -> None:
    if message is not None:
        with pytest.raises(ShapeError) as error, checked([drifts]):
            drifts(*arguments, **named)
        assert str(error.value) == message
        arguments, named = CALLS[0][:2]  # the executor is left as it was found
    with checked([drifts]) as calls:
        drifts(*arguments, **named)
    assert calls == {f"{__name__}.drifts": 1}
