"""Draw many first tokens, bin them, and say how large a mistake Pearson's statistic would have seen.

The statistic of n draws in m + 1 cells has, if the law is the expected one, the chi-square law with m degrees of
freedom, and under another law the non-central one; both up to terms of order 1 / (n times the smallest cell), which is
why cells are the likeliest outcomes, and the rest is one cell. The centre is n sum((q - p)^2 / p), and at a total
variation d over the cells at least 4 n d^2: by Cauchy and Schwarz (sum |q - p|)^2 <= sum((q - p)^2 / p) sum(p), and
the left side is (2 d)^2. So a distance, a false alarm and a chance to miss give the number of draws.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cache
from multiprocessing import get_context
from typing import Any

import numpy as np
import pytest
import torch

import pass_sampling.gpu as port
from gallery_acceptance import lenient, resample_from_target
from gallery_numbers import noise_reused_in_secret
from gallery_tools import Site
from pass_sampling.gpu.checkpoints import LOOKAHEAD, MODEL
from pass_sampling.gpu.state import State
from pass_sampling.gpu.uniforms import tape

FALSE_ALARM, MISS = 1e-9, 1e-6
NUM_CELLS = 63  # the likeliest outcomes; what is left is one more
DEGREES = NUM_CELLS
SAMPLING = {"temperature": 0.8, "top_k": 10}
MUTANTS = {"lenience": lenient, "from the target": resample_from_target, "noise reused": noise_reused_in_secret}
BATCH_SIZE = 256
LEAST_EXPECTED = 5.0  # draws in a cell, below which Pearson's statistic has another law

Tokens = tuple[int, ...]
Law = dict[Tokens, float]


# Chi-square laws from sums of positive terms, which lose no digits.


def _term(shape: float, x: float) -> float:
    """Return x^shape e^-x / gamma(shape + 1)."""
    return math.exp(shape * math.log(x) - x - math.lgamma(shape + 1))


def upper_tail(degrees: int, x: float) -> float:
    """Return the chance that a chi-square variable exceeds x: Q(a + 1, h) = Q(a, h) + h^a e^-h / gamma(a + 1)."""
    half = x / 2
    start = 0.5 * (degrees % 2)
    first = math.erfc(math.sqrt(half)) if degrees % 2 else 0.0
    return first + sum(_term(start + i, half) for i in range(degrees // 2))


def lower_tail(degrees: int, x: float) -> float:
    """Return the chance that a chi-square variable is at most x, by the series of the incomplete gamma function."""
    shape, half = degrees / 2, x / 2
    term, total, i = _term(shape, half), 0.0, 0
    while term > 2.0**-60 * total:
        total, i = total + term, i + 1
        term *= half / (shape + i)
    return total


def chance_to_miss(degrees: int, centre: float, limit: float) -> float:
    """Return the chance that a non-central chi-square variable is at most a limit: a Poisson mixture of central ones.

    The sum ends where a Poisson weight beyond the mean has fallen below 1e-20; the weights left out together are less
    than that by a factor, and each multiplies a probability.
    """
    total, i, weight = 0.0, 0, 1.0
    while i < centre / 2 or weight > 1e-20:
        weight = _term(i, centre / 2)
        total, i = total + weight * lower_tail(degrees + 2 * i, limit), i + 1
    return total


def _least(condition: Callable[[float], bool], high: float) -> float:
    """Return, by halving, where a condition that stays true once it is true begins to hold."""
    low = 0.0
    for _ in range(80):
        middle = (low + high) / 2
        low, high = (low, middle) if condition(middle) else (middle, high)
    return high


@cache
def limit_of(degrees: int) -> float:
    """Return what a right sampler's statistic exceeds with probability 1e-9."""
    return _least(lambda x: x > 0 and upper_tail(degrees, x) <= FALSE_ALARM, 1e4)


@cache
def centre_needed(degrees: int) -> float:
    """Return the centre from which on a statistic stays below the limit with probability at most 1e-6."""
    return _least(lambda centre: centre > 0 and chance_to_miss(degrees, centre, limit_of(degrees)) <= MISS, 1e3)


def draws_needed(distance: float, degrees: int = DEGREES) -> int:
    """Return how many draws see every mistake of this total variation over the cells."""
    return math.ceil(centre_needed(degrees) / (4 * distance**2))


def distance_seen(num_draws: int, degrees: int = DEGREES) -> float:
    """Return the total variation over the cells that so many draws see."""
    return math.sqrt(centre_needed(degrees) / (4 * num_draws))


# Cells.


