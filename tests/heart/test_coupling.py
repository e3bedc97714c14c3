"""The same uniforms through NumPy and torch, at the vocabularies of real models: the same decisions.

Each package makes its own distributions from the logits. A decision may differ only where the uniform lies so close
to a cell's edge that rounding decides, and how close that is, is derived here. `test_sampling` has both draw from
the same distribution."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from adapters import PORT, REFERENCE, Reference
from gallery_numbers import noise_reused_in_secret, uniform_used_twice, uniforms_by_turn
from gallery_tools import Site
from models import lookahead, package, table, transformer
from strategies import LARGEST_UNIFORM, around, grid_logits

pytestmark = pytest.mark.torch

Array = np.ndarray
UNIT = 2.0**-53  # half the distance of 1 to the next number: the relative error of one operation
BOTH = (REFERENCE, PORT)
# So many uniforms per vocabulary, for each of three decisions; together more than 100,000.
DRAWS = {16: 16_000, 4096: 14_500, 32_000: 2_400, 152_064: 600}
SPREAD = 64.0  # no scaled logit of the tests lies further below the largest


# What rounding can do, to first order in the unit. A distribution is exp(s) / sum(exp(s)), s = (logit - largest) /
# temperature.  s carries two relative errors, which multiply exp(s) by 1 + 2 |s| u; exp itself is right to 4 units in
# the last place, 8 u; the division adds u; the sum in the denominator, in whatever order it is taken, at most V u
# beyond what its terms are wrong by. A running sum adds V u, relative to itself.


def error_of_one(vocab_size: int) -> float:
    """How far apart, relative to itself, a probability can be in two packages: terms twice, for the sum's errors."""
    return 2 * (2 * (2 * SPREAD + 8) + 1 + vocab_size) * UNIT


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


def assert_only_edges(
    tokens: list[Array],  # [N] of each package
    edges: list[Array],  # [V] of each package
    uniforms: Array,  # [N]
    bound: float,
) -> int:
    """Count the uniforms that drew different tokens; each must lie within the bound of the edge between the two.

    If one package draws a and the other b > a, the uniform is below the first one's edge of a, and not below the
    other's, which is no higher than the edge of b - 1. So it lies between two packages' edges of the same token.
    """
    assert np.abs(edges[0] - edges[1]).max() <= bound
    apart = np.flatnonzero(tokens[0] != tokens[1])
    between = np.minimum(*tokens)[apart]
    gaps = [np.abs(uniforms[apart] - each[between]) for each in edges]
    assert all(np.all(gap <= bound) for gap in gaps), f"{gaps} from an edge, expected at most {bound}"
    return len(apart)


@dataclass
class Laws:
    """A target and a draft distribution of one package, and what is between them."""

    target: Array  # [V]
    draft: Array  # [V]
    residual: Array  # [V]

    @staticmethod
    def of(impl: Reference, target: Array, draft: Array, **sampling: Any) -> Laws:
        one, other = impl.probs(target, **sampling), impl.probs(draft, **sampling)
        return Laws(one, other, impl.residual(one, other))

    @property
    def mass(self) -> float:
        return float(np.maximum(self.target - self.draft, 0).sum())


def real_logits(vocab_size: int, seed: int) -> Array:  # [V]
    """Logits such as language models have, none further than `SPREAD` / 2 below the largest; seeds are alike."""
    logits = 3.0 * np.random.default_rng([vocab_size, 0]).standard_normal(vocab_size)
    logits += seed * np.random.default_rng([vocab_size, seed]).standard_normal(vocab_size)
    return np.maximum(logits, logits.max() - SPREAD / 2)


