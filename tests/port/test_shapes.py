"""Shape comments, executed: short generations in both packages, in which every array is compared with its comment."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass, replace
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from folders import both_packages, module, tiny_config
from shapes import Comment, ShapeError, checked, fields, functions_of, parse, signature

ROOT = Path(__file__).resolve().parents[2]
Array = np.ndarray

EXECUTED = (
    "sampling",
    "uniforms",
    "verify",
    "state",
    "generation",
    "batch_record",
    "theory",
    "model.layers",
    "model.cache",
    "model.transformer",
    "model.table",
    "drafters.schedule",
    "drafters.model",
    "drafters.ngram",
    "drafters.ngram_index",
    "drafters.ngram_order",
    "drafters.prompt_lookup",
    "methods.base",
    "methods.autoregressive",
    "methods.pass_two_call",
    "methods.pass_one_call",
    "methods.speculative",
    "methods.tree",
    "methods.tree_rules",
    "methods.tree_shape",
    "lookahead.adapter",
    "lookahead.head",
    "lookahead.refinement",
)


INTERFACES = ("LanguageModel.", "Drafter.", "Refinement.")


def names_of_modules(package: str) -> list[str]:
    """Every module of a package, by its name below it."""
    paths = (path.relative_to(ROOT / package).with_suffix("") for path in (ROOT / package).rglob("*.py"))
    return sorted(".".join(path.parts) for path in paths if path.name not in ("__init__", "__main__"))


def commented(package: str, names: Any) -> dict[str, Callable[..., Any]]:
    """Every function in some modules that has a shape comment, but for what only declares an interface."""
    found = {}
    for name in names:
        home = module(package, name)
        for function in functions_of(home):
            if signature(function).comments and not function.__qualname__.startswith(INTERFACES):
                found[f"{home.__name__}.{function.__qualname__}"] = function
    return found


def tensor(package: str, array: Any) -> Any:
    """Return an array as the package takes it."""
    if package == "reference":
        return np.asarray(array)
    import torch

    return torch.as_tensor(np.asarray(array))


def models(package: str) -> list[Any]:
    """A table, and transformers with everything that a transformer can have; no two sizes are equal."""
    config, weights = module(package, "model.config").ModelConfig, module(package, "model.weights").Weights
    found = [module(package, "model.table").TableModel(5, num_lookahead=3)]
    scalings = (
        module(package, "model.config").RopeScaling("linear", 2.0),
        module(package, "model.config").RopeScaling("llama3", 8.0, 1.0, 4.0, 16),
    )
    for family, scaling in zip(("qwen2", "qwen3"), scalings, strict=True):
        plain = tiny_config(family, attention_output_bias=True, sliding_window=4, sliding_layers=(True, False))
        shape = config(**{**vars(plain), "rope_scaling": scaling})
        found.append(module(package, "model.transformer").Transformer(shape, weights.random(shape, 0)))
    return found


def methods(package: str, model: Any) -> list[Any]:
    """Every method, with every rule and with settings of every kind."""
    settings = module(package, "config").SamplingConfig(0.8, top_k=4, top_p=0.9)
    vectors = module(package, "lookahead.vectors").LookAhead.random(3, model.hidden_size, 0)
    plain, pass_ = (
        module(package, "methods.autoregressive").Autoregressive,
        module(package, "methods.pass_two_call").PaSS,
    )
    speculative, schedules = (
        module(package, "methods.speculative").SpeculativeSampling,
        module(package, "drafters.schedule").SCHEDULES,
    )
    one_call = module(package, "methods.pass_one_call").FusedPaSS
    tree_in_one_call = module(package, "methods.tree").FusedCandidates
    tree, rules = module(package, "methods.tree").Candidates, module(package, "methods.tree_rules").RULES
    drafter = module(package, "drafters.model").ModelDrafter(model)

    def processor(prefix: tuple[int, ...], logits: Any) -> Any:
        return logits / (1 + len(prefix))

    return [
        plain(model, settings),
        pass_(model, vectors, settings),
        pass_(model, vectors, replace(settings, temperature=0.0), rule="match"),
        pass_(model, vectors, settings, rule="block"),
        pass_(model, None, settings, draft_sampling=replace(settings, top_k=2), num_lookahead=2),
        pass_(model, vectors, num_lookahead=0),
        pass_(model, vectors, settings, processor=processor),
        *(speculative(model, drafter, settings, schedule=schedule()) for schedule in schedules.values()),
        speculative(model, drafter, settings, replace(settings, top_k=2), "block", processor),
        speculative(model, drafter, rule="match", num_draft=0),
        *(speculative(model, each, settings) for each in free_drafters(package, model.vocab_size)),
        one_call(model, with_adapter(package, model, vectors), settings),
        *(one_call(model, vectors, settings, refinement=each) for each in refinements(package, model)),
        *(tree(model, drafter, settings, rule=rule, num_candidates=(3, 2)) for rule in rules),
        tree(model, drafter, settings, replace(settings, top_k=2), processor=processor, num_candidates=(2, 1)),
        *(tree_in_one_call(model, vectors, settings, rule=rule, num_candidates=(3, (2, 0, 1))) for rule in rules),
        tree_in_one_call(model, with_adapter(package, model, vectors), processor=processor, num_candidates=(2, 1)),
        *(tree_in_one_call(model, vectors, settings, refinement=each) for each in refinements(package, model)),
    ]


def free_drafters(package: str, vocab_size: int) -> list[Any]:
    """The text itself, and n-grams: two tokens after each, and one of these after the first pair."""
    home = module(package, "drafters.ngram")
    pairs = np.tile([0, vocab_size - 1], vocab_size)
    orders = (
        (np.full(vocab_size, 2), pairs, np.full(2 * vocab_size, 99)),
        (np.eye(1, 2 * vocab_size, dtype=int)[0], [1], [200]),
    )
    tables = tuple(home.NgramOrder(*(tensor(package, array) for array in arrays)) for arrays in orders)
    ngram = home.NgramModel(tensor(package, np.ones(vocab_size, np.float32)), tables)
    return [module(package, "drafters.prompt_lookup").PromptLookup(vocab_size), ngram]


def refinements(package: str, model: Any) -> list[Any]:
    """By an n-gram model; by a head where there are hidden states."""
    refine, ngram = module(package, "lookahead.refinement"), module(package, "drafters.ngram").NgramModel
    found = [refine.NgramRefinement(ngram(tensor(package, np.ones(model.vocab_size, np.float32))))]
    if hasattr(model, "weights"):
        head = module(package, "lookahead.head").SamplerHead.random(model.hidden_size, 6, 0)
        head = head.to(model.weights.embedding.dtype)
        found += [refine.HeadRefinement(head), refine.HeadRefinement(head, draft_vocab_size=2)]
    return found


def with_adapter(package: str, model: Any, vectors: Any) -> Any:
    """Return vectors with an adapter for a transformer."""
    if not hasattr(model, "weights"):
        return vectors
    return replace(vectors, adapter=module(package, "lookahead.adapter").Adapter.random(model.config, 2, 0))


def exercise(package: str) -> None:
    """Call everything that has a shape comment, most of it by generating texts."""
    generation, ending = module(package, "generation"), module(package, "ending").Ending
    for model in models(package):
        for method in methods(package, model):
            generation.generate(method, [1, 2, 3], 7, seed=1, trace=True)
            generation.generate_batch(method, [[1], [2, 3, 1], [4, 0]], 5, eos_token_ids=[2])
        generation.generate(method, [1], 4, stop_strings=["aa"], decode=lambda tokens: "a" * len(tokens))
        hidden = np.ones((1, model.vocab_size if hasattr(model, "spread") else model.hidden_size))
        model.logits_of(tensor(package, hidden), tensor(package, [[2, 0]]))
        state = method.start([1, 2], ending(4))
        method.run([state, state], np.full((2, method.num_uniforms), 0.5))
        assert state.agrees(state.copy())
        if hasattr(model, "forward"):
            batch: Callable[[Any], Any] = (lambda rows: rows) if package == "reference" else (lambda rows: [rows])
            model.forward(tensor(package, batch([1, 2, 3])), visible=tensor(package, np.tri(3, dtype=bool)))
            for number in (1.0, np.nan):
                model.forward(tensor(package, batch(np.full((4, model.hidden_size), number))))
    distribution = tensor(package, np.array([0.25, 0.75]))
    uniform = 0.5 if package == "reference" else tensor(package, 0.5)
    sampling = module(package, "sampling")
    sampling.draw(sampling.cell_edges(distribution), uniform)
    module(package, "uniforms").uniform_stream(1, 2, 3, 4)
    if package == "gpu":
        module(package, "uniforms").uniform_stream(1, [2, 3], 3, 4)
        number = tensor(package, np.ones(1))
        _, record = method.step(
            method.start([1, 2], ending(4)), tensor(package, np.full((1, method.num_uniforms), 0.5))
        )
        record.pack()
        module(package, "drafters.schedule").Schedule().follow(number[None, :0], 2, number, number)
        angles = tensor(package, np.ones((1, 1, 2, 3)))
        module(package, "model.layers").rope(tensor(package, np.ones((1, 4, 2, 6))), angles, angles)
    else:
        theory = module(package, "theory")
        rows = np.full((2, 3, 4), 0.25)
        theory.expected_tokens(theory.acceptance_rate(rows, rows, "match", np.ones((2, 3))), 3)
        theory.expected_tokens(theory.acceptance_rate(rows[:, 0], rows[:, 1], lenience=0.5), 2)
        theory.lenient_distribution(rows[0, 0], rows[0, 1], 0.5)
        for rule in module(package, "methods.tree_rules").RULES:
            module(package, "theory").candidate_acceptance(rows[0, 0], rows[0, 1], 2, rule)
        module(package, "theory").best_tree([[0.5, 0.25]], 4)
    cache = state.cache.copy()
    cache.advance(3)
    cache.keep(tensor(package, [0, 2] if package == "reference" else [[0, 2]]))


@both_packages
def test_every_array_has_the_shape_that_its_comment_says(package: str) -> None:
    functions = commented(package, [name for name in EXECUTED if name in names_of_modules(package)])
    with checked(functions.values()) as calls:
        exercise(package)
    abstract = {f"pass_sampling.{package}.methods.base.Method.step"}
    assert functions.keys() - calls.keys() - abstract == set(), "never called, so never checked"
    assert len(functions) > 40


# --- The comments themselves ---


def all_comments(package: str) -> list[tuple[str, str, Comment]]:
    """Module, place and content of every shape comment of a package."""
    found = []
    for name in names_of_modules(package):
        home = module(package, name)
        for function in functions_of(home):
            found += [(name, function.__qualname__, comment) for comment in signature(function).comments]
        for cls in vars(home).values():
            if isinstance(cls, type) and cls.__module__ == home.__name__:
                found += [(name, cls.__qualname__, comment) for comment in fields(cls).values()]
    return found


@both_packages
def test_every_shape_comment_in_the_source_is_read(package: str) -> None:
    written = [
        line
        for path in sorted((ROOT / package).rglob("*.py"))
        for line in path.read_text(encoding="utf-8").splitlines()
        if re.search(r"\S  # \[", line)
    ]
    read = [comment.text for _, _, comment in all_comments(package)]
    assert sorted(line.partition("  # ")[2] for line in written) == sorted(read)


@both_packages
def test_every_axis_is_in_a_glossary(package: str) -> None:
    notation = (ROOT / "docs" / "notation.md").read_text(encoding="utf-8")
    axes = {
        letter
        for row in re.findall(r"^\| ([A-Z](?:, [A-Z])*) \|", notation, re.MULTILINE)
        for letter in row.split(", ")
    }
    assert {"B", "T", "V"} <= axes
    unknown = []
    for name, place, comment in all_comments(package):
        glossary = module(package, name).__doc__.partition("Glossary of shapes:")[2]
        own = set(re.findall(r"\b([A-Z]'?)(?= [a-z(])", glossary))
        letters = {
            symbol.replace("_prime", "'") for symbol in comment.symbols if len(symbol.replace("_prime", "")) == 1
        }
        unknown += [f"{name}, {place}: {letter}" for letter in sorted(letters - axes - own)]
    assert unknown == []


# --- The executor itself ---


def attend(
    queries: Array,  # [H, T, E]
    keys: Array,  # [G, S, E]
    mask: Array | None = None,  # [T, S]
) -> Array:  # [T, H*E]
    """Stand in for a function whose comments are right."""
    return np.zeros((queries.shape[1], queries.shape[0] * queries.shape[2]))


def drifted(
    rows: Array,  # [K+1, V]
) -> Array:  # [K, V]
    """Stand in for a function that was changed and its comment was not."""
    return rows


def fused(
    x: Array,  # [..., (H+2G)*E]
    heads: Array,  # [H]
    groups: Array,  # [G]
) -> tuple[Array, Array]:  # [..., H, E], [..., 2G, E]
    """Stand in for a function with products, a rest and a tuple."""
    width = x.shape[-1] // (len(heads) + 2 * len(groups))
    count = len(heads) + 2 * len(groups)
    split = x.reshape(*x.shape[:-1], count, width)
    return split[..., : len(heads), :], split[..., len(heads) :, :]


def counted(num_uniforms: int, states: list[int], wrong: int = 0) -> Array:  # [len(states), num_uniforms]
    """Stand in for a function whose shape depends on numbers."""
    inner = np.zeros((len(states), num_uniforms + wrong))  # [len(states), num_uniforms+1]
    return inner[:, wrong:]


def either(
    inputs: Array,  # [T] tokens or [T, D] embeddings
) -> Array:  # [2T+1], or [D]
    """Stand in for a function with alternatives."""
    return np.zeros(2 * len(inputs) + 1)


def blocks(
    target: Array,  # [K+1, V], or [K, V] at the end
    draft: Array,  # [K, V]
) -> None:
    """Stand in for a function with an alternative that only a later argument decides."""


def undetermined(
    x: Array,  # [H*E]
) -> None:
    """Stand in for a comment that checks nothing."""


@dataclass(frozen=True)
class Pair:
    """Stand in for a dataclass of arrays."""

    one: Array  # [B, K]
    two: Array  # [B]


def handed(pair: Pair) -> None:
    """Stand in for a function that is given one."""


def zeros(*shape: int) -> Array:
    return np.zeros(shape)


def call(function: Callable[..., Any], *arguments: Any) -> None:
    with checked([function]) as calls:
        function(*arguments)
    assert calls == {f"{__name__}.{function.__name__}": 1}


def test_right_shapes_pass() -> None:
    call(attend, zeros(4, 5, 6), zeros(2, 7, 6), zeros(5, 7))
    call(attend, zeros(4, 5, 6), zeros(2, 7, 6))
    call(fused, zeros(9, 8, 40), zeros(4), zeros(2))
    call(fused, zeros(40), zeros(4), zeros(2))
    call(counted, 3, [1, 2], 1)
    call(either, zeros(3))
    call(either, zeros(3, 2))
    call(blocks, zeros(3, 4), zeros(3, 4))
    call(blocks, zeros(4, 4), zeros(3, 4))
    call(handed, Pair(zeros(2, 3), zeros(2)))


WRONG = [
    (attend, (zeros(4, 5, 6), zeros(2, 7, 5)), "attend, argument keys: found 5 for E, expected 6 (E=6)"),
    (attend, (zeros(4, 5, 6), zeros(7, 6)), "attend, argument keys: found shape [7, 6], expected [G, S, E]"),
    (attend, (zeros(4, 5, 6), zeros(2, 7, 6), zeros(7, 5)), "attend, argument mask: found 7 for T, expected 5 (T=5)"),
    (drifted, (zeros(3, 4),), "drifted, return value: found 3 for K, expected 2 (K=2)"),
    (drifted, (zeros(0, 4),), "drifted, argument rows: found 0 for K+1, expected a length of that form"),
    (
        fused,
        (zeros(41), zeros(4), zeros(2)),
        "fused, argument x: found 41 for (H+2G)*E, expected a length of that form",
    ),
    (counted, (3, [1, 2], 0), "counted, inner: found 3 for num_uniforms+1, expected 4 (num_uniforms=3)"),
    (counted, (3, [1, 2], 2), "counted, inner: found 5 for num_uniforms+1, expected 4 (num_uniforms=3)"),
    (
        either,
        (zeros(1, 2, 3),),
        "either, argument inputs: found shape [1, 2, 3], expected [T] tokens or [T, D] embeddings",
    ),
    (either, ([[1], [2, 3]],), "either, argument inputs: found sequences of different lengths, expected an array"),
    (
        blocks,
        (zeros(5, 4), zeros(3, 4)),
        "blocks, argument target: found shape [5, 4], expected [K+1, V], or [K, V] at the end",
    ),
    (undetermined, (zeros(6),), "undetermined, argument x: found 6 for H*E, expected names that the call determines"),
    (handed, (Pair(zeros(2, 3), zeros(3)),), "Pair.two: found 3 for B, expected 2 (B=2)"),
]


@pytest.mark.parametrize("function, arguments, message", WRONG, ids=lambda value: getattr(value, "__name__", ""))
def test_wrong_shapes_and_drifted_comments_are_caught(
    function: Callable[..., Any], arguments: tuple[Any, ...], message: str
) -> None:
    with pytest.raises(ShapeError) as error:
        call(function, *arguments)
    assert str(error.value) == message
    with checked([attend]):  # the executor is left as it was found
        attend(zeros(4, 5, 6), zeros(2, 7, 6))


@both_packages
def test_a_wrong_argument_of_the_packages_is_caught(package: str) -> None:
    function, front = module(package, "verify").accept_probs, () if package == "reference" else (2,)
    rows, tokens = np.full((*front, 4, 5), 0.2), np.zeros((*front, 2), dtype=np.int64)
    arguments = [tensor(package, array) for array in (rows, rows[..., :2, :], tokens)]
    with checked([function]), pytest.raises(ShapeError, match=r"^accept_probs, argument \w+_probs: found .*K"):
        function(*arguments)  # it would run: the row too many is not looked at


@pytest.mark.parametrize("text", ["# [number of tokens]", "# [K^2]", "# [f(x)]", "# [K+]", "# [x.y]"])
def test_a_dimension_that_is_no_sum_or_product_is_refused(text: str) -> None:
    with pytest.raises(
        ShapeError, match=r"^shape comment: found the dimension .*, expected a sum or product of names$"
    ):
        parse(text)


def test_only_brackets_make_a_shape_comment() -> None:
    assert parse("# tokens [T]") is None
    assert parse("# [V, D], the same as [D, V]") == Comment("[V, D], the same as [D, V]", (("V", "D"),))
    assert parse("# [1], [..., V]") == Comment("[1], [..., V]", (("1",), ("...", "V")))
    for shapes, text in product([(("T",), ("T", "D"))], ["# [T] or [T, D]", "# [T], or [T, D] for B"]):
        comment = parse(text)
        assert comment is not None and comment.shapes == shapes and comment.alternatives