@dataclass(frozen=True)
class Cells:
    """The likeliest outcomes of a law, and the rest as the last cell."""

    outcomes: tuple[Tokens, ...]
    probs: np.ndarray  # [cells]

    @staticmethod
    def of(law: Law) -> Cells:
        likeliest = sorted(law, key=lambda tokens: (-law[tokens], tokens))[:NUM_CELLS]
        probs = [law[tokens] for tokens in likeliest]
        return Cells(tuple(likeliest), np.array([*probs, 1.0 - sum(probs)]))

    def binned(self, law: Law) -> np.ndarray:  # [cells]
        """Return the probability of each cell under another law."""
        probs = [law.get(tokens, 0.0) for tokens in self.outcomes]
        return np.array([*probs, 1.0 - sum(probs)])

    def count(self, rows: np.ndarray) -> np.ndarray:  # [cells]
        """Count the draws, one per row of tokens, in each cell."""
        place = {tokens: i for i, tokens in enumerate(self.outcomes)}
        found, counts = np.unique(rows, axis=0, return_counts=True)
        cells = [place.get(tuple(tokens), NUM_CELLS) for tokens in found.tolist()]
        return np.bincount(cells, weights=counts, minlength=NUM_CELLS + 1)


def statistic(counts: np.ndarray, probs: np.ndarray) -> float:
    """Return Pearson's statistic."""
    expected = counts.sum() * probs
    return float(((counts - expected) ** 2 / expected).sum())


def fits(counts: np.ndarray, probs: np.ndarray) -> bool:
    """Say whether counts are those of a law that may leave cells all but empty: these are taken together."""
    small = counts.sum() * probs < LEAST_EXPECTED
    bins = [np.append(each[~small], each[small].sum()) for each in (counts, probs)]
    if counts.sum() * bins[1][-1] < LEAST_EXPECTED:  # still too little: into the largest cell
        largest = int(bins[1].argmax())
        for each in bins:
            each[largest] += each[-1]
        bins = [each[:-1] for each in bins]
    return statistic(*bins) <= limit_of(len(bins[0]) - 1)


def total_variation(one: np.ndarray, other: np.ndarray) -> float:
    return 0.5 * float(np.abs(one - other).sum())


# What is to come out, from passes of one row, and what comes out of a sampler with a known mistake.


@dataclass(frozen=True)
class Case:
    """A model, the settings and the prompt of all texts; `length` first tokens are looked at."""

    kind: str  # "box", or "tiny": random, for an alarm in seconds
    method: str
    prompt: Tokens
    max_new_tokens: int
    length: int
    mutant: str | None = None

    @cache  # noqa: B019  (cases are few)
    def running(self) -> Any:
        """Return the method over the model, all in float32."""
        model, sampling = _model(self.kind), port.SamplingConfig(**SAMPLING)
        if self.method == "autoregressive":
            return port.Autoregressive(model, sampling)
        vectors = port.LookAhead.load(LOOKAHEAD) if self.kind == "box" else _tiny_vectors(model)
        return port.PaSS(model, vectors, sampling, rule=self.method)


@cache
def _model(kind: str) -> Any:
    if kind == "box":
        return port.load_model(MODEL, dtype="float32")
    sizes = dict(vocab_size=12, hidden_size=16, intermediate_size=24, num_hidden_layers=2, num_attention_heads=2)
    config = port.ModelConfig(**sizes, num_key_value_heads=1, head_dim=8, max_position_embeddings=64)
    weights = port.Weights.random(config, 3, torch.float32)
    return port.Transformer(config, replace(weights, output=weights.output * 2))


def _tiny_vectors(model: Any) -> Any:
    return port.LookAhead.random(4, model.hidden_size, seed=7)