def accepted(impl: Reference, distributions: Laws, tokens: Array, uniforms: Array) -> tuple[Array, Array]:  # [N], [N]
    """Ask of every token whether it is accepted; return the chances, too."""
    count, module = len(tokens), impl.module("verify")
    target, draft = (
        np.broadcast_to(distribution, (count, distribution.size))
        for distribution in (distributions.target, distributions.draft)
    )
    if impl is REFERENCE:
        chances = module.accept_probs(target, draft, tokens)
        draws = impl.module("uniforms").UniformRow(uniforms, {"accept": count})
        return np.array([draws.accept("accept", float(chance), i) for i, chance in enumerate(chances)]), chances
    rows = [
        PORT.tensor(distribution).expand(1, count, -1) for distribution in (distributions.target, distributions.draft)
    ]
    chances = module.accept_probs(*rows, PORT.tensor(tokens)[None])
    draws = impl.module("uniforms").UniformRow(PORT.tensor(uniforms)[None], {"accept": count})
    return draws.accept("accept", chances)[0].numpy(), chances[0].numpy()


def draw_many(impl: Reference, distribution: Array, uniforms: Array) -> Array:  # [N]
    """Draw in batches that fit into the memory of a small machine."""
    parts = np.array_split(uniforms, max(1, len(uniforms) * distribution.size // 10**7))
    return np.concatenate([impl.draw(distribution, part) for part in parts])


@pytest.mark.parametrize("vocab_size", DRAWS)
def test_float64_logits_give_the_same_decisions(vocab_size: int) -> None:
    """The bounds leave some draws open; of those with this seed, none differs anyway."""
    assert 3 * sum(DRAWS.values()) > 100_000
    both = [Laws.of(impl, *(real_logits(vocab_size, seed) for seed in (0, 1)), temperature=0.8) for impl in BOTH]
    generator = np.random.default_rng(vocab_size)
    uniforms = generator.random((3, DRAWS[vocab_size]))
    bounds = {
        "target": error_of_edge(vocab_size),
        "residual": error_of_residual_edge(vocab_size, both[0].mass),
    }
    apart = 0
    for row, (name, bound) in zip(uniforms, bounds.items(), strict=False):
        distributions = [getattr(each, name) for each in both]
        tokens = [draw_many(impl, distribution, row) for impl, distribution in zip(BOTH, distributions, strict=True)]
        edges = [impl.cell_edges(distribution) for impl, distribution in zip(BOTH, distributions, strict=True)]
        apart += assert_only_edges(tokens, edges, row, bound)
    drafts = np.searchsorted(REFERENCE.cell_edges(both[0].draft), generator.random(DRAWS[vocab_size]), side="right")
    answers, chances = zip(
        *(accepted(*pair, drafts, uniforms[2]) for pair in zip(BOTH, both, strict=True)), strict=True
    )
    near = 2 * error_of_one(vocab_size) + 2 * UNIT
    assert np.all(np.abs(chances[0] - chances[1]) <= near * chances[0])
    differ = answers[0] != answers[1]
    assert np.all(np.abs(uniforms[2] - chances[0])[differ] <= near)
    found = ", ".join(f"{name} {bound:.1e}" for name, bound in (*bounds.items(), ("acceptance", near)))
    print(f"V = {vocab_size}: bounds: {found}; {apart + differ.sum()} differ, {answers[0].mean():.0%} accepted")
    assert apart + differ.sum() == 0
    assert 0.05 < answers[0].mean() < 0.95


@pytest.mark.parametrize("vocab_size", DRAWS)
def test_float32_logits_give_the_same_draws_but_at_edges(vocab_size: int) -> None:
    """Each package computes the logits in float32 from the same hidden state, and they differ.

    A sum of D rounded products is off by at most (D + 1) 2^-24 sum(|h| |w|), in each package. Distributions whose
    scaled logits differ by at most d have masses of any set that differ by at most tanh(d / 2)."""
    import torch

    width = 64
    generator = np.random.default_rng(vocab_size)
    hidden = generator.standard_normal(width).astype(np.float32)
    weight = (0.3 * generator.standard_normal((vocab_size, width))).astype(np.float32)
    logits = [weight @ hidden, torch.nn.functional.linear(PORT.tensor(hidden), PORT.tensor(weight)).numpy()]
    size = np.abs(weight).astype(np.float64) @ np.abs(hidden).astype(np.float64)
    shift = 2 * (width + 1) * 2.0**-24 * size.max()
    assert np.abs(logits[0].astype(np.float64) - logits[1]).max() <= shift
    bound = np.tanh(shift / 2) + error_of_edge(vocab_size)
    distributions = [impl.probs(each) for impl, each in zip(BOTH, logits, strict=True)]
    edges = [impl.cell_edges(distribution) for impl, distribution in zip(BOTH, distributions, strict=True)]
    hard = edges[0][generator.integers(vocab_size, size=500)]
    hard = np.clip(hard + generator.uniform(-1, 1, 500) * np.abs(edges[0] - edges[1]).max(), 0, LARGEST_UNIFORM)
    uniforms = np.concatenate([generator.random(500), hard])
    tokens = [draw_many(impl, distribution, uniforms) for impl, distribution in zip(BOTH, distributions, strict=True)]
    apart = assert_only_edges(tokens, edges, uniforms, bound)
    print(f"V = {vocab_size}: {apart} differ; edges differ by {np.abs(edges[0] - edges[1]).max():.1e} <= {bound:.1e}")
    assert apart > 0, "nothing was hard"


CASES = st.integers(2, 12).flatmap(
    lambda size: st.tuples(grid_logits(size), grid_logits(size), st.integers(0, size), st.sampled_from([0.5, 1.0, 1.5]))
)


@settings(max_examples=100)
@given(CASES)
@example((np.zeros(3), np.array([0.0, 0.0, -1.0]), 0, 1.0))
@example((np.array([0.0, -0.125]), np.array([0.0, 0.0]), 0, 1.5))
@example((np.zeros(12), np.zeros(12), 0, 1.0))
def test_at_every_edge_and_beside_it_only_rounding_differs(case: tuple[Array, Array, int, float]) -> None:
    """At 0, at every edge of either package, a unit in the last place to both sides, and at the largest uniform."""
    target, draft, top_k, temperature = case
    both = [Laws.of(impl, target, draft, top_k=top_k, temperature=temperature) for impl in BOTH]
    size, mass = target.size, max(each.mass for each in both)
    if mass <= 1e-3:  # a residual of rounding errors alone, or nearly: nothing is promised of its cells
        names = {"target": error_of_edge(size)}
    else:
        names = {"target": error_of_edge(size), "residual": error_of_residual_edge(size, mass)}
    for name, bound in names.items():
        distributions = [getattr(each, name) for each in both]
        edges = [impl.cell_edges(distribution) for impl, distribution in zip(BOTH, distributions, strict=True)]
        uniforms = around(np.concatenate(edges))
        tokens = [impl.draw(distribution, uniforms) for impl, distribution in zip(BOTH, distributions, strict=True)]
        assert_only_edges(tokens, edges, uniforms, bound)
        assert all(np.all(distribution[drawn] > 0) for distribution, drawn in zip(distributions, tokens, strict=True))
    drafts = np.flatnonzero(both[0].draft)
    chances = [
        accepted(impl, distributions, drafts, np.zeros(len(drafts)))[1]
        for impl, distributions in zip(BOTH, both, strict=True)
    ]
    for uniform in around(np.concatenate(chances)):
        row = np.full(len(drafts), uniform)
        answers = [
            accepted(impl, distributions, drafts, row)[0] for impl, distributions in zip(BOTH, both, strict=True)
        ]
        differ = answers[0] != answers[1]
        assert np.all(np.abs(row - chances[0])[differ] <= 2 * error_of_one(size) + 2 * UNIT)


def test_another_order_of_tokens_is_seen() -> None:
    distribution = Laws.of(REFERENCE, *(real_logits(4096, seed) for seed in (0, 1))).target
    uniforms = np.random.default_rng(0).random(200)
    order = np.argsort(-distribution)
    tokens = [REFERENCE.draw(distribution, uniforms), order[REFERENCE.draw(distribution[order], uniforms)]]
    edges = [REFERENCE.cell_edges(distribution)] * 2
    with pytest.raises(AssertionError, match="from an edge"):
        assert_only_edges(tokens, edges, uniforms, error_of_edge(4096))


def test_sums_in_float32_are_seen() -> None:
    distributions = [impl.probs(real_logits(32_000, 0)) for impl in BOTH]
    edges = [REFERENCE.cell_edges(distributions[0]), np.cumsum(distributions[1].astype(np.float32)).astype(np.float64)]
    with pytest.raises(AssertionError):
        assert_only_edges([np.zeros(0, dtype=int)] * 2, edges, np.zeros(0), error_of_edge(32_000))


# The ledger of whole generations.

PROMPTS = ([1], [0, 2, 1], [2, 2], [1, 0])
SEEDS = (0, 1, 2**63)
METHODS = ("autoregressive", "token", "match")


def method_over(pkg: Any, kind: str, name: str) -> Any:
    model = table(pkg, vocab_size=6, num_lookahead=3, seed=5) if kind == "table" else transformer(pkg, vocab_size=6)
    if name == "autoregressive":
        return pkg.Autoregressive(model)
    return pkg.PaSS(model, lookahead(pkg, model, 3), rule=name)


def ledger(name: str, kind: str, method: str) -> dict[tuple[int, int, int, int], float]:
    """Generate for several seeds and requests, and return which uniform made each decision, by place on the uniform
    stream.

    Every decision must be the one that its own uniform makes: seed, request, step and slot name it.
    """
    pkg, uniforms = package(name), REFERENCE.module("uniforms").uniform_stream
    running = method_over(pkg, kind, method)
    found: dict[tuple[int, int, int, int], float] = {}
    for seed in SEEDS:
        ends = (5,) if kind == "table" else ()
        results = pkg.generate_batch(running, PROMPTS, 14, eos_token_ids=ends, seed=seed, trace=True)
        for request, result in enumerate(results):
            for step, record in enumerate(result.records):
                row = uniforms(seed, request, step, running.num_uniforms)
                for choice in record.choices:
                    key, uniform = (seed, request, step, choice.column), float(row[choice.column])
                    assert key not in found, f"{key} serves two decisions"
                    cells = [0.0, *choice.edges.tolist()]
                    assert cells[choice.outcome] <= uniform < cells[choice.outcome + 1], f"{key} did not decide"
                    found[key] = uniform
    assert len(set(found.values())) == len(found), "two places on the uniform stream hold the same number"
    return found


@pytest.mark.parametrize("kind", ["table", "transformer"])
@pytest.mark.parametrize("method", METHODS)
def test_no_uniform_serves_two_decisions_or_two_requests(kind: str, method: str) -> None:
    ledgers = [ledger(name, kind, method) for name in ("reference", "gpu")]
    assert ledgers[0] == ledgers[1]
    places = np.array([key[1:3] for key in ledgers[0]])
    assert len(ledgers[0]) > 60 and set(places[:, 0]) == set(range(len(PROMPTS))) and places[:, 1].max() >= 3


@pytest.mark.parametrize("name", ["reference", "gpu"])
def test_each_step_of_each_request_is_dealt_once(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    dealt: list[tuple[int, int, int]] = []
    home = package(name)
    generation = REFERENCE.module("generation") if name == "reference" else PORT.module("generation")
    one = name == "reference"
    right = generation.uniform_stream if one else generation.uniform_streams

    def spy(seed: int, request: Any, step: int, *shape: int, **options: Any) -> Any:
        requests, steps = ([request], 1) if one else (request, shape[0])
        dealt.extend((seed, each, step + i) for each in requests for i in range(steps))
        return right(seed, request, step, *shape, **options)

    monkeypatch.setattr(generation, "uniform_stream" if one else "uniform_streams", spy)
    home.generate_batch(method_over(home, "table", "token"), PROMPTS, 14, eos_token_ids=(5,), seed=3)
    assert len(set(dealt)) == len(dealt) > len(PROMPTS)


@pytest.mark.parametrize("name", ["reference", "gpu"])
@pytest.mark.parametrize(
    ("mistake", "words"),
    [
        (noise_reused_in_secret, "did not decide"),
        (uniform_used_twice, "serves two decisions"),
        (uniforms_by_turn, "did not decide"),
    ],
)
def test_the_ledger_sees_a_uniform_that_serves_twice(
    name: str, mistake: Any, words: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    mistake(Site(name, monkeypatch))
    with pytest.raises(AssertionError, match=words):
        ledger(name, "table", "token")
