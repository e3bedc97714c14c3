"""What overflows beside a text does not touch it: rejected drafts, look-ahead rows, padding, other requests.

Weights are finite. A channel that one token alone feeds is so heavy that the token's row is not finite: in its hidden
state, its keys or its values. The same model with the channel cut is its twin.
"""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

import pass_sampling.reference as reference
from folders import module
from models import exact_target, package
from pass_sampling.reference.exactness.cases import TINY, WINDOWED
from pass_sampling.reference.exactness.distribution import output_distribution
from trees import is_port

VOCAB = 5
SHAPES = {"full": TINY | {"hidden_size": 16, "vocab_size": VOCAB}}
SHAPES["window"] = WINDOWED | SHAPES["full"]
LARGEST = {"float64": 1e308, "float16": 6e4}  # a product with what the token feeds is infinite
SQUARE = {"float64": 1e200, "float16": 3e2}  # and the product of two such
WHERE = ("hidden", "keys", "values")
FEED, BAN = 0, 1  # the channel of the token that overflows, and one of the same size in every token


def overflowing(
    pkg: Any, token: int, where: str | None = "hidden", dtype: str = "float64", shape: str = "full", ban: float = 20.0
) -> Any:
    """Return a model whose row of a token, made less likely or the least, is not finite; None: the twin."""
    kind = getattr(__import__("torch"), dtype) if is_port(pkg) else np.dtype(dtype)
    config = pkg.ModelConfig(**SHAPES[shape])
    weights = pkg.Weights.random(config, 3, kind)
    home = module("gpu" if is_port(pkg) else "reference", "model.weights")
    cut({entry.name: home.destination(weights, entry) for entry in home.weight_table(config)}, token, where, dtype, ban)
    return pkg.Transformer(config, weights)


def cut(fields: dict[str, Any], token: int, where: str | None, dtype: str, ban: float) -> None:
    """Give weights, under their names in a checkpoint, the channel that a token feeds."""
    for name, tensor in fields.items():
        if name.endswith(("o_proj.weight", "down_proj.weight")):
            tensor[[FEED, BAN]] = 0.0
        elif name.endswith("proj.weight"):
            tensor[:, FEED] = 0.0
    fields["model.embed_tokens.weight"][:, FEED] = 0.0
    fields["model.embed_tokens.weight"][token, FEED] = 8.0
    fields["model.embed_tokens.weight"][:, BAN] = 4.0
    fields["lm_head.weight"][:, [FEED, BAN]] = 0.0
    fields["lm_head.weight"][token, BAN] = -ban
    if where == "hidden":
        for name in ("gate", "up"):
            fields[f"model.layers.0.mlp.{name}_proj.weight"][0, FEED] = SQUARE[dtype]
    elif where is not None:
        fields[f"model.layers.0.self_attn.{where[0]}_proj.weight"][:, FEED] = LARGEST[dtype]


def vectors_of(pkg: Any, model: Any, kind: str = "", feed: tuple[float, ...] = (0.0, 0.0)) -> Any:
    """Return look-ahead vectors that draft any token; those that feed the channel overflow."""
    found = pkg.LookAhead.random(len(feed), model.hidden_size, 7)
    vectors = found.vectors.copy() if isinstance(found.vectors, np.ndarray) else found.vectors.clone()
    vectors[:, BAN] = 0.0
    for row, number in zip(vectors, feed, strict=True):
        row[FEED] = number
    if kind != "adapter":
        return replace(found, vectors=vectors)
    adapter = pkg.Adapter.random(model.config, 2, 8)
    for name, matrix in adapter.matrices.items():
        if name.endswith((".output.up", ".down.up")):
            matrix[[FEED, BAN]] = 0.0
    return replace(found, vectors=vectors, adapter=adapter)


