"""Rows after many anchors at once are those of PaSS's own draft calls; and the expected acceptance over them."""

import copy
from functools import cache
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import pass_sampling.gpu as gpu
from folders import LINEAR, LLAMA3, both_packages, tiny_config
from lookaheads import in_float64, on_parts, with_parts
from pass_sampling.gpu import PaSS, PaSSOneCall, SamplingConfig, Transformer, generate, probs_from_logits
from pass_sampling.gpu.training import acceptance as home
from pass_sampling.gpu.training.acceptance import (
    SAMPLINGS,
    acceptance_of,
    compared,
    fixed_token_vectors,
)
from pass_sampling.gpu.training.train import Parts
from pass_sampling.reference import theory
from passes import Passes, difference
from strategies import settings_of
from training import VOCAB, tensors

EXACT = 1e-12  # logits of order 1 to 10 from a few hundred roundings of 2^-53

KINDS = {
    "llama, llama3 rope": tiny_config("llama", rope_scaling=LLAMA3),
    "mistral, a window": tiny_config("mistral", sliding_window=3),
    "qwen2, biases and linear rope": tiny_config("qwen2", rope_scaling=LINEAR),
    "qwen3, norms and some windows": tiny_config("qwen3", sliding_window=4, sliding_layers=(False, True)),
}
on_kinds = pytest.mark.parametrize("kind", KINDS)
any_kind, any_seed = st.sampled_from(sorted(KINDS)), st.integers(0, 2**32)


@cache
def passes(package: str, kind: str) -> Passes:
    return Passes(package, KINDS[kind])


def check(model: Transformer, vectors: torch.Tensor, tokens: torch.Tensor, anchors: torch.Tensor) -> None:
    """Compare every row with a pass of its own: PaSS's draft call, and a plain pass over the text so far."""
    rows = home.anchored_rows(model, vectors, tokens, anchors)
    for b, text in enumerate(tokens):
        for n, anchor in enumerate(anchors.tolist()):
            inputs = torch.cat([model.embed(text[None, : anchor + 1]), vectors[None].to(model.dtype)], dim=1)
            call = model.logits(model.hidden(inputs, model.new_cache(inputs.shape[1])))[0, anchor + 1 :]
            assert difference(rows.draft_logits[b, n].numpy(), call.numpy()) <= EXACT, "a draft row"
            for i in range(len(vectors)):
                plain = model.forward(text[None, : anchor + i + 2])[0, -1]
                assert difference(rows.target_logits[b, n, i].numpy(), plain.numpy()) <= EXACT, "a target row"
                assert rows.next_tokens[b, n, i] == text[anchor + i + 2], "the next token"


@st.composite
def cases(draw: Any) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:  # [L, D], [B, T], [N]
    """Vectors, sequences and anchors: any places in any order, the first, the last and the same one twice."""
    generator = np.random.default_rng(draw(any_seed))
    depth, length = draw(st.integers(1, 3)), draw(st.integers(5, 12))
    last = length - depth - 2
    anchors = draw(st.lists(st.sampled_from([0, last]) | st.integers(0, last), min_size=1, max_size=4))
    vectors = generator.standard_normal((depth, 24))
    tokens = generator.integers(VOCAB, size=(draw(st.integers(1, 2)), length))
    return torch.from_numpy(vectors), torch.from_numpy(tokens), torch.tensor(anchors)


@on_kinds
@given(case=cases())
@torch.no_grad()
def test_every_anchored_row_is_what_a_pass_of_its_own_computes(kind: str, case: Any) -> None:
    check(passes("gpu", kind).model, *case)


