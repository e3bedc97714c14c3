"""Expected acceptance: the sum over tokens of the smaller of two distributions."""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import pass_sampling.gpu as gpu
import pass_sampling.reference as reference
from folders import LLAMA3, tiny_config
from lookaheads import in_float64, on_parts, with_parts
from pass_sampling.gpu.training import acceptance as home
from pass_sampling.gpu.training.acceptance import (
    ANCHORS,
    SAMPLINGS,
    acceptance_of,
    compared,
    expected_tokens,
    fixed_token_vectors,
)
from pass_sampling.reference import theory
from passes import Passes
from strategies import settings_of

EXACT = 1e-12  # distributions in float64: sums of a few numbers in [0, 1], each wrong by a few times 2^-53
VOCAB = 23
KINDS = {
    "llama3 rope": tiny_config("llama", rope_scaling=LLAMA3),
    "a window": tiny_config("mistral", sliding_window=3),
    "norms": tiny_config("qwen3", sliding_window=4, sliding_layers=(True, False)),
}
on_kinds = pytest.mark.parametrize("kind", KINDS)


def expected_acceptance(model: Any, vectors: Any, texts: Any, sampling: Any, *parts: Any) -> Any:
    """Return the acceptance at one sampling."""
    return acceptance_of(model, vectors, texts, [sampling], *parts)[0]


@cache
def model_of(package: str, kind: str) -> Any:
    return Passes(package, KINDS[kind]).model


def by_the_specification(
    kind: str, parts: str, depth: int, seed: int, sequences: np.ndarray, settings: dict[str, Any]
) -> np.ndarray:  # [L]
    """Return the mean over all places, one draft call of the reference per place, each with a fresh cache.

    A head is run from left to right, given the text's own tokens.
    """
    model, sampling, places = model_of("reference", kind), reference.SamplingConfig(**settings), []
    lookahead = with_parts("reference", model, parts, depth, seed)
    adapter, head = (in_float64("reference", part) for part in (lookahead.adapter, lookahead.head))
    for text in sequences:
        plain = model.hidden(model.embed(text), model.new_cache())
        for anchor in range(len(text) - depth - 1):
            inputs = np.concatenate([model.embed(text[: anchor + 1]), lookahead.vectors.astype(np.float64)])
            hidden = model.hidden(inputs, model.new_cache(), adapter=adapter, num_adapted=depth)[anchor + 1 :]
            if head is not None:
                rows = hidden if head.uses_lookahead else [plain[anchor]] * depth
                memory, hidden = head.start(plain[anchor]), []
                for row, token in zip(rows, text[anchor + 1 :], strict=False):
                    row, memory = head.step(row, model.embed([token])[0], memory)
                    hidden.append(row)
            drafts = model.logits(np.stack(hidden))
            targets = model.logits(plain[anchor + 1 : anchor + 1 + depth])
            distributions = [
                [reference.probs_from_logits(logits, sampling) for logits in pair]
                for pair in zip(targets, drafts, strict=True)
            ]
            places.append([np.minimum(target, draft).sum() for target, draft in distributions])
    return np.mean(places, axis=0)


@on_parts
@given(
    kind=st.sampled_from(sorted(KINDS)),
    seed=st.integers(0, 2**32),
    shape=st.tuples(st.integers(1, 6), st.integers(0, 6)),
    depth=st.integers(1, 3),
    settings=settings_of(VOCAB),
)
def test_it_is_the_mass_that_target_and_draft_share_in_the_specification(
    parts: str, kind: str, seed: int, shape: tuple[int, int], depth: int, settings: dict[str, Any]
) -> None:
    """On texts so short that all places count, from one place per text on, and for more texts than fit in a batch.

    Where a restriction turns on the last bit of a logit, the two packages may see different sets: not for logits
    drawn at random, which are never that close.
    """
    sequences = np.random.default_rng(seed).integers(VOCAB, size=(shape[0], depth + 2 + shape[1]))
    expected = by_the_specification(kind, parts, depth, seed, sequences, settings)
    lookahead = with_parts("gpu", model_of("gpu", kind), parts, depth, seed)
    rest = [in_float64("gpu", part) for part in (lookahead.adapter, lookahead.head)]
    found = expected_acceptance(
        model_of("gpu", kind), lookahead.vectors.double(), sequences, gpu.SamplingConfig(**settings), *rest
    )
    assert found.dtype == torch.float64
    assert np.abs(found.numpy() - expected).max() <= EXACT


@given(seed=st.integers(0, 2**32), parts=st.sampled_from(["vectors", "adapter and head"]))
def test_several_samplings_are_measured_as_each_alone(seed: int, parts: str) -> None:
    model = model_of("gpu", "norms")
    lookahead = with_parts("gpu", model, parts, 2, seed)
    texts = np.random.default_rng(seed).integers(VOCAB, size=(2, 7))
    samplings, rest = [gpu.SamplingConfig(0.5, top_k=4), *SAMPLINGS.values()], (lookahead.adapter, lookahead.head)
    found = acceptance_of(model, lookahead.vectors, texts, samplings, *rest)
    for row, sampling in zip(found, samplings, strict=True):
        assert torch.equal(row, expected_acceptance(model, lookahead.vectors, texts, sampling, *rest))


