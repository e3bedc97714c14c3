"""The same uniforms through NumPy and torch: the same tokens and records, also at the vocabularies of real models.

Each package makes its own distributions from the logits. A decision may differ only where the uniform is so close to a
cell's edge that rounding decides, and how close that is, is derived here. `test_sampling` has both draw from the same
distribution.
"""

from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

import pass_sampling.reference as reference
from adapters import PORT, REFERENCE, Reference
from coupled import assert_same
from gallery_numbers import noise_reused_in_secret, uniform_used_twice, uniforms_by_turn
from gallery_tools import Site
from models import WINDOWED, lookahead, package, table, transformer
from pass_sampling.reference.uniforms import uniform_stream
from strategies import grid_logits

pytestmark = pytest.mark.torch

Array = np.ndarray

HEADS = {"num_attention_heads": 4, "num_key_value_heads": 2, "attention_bias": True, "attention_output_bias": True}
SHAPES: dict[str, dict[str, Any]] = {
    "llama": {},
    "windowed": WINDOWED,
    "biased and tied": HEADS | {"rope_theta": 500.0, "tie_word_embeddings": True},
}
SAMPLING: list[dict[str, Any]] = [
    {},
    {"temperature": 0.0},
    {"temperature": 0.8, "top_k": 10},
    {"temperature": 1.3, "top_p": 0.8},
    {"temperature": 0.7, "top_k": 7, "top_p": 0.9},
]
METHODS = ["autoregressive", "token", "block", "match", "own draft settings", "fixed token", "no vectors"]


def method_of(pkg: Any, name: str, model: Any, sampling: dict[str, Any], processor: Any = None) -> Any:
    target, vectors = pkg.SamplingConfig(**sampling), lookahead(pkg, model, num_lookahead=3)
    if name == "autoregressive":
        return pkg.Autoregressive(model, target, processor)
    if name == "fixed token":
        return pkg.PaSS(model, None, target, num_lookahead=3, fixed_token=1, processor=processor)
    if name == "no vectors":
        return pkg.PaSS(model, vectors, target, num_lookahead=0, processor=processor)
    own = pkg.SamplingConfig(temperature=0.5, top_k=2) if name == "own draft settings" else None
    return pkg.PaSS(model, vectors, target, own, "token" if own else name, processor)


def assert_decided_by_their_own_uniforms(result: Any, seed: int, request: int, num_uniforms: int) -> None:
    """Every decision must be the one that its uniform makes: seed, request, step and column name it, and it alone."""
    for step, record in enumerate(result.records):
        row, columns = uniform_stream(seed, request, step, num_uniforms), [choice.column for choice in record.choices]
        assert len(set(columns)) == len(columns), f"a uniform of {columns} serves two decisions"
        for choice in record.choices:
            cells = [0.0, *choice.edges.tolist()]
            inside = cells[choice.outcome] <= row[choice.column] < cells[choice.outcome + 1]
            assert inside, f"uniform {choice.column} of step {step} did not decide"


def assert_coupled(make: Callable[[Any], Any], **request: Any) -> list[Any]:
    """Generate in both packages, whose methods are made by a function, and return the reference's generations."""
    running = [make(pkg) for pkg in (reference, package("gpu"))]
    found, others = (
        pkg.generate_batch(method, **request, trace=True)
        for pkg, method in zip((reference, package("gpu")), running, strict=True)
    )
    assert len(found) == len(request["prompts"])
    for number, (one, other) in enumerate(zip(found, others, strict=True)):
        assert_same(one, other)
        assert_decided_by_their_own_uniforms(one, request["seed"], number, running[0].num_uniforms)
    return list(found)


REQUESTS = {
    "prompts": st.lists(st.lists(st.integers(0, 19), min_size=1, max_size=9), min_size=1, max_size=4),
    "max_new_tokens": st.integers(1, 40),
    "eos_token_ids": st.lists(st.integers(0, 19), max_size=2),
    "seed": st.integers(0, 2**64 - 1),
}


@pytest.mark.parametrize("method", METHODS)
@settings(max_examples=15)
@given(st.fixed_dictionaries(REQUESTS), st.sampled_from(SAMPLING), st.sampled_from(list(SHAPES.values())))
def test_a_batch_of_the_port_is_the_reference_row_by_row(method, request_, sampling, shape):
    shape = shape | {"vocab_size": 20}
    assert_coupled(lambda pkg: method_of(pkg, method, transformer(pkg, seed=5, **shape), sampling), **request_)


