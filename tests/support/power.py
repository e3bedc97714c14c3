"""The bundled model drawn from end to end, what should come out, and what comes out with a known mistake."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
from functools import cache
from multiprocessing import get_context
from typing import Any

import numpy as np
import pytest
import torch

import pass_sampling.gpu as port
from brute_force import filtered
from chi_square import Cells, Distribution, Tokens
from gallery_acceptance import lenience, replacement_from_the_target
from gallery_numbers import noise_reused_in_secret
from gallery_tools import Site
from pass_sampling.gpu.checkpoints import LOOKAHEAD, MODEL
from pass_sampling.gpu.state import State
from pass_sampling.gpu.uniforms import uniform_stream

SAMPLING = {"temperature": 0.8, "top_k": 10}
MUTANTS = {"lenience": lenience, "from the target": replacement_from_the_target, "noise reused": noise_reused_in_secret}
BATCH_SIZE = 256


@dataclass(frozen=True)
class Case:
    """The bundled model, in float32, and the prompt of all texts; `length` first tokens are looked at."""

    method: str
    prompt: Tokens
    max_new_tokens: int
    length: int
    mutant: str | None = None

    @cache  # noqa: B019  (cases are few)
    def running(self) -> Any:
        """Return the method over the model."""
        model, sampling = port.load_model(MODEL, dtype="float32"), port.SamplingConfig(**SAMPLING)
        if self.method == "autoregressive":
            return port.Autoregressive(model, sampling)
        return port.PaSS(model, port.LookAhead.load(LOOKAHEAD), sampling, rule=self.method)


class Rows:
    """The distributions after prefixes, each from a pass of its own, and those of the drafts."""

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
                self.known[tokens] = _distribution_of(model.logits(hidden)[0, -1])
        return self.known[tokens]

    @torch.inference_mode()
    def drafts(self) -> np.ndarray:  # [K, V]
        """Return the distributions of the first step's drafts: after the prompt and the vectors."""
        model, vectors = self.method.model, self.method.vectors[: self.case.max_new_tokens - 2]
        inputs = torch.cat([model.embed([list(self.case.prompt)]), vectors[None]], dim=1)
        hidden = model.hidden(inputs, model.new_cache(inputs.shape[1]))[0, len(self.case.prompt) :]
        return np.array([_distribution_of(row) for row in model.logits(hidden)])

    def drawn(self, tokens: Tokens = ()) -> Distribution:
        """Return the joint distribution of the first tokens, of which some are given, drawn from the target."""
        if len(tokens) == self.case.length:
            return {tokens: 1.0}
        return _mixture((p, self.drawn((*tokens, token))) for token, p in _positive(self.target(tokens)))

    def mutant_distribution(self) -> Distribution:
        """Return the joint distribution of the first tokens if the token rule makes the case's mistake.

        At most three tokens: an exact one, and drafts, corrections or the exact token of the next step after it.
        """
        drafts = self.drafts()
        return _mixture((p, self._drafted((first,), 0, drafts)) for first, p in _positive(self.target(())))

    def _drafted(self, tokens: Tokens, i: int, drafts: np.ndarray) -> Distribution:
        """Return the distribution of texts that go on with draft i after some tokens."""
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
        else:  # it drew the first draft, which was accepted, and lies in the cell of that draft
            cell = _overlaps(drafts[0], residual)[tokens[1]] / drafts[0][tokens[1]]
            correction = cell * (draft * (1 - chance)).sum()
        accepted = [(p, self._drafted((*tokens, token), i + 1, drafts)) for token, p in _positive(draft * chance)]
        corrected = [(p, self.drawn((*tokens, token))) for token, p in _positive(correction)]
        return _mixture([*accepted, *corrected])


def _mixture(parts: Iterable[tuple[float, Distribution]]) -> Distribution:
    mixture: Distribution = {}
    for weight, part in parts:
        for tokens, p in part.items():
            mixture[tokens] = mixture.get(tokens, 0.0) + weight * p
    return mixture


def _distribution_of(logits: torch.Tensor) -> np.ndarray:  # [V]
    probs = np.zeros(len(logits))
    for token, prob in filtered(logits.tolist(), **SAMPLING).items():
        probs[token] = prob
    return probs


def _positive(distribution: np.ndarray) -> list[tuple[int, float]]:
    return [(int(i), float(distribution[i])) for i in np.flatnonzero(distribution)]


def _overlaps(one: np.ndarray, other: np.ndarray) -> np.ndarray:  # [V, V]
    """Return how much each token's cell under one distribution has in common with each one's under another."""
    ends, others = np.cumsum(one), np.cumsum(other)
    lower = np.maximum((ends - one)[:, None], (others - other)[None])
    return np.maximum(np.minimum(ends[:, None], others[None]) - lower, 0.0)


@torch.inference_mode()
def draw_batch(case: Case, num_draws: int, seed: int) -> list[Tokens]:
    """Draw the first tokens of texts by stepping copies of one state, whose prompt was read once for all of them."""
    method = case.running()
    start = method.start(case.prompt, port.Ending(case.max_new_tokens, ()))
    if len(case.prompt) > 1:
        method.model.hidden(method.model.embed([case.prompt[:-1]]), start.cache)
        start = replace(start, cached=start.cache.lengths, max_pending=1)
    state, step = State.stack([start] * num_draws), 0
    while int((state.lengths - state.prompt_lengths).min()) < case.length:
        uniforms = uniform_stream(seed, list(range(num_draws)), step, method.num_uniforms)
        state, step = method.step(state, uniforms)[0], step + 1
        state.raise_fault()
    begin = len(case.prompt)
    return list(map(tuple, state.tokens[:, begin : begin + case.length].tolist()))


def _count_seeds(case: Case, cells: Cells, seeds: Sequence[int]) -> np.ndarray:  # [cells]
    """Count texts that are drawn, in a process of its own, with the case's mistake put into the port."""
    torch.set_num_threads(1)
    with pytest.MonkeyPatch.context() as monkeypatch:
        if case.mutant is not None:
            MUTANTS[case.mutant](Site("gpu", monkeypatch))
        return sum(cells.count(draw_batch(case, BATCH_SIZE, seed)) for seed in seeds)


def count_in_processes(case: Case, cells: Cells, num_draws: int) -> np.ndarray:  # [cells]
    """Draw at least so many texts, one seed per batch, a process per core; and count them in the cells."""
    seeds = range(-(-num_draws // BATCH_SIZE))
    workers = min(os.cpu_count() or 1, 16)
    with ProcessPoolExecutor(workers, get_context("spawn")) as pool:
        parts = [pool.submit(_count_seeds, case, cells, seeds[i::workers]) for i in range(workers)]
        return sum(part.result() for part in parts)
