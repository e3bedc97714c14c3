"""Drafters that run no model, n-grams and prompt lookup: held against slow definitions, alone and in batches."""

import dataclasses
import itertools
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from draft_folders import PRINT, Tables, random_tables
from folders import as_numpy, both_packages, module
from models import package, table

V = 4
SIZES = st.tuples(st.integers(1, 5), st.integers(1, 5)).map(lambda pair: (max(pair), min(pair)))
TEXTS = st.lists(st.lists(st.integers(0, V - 1), min_size=1, max_size=14), min_size=1, max_size=12)


def lookup(package: str, *sizes: int) -> Any:
    return module(package, "drafters.prompt_lookup").PromptLookup(V, *sizes)


@st.composite
def tables(draw: Any, vocab_size: int | None = None) -> Tables:
    """Any n-gram tables over a small vocabulary."""
    size, order, seed = vocab_size or draw(st.integers(1, 7)), draw(st.integers(1, 4)), draw(st.integers(0, 2**32))
    return random_tables(size, order, seed, draw(st.sampled_from([0.0, 0.6, 1.0])))


def rows_of(package: str, drafter: Any, texts: list[list[int]], rubbish: int = -(10**12)) -> np.ndarray:  # [B, V]
    """Ask a drafter of either package about a batch of texts; after the shorter ones is rubbish."""
    if package == "reference":
        return np.stack([drafter.logits(text, None) for text in texts])
    import torch

    size = max(map(len, texts)) + 2
    tokens = torch.tensor([text + [rubbish] * (size - len(text)) for text in texts])
    return as_numpy(drafter.logits(tokens, None, torch.tensor([len(text) for text in texts]), 1))


def slow_distribution(made: Tables, context: tuple[int, ...]) -> np.ndarray:
    """Give what the shares of a context leave to the context without its first token."""
    if not context:
        weights = made.unigram.astype(np.float64)
        return weights / weights.sum()
    shares, lower = made.shares.get(context, {}), slow_distribution(made, context[1:])
    left = 1.0 - sum(shares.values())
    return np.array([shares.get(token, 0.0) + left * lower[token] for token in range(made.vocab_size)])


@both_packages
@given(made=tables(V), texts=TEXTS)
def test_ngrams_have_the_distribution_of_the_slow_definition(package, made, texts):
    """Every token is possible, and only the last tokens matter."""
    for row, text in zip(rows_of(package, made.model(package), texts), texts, strict=True):
        context = tuple(text[max(0, len(text) - len(made.orders)) :])
        assert np.isfinite(row).all() and abs(np.exp(row).sum() - 1.0) < 1e-13
        slow = slow_distribution(made, context)
        assert np.abs(np.exp(row) - slow).max() < 1e-14  # some ten roundings of numbers up to 1


def slow_proposal(text: list[int], most: int, least: int) -> int | None:
    """Try the lengths of n-grams from the longest down, and for each the places where one could begin."""
    for length in range(most, least - 1, -1):
        begins = [i for i in range(len(text) - length) if text[i : i + length] == text[-length:]]
        if begins:
            return text[begins[-1] + length]
    return None


@both_packages
@given(texts=TEXTS, sizes=SIZES)
@example(texts=[[1]], sizes=(3, 1))
@example(texts=[[1, 1]], sizes=(3, 1))  # occurrences may overlap
@example(texts=[[0, 0, 0, 0]], sizes=(3, 2))
@example(texts=[[1, 2, 3, 0, 2, 3, 1, 3, 2, 3]], sizes=(3, 1))  # longer ones before more recent ones
@example(texts=[[2, 1, 0, 2, 3, 0, 2]], sizes=(3, 1))  # the most recent one, where transformers takes the first
def test_lookup_proposes_what_the_slow_definition_does(package, texts, sizes):
    rows = rows_of(package, lookup(package, *sizes), texts)
    assert rows.shape == (len(texts), V) and rows.dtype == np.float64
    for row, text in zip(rows, texts, strict=True):
        expected = np.full(V, -np.inf)
        proposal = slow_proposal(text, *sizes)
        if proposal is not None:
            expected[proposal] = 0.0
        assert np.array_equal(row, expected)


@pytest.mark.torch
@pytest.mark.parametrize("num_prompts", [1, 3])
def test_no_row_is_fed_for_a_draft_that_no_text_has(num_prompts: int) -> None:
    """Where nothing is found, the pass is that of plain decoding, and the drafter was asked once."""
    gpu = package("gpu")
    model, seen = table(gpu, vocab_size=40, seed=5), []
    asked, drafter = [], gpu.PromptLookup(40)
    hidden, logits = model.hidden, type(drafter).logits
    model.hidden = lambda inputs, *more, **named: seen.append(inputs.shape[1]) or hidden(inputs, *more, **named)
    object.__setattr__(drafter, "logits", lambda *given: asked.append(1) or logits(drafter, *given))
    method = gpu.SpeculativeSampling(model, drafter, gpu.SamplingConfig(top_k=8), num_draft=4)
    texts = gpu.generate_batch(method, [[1, 2], [3], [7, 7, 8]][:num_prompts], 30, eos_token_ids=())
    steps = list(itertools.zip_longest(*(text.records for text in texts)))
    most = [max(len(record.draft_tokens) for record in step if record is not None) for step in steps]
    assert seen[1:] == [1 + drafts for drafts in most[1:]] and {0, 4} <= set(most)
    assert len(asked) <= sum(min(drafts + 1, 4) for drafts in most)


