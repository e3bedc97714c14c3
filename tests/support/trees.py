"""Methods with a drafter, with a tree, in one call: over models small enough to enumerate, step by step, in batches."""

from collections.abc import Callable, Iterator
from types import ModuleType
from typing import Any

import numpy as np
import pytest

import pass_sampling.reference as reference
from coupled import assert_same
from folders import module
from lookaheads import with_parts
from models import PACKAGES, WINDOWED, exact_target, package, table, transformer
from pass_sampling.reference.exactness.cases import bigrams
from pass_sampling.reference.exactness.distribution import OutputDistribution, output_distribution

EXACT = 1e-12  # sums of some thousand products of numbers in [0, 1], each wrong by a few times 2^-53
PROMPT = (1, 0)
TREES = ("draft-model-tree", "pass-one-call-tree")


def short_name(pkg: Any) -> str:
    return str(pkg.__name__.rpartition(".")[2])


def is_port(pkg: Any) -> bool:
    return short_name(pkg) == "gpu"


def home(pkg: Any, name: str) -> ModuleType:
    """Return a module of a package."""
    return module(short_name(pkg), name)


def array_of(pkg: Any, array: np.ndarray) -> Any:
    """Return an array as a package takes it."""
    return __import__("torch").from_numpy(array) if is_port(pkg) else array


class RowDrafter:
    """A drafter without a cache: its logits depend on the last token alone."""

    name, passes_per_draft, max_position_embeddings = "rows", 0, None

    def __init__(self, rows: list[list[float]]):
        self.rows, self.vocab_size = rows, len(rows)

    def new_cache(self, capacity: int, batch_size: int = 1) -> None:
        return None

    def logits(self, tokens: Any, cache: Any, lengths: Any = None, max_pending: int = 0) -> Any:
        if lengths is None:
            return np.array(self.rows[tokens[-1]])
        last = [row[length - 1] for row, length in zip(tokens.tolist(), lengths.tolist(), strict=True)]
        return tokens.new_tensor([self.rows[token] for token in last], dtype=package("gpu").TableModel.dtype)

    def best(self, *asked: Any) -> Any:
        return module("gpu", "sampling").likeliest(self.logits(*asked))


def target_of(pkg: Any, kind: str = "table", **changes: Any) -> Any:
    """Return a table with some tokens masked, or a transformer, "windowed" with a window shorter than its texts."""
    if kind == "table":
        return table(pkg, **{"seed": 12, "num_lookahead": 3, "zeros": 0.1, "spread": 1.0, **changes})
    return transformer(pkg, 4, **(WINDOWED if kind == "windowed" else {}), **changes)


def drafter_of(pkg: Any, kind: str = "table") -> Any:
    """Return a draft model that is unlike any target."""
    if kind == "table":
        return pkg.ModelDrafter(table(pkg, num_lookahead=0, seed=50, zeros=0.1, spread=1.0))
    return pkg.ModelDrafter(transformer(pkg, 50, num_hidden_layers=1))


def method_of(
    pkg: Any,
    name: str,
    kind: str = "table",
    shape: tuple[Any, ...] = (2,),
    parts: str = "adapter and head",
    **options: Any,
) -> Any:
    """Return a method by its name in the exact suite.

    Args:
        pkg: the package.
        name: "draft-model", "draft-model-tree", "pass-one-call" or "pass-one-call-tree".
        kind: of the model and the drafter, see `target_of`.
        shape: of the tree; its depth is the number of look-ahead vectors of a transformer, at least two.
        parts: what comes with the vectors of a transformer, see `lookaheads.PARTS`, or "n-grams".
        options: of the method; settings may be dictionaries.
    """
    for setting in ("sampling", "draft_sampling"):
        if isinstance(options.get(setting), dict):
            options[setting] = pkg.SamplingConfig(**options[setting])
    options.setdefault("model", target_of(pkg, kind))
    if name in TREES:
        options["num_candidates"] = shape
    if name in ("draft-model", "draft-model-tree"):
        options.setdefault("drafter", drafter_of(pkg, kind))
        return (pkg.SpeculativeTree if name == "draft-model-tree" else pkg.SpeculativeSampling)(**options)
    if parts == "n-grams":
        options["refinement"] = home(pkg, "lookahead.rescoring").ngram_refinement(bigrams(pkg, 3))
    if "lookahead" not in options:
        options["lookahead"] = lookahead_of(pkg, options["model"], parts, max(2, len(shape)))
    return (pkg.PaSSOneCallTree if name in TREES else pkg.PaSSOneCall)(**options)


def lookahead_of(pkg: Any, model: Any, parts: str, num_lookahead: int = 2, seed: int = 7) -> Any:
    """Return look-ahead vectors, with untrained parts where the model is a transformer."""
    if hasattr(model, "lookahead"):
        return model.lookahead()
    return with_parts(short_name(pkg), model, "vectors" if parts == "n-grams" else parts, num_lookahead, seed)


