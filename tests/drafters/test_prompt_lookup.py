"""Prompt lookup: the token after the most recent earlier occurrence of the longest n-gram, alone and in batches."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from folders import as_numpy, both_packages, module
from models import PACKAGES, exact_target, package, table
from pass_sampling import reference
from pass_sampling.reference.exactness.distribution import output_distribution

V = 4


def lookup(name: str, *sizes: int) -> Any:
    return module(name, "drafters.prompt_lookup").PromptLookup(V, *sizes)


def slow_proposal(text: list[int], most: int, least: int) -> int | None:
    """The definition: over the lengths of n-grams, then over the places where one could begin."""
    for length in range(most, least - 1, -1):
        begins = [
            i for i in range(len(text) - length) if length <= len(text) and text[i : i + length] == text[-length:]
        ]
        if begins:
            return text[begins[-1] + length]
    return None


def rows_of(name: str, drafter: Any, texts: list[list[int]], rubbish: int = -(10**12)) -> np.ndarray:  # [B, V]
    """Ask a drafter of either package about a batch of texts; after the shorter ones lies rubbish."""
    if name == "reference":
        return np.stack([drafter.logits(text, None) for text in texts])
    import torch

    size = max(map(len, texts)) + 2
    tokens = torch.tensor([text + [rubbish] * (size - len(text)) for text in texts])
    return as_numpy(drafter.logits(tokens, None, torch.tensor([len(text) for text in texts]), 1))


SIZES = st.tuples(st.integers(1, 5), st.integers(1, 5)).map(lambda pair: (max(pair), min(pair)))
TEXTS = st.lists(st.lists(st.integers(0, V - 1), min_size=1, max_size=14), min_size=1, max_size=8)


@both_packages
@given(texts=TEXTS, sizes=SIZES)
@example(texts=[[1]], sizes=(3, 1))
@example(texts=[[1, 1]], sizes=(3, 1))  # occurrences may overlap
@example(texts=[[0, 0, 0, 0]], sizes=(3, 2))
@example(texts=[[1, 2, 3, 0, 2, 3, 1, 3, 2, 3]], sizes=(3, 1))  # longer ones before more recent ones
def test_the_proposal_is_that_of_the_slow_definition(
    package: str, texts: list[list[int]], sizes: tuple[int, int]
) -> None:
    rows = rows_of(package, lookup(package, *sizes), texts)
    assert rows.shape == (len(texts), V) and rows.dtype == np.float64
    for row, text in zip(rows, texts, strict=True):
        expected = np.full(V, -np.inf)
        proposal = slow_proposal(text, *sizes)
        if proposal is not None:
            expected[proposal] = 0.0
        assert np.array_equal(row, expected)


@pytest.mark.torch
@given(texts=TEXTS, sizes=SIZES)
def test_a_row_depends_neither_on_its_batch_mates_nor_on_what_lies_after_it(
    texts: list[list[int]], sizes: tuple[int, int]
) -> None:
    drafter = lookup("gpu", *sizes)
    batch = rows_of("gpu", drafter, texts)
    assert np.array_equal(batch, np.concatenate([rows_of("gpu", drafter, [text]) for text in texts]))
    for rubbish in (0, texts[0][-1], 10**12):
        assert np.array_equal(batch, rows_of("gpu", drafter, texts, rubbish))


@both_packages
def test_the_most_recent_occurrence_wins_where_transformers_takes_the_first(package: str) -> None:
    text = [2, 1, 0, 2, 3, 0, 2]
    assert rows_of(package, lookup(package), [text]).argmax() == 3  # after "0 2"
    assert rows_of(package, lookup(package, 1), [text]).argmax() == 3  # after the later "2", not 1
    assert np.isinf(rows_of(package, lookup(package, 3, 3), [text])).all()


@pytest.mark.parametrize("name", PACKAGES)
@pytest.mark.parametrize("rule", ["token", "block", "match"])
def test_the_text_keeps_the_targets_distribution(name: str, rule: str) -> None:
    pkg = package(name)
    drafter = pkg.drafters.PromptLookup(3)
    method = pkg.SpeculativeSampling(table(pkg), drafter, rule=rule, num_draft=2)
    plain = exact_target(table(reference), reference.SamplingConfig(), [0, 1, 0], reference.Ending(4))
    assert output_distribution(method, [0, 1, 0], pkg.Ending(4)).largest_deviation(plain) < 1e-12


@pytest.mark.torch
@pytest.mark.parametrize("num_prompts", [1, 3])
def test_no_row_is_fed_for_a_draft_that_no_text_has(num_prompts: int) -> None:
    """Where nothing is found, the pass is that of plain decoding, and the drafter was asked once."""
    gpu = package("gpu")
    model, seen = table(gpu, vocab_size=40, seed=5), []
    asked, drafter = [], module("gpu", "drafters.prompt_lookup").PromptLookup(40)
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
def test_it_is_a_drafter_that_costs_nothing(package: str) -> None:
    drafter = lookup(package)
    assert (drafter.vocab_size, drafter.max_ngram, drafter.min_ngram, drafter.name) == (V, 3, 1, "prompt lookup")
    assert (drafter.passes_per_draft, drafter.max_position_embeddings, drafter.new_cache(9)) == (0, None, None)


@both_packages
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((0,), "vocab_size: found 0, expected an integer from 1 to 2147483648"),
        ((4, 0), "max_ngram: found 0, expected an integer from 1 to 65536"),
        ((4, 2.0), "max_ngram: found 2.0, expected an integer from 1 to 65536"),
        ((4, 2, 0), "min_ngram: found 0, expected an integer from 1 to 2"),
        ((4, 2, 3), "min_ngram: found 3, expected an integer from 1 to 2"),
    ],
)
def test_sizes_that_make_no_sense_are_refused(package: str, arguments: Any, message: str) -> None:
    with pytest.raises(ValueError) as error:
        module(package, "drafters.prompt_lookup").PromptLookup(*arguments)
    assert str(error.value) == message


@pytest.mark.torch
def test_no_number_is_read_back_from_the_device() -> None:
    import torch
    from torch._subclasses.fake_tensor import FakeTensorMode

    with FakeTensorMode():  # tensors without numbers: reading one fails
        tokens, lengths = torch.zeros((3, 9), dtype=torch.int64), torch.full((3,), 5)
        assert lookup("gpu").logits(tokens, None, lengths, 1).shape == (3, V)