CHAINS, TREES = ("token", "block", "match"), ("without-replacement", "k-seq", "match")
METHODS = [("two calls", rule) for rule in CHAINS] + [("one call", rule) for rule in CHAINS]
METHODS += [("adapter", "token")] + [("draft model", rule) for rule in CHAINS]
METHODS += [(kind, rule) for kind in ("tree", "tree in one call") for rule in TREES]
FAULTS = [("hidden", "float64"), ("keys", "float64"), ("values", "float64"), ("hidden", "float16")]
# Two faults each, and the others with the next rule, so that every kind meets all of them.
REJECTED = [(*method, *fault) for number, method in enumerate(METHODS) for fault in FAULTS[number % 2 :: 2]]
REJECTED += [("adapter", "token", *fault) for fault in FAULTS[1::2]]
KINDS = ("plain", "two calls", "one call", "draft model")
PLACES = [(where, kind, (i + j) % 2) for i, where in enumerate(WHERE) for j, kind in enumerate(KINDS)]


def method_of(
    pkg: Any, kind: str, rule: str, model: Any, feed: Any = (0.0, 0.0), where: str | None = None, **sampling: Any
) -> Any:
    """Return a method that drafts all tokens, of which the target by default bans the least likely one.

    A draft model overflows as well, at token 2, where `where` is given.
    """
    target = pkg.SamplingConfig(**{"top_k": VOCAB - 1} | sampling)
    settings = {"sampling": target, "rule": rule, "draft_sampling": pkg.SamplingConfig()}
    if kind == "plain":
        return pkg.Autoregressive(model, target)
    if kind == "two calls":
        return pkg.PaSS(model, vectors_of(pkg, model, feed=feed), **settings)
    if kind in ("one call", "adapter"):
        return pkg.PaSSOneCall(model, vectors_of(pkg, model, kind, feed), **settings)
    if kind == "tree in one call":
        return pkg.PaSSOneCallTree(model, vectors_of(pkg, model, feed=feed), **settings, num_candidates=(2, 2))
    drafter = pkg.ModelDrafter(overflowing(pkg, 2, where, ban=0.0))
    if kind == "draft model":
        return pkg.SpeculativeSampling(model, drafter, **settings, num_draft=3)
    return pkg.SpeculativeTree(model, drafter, **settings, num_candidates=(2, 2))


def course(text: Any) -> list[Any]:
    """Return what became of a text, step by step."""
    return [(record.tokens, record.sources, record.num_accepted) for record in text.records]


def courses_alone(pkg: Any, method: Any, prompts: list[list[int]], **options: Any) -> tuple[list[Any], list[str]]:
    """Return what became of each prompt alone, and what was wrong with those that have no text."""
    found, faults = [], []
    for number, prompt in enumerate(prompts):
        try:
            found.append(course(pkg.generate(method, prompt, 9, (), request=number, **options)))
        except ValueError as fault:
            found.append(None)
            faults.append(f"request {number}: {fault}")
    return found, faults


@pytest.mark.parametrize(("kind", "rule", "where", "dtype"), REJECTED)
def test_a_rejected_draft_that_overflows_is_as_any_rejected_draft(pkg, kind, rule, where, dtype):
    """The target never draws the token, the drafts do: texts are those of the twin, alone and side by side."""
    token, prompts, texts = VOCAB - 1, [[2], [0, 3, 1, 2, 1]], {}
    for name in (None, where):
        method = method_of(pkg, kind, rule, overflowing(pkg, token, name, dtype))
        texts[name] = [
            *pkg.generate_batch(method, prompts, 10, (), seed=5),
            pkg.generate(method, [1, 0], 10, (), seed=6),
        ]
    drafts = [token for text in texts[None] for record in text.records for token in record.draft_tokens]
    assert drafts.count(token) > 2
    assert list(map(course, texts[where])) == list(map(course, texts[None]))