@both_packages
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((0,), "vocab_size: found 0, expected an integer from 1 to 2147483648"),
        ((4, 0), "max_ngram: found 0, expected an integer from 1 to 65536"),
        ((4, 2, 3), "min_ngram: found 3, expected an integer from 1 to 2"),
    ],
)
def test_sizes_that_make_no_sense_are_refused(package: str, arguments: Any, message: str) -> None:
    with pytest.raises(ValueError) as error:
        module(package, "drafters.prompt_lookup").PromptLookup(*arguments)
    assert str(error.value) == message


@both_packages
def test_a_model_with_other_tokens_is_refused_by_name(package: str) -> None:
    def target(vocab_size: int = 5) -> Any:
        return SimpleNamespace(vocab_size=vocab_size, name="other")

    model = random_tables(5, 2, seed=0).model(package, base_model="tiny", tokenizer=PRINT)
    model.check(target())
    model.check(target(), PRINT)
    with pytest.raises(ValueError) as error:
        model.check(target(7))
    assert str(error.value) == "the n-gram model has vocab_size 5, expected 7 as in the model 'other'"
    with pytest.raises(ValueError) as error:
        model.check(target(), "f" * 64)
    assert str(error.value) == (
        "the n-gram model was counted with the tokenizer of 'tiny' (0123456789ab), this is that of 'other' "
        "(ffffffffffff), expected the same; other tokens keep the text exact but make it slow, and "
        "dataclasses.replace(ngram, tokenizer=None) skips this check"
    )
    dataclasses.replace(model, tokenizer=None).check(target(), "f" * 64)


Arrays = tuple[list[int], list[int], list[int]]  # successors, tokens, codes


def tables_of(*orders: Arrays, unigram: Any = (1.0, 1.0, 1.0)) -> Tables:
    arrays = [tuple(np.array(each, dtype=np.int64) for each in order) for order in orders]
    return Tables(np.array(unigram, dtype=np.float64), arrays, {})


def sums(contexts: int, total: int, wanted: int, count: int) -> str:
    found = f"num_successors: found {contexts} numbers with the sum {total}"
    return f"{found}, expected {wanted} of at least 0 with the sum {count}, the number of tokens"


BELOW = ([1, 1, 0], [2, 0], [9, 9])
POSITIVE = "unigram: found something else, expected a finite positive number for each token"
NO_UNIGRAMS = ([], [[1.0]], [1.0, 0.0], [1.0, -1.0], [1.0, np.nan], [1.0, np.inf], [1.0, 1e300])
GROW = "in one context, expected them to grow"
BAD: list[tuple[Tables, str]] = [
    *[(tables_of(unigram=unigram), POSITIVE) for unigram in NO_UNIGRAMS],
    (tables_of(*[([0], [], [])] * 4, unigram=[1.0]), "orders: found 4, expected at most 3"),
    (tables_of(([1, 0], [2], [9])), f"order_2.{sums(2, 1, 3, 1)}"),
    (tables_of(([-1, 1, 0], [], [])), f"order_2.{sums(3, 0, 3, 0)}"),
    (tables_of(([1, 0, 1], [1, 2], [9])), "order_2.codes: found 1, expected 2, the number of tokens"),
    (tables_of(([1, 0, 1], [1, 3], [9, 9])), "order_2.tokens: found 3, expected 0 to 2"),
    (tables_of(([2, 0, 1], [1, 1, 0], [9, 9, 9])), f"order_2.tokens: found 1 after 1 {GROW}"),
    (tables_of(([1, 0, 2], [1, 2, 0], [9, 9, 9])), f"order_2.tokens: found 0 after 2 {GROW}"),
    (
        tables_of(([2, 0, 0], [0, 1], [255, 23])),
        "order_2.codes: found shares of one context that add up to 1.0003, expected less than 1",
    ),
    (tables_of(BELOW, ([1, 1, 0], [2, 1], [9, 9])), f"order_3.{sums(3, 2, 2, 2)}"),
]


@both_packages
@pytest.mark.parametrize(("made", "message"), BAD, ids=[message[:60] for _, message in BAD])
def test_arrays_that_make_no_tables_are_refused(package: str, made: Tables, message: str) -> None:
    with pytest.raises(ValueError) as error:
        made.model(package)
    assert str(error.value) == message