def check_drafts(
    model: Transformer, lookahead: Any, kind: type[PaSS | PaSSOneCall], prompt: list[int], seed: int
) -> int:
    """Compare the distributions of every draft of a running text with those that training computes at that place.

    A step drafts after a text of which the last token was fed nowhere yet, or is drawn first: the anchor is the one
    before. The distributions that drafts were drawn from are traced, as edges of cells, and so are the target's
    probabilities of the drafts."""
    sampling, count, text = SamplingConfig(0.7), 0, list(prompt)
    for record in generate(kind(model, lookahead, sampling), prompt, 13, (), seed=seed, trace=True).records:
        drafts, drawn = list(record.draft_tokens), [np.diff(each.edges, prepend=0.0) for each in record.choices]
        known = [*text, *(record.tokens[:1] if kind is PaSS else ())]
        if drafts:
            tokens = torch.tensor([known + drafts + [0] * (lookahead.num_lookahead + 1)])
            anchors = torch.tensor([len(known) - 2])
            rows = home.anchored_rows(model, lookahead.vectors, tokens, anchors, lookahead.adapter, lookahead.head)
            draft_probs, target_probs = (probs_from_logits(logits[0, 0], sampling) for logits in rows[:2])
            traced = np.stack([each for each in drawn if len(each) == VOCAB][len(known) - len(text) :][: len(drafts)])
            assert difference(draft_probs[: len(drafts)].numpy(), traced) <= EXACT, "a draft distribution"
            likely = target_probs[torch.arange(len(drafts)), drafts][: record.num_accepted + 1].numpy()
            recorded = np.array(record.target_token_probs)[: len(likely)]
            assert difference(likely, recorded) <= EXACT, "a target distribution"
            count += len(drafts)
        text += record.tokens
    return count


@on_parts
@given(kind=any_kind, seed=any_seed, prompt=st.lists(st.integers(0, VOCAB - 1), min_size=1, max_size=4))
@torch.no_grad()
def test_training_sees_the_distributions_that_the_running_step_drafts_from(parts, kind, seed, prompt):
    model = passes("gpu", kind).model
    lookahead = with_parts("gpu", model, parts, 3, seed)
    for method in (PaSSOneCall, PaSS) if parts == "vectors" else (PaSSOneCall,):
        assert check_drafts(model, lookahead, method, prompt, seed) > 6


def leaves_of(parts: Parts) -> dict[str, torch.Tensor]:
    """Return the parameters of parts by name; the vectors always."""
    return {"vectors": parts.vectors} | parts.matrices()


@on_parts
@given(kind=any_kind, case=cases(), seed=any_seed)
@settings(max_examples=10)
def test_gradients_reach_the_parts_alone(parts, kind, case, seed):
    model, (vectors, tokens, anchors) = passes("gpu", kind).model, case
    lookahead = with_parts("gpu", model, parts, len(vectors), seed)
    adapter, head = (in_float64("gpu", part) for part in (lookahead.adapter, lookahead.head))
    whole = copy.deepcopy(Parts(lookahead.vectors.double(), adapter, head))
    for tensor in leaves_of(whole).values():
        tensor.requires_grad_()
    rows = home.anchored_rows(model, whole.vectors, tokens, anchors, whole.adapter, whole.head)
    assert not rows.target_logits.requires_grad
    rows.draft_logits.square().sum().backward()
    learning = {name for name, tensor in leaves_of(whole).items() if tensor.grad is not None and tensor.grad.any()}
    assert learning == whole.parameters().keys()
    assert not any(tensor.requires_grad for tensor in tensors(model))


class Case:
    """A pass of rows after cached ones, with a mask over all cache positions; every row attends to itself."""

    def __init__(self, seed: int, cached: int, rows: int, seen: float):
        generator = np.random.default_rng(seed)
        self.cached, self.prefix = cached, generator.integers(VOCAB, size=cached)
        self.inputs = generator.standard_normal((rows, 24))
        self.positions = generator.integers(cached, cached + rows, size=rows)
        self.visible = generator.random((rows, cached + rows)) < seen
        self.visible[:, cached:] |= np.eye(rows, dtype=bool)

    def logits(self, model: Passes, visible: Any = None, kept: Any = None) -> np.ndarray:
        """Run the pass; `kept` drops all other cached positions first."""
        cache = model.cache()
        model.run(self.prefix, cache)
        if kept is not None:
            model.keep(cache, kept)
        return model.run(self.inputs, cache, self.positions, self.visible if visible is None else visible)