@pytest.mark.parametrize("name", ["reference", "gpu"])
@pytest.mark.parametrize(
    ("mistake", "words"),
    [
        (noise_reused_in_secret, "did not decide"),
        (uniform_used_twice, "serves two decisions"),
        (uniforms_by_turn, "did not decide"),
    ],
)
def test_a_uniform_that_serves_twice_is_seen(name, mistake, words, monkeypatch):
    mistake(Site(name, monkeypatch))
    pkg = package(name)
    running = method_of(pkg, "token", table(pkg, vocab_size=6, num_lookahead=3, seed=5), {})
    results = pkg.generate_batch(running, [[1], [0, 2, 1], [2, 2], [1, 0]], 14, (5,), seed=1, trace=True)
    with pytest.raises(AssertionError, match=words):
        for request, result in enumerate(results):
            assert_decided_by_their_own_uniforms(result, 1, request, running.num_uniforms)


UNIT = 2.0**-53  # half the distance of 1 to the next number: the relative error of one operation
BOTH = (REFERENCE, PORT)
DRAWS = {16: 16_000, 4096: 14_500, 32_000: 2_400, 152_064: 600}  # uniforms per vocabulary, for each of 3 decisions
SPREAD = 64.0  # no scaled logit of the tests is further below the largest


# What rounding can do, to first order in the unit. A distribution is exp(s) / sum(exp(s)), s = (logit - largest) /
# temperature.  s carries two relative errors, which multiply exp(s) by 1 + 2 |s| u; exp itself is right to 4 units in
# the last place, 8 u; the division adds u; the sum in the denominator, in whatever order it is taken, at most V u
# beyond what its terms are wrong by. A running sum adds V u, relative to itself.
#
# A draw is the cell that holds the uniform (`test_sampling`). If one package draws a and the other b > a, the uniform
# is below the first one's edge of a, and not below the other's, which is no higher than the edge of b - 1. So it is
# between two packages' edges of the same token, and these are compared.


def error_of_chance(vocab_size: int) -> float:
    """How far apart chances of acceptance can be, relative to themselves: two probabilities and a division."""
    return 2 * 2 * (2 * (2 * SPREAD + 8) + 1 + vocab_size) * UNIT + 2 * UNIT


def error_of_distribution(vocab_size: int) -> float:
    """How far apart distributions can be, in sum of absolute values."""
    return 2 * (2 * (2 * np.log(vocab_size) + 8) + 1 + vocab_size) * UNIT


def error_of_edge(vocab_size: int) -> float:
    """How far apart edges can be."""
    return error_of_distribution(vocab_size) + 2 * vocab_size * UNIT


def error_of_residual_edge(vocab_size: int, mass: float) -> float:
    """How far apart a residual's edges can be: both distributions err before it is divided by what it sums to, and the
    sum does.

    A difference is rounded, its sum is in any order, the quotient is rounded: (V + 2) u more for each package.
    """
    return 2 * 2 * error_of_distribution(vocab_size) / mass + 2 * (2 * vocab_size + 2) * UNIT


class Side(NamedTuple):
    """A target and a draft distribution of one package, and what is between them."""

    target: Array  # [V]
    draft: Array  # [V]
    residual: Array  # [V]

    @property
    def mass(self) -> float:
        return float(np.maximum(self.target - self.draft, 0).sum())

    def chances(self, impl: Reference) -> Array:  # [V]
        """Return the chance of every token to be accepted as a draft; 0 where it is none."""
        function, drafts = impl.module("verify").accept_probs, np.flatnonzero(self.draft)
        found, shape = np.zeros(self.draft.size), (len(drafts), self.draft.size)
        if impl is REFERENCE:
            found[drafts] = function(*(np.broadcast_to(side, shape) for side in self[:2]), drafts)
        else:
            sides = [PORT.tensor(side).expand(1, *shape) for side in self[:2]]
            found[drafts] = function(*sides, PORT.tensor(drafts)[None])[0].numpy()
        return found


def sides_of(target: Array, draft: Array, **sampling: Any) -> list[Side]:
    """Return what each package makes of the same logits."""
    pairs = [(impl.probs(target, **sampling), impl.probs(draft, **sampling)) for impl in BOTH]
    return [Side(*pair, impl.residual(*pair)) for impl, pair in zip(BOTH, pairs, strict=True)]


def edges_of(distributions: Iterable[Array]) -> list[Array]:
    return [impl.cell_edges(each) for impl, each in zip(BOTH, distributions, strict=True)]