def distribution_of(
    pkg: Any, method: Any, ending: dict[str, Any], prompt: tuple[int, ...] = PROMPT, **options: Any
) -> OutputDistribution:
    return output_distribution(method, prompt, pkg.Ending(**ending), **options)


def definition(
    method: Any, ending: dict[str, Any], kind: str = "table", prompt: tuple[int, ...] = PROMPT
) -> OutputDistribution:
    """Return the distribution that a method's texts should have, from the specification's `target_of(kind)`."""
    sampling, ends = reference.SamplingConfig(**vars(method.sampling)), reference.Ending(**ending)
    return exact_target(target_of(reference, kind), sampling, prompt, ends, processor=method.processor)


def distributions_after(model: Any, drafter: Any, prefix: tuple[int, ...]) -> tuple[np.ndarray, np.ndarray]:
    """Return the distributions of the reference's model and drafter after some tokens."""
    plain = reference.Autoregressive(model)
    row = model.logits(model.hidden(model.embed(prefix), model.new_cache())[-1])
    return plain.probs(prefix, row), plain.probs(prefix, drafter.logits(prefix, drafter.new_cache(len(prefix))))


def assert_exact(
    pkg: Any,
    method: Any,
    ending: dict[str, Any],
    kind: str = "table",
    verified_steps: int = 2,
    prompt: tuple[int, ...] = PROMPT,
    **options: Any,
) -> OutputDistribution:
    """Compare the distribution of a method over `target_of(kind)` with its definition, and return it."""
    distribution = distribution_of(pkg, method, ending, prompt, **options)
    target = definition(method, ending, kind, prompt)
    assert distribution.largest_deviation(target) <= EXACT
    assert abs(sum(distribution.values()) - 1.0) <= EXACT
    assert set(distribution) <= set(target), "a sequence came out that the target cannot produce"
    assert sum(count > 0 for count in distribution.verified) >= verified_steps, distribution.verified
    return distribution


def assert_states_may_be_merged(pkg: Any, method: Any, ending: dict[str, Any]) -> None:
    """Continue every path on its own, from the very caches that it left; and run both ends of every cell."""
    merged, unmerged = (distribution_of(pkg, method, ending, merge=merge, probe=merge) for merge in (True, False))
    assert merged.largest_deviation(unmerged) <= EXACT and unmerged.executions > merged.executions
    assert merged.expected == pytest.approx(dict(unmerged.expected), abs=EXACT)


def step(pkg: Any, method: Any, state: Any, uniforms: np.ndarray) -> tuple[Any, Any]:
    """Run a step of one text; return the state after it and its record."""
    if not is_port(pkg):
        return method.step(state, uniforms)
    state, record = method.step(state, array_of(pkg, uniforms[None]))
    return state, record.rows()[0]


def held(pkg: Any, cache: Any) -> int:
    """Return how many tokens a cache of one text holds."""
    return int(cache.lengths[0]) if is_port(pkg) else int(cache.length)


def checked_steps(pkg: Any, method: Any, num_steps: int = 8) -> Iterator[tuple[Any, Any]]:
    """Yield the state and the record of some steps, some drafts of which are rejected without a trace.

    After every step each cache holds the rows of a fresh pass over the committed text, and what comes after them is
    never read.
    """
    clean, dirty = (method.start(PROMPT, pkg.Ending(60)) for _ in range(2))
    rejected = False
    for number in range(num_steps):
        uniforms = np.random.default_rng((7, number)).random(method.num_uniforms)
        clean, record = step(pkg, method, clean, uniforms)
        dirty, other = step(pkg, method, dirty, uniforms)
        assert other.tokens == record.tokens and dirty.agrees(clean)
        rejected |= record.num_accepted < record.draft_depth
        text = [*PROMPT, *clean.new_tokens]
        models = (method.model, method.drafter.model) if len(clean.caches) > 1 else (method.model,)
        for cache, model in zip(clean.caches, models, strict=True):
            fresh, length = model.new_cache(len(text)), held(pkg, cache)
            assert length < len(text)
            model.hidden(model.embed([text[:length]] if is_port(pkg) else text[:length]), fresh)
            assert cache.agrees(fresh)
        assert held(pkg, clean.cache) == len(text) - 1
        for cache in dirty.caches:
            for array in (cache.keys, cache.values):
                array[..., held(pkg, cache) :, :] = 1e150 if is_port(pkg) else np.nan
        yield clean, record
    assert rejected


def assert_batches_agree(make: Callable[[Any], Any], prompts: list[list[int]], seed: int) -> None:
    """Compare a batch of the port with the reference row by row: rows of different lengths, which end and leave."""
    packages = [package(name) for name in PACKAGES]
    results = [pkg.generate_batch(make(pkg), prompts, 16, (1,), seed=seed, trace=True) for pkg in packages]
    for one, other in zip(*results, strict=True):
        assert_same(one, other)