class Rows:
    """The laws behind prefixes, each from a pass of its own over one row after another, and those of the drafts."""

    def __init__(self, case: Case):
        self.case, self.method = case, case.running()
        self.known: dict[Tokens, np.ndarray] = {}

    def target(self, tokens: Tokens) -> np.ndarray:  # [V]
        if tokens not in self.known:
            model, prefix = self.method.model, [*self.case.prompt, *tokens]
            with torch.inference_mode():
                cached = model.new_cache(len(prefix))
                for token in prefix:
                    hidden = model.hidden(model.embed([[token]]), cached)
                self.known[tokens] = port.probs_from_logits(model.logits(hidden)[0, -1], self.method.sampling).numpy()
        return self.known[tokens]

    @torch.inference_mode()
    def drafts(self) -> np.ndarray:  # [K, V]
        """Return the laws of the first cycle's drafts: behind the prompt and the vectors."""
        model, vectors = self.method.model, self.method.vectors[: self.case.max_new_tokens - 2]
        inputs = torch.cat([model.embed([list(self.case.prompt)]), vectors[None]], dim=1)
        hidden = model.hidden(inputs, model.new_cache(inputs.shape[1]))[0, len(self.case.prompt) :]
        return port.probs_from_logits(model.logits(hidden), self.method.sampling).numpy()

    def law(self) -> Law:
        """Return the joint law of the first tokens, drawn one by one from the target."""
        law: Law = {(): 1.0}
        for _ in range(self.case.length):
            law = {(*tokens, i): p * q for tokens, p in law.items() for i, q in _positive(self.target(tokens))}
        return law

    def mutant_law(self) -> Law:
        """Return the joint law of the first tokens if the token rule makes the case's mistake.

        At most three tokens: an exact one, and drafts, corrections or the exact token of the next cycle behind it.
        """
        law: Law = {}
        for first, weight in _positive(self.target(())):
            for tokens, p in self._behind((first,), 0, self.drafts()).items():
                law[tokens] = law.get(tokens, 0.0) + weight * p
        return law

    def _behind(self, tokens: Tokens, i: int, drafts: np.ndarray) -> Law:
        """Return the law of texts that go on with draft i behind some tokens."""
        if len(tokens) == self.case.length:
            return {tokens: 1.0}
        target, draft = self.target(tokens), drafts[i]
        leniency = 0.95 if self.case.mutant == "lenience" else 1.0
        chance = np.minimum(1.0, target / np.where(draft > 0, draft, 1.0) / leniency)
        over = target if self.case.mutant == "from the target" else np.maximum(target - draft, 0.0)
        residual = over / over.sum()
        if self.case.mutant != "noise reused":
            correction = residual * (draft * (1 - chance)).sum()
        elif i == 0:  # the uniform that drew the draft draws the correction
            correction = (1 - chance) @ _overlaps(draft, residual)
        else:  # it drew the first draft, which was accepted: it lies in that one's cell
            cell = _overlaps(drafts[0], residual)[tokens[1]] / drafts[0][tokens[1]]
            correction = cell * (draft * (1 - chance)).sum()
        law: Law = {}
        for token, p in _positive(draft * chance):
            for text, q in self._behind((*tokens, token), i + 1, drafts).items():
                law[text] = law.get(text, 0.0) + p * q
        for token, p in _positive(correction):
            text = (*tokens, token)
            rest = [(text, 1.0)]
            if len(text) < self.case.length:
                rest = [((*text, last), q) for last, q in _positive(self.target(text))]
            for whole, q in rest:
                law[whole] = law.get(whole, 0.0) + p * q
        return law


def _positive(law: np.ndarray) -> list[tuple[int, float]]:
    return [(int(i), float(law[i])) for i in np.flatnonzero(law)]


def _overlaps(one: np.ndarray, other: np.ndarray) -> np.ndarray:  # [V, V]
    """Return how much each token's cell under one law has in common with each one's under another."""
    ends, others = np.cumsum(one), np.cumsum(other)
    lower = np.maximum((ends - one)[:, None], (others - other)[None])
    return np.maximum(np.minimum(ends[:, None], others[None]) - lower, 0.0)


# Draws.


@contextmanager
def mistake(name: str | None) -> Any:
    """Put one of the gallery's mistakes into the port for a while."""
    with pytest.MonkeyPatch.context() as monkeypatch:
        if name is not None:
            MUTANTS[name](Site("gpu", monkeypatch))
        yield


def draw_texts(case: Case, num_draws: int, seed: int) -> np.ndarray:  # [n, length]
    """Draw the first tokens of texts by the package's own loop, which lets rows leave the batch when they end."""
    prompts = [case.prompt] * num_draws
    with mistake(case.mutant):
        results = port.generate_batch(case.running(), prompts, case.max_new_tokens, eos_token_ids=(), seed=seed)
    return np.array([result.tokens[: case.length] for result in results])


@torch.inference_mode()
def draw_batch(case: Case, num_draws: int, seed: int) -> np.ndarray:  # [n, length]
    """Draw the first tokens of texts by stepping copies of one state, whose prompt was read once for all of them."""
    method = case.running()
    start = method.start(case.prompt, port.Ending(case.max_new_tokens, ()))
    if len(case.prompt) > 1:
        method.model.hidden(method.model.embed([case.prompt[:-1]]), start.cache)
        start = replace(start, cached=start.cache.lengths, max_pending=1)
    state, cycle = State.stack([start] * num_draws), 0
    while int((state.lengths - state.prompt_lengths).min()) < case.length:
        uniforms = tape(seed, list(range(num_draws)), cycle, method.num_slots)
        state, cycle = method.step(state, uniforms)[0], cycle + 1
        state.raise_fault()
    begin = len(case.prompt)
    return state.tokens[:, begin : begin + case.length].numpy()


def _count_seeds(case: Case, cells: Cells, seeds: Sequence[int]) -> np.ndarray:  # [cells]
    torch.set_num_threads(1)
    with mistake(case.mutant):
        return sum(cells.count(draw_batch(case, BATCH_SIZE, seed)) for seed in seeds)


def count_in_processes(case: Case, cells: Cells, num_draws: int) -> np.ndarray:  # [cells]
    """Draw at least so many texts, one seed per batch, a process per core; and count them in the cells."""
    seeds = range(-(-num_draws // BATCH_SIZE))
    workers = min(os.cpu_count() or 1, 16)
    with ProcessPoolExecutor(workers, get_context("spawn")) as pool:
        parts = [pool.submit(_count_seeds, case, cells, seeds[i::workers]) for i in range(workers)]
        return sum(part.result() for part in parts)