cases_of_masks = st.builds(Case, any_seed, st.integers(1, 6), st.integers(1, 4), st.sampled_from([0.1, 0.5, 0.9]))


@both_packages
@on_kinds
@given(case=cases_of_masks)
def test_a_mask_over_all_positions_is_that_of_the_pass_where_all_are_seen_or_none_is_in_the_way(package, kind, case):
    """And in both packages the same; a position that no row attends to might as well be absent."""
    model, cached, visible = passes(package, kind), case.cached, case.visible.copy()
    found = case.logits(model)
    assert difference(found, case.logits(passes("reference", kind))) <= EXACT
    if KINDS[kind].sliding_window is None:  # a window tells positions by their places
        seen = np.flatnonzero(visible[:, :cached].any(axis=0))
        columns = np.concatenate([seen, np.arange(cached, visible.shape[1])])
        assert difference(found, case.logits(model, visible[:, columns], kept=seen)) <= EXACT
    visible[:, :cached] = True
    assert difference(case.logits(model, visible), case.logits(model, visible[:, cached:])) <= EXACT


VOCAB = 23


def with_norms() -> Any:
    return passes("gpu", "qwen3, norms and some windows").model


@on_parts
@given(seed=st.integers(0, 2**32), depth=st.integers(1, 3), settings=settings_of(VOCAB))
def test_it_is_the_mass_that_target_and_draft_share_over_all_places(parts, seed, depth, settings):
    """On texts so short that all places count. The rows are those of the running step, see above."""
    model, texts = with_norms(), np.random.default_rng(seed).integers(VOCAB, size=(5, depth + 6))
    lookahead, sampling = with_parts("gpu", model, parts, depth, seed), gpu.SamplingConfig(**settings)
    rest = [in_float64("gpu", part) for part in (lookahead.adapter, lookahead.head)]
    places = torch.from_numpy(texts), torch.arange(5)
    rows = home.anchored_rows(model, lookahead.vectors.double(), *places, *rest)
    target, draft = (gpu.probs_from_logits(each, sampling) for each in (rows.target_logits, rows.draft_logits))
    expected = torch.minimum(target, draft).sum(dim=-1).mean(dim=(0, 1))
    found = acceptance_of(model, lookahead.vectors.double(), texts, [sampling], *rest)[0]
    assert found.dtype == torch.float64 and float((found - expected).abs().max()) <= EXACT


@on_parts
def test_drafts_among_few_tokens_share_what_mass_those_have(parts: str) -> None:
    """Each draft distribution is the one among all tokens, restricted to the draft vocabulary and made to sum to 1."""
    model, few = with_norms(), torch.tensor([1, 4, 5, 11])
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
    found = acceptance_of(model, lookahead.vectors, texts, [gpu.SamplingConfig()], *rest, few)[0]
    assert torch.allclose(found, expected, rtol=0, atol=1e-5)


@on_parts
def test_the_record_holds_what_was_trained_and_its_controls_at_every_sampling(parts: str) -> None:
    model, sampling = with_norms(), gpu.SamplingConfig(0.8, top_k=10)
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
            expected = acceptance_of(model, vectors, texts, [at], *rest)[0].numpy()
            assert place[f"{kind}acceptance"] == pytest.approx(expected, abs=6e-5)
            assert place[f"{kind}expected_tokens"] == pytest.approx(theory.expected_tokens(expected, 2), abs=6e-5)
    assert SAMPLINGS == {"greedy": gpu.SamplingConfig(0.0), "temperature_1": gpu.SamplingConfig(1.0)}


@pytest.mark.parametrize("shape", [(0, 9), (1, 3), (2, 0)])
def test_sequences_without_a_place_are_refused(shape: tuple[int, int]) -> None:
    vectors, texts = torch.zeros(2, 24), np.zeros(shape, np.int64)
    with pytest.raises(ValueError, match=r"^sequences: found \d of \d tokens, expected some of at least 4$"):
        acceptance_of(with_norms(), vectors, texts, [gpu.SamplingConfig()])
