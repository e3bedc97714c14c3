"""Counting n-grams: the tables of a slow definition, within a size, and the same on every run."""

import math
from collections import Counter, defaultdict
from pathlib import Path
from typing import Any

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from pass_sampling.gpu import NgramModel
from pass_sampling.gpu.training.ngram_counts import NgramConfig, count_ngrams

Gram = tuple[int, ...]


def arrays(texts: list[list[int]]) -> list[np.ndarray]:
    return [np.array(text, dtype=np.int64) for text in texts]


def slow_counts(texts: list[list[int]], order: int) -> tuple[list[Counter[Gram]], list[Counter[Gram]]]:
    """Count occurrences for the longest n-grams, and different tokens before for shorter ones, where there are any."""
    seen = [
        Counter(tuple(text[i : i + n]) for text in texts for i in range(len(text) - n + 1)) for n in range(order + 2)
    ]
    earlier = [Counter(longer[1:] for longer in seen[n + 1]) for n in range(order)]
    counts = [Counter({gram: earlier[n][gram] or times for gram, times in seen[n].items()}) for n in range(order)]
    return [*counts, seen[order]], seen


def slow_discounts(counts: Counter[Gram]) -> list[float]:
    """Chen and Goodman's three discounts, kept above 0 and below the counts they are taken from."""
    number = Counter(counts.values())
    n = [0, *(max(1, number[i]) for i in range(1, 5))]
    ratio = n[1] / (n[1] + 2 * n[2])
    return [0.0, *(min(max(i - (i + 1) * ratio * n[i + 1] / n[i], 0.1 * i), 0.9 * i) for i in (1, 2, 3))]


def slow_model(
    texts: list[list[int]], vocab_size: int, order: int, minima: list[int], most: int
) -> tuple[np.ndarray, list[dict[Gram, int]]]:
    """Return the unigram's distribution, and the code of every n-gram that is kept, of each order from 2 on."""
    counts, seen = slow_counts(texts, order)
    shares: list[dict[Gram, float]] = [{}]
    for n in range(1, order + 1):
        discounts, totals = slow_discounts(counts[n]), defaultdict(int)
        for gram, count in counts[n].items():
            totals[gram[:-1]] += count
        shares.append(
            {gram: (count - discounts[min(count, 3)]) / totals[gram[:-1]] for gram, count in counts[n].items()}
        )
    unigram = np.array([shares[1].get((token,), 0.0) for token in range(vocab_size)])
    unigram += (1.0 - unigram.sum()) / vocab_size

    def leading(grams: set[Gram], n: int) -> set[Gram]:
        """Those with the largest shares of each context, the lowest tokens among equals."""
        found = set()
        for context in {gram[:-1] for gram in grams}:
            rivals = sorted((gram for gram in grams if gram[:-1] == context), key=lambda gram: (-shares[n][gram], gram))
            found |= set(rivals[:most])
        return found

    def closed(grams: list[set[Gram]]) -> list[set[Gram]]:
        for n in range(len(grams) - 1, 0, -1):
            grams[n - 1] = grams[n - 1] | {gram[:-1] for gram in grams[n]}
        return grams

    wanted = closed([{gram for gram, times in seen[n].items() if times >= minima[n - 2]} for n in range(2, order + 1)])
    kept = closed([leading(grams, n) for n, grams in enumerate(wanted, start=2)])
    codes = []
    for n, grams in enumerate(kept, start=2):
        exact = {gram: 256 * math.sqrt(shares[n][gram]) if gram in leading(grams, n) else 0.0 for gram in grams}
        near = {gram: min(255, round(root)) for gram, root in exact.items()}
        totals = defaultdict(int)
        for gram, code in near.items():
            totals[gram[:-1]] += code**2
        codes.append({gram: near[gram] if totals[gram[:-1]] < 65536 else int(root) for gram, root in exact.items()})
    return unigram, codes


def listed(model: NgramModel) -> list[dict[Gram, int]]:
    """Return the code of every n-gram of a model, by its tokens."""
    contexts: list[Gram] = [(token,) for token in range(model.vocab_size)]
    found = []
    for order in model.orders:
        parents = [
            context
            for context, count in zip(contexts, order.num_successors.tolist(), strict=True)
            for _ in range(count)
        ]
        contexts = [(*parent, token) for parent, token in zip(parents, order.tokens.tolist(), strict=True)]
        found.append(dict(zip(contexts, order.codes.tolist(), strict=True)))
    return found


@st.composite
def corpora(draw: Any) -> tuple[list[list[int]], int]:
    """Texts over a small vocabulary, some of them empty, with repetitions."""
    vocab_size = draw(st.integers(1, 6))
    text = st.lists(st.integers(0, vocab_size - 1), max_size=30)
    texts = draw(st.lists(text, min_size=1, max_size=6).filter(lambda texts: any(texts)))
    return texts * draw(st.integers(1, 3)), vocab_size


@given(corpus=corpora(), order=st.integers(1, 4), data=st.data())
def test_the_tables_are_those_of_the_slow_definition(corpus: Any, order: int, data: Any) -> None:
    texts, vocab_size = corpus
    minima = data.draw(st.lists(st.integers(1, 4), min_size=max(1, order - 1), max_size=max(1, order - 1)))
    most = data.draw(st.integers(1, 6))
    model = count_ngrams(arrays(texts), vocab_size, NgramConfig(order, tuple(minima), most))
    unigram, codes = slow_model(texts, vocab_size, order, minima, most)
    assert listed(model) == codes
    assert np.abs(model.unigram - unigram).max() < 1e-6  # float32


def test_no_ngram_crosses_the_end_of_a_text() -> None:
    apart = count_ngrams(arrays([[0, 1], [2, 0, 1], [], [2]]), 3, NgramConfig(3, (1,)))
    assert [sorted(grams) for grams in listed(apart)] == [[(0, 1), (2, 0)], [(2, 0, 1)]]
    joined = count_ngrams(arrays([[0, 1, 2, 0, 1, 2]]), 3, NgramConfig(3, (1,)))
    assert (1, 2) in listed(joined)[0]


def zipf(seed: int, count: int, vocab_size: int) -> list[np.ndarray]:
    """Texts in which every token leans on the one before it."""
    draw = np.random.default_rng(seed)
    steps = np.minimum(draw.zipf(1.4, (20, count // 20)), vocab_size) * draw.integers(1, 3, (20, count // 20))
    return list(steps.cumsum(axis=1) % vocab_size)


def test_counts_are_the_same_on_every_run_and_in_any_order(tmp_path: Path) -> None:
    texts, config = zipf(1, 20_000, 100), NgramConfig(4, (2,), 32)
    for name, some in (("one", texts), ("two", texts), ("other", texts[::-1])):
        count_ngrams(some, 100, config, "tiny", "a" * 64).save(tmp_path / name)
    first = {path.name: path.read_bytes() for path in (tmp_path / "one").iterdir()}
    for name in ("two", "other"):
        assert {path.name: path.read_bytes() for path in (tmp_path / name).iterdir()} == first