@on_parts
def test_drafts_among_few_tokens_share_what_mass_those_have(parts: str) -> None:
    """Each draft distribution is the one among all tokens, restricted to the draft vocabulary and made to sum to 1."""
    model, few = model_of("gpu", "norms"), torch.tensor([1, 4, 5, 11])
    lookahead = with_parts("gpu", model, parts, 2)
    rest, texts = (lookahead.adapter, lookahead.head), np.random.default_rng(0).integers(VOCAB, size=(1, 12))
    tokens, anchors = torch.from_numpy(texts), torch.arange(9)
    every = home.anchored_rows(model, lookahead.vectors, tokens, anchors, *rest)
    some = home.anchored_rows(model, lookahead.vectors, tokens, anchors, *rest, draft_vocab=few)
    for logits, among_all in zip(some, every, strict=True):
        expected = among_all if logits.dtype == torch.int64 else among_all[..., few]
        assert torch.allclose(logits, expected, rtol=0, atol=1e-5)
    draft = some.draft_logits.double().softmax(dim=-1)
    expected = torch.minimum(draft, every.target_logits.double().softmax(dim=-1)[..., few]).sum(dim=-1).mean(dim=(0, 1))
    found = expected_acceptance(model, lookahead.vectors, texts, gpu.SamplingConfig(), *rest, few)
    assert torch.allclose(found, expected, rtol=0, atol=1e-5)


@given(rates=st.lists(st.floats(0, 1), max_size=8))
def test_expected_tokens_are_those_of_the_theory(rates: list[float]) -> None:
    """The same formula as for drafts whose acceptances, once reached, are known: there it is exact."""
    expected = theory.expected_tokens(np.array(rates), len(rates))
    assert expected_tokens(torch.tensor(rates, dtype=torch.float64)) == pytest.approx(expected, abs=EXACT)


@on_parts
def test_the_record_holds_what_was_trained_and_its_controls_at_every_sampling(parts: str) -> None:
    model, sampling = model_of("gpu", "norms"), gpu.SamplingConfig(0.8, top_k=10)
    lookahead = with_parts("gpu", model, parts, 2)
    texts = np.random.default_rng(0).integers(VOCAB, size=(3, 9))
    record = compared(model, lookahead, texts, sampling, seed=3)
    kinds = {
        "": (lookahead.vectors, lookahead.adapter, lookahead.head),
        "random_": (gpu.LookAhead.random(2, 24, 3).vectors, None, None),
        "fixed_token_": (fixed_token_vectors(model, 2), None, None),
    }
    names = {f"{kind}{figure}" for kind in kinds for figure in ("acceptance", "expected_tokens")}
    places = {"temperature 0.8": (record, sampling)} | {name: (record[name], SAMPLINGS[name]) for name in SAMPLINGS}
    assert record.keys() == names | SAMPLINGS.keys() and record["greedy"].keys() == names
    for place, at in places.values():
        for kind, (vectors, *rest) in kinds.items():
            expected = expected_acceptance(model, vectors, texts, at, *rest)
            assert place[f"{kind}acceptance"] == pytest.approx(expected.tolist(), abs=6e-5)
            assert place[f"{kind}expected_tokens"] == pytest.approx(expected_tokens(expected), abs=6e-5)
    assert SAMPLINGS == {"greedy": gpu.SamplingConfig(0.0), "temperature_1": gpu.SamplingConfig(1.0)}


@on_kinds
def test_vectors_that_copy_the_text_are_always_accepted(kind: str) -> None:
    """The text's own embeddings in the place of the vectors: draft and target are one distribution."""
    model, text = model_of("gpu", kind), np.full((2, 9), 5)
    vectors = fixed_token_vectors(model, 2, token=5)
    assert torch.equal(vectors, model.weights.embedding[[5, 5]])
    for temperature in (0.0, 0.7):
        found = expected_acceptance(model, vectors, text, gpu.SamplingConfig(temperature))
        assert float((found - 1).abs().max()) <= EXACT


@given(depth=st.integers(1, 5), extra=st.integers(0, 300))
def test_the_places_are_distinct_and_spread_from_the_first_to_the_last(depth: int, extra: int) -> None:
    places: list[torch.Tensor] = []

    def watched(model: Any, vectors: Any, tokens: Any, anchors: torch.Tensor, *parts: Any) -> Any:
        places.append(anchors)
        raise InterruptedError

    length = depth + 2 + extra
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(home, "anchored_hidden", watched)
        with pytest.raises(InterruptedError):
            model = model_of("gpu", "norms")
            expected_acceptance(model, torch.zeros(depth, 24), np.zeros((1, length), np.int64), gpu.SamplingConfig())
    anchors = places[0].tolist()
    assert len(anchors) == min(ANCHORS, length - depth - 1)
    assert anchors[0] == 0 and (anchors[-1] == extra)
    steps = np.diff(anchors)
    assert len(steps) == 0 or (steps.min() >= 1 and steps.max() - steps.min() <= 1)


@pytest.mark.parametrize("shape", [(0, 9), (1, 3), (2, 0)])
def test_sequences_without_a_place_are_refused(shape: tuple[int, int]) -> None:
    vectors, texts = torch.zeros(2, 24), np.zeros(shape, np.int64)
    with pytest.raises(ValueError, match=r"^sequences: found \d of \d tokens, expected some of at least 4$"):
        expected_acceptance(model_of("gpu", "norms"), vectors, texts, gpu.SamplingConfig())