def distance(arrays: list[Array]) -> float:
    return float(np.abs(arrays[0].astype(np.float64) - arrays[1]).max())


def draw(edges: Array, uniforms: Array) -> Array:  # [N]
    return np.searchsorted(edges, uniforms, side="right")


def real_logits(vocab_size: int, seed: int) -> Array:  # [V]
    """Logits such as language models have, none further than `SPREAD` / 2 below the largest; seeds are alike."""
    logits = 3.0 * np.random.default_rng([vocab_size, 0]).standard_normal(vocab_size)
    logits += seed * np.random.default_rng([vocab_size, seed]).standard_normal(vocab_size)
    return np.maximum(logits, logits.max() - SPREAD / 2)


def assert_near(both: list[Side]) -> None:
    """Compare the edges and the chances of two packages with the bounds."""
    size, mass = both[0].target.size, max(side.mass for side in both)
    assert distance(edges_of(side.target for side in both)) <= error_of_edge(size)
    if mass > 1e-3:  # nothing is promised of the cells of a residual that is mostly rounding errors
        assert distance(edges_of(side.residual for side in both)) <= error_of_residual_edge(size, mass)
    chances = [side.chances(impl) for impl, side in zip(BOTH, both, strict=True)]
    assert np.all(np.abs(chances[0] - chances[1]) <= error_of_chance(size) * chances[0])


@pytest.mark.parametrize("vocab_size", DRAWS)
def test_float64_logits_give_the_same_decisions(vocab_size: int) -> None:
    """The bounds leave some draws open; of those with this seed, none differs anyway."""
    assert 3 * sum(DRAWS.values()) > 100_000
    both = sides_of(*(real_logits(vocab_size, seed) for seed in (0, 1)), temperature=0.8)
    assert_near(both)
    generator = np.random.default_rng(vocab_size)
    uniforms = generator.random((4, DRAWS[vocab_size]))
    for name, row in zip(("target", "residual"), uniforms, strict=False):
        assert np.array_equal(*(draw(edges, row) for edges in edges_of(getattr(side, name) for side in both)))
    drafts = draw(REFERENCE.cell_edges(both[0].draft), uniforms[2])
    accepted = [uniforms[3] < side.chances(impl)[drafts] for impl, side in zip(BOTH, both, strict=True)]
    assert np.array_equal(*accepted) and 0.05 < accepted[0].mean() < 0.95


@pytest.mark.parametrize("vocab_size", DRAWS)
def test_float32_logits_give_the_same_draws_but_at_edges(vocab_size: int) -> None:
    """Each package computes the logits in float32 from the same hidden state, and they differ.

    A sum of D rounded products is off by at most (D + 1) 2^-24 sum(|h| |w|), in each package. Distributions whose
    scaled logits differ by at most d have masses of any set that differ by at most tanh(d / 2)."""
    import torch

    width, generator = 64, np.random.default_rng(vocab_size)
    hidden = generator.standard_normal(width).astype(np.float32)
    weight = (0.3 * generator.standard_normal((vocab_size, width))).astype(np.float32)
    logits = [weight @ hidden, torch.nn.functional.linear(PORT.tensor(hidden), PORT.tensor(weight)).numpy()]
    size = np.abs(weight).astype(np.float64) @ np.abs(hidden).astype(np.float64)
    shift = 2 * (width + 1) * 2.0**-24 * size.max()
    assert distance(logits) <= shift
    edges = edges_of(impl.probs(each) for impl, each in zip(BOTH, logits, strict=True))
    assert distance(edges) <= np.tanh(shift / 2) + error_of_edge(vocab_size)
    uniforms = np.minimum(*edges)[generator.integers(vocab_size, size=500)]
    assert np.any(draw(edges[0], uniforms) != draw(edges[1], uniforms)), "nothing was hard"


@settings(max_examples=100)
@given(
    st.integers(2, 12).flatmap(lambda size: st.tuples(grid_logits(size), grid_logits(size), st.integers(0, size))),
    st.sampled_from([0.5, 1.0, 1.5]),
)
@example((np.zeros(3), np.array([0.0, 0.0, -1.0]), 0), 1.0)
@example((np.array([0.0, -0.125]), np.array([0.0, 0.0]), 0), 1.5)
@example((np.zeros(12), np.zeros(12), 0), 1.0)
def test_only_rounding_differs_on_logits_of_any_kind(case: tuple[Array, Array, int], temperature: float) -> None:
    target, draft, top_k = case
    assert_near(sides_of(target, draft, top_k=top_k, temperature=temperature))
