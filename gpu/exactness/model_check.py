"""Checks of a user's own checkpoint, dtype and device, which are too large to enumerate.

The text's distribution is exact relative to the logits that verification computes. Two checks follow: the distance of
these logits from those of one token at a time, and a test of the distribution of the first tokens of many texts drawn
with the seeded uniform stream.

Glossary of shapes: V vocabulary.
"""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from pass_sampling.reference.config import SamplingConfig

from ..generation import generate_batch
from ..methods import LanguageModel, Method
from ..model.transformer import Transformer
from ..sampling import probs_from_logits

FALSE_ALARM, MISS = 1e-9, 1e-6
CELLS = 63  # the likeliest outcomes, each a cell of its own; all others together are one more
LEAST = 100.0  # expected draws of a cell
MOST = 600_000  # draws
IMPOSSIBLE = 1e-15  # the probability that so many draws give such an outcome is below FALSE_ALARM


@dataclass(frozen=True)
class RowCheck:
    """How far rows of a verify pass are from rows of one-token passes: total variation of their distributions."""

    positions: int
    largest: float
    mean: float


@dataclass(frozen=True)
class DrawCheck:
    """A chi-square test of the first two tokens of many texts against their exact distribution."""

    texts: int
    cells: int
    statistic: float
    limit: float  # a right sampler exceeds it with probability 1e-9
    detectable: float  # a total variation over the cells that is missed with probability at most 1e-6
    rest: float  # the probability of all outcomes that share the last cell
    passed: bool


@torch.inference_mode()
def row_check(
    model: Transformer, texts: Sequence[Sequence[int]], sampling: SamplingConfig, num_draft: int, positions: int = 500
) -> RowCheck:
    """Compare each row of passes over several tokens with the same row computed one token at a time.

    The texts are longer than `num_draft`, K; a pass has K + 1 rows. At least `positions` positions are compared.
    """
    distances: list[Tensor] = []
    for text in texts:
        tokens = torch.tensor([list(text)], device=model.device)
        single, block = model.new_cache(len(text)), model.new_cache(len(text))
        for start in range(0, len(text) - num_draft, num_draft + 1):
            rows = tokens[:, start : start + num_draft + 1]
            together = model.logits(model.hidden(model.embed(rows), block))
            alone = [model.logits(model.hidden(model.embed(rows[:, i : i + 1]), single)) for i in range(rows.shape[1])]
            distributions = probs_from_logits(together, sampling), probs_from_logits(torch.cat(alone, dim=1), sampling)
            distances.append(0.5 * (distributions[0] - distributions[1]).abs().sum(dim=-1).flatten())
        if sum(map(len, distances)) >= positions:
            break
    found = torch.cat(distances)
    return RowCheck(len(found), float(found.max()), float(found.mean()))


def draw_check(
    method: Method, prompt: Sequence[int], seconds: float, batch_size: int = 256, seed: int = 0
) -> DrawCheck:
    """Draw texts of two tokens for about `seconds` seconds, and test their joint distribution.

    The expected distribution is computed from the model's own rows: the first token's distribution, and the second's
    after each likely first token. The likeliest pairs are cells of their own. All others, and pairs that are expected
    fewer than 100 times, share a cell, so that the statistic is distributed as its limit assumes. Impossible pairs must
    not occur.

    Source: Pearson's statistic; for every alternative at a total variation d the non-centrality is at least 4 n d^2, by
    the inequality of Cauchy and Schwarz.
    """
    cells = _likeliest_pairs(method, prompt)
    counts = dict.fromkeys(cells, 0)
    drawn, started, batch = 0, time.monotonic(), 0
    while drawn < MOST and (drawn == 0 or time.monotonic() - started < seconds):
        for result in generate_batch(
            method, [prompt] * batch_size, 3, eos_token_ids=(), stop_strings=(), seed=seed + batch
        ):
            pair = result.tokens[:2]
            if pair in counts:
                counts[pair] += 1
        drawn, batch = drawn + batch_size, batch + 1
    probs = [*cells.values(), max(0.0, 1.0 - math.fsum(cells.values()))]
    seen = [*counts.values(), drawn - sum(counts.values())]
    kept = [(prob, count) for prob, count in zip(probs, seen, strict=True) if prob * drawn >= LEAST]
    rest = max(0.0, 1.0 - sum(prob for prob, _ in kept)), drawn - sum(count for _, count in kept)
    bins = [*kept, rest] if rest[0] * drawn >= LEAST else kept
    impossible = probs[-1] < IMPOSSIBLE and seen[-1] > 0
    statistic = sum((count - drawn * prob) ** 2 / (drawn * prob) for prob, count in bins)
    degrees = max(1, len(bins) - 1)
    limit = chi_square_limit(degrees, FALSE_ALARM)
    detectable = _detectable(degrees, limit, drawn)
    passed = statistic <= limit and not impossible
    return DrawCheck(drawn, len(bins), statistic, limit, detectable, rest[0], passed)


def _likeliest_pairs(method: Method, prompt: Sequence[int]) -> dict[tuple[int, ...], float]:
    """Return the likeliest pairs of first tokens with their probabilities, one-token passes as the definition."""
    model, sampling = method.model, method.sampling
    first = probs_from_logits(_last_row(model, prompt), sampling)
    pairs: dict[tuple[int, ...], float] = {}
    for token in first.topk(min(CELLS, len(first))).indices.tolist():
        if first[token] > 0:
            second = probs_from_logits(_last_row(model, [*prompt, token]), sampling)
            top = second.topk(min(CELLS, len(second)))
            for other, prob in zip(top.indices.tolist(), top.values.tolist(), strict=True):
                pairs[token, other] = float(first[token]) * prob
    likeliest = sorted(pairs, key=lambda pair: -pairs[pair])[:CELLS]
    return {pair: pairs[pair] for pair in likeliest}


@torch.inference_mode()
def _last_row(model: LanguageModel, tokens: Sequence[int]) -> Tensor:  # [V]
    cache = model.new_cache(len(tokens))
    return model.logits(model.hidden(model.embed([list(tokens)]), cache)[0, -1])


def chi_square_limit(degrees: int, tail: float) -> float:
    """Return a number that a chi-square variable exceeds with probability at most `tail`: an upper bound.

    Source: Laurent and Massart 2000, Lemma 1.
    """
    level = -math.log(tail)
    return degrees + 2.0 * math.sqrt(degrees * level) + 2.0 * level


def _detectable(degrees: int, limit: float, texts: int) -> float:
    """Return the total variation at which the test is passed by mistake with probability at most 1e-6.

    A non-central chi-square variable with centre c falls below degrees + c - 2 sqrt((degrees + 2 c) x) with probability
    at most exp(-x).

    Source: Birgé 2001, Lemma 8.1.
    """
    level = -math.log(MISS)
    root = 2.0 * math.sqrt(level) + math.sqrt(4.0 * level - degrees + 2.0 * limit)  # of degrees + 2 c, at the limit
    return math.sqrt((root**2 - degrees) / 2.0 / (4.0 * texts))
