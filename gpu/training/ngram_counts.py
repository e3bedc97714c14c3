"""An n-gram model from tokens: counted, discounted, and without what is rare.

Glossary of shapes: N n-grams of one order.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from pass_sampling.reference.checkpoint.ngram_folder import MAX_VOCAB_SIZE
from pass_sampling.reference.config import check_integer
from pass_sampling.reference.drafters.ngram import ONE

from ..drafters.ngram import NgramModel, NgramOrder
from .config import NgramConfig
from .tokens import check_tokens

Ints = npt.NDArray[np.integer]
Floats = npt.NDArray[np.float64]
Mask = npt.NDArray[np.bool_]


class Grams(NamedTuple):
    """The distinct n-grams of one order, sorted by their tokens."""

    contexts: Ints  # [N], the place of all tokens but the last one, in the order below
    tokens: Ints  # [N], the last one
    suffixes: Ints  # [N], the place of all tokens but the first one, in the order below
    counts: Ints  # [N]


def count_ngrams(
    texts: Sequence[npt.NDArray[np.int64]],
    vocab_size: int,
    config: NgramConfig,
    base_model: str = "",
    tokenizer: str | None = None,
) -> NgramModel:
    """Count the n-grams of texts, none across the end of one, and return the model that they make.

    share(h v) = max(0, count(h v) - discount) / count(h)

    Below the longest n-grams, a count is the number of different tokens before the n-gram, not of its occurrences.
    Three discounts for each order follow from these counts in closed form. An n-gram that is left out has the share 0,
    and the rest goes to the shorter contexts. Raise ValueError without a token, or for one beyond the vocabulary.

    Source: Kneser and Ney 1995, "Improved Backing-off for M-gram Language Modeling"; Chen and Goodman 1999, "An
    Empirical Study of Smoothing Techniques for Language Modeling", Sec. 3, for interpolation and three discounts.
    """
    check_integer("vocab_size", vocab_size, 1, MAX_VOCAB_SIZE)
    if not sum(map(len, texts)):
        raise ValueError("found no tokens, expected some to count")
    tokens = np.concatenate(texts)
    check_tokens("texts", tokens, vocab_size)
    levels = _distinct(tokens.astype(np.int32), np.array([len(text) for text in texts]), vocab_size, config.order)
    shares, discounts = zip(*(_shares(levels, n) for n in range(config.order)), strict=True)
    minima, most = config.min_counts * (config.order - 1 if len(config.min_counts) == 1 else 1), config.max_successors
    orders = tuple(_orders(levels, shares, _kept(levels, shares, minima, most), most))
    training = {
        "texts": len(texts),
        "tokens": len(tokens),
        "min_counts": list(minima),
        "max_successors": config.max_successors,
        "distinct": [len(grams.tokens) for grams in levels],
        "discounts": [[round(value, 4) for value in each] for each in discounts],
    }
    unigram = shares[0] + (1.0 - shares[0].sum()) / vocab_size
    return NgramModel(unigram, orders, base_model, tokenizer, training)


def _distinct(tokens: Ints, lengths: Ints, vocab_size: int, order: int) -> list[Grams]:
    """Return the distinct n-grams of each order from 1 on."""
    remaining = (np.repeat(np.cumsum(lengths), lengths) - np.arange(len(tokens))).astype(np.int32)  # of the text
    nothing = np.zeros(vocab_size, dtype=np.int32)
    levels = [Grams(nothing, np.arange(vocab_size), nothing, np.bincount(tokens, minlength=vocab_size))]
    below = tokens  # which n-gram begins at each place
    for n in range(2, order + 1):
        places = np.flatnonzero(remaining >= n)
        every = below[places] * np.int64(vocab_size) + tokens[places + (n - 1)]
        keys, first, inverse, counts = np.unique(every, True, True, True)
        contexts, last = (part.astype(np.int32) for part in np.divmod(keys, vocab_size))
        levels.append(Grams(contexts, last, below[places[first] + 1], counts))
        below = np.full(len(tokens), -1, dtype=np.int32)
        below[places] = inverse
    return levels


def _shares(levels: list[Grams], n: int) -> tuple[Floats, list[float]]:  # [N]
    """Return the share of each n-gram, and the discounts of its order."""
    grams = levels[n]
    counts = grams.counts
    if n + 1 < len(levels):
        before = np.bincount(levels[n + 1].suffixes, minlength=len(counts))
        counts = np.where(before > 0, before, counts)  # no token is before an n-gram that only begins texts
    discounts = _discounts(counts)
    totals = np.bincount(grams.contexts, weights=counts)
    discounted = counts - np.array([0.0, *discounts])[np.minimum(counts, 3)]
    return discounted / totals[grams.contexts], discounts


def _discounts(counts: Ints) -> list[float]:
    """Return what to take from counts of 1, of 2, and of 3 or more.

    discount[i] = i - (i + 1) n1 / (n1 + 2 n2) n[i+1] / n[i], n[i] the number of counts i

    A text too short to tell gives numbers out of their range, which are moved into it.
    """
    n1, n2, n3, n4 = (max(1, int((counts == i).sum())) for i in range(1, 5))
    ratio = n1 / (n1 + 2 * n2)
    found = (1 - 2 * ratio * n2 / n1, 2 - 3 * ratio * n3 / n2, 3 - 4 * ratio * n4 / n3)
    return [min(max(value, 0.1 * i), 0.9 * i) for i, value in enumerate(found, start=1)]


def _kept(levels: list[Grams], shares: Sequence[Floats], minima: Sequence[int], max_successors: int) -> list[Mask]:
    """Return which n-grams of each order from 2 on to keep: the frequent ones, and the contexts of longer ones.

    Only the first `max_successors` n-grams of a context have a share. The others are kept only as contexts.
    """
    frequent = [grams.counts >= least for grams, least in zip(levels[1:], minima, strict=True)]
    wanted = zip(levels[1:], shares[1:], _closed(levels, frequent), strict=True)
    return _closed(levels, [_first(grams, share, mask, max_successors) for grams, share, mask in wanted])


def _closed(levels: list[Grams], wanted: list[Mask]) -> list[Mask]:
    """Add the n-grams that are contexts of longer ones."""
    kept = list(wanted)
    for n in reversed(range(len(kept) - 1)):
        contexts = levels[n + 2].contexts[kept[n + 1]]  # kept[0] is of order 2, levels[0] of order 1
        kept[n] = kept[n] | (np.bincount(contexts, minlength=len(kept[n])) > 0)
    return kept


def _first(grams: Grams, share: Floats, mask: Mask, most: int) -> Mask:
    """Restrict a mask to the n-grams with the largest shares of each context, the lowest tokens among equals."""
    places = np.flatnonzero(mask)
    places = places[np.lexsort((-share[places], grams.contexts[places]))]  # stable, and sorted by tokens before
    contexts = grams.contexts[places]
    rank = np.arange(len(places)) - np.searchsorted(contexts, contexts)
    first = np.zeros_like(mask)
    first[places[rank < most]] = True
    return first


def _orders(levels: list[Grams], shares: Sequence[Floats], kept: list[Mask], max_successors: int) -> list[NgramOrder]:
    """Return the tables of the n-grams that are kept, with shares in one byte each."""
    orders, places = [], np.arange(len(levels[0].tokens))  # of the order below, kept ones only
    for grams, share, mask in zip(levels[1:], shares[1:], kept, strict=True):
        contexts = np.searchsorted(places, grams.contexts[mask])
        exact = np.where(_first(grams, share, mask, max_successors), share, 0.0)[mask]
        down, near = np.floor(256 * np.sqrt(exact)), np.rint(256 * np.sqrt(exact)).clip(max=255)
        full = np.bincount(contexts, weights=near**2, minlength=len(places)) >= ONE  # rounding down is always sound
        codes = np.where(full[contexts], down, near)
        successors = np.bincount(contexts, minlength=len(places))
        orders.append(NgramOrder(successors, grams.tokens[mask], codes.astype(np.uint8)))
        places = np.flatnonzero(mask)
    return orders