@pytest.mark.parametrize("feed", [(8.0, 0.0), (0.0, 8.0)], ids=str)
@pytest.mark.parametrize("kind", ["two calls", "one call", "adapter", "tree in one call"])
def test_look_ahead_rows_that_overflow_leave_the_distribution_as_it_is(pkg, kind, feed):
    """The first of them, or the second alone, beside the exact row and in every group."""
    rule = TREES[0] if kind.startswith("tree") else CHAINS[0]
    method = method_of(pkg, kind, rule, overflowing(pkg, VOCAB - 1), feed, top_k=2)
    method = replace(method, draft_sampling=pkg.SamplingConfig(top_k=2))
    distribution = output_distribution(method, [1, 0], pkg.Ending(4))
    target = exact_target(
        overflowing(reference, VOCAB - 1), reference.SamplingConfig(top_k=2), [1, 0], reference.Ending(4)
    )
    assert distribution.largest_deviation(target) <= 1e-12
    assert distribution.expected["num_draft_tokens"] > 0 if feed[1] else distribution.expected["num_draft_tokens"] == 0


@pytest.mark.parametrize(("where", "kind", "shape"), [(*place, ["full", "window"][n]) for *place, n in PLACES])
def test_a_request_at_fault_is_named_and_the_others_are_spared(pkg: Any, where: str, kind: str, shape: str) -> None:
    """Where the text itself draws the token. Shorter prompts are padded with it: token 0."""
    method = method_of(pkg, kind, "token", overflowing(pkg, 0, where, shape=shape, ban=1.0), top_k=0)
    prompts = [[1], [2, 3, 4, 1, 2, 3], [4, 4], [3, 1, 4], [1, 0, 2], [2, 2, 2]]
    heard: list[list[tuple[int, ...]]] = [[] for _ in prompts]
    listen = lambda number, record: heard[number].append(record.tokens)  # noqa: E731
    alone, faults = courses_alone(pkg, method, prompts, seed=4, callback=listen)
    heard_alone = [heard[number].copy() for number in range(len(prompts))]
    assert 2 <= len(faults) < len(prompts)
    with pytest.raises(pkg.NotFiniteError) as error:
        pkg.generate_batch(method, prompts, 9, (), seed=4, callback=listen)
    assert str(error.value) == "; ".join(faults)
    assert [text and course(text) for text in error.value.generations] == alone
    assert not any(0 in text.tokens[:-1] for text in error.value.generations if text), "a fault was passed over"
    assert heard == [2 * records for records in heard_alone]


@pytest.mark.torch
@pytest.mark.parametrize(("where", "kind", "replays"), [(*place, bool(n)) for *place, n in PLACES])
def test_requests_of_an_engine_are_as_alone_whatever_came_before(where: str, kind: str, replays: bool) -> None:
    """Texts draw the token, or draft it and go on; rows are taken over beside longer texts; captured steps too."""
    from pass_sampling.gpu.engine.engine import Engine
    from test_engine import captured_engine, replayed

    pkg = package("gpu")
    model = overflowing(pkg, 2, where, ban=-0.5)
    method = method_of(pkg, kind, "token", model, where=where, top_k=0)
    generator = np.random.default_rng(0)
    prompts = [generator.choice([0, 1, 3, 4], size).tolist() for size in (1, 9, 2, 1, 6, 3, 1, 2, 8, 1, 4, 2)]
    alone, faults = courses_alone(pkg, method, prompts, seed=3)
    assert 3 <= len(faults) <= 9
    ending = pkg.Ending(9)
    engine = captured_engine(method, ending, replayed, 3) if replays else Engine(method, ending, 3, 20, seed=3)
    requests = iter([pkg.Request(number, prompt) for number, prompt in enumerate(prompts)])
    found: list[Any] = [None] * len(prompts)
    said: list[str] = []
    while True:
        try:
            for number, text in engine.run(requests):
                found[number] = course(text)
            break
        except pkg.NotFiniteError as fault:
            said.append(str(fault))
    assert found == alone and sorted(said) == sorted(faults)
