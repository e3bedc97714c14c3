"""Look-ahead rows after many anchors at once: each is what PaSS's own draft call computes there, and no more."""

from __future__ import annotations

import copy
from functools import cache
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from folders import LINEAR, LLAMA3, both_packages, tiny_config
from lookaheads import in_float64, on_parts, with_parts
from pass_sampling.gpu import (
    Adapter,
    PaSS,
    PaSSOneCall,
    SamplingConfig,
    Transformer,
    generate,
    probs_from_logits,
)
from pass_sampling.gpu.training import acceptance as home
from pass_sampling.gpu.training.train import Parts
from passes import Passes, difference, same_bits
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
    for record in generate(kind(model, lookahead, sampling), prompt, 12, (), seed=seed, trace=True).records:
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
def test_training_sees_the_distributions_that_the_running_step_drafts_from(
    parts: str, kind: str, seed: int, prompt: list[int]
) -> None:
    model = passes("gpu", kind).model
    lookahead = with_parts("gpu", model, parts, 3, seed)
    for method in (PaSSOneCall, PaSS) if parts == "vectors" else (PaSSOneCall,):
        assert check_drafts(model, lookahead, method, prompt, seed) > 6


@on_kinds
@given(case=cases(), seed=any_seed)
@torch.no_grad()
def test_later_text_changes_no_bit_of_a_draft_row(kind: str, case: Any, seed: int) -> None:
    model, (vectors, tokens, anchors) = passes("gpu", kind).model, case
    before = home.anchored_rows(model, vectors, tokens, anchors)
    for n, anchor in enumerate(anchors.tolist()):
        other = tokens.clone()
        noise = np.random.default_rng(seed).integers(VOCAB, size=other[:, anchor + 1 :].shape)
        other[:, anchor + 1 :] = torch.from_numpy(noise)
        after = home.anchored_rows(model, vectors, other, anchors)
        assert same_bits(after.draft_logits[:, n].numpy(), before.draft_logits[:, n].numpy())


# --- Gradients ---


def leaves_of(parts: Parts) -> dict[str, torch.Tensor]:
    """Return the parameters of parts by name; the vectors always."""
    return {"vectors": parts.vectors} | parts.matrices()


def moved(parts: Parts, by: dict[str, torch.Tensor], far: float) -> Parts:
    """Return parts with every parameter moved in its direction."""
    found = {name: tensor + far * by[name] for name, tensor in leaves_of(parts).items()}
    adapter = {name.removeprefix("adapter."): each for name, each in found.items() if name.startswith("adapter.")}
    head = {name.removeprefix("head."): each for name, each in found.items() if name.startswith("head.")}
    return Parts(
        found["vectors"],
        Adapter.of(adapter) if adapter else None,
        type(parts.head).of(head, parts.head.uses_lookahead) if parts.head else None,
    )


@on_parts
@settings(max_examples=20)
@given(kind=any_kind, case=cases(), seed=any_seed)
def test_gradients_agree_with_finite_differences_and_reach_the_parts_alone(
    parts: str, kind: str, case: Any, seed: int
) -> None:
    """Along one direction in all parameters together.

    Central differences over a step h err by c h^2, with c the third derivative over 6, so those over h and over h/2
    differ by three times what the second still errs. To that add roundings: of sums of the order of 1000, wrong by
    some 2^-50 of it, over h = 2^-15; below 1e-7.
    """
    model, (vectors, tokens, anchors) = passes("gpu", kind).model, case
    lookahead, step = with_parts("gpu", model, parts, len(vectors), seed), 2.0**-15
    adapter, head = (in_float64("gpu", part) for part in (lookahead.adapter, lookahead.head))
    whole = copy.deepcopy(Parts(lookahead.vectors.double(), adapter, head))
    for tensor in leaves_of(whole).values():
        tensor.requires_grad_()
    generator = torch.Generator().manual_seed(seed)

    def drawn(*shape: int) -> torch.Tensor:
        return torch.randn(shape, dtype=torch.float64, generator=generator)

    weights = drawn(len(tokens), len(anchors), len(vectors), VOCAB)
    directions = {name: drawn(*each.shape) / each.numel() ** 0.5 for name, each in leaves_of(whole).items()}

    def total(parts: Parts) -> torch.Tensor:  # []
        rows = home.anchored_rows(model, parts.vectors, tokens, anchors, parts.adapter, parts.head)
        assert not rows.target_logits.requires_grad
        return (weights * rows.draft_logits).sum()

    total(whole).backward()
    found = {name: tensor.grad for name, tensor in leaves_of(whole).items()}
    assert {name for name, gradient in found.items() if gradient is not None} == whole.parameters().keys()
    assert all(float(found[name].abs().max()) > 0 for name in whole.parameters())
    assert not any(tensor.requires_grad for tensor in tensors(model))

    def slope(step: float) -> float:
        with torch.no_grad():
            return float(total(moved(whole, directions, step)) - total(moved(whole, directions, -step))) / (2 * step)

    coarse, fine = slope(step), slope(step / 2)
    exact = sum(float((found[name] * directions[name]).sum()) for name in whole.parameters())
    assert abs(exact - fine) <= abs(coarse - fine) + 1e-7
    assert abs(coarse - fine) <= 1e-4  # or else the line above says nothing


# --- Mistakes that the comparisons must notice: each is called with the real function and its arguments ---


def leaky(visible: Any, anchors: Any, depth: Any, length: int) -> Any:
    """Every group attends to the groups before it."""
    mask = visible(anchors, depth, length)
    mask[:, length:] = torch.ones(len(mask), len(mask), dtype=torch.bool).tril()
    return mask


def one_token_more(visible: Any, anchors: Any, depth: Any, length: int) -> Any:
    """Draft rows attend to the exact token after the anchor, which a draft call does not know."""
    early, late = visible(anchors, depth, length), visible(anchors + 1, depth, length)
    return torch.cat([late[:, :length], early[:, length:]], dim=1)


def all_of_the_group(visible: Any, anchors: Any, depth: Any, length: int) -> Any:
    """Draft rows attend to the vectors after them, too."""
    return visible(anchors, torch.ones_like(depth), length)


def shifted_positions(
    hidden: Any, self: Any, inputs: Any, cache: Any, positions: Any = None, visible: Any = None, *rest: Any
) -> Any:
    return hidden(self, inputs, cache, None if visible is None else positions + 1, visible, *rest)


def targets_off_by_one(rows: Any, model: Any, vectors: Any, tokens: Any, anchors: Any) -> Any:
    later = rows(model, vectors, torch.cat([tokens, tokens[:, :1]], dim=1), anchors + 1)
    return rows(model, vectors, tokens, anchors)._replace(target_logits=later.target_logits)


def next_off_by_one(rows: Any, model: Any, vectors: Any, tokens: Any, anchors: Any) -> Any:
    later = rows(model, vectors, tokens.roll(1, 1), anchors)
    return rows(model, vectors, tokens, anchors)._replace(next_tokens=later.next_tokens)


def own_token(refined: Any, model: Any, head: Any, hidden: Any, real: Any, tokens: Any) -> Any:
    """The head is given the token that a draft stands for, which drafting does not know."""
    return refined(model, head, hidden, real, tokens.roll(-1, dims=2))


def no_memory(refined: Any, model: Any, head: Any, hidden: Any, real: Any, tokens: Any) -> Any:
    """The head begins anew at every draft."""
    pairs = zip(hidden.split(1, dim=2), tokens.split(1, dim=2), strict=True)
    return torch.cat([refined(model, head, row, real, token) for row, token in pairs], dim=2)


def next_row(refined: Any, model: Any, head: Any, hidden: Any, real: Any, tokens: Any) -> Any:
    """The head begins with the first look-ahead row in the place of the last text row."""
    return refined(model, head, hidden, hidden[:, :, 0] + 1, tokens)


def without_adapter(
    hidden: Any, self: Any, inputs: Any, cache: Any, positions: Any = None, visible: Any = None, *rest: Any, **by: Any
) -> Any:
    rest = () if isinstance(cache, home.FrozenCache) else rest
    return hidden(self, inputs, cache, positions, visible, *rest, **by)


@torch.no_grad()
@pytest.mark.parametrize(
    "place, name, mistake, parts, what",
    [
        (home, "_visible", leaky, None, "a draft row"),
        (home, "_visible", one_token_more, None, "a draft row"),
        (home, "_visible", all_of_the_group, None, "a draft row"),
        (Transformer, "hidden", shifted_positions, None, "a draft row"),
        (home, "anchored_rows", targets_off_by_one, None, "a target row"),
        (home, "anchored_rows", next_off_by_one, None, "the next token"),
        (home, "_refined", own_token, "head", "a draft distribution"),
        (home, "_refined", own_token, "head alone", "a draft distribution"),
        (home, "_refined", no_memory, "adapter and head", "a draft distribution"),
        (home, "_refined", next_row, "head", "a draft distribution"),
        (Transformer, "hidden", without_adapter, "adapter", "a draft distribution"),
        (home, "_visible", one_token_more, "adapter and head", "a draft distribution"),
    ],
)
@on_kinds
def test_the_comparison_rejects_a_mistake(
    kind: str, place: Any, name: str, mistake: Any, parts: str | None, what: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def compare() -> None:
        model = passes("gpu", kind).model
        if parts is None:
            vectors = torch.from_numpy(np.random.default_rng(0).standard_normal((2, 24)))
            check(model, vectors, torch.arange(10, 20)[None], torch.tensor([2, 3, 6]))
        else:
            check_drafts(model, with_parts("gpu", model, parts), PaSSOneCall, [3, 1, 4], 1)

    compare()
    real = getattr(place, name)
    monkeypatch.setattr(place, name, lambda *arguments, **named: mistake(real, *arguments, **named))
    with pytest.raises(AssertionError, match=what):
        compare()


# --- Masks over all cache positions, which the anchors need, in both packages ---


class Case:
    """A pass of rows after cached ones, with a mask over all cache positions; every row attends to itself."""

    def __init__(self, seed: int, cached: int, rows: int, seen: float):
        generator = np.random.default_rng(seed)
        self.cached, self.prefix = cached, generator.integers(VOCAB, size=cached)
        self.inputs = generator.standard_normal((rows, 24))
        self.positions = generator.integers(cached, cached + rows, size=rows)
        self.visible = generator.random((rows, cached + rows)) < seen
        self.visible[:, cached:] |= np.eye(rows, dtype=bool)
        self.noise = generator.standard_normal(10**4)

    def logits(self, model: Passes, visible: Any = None, kept: Any = None, noisy: int | None = None) -> np.ndarray:
        """Run the pass; `kept` drops all other cached positions first, `noisy` is one that then holds noise."""
        cache = model.cache()
        model.run(self.prefix, cache)
        if kept is not None:
            model.keep(cache, kept)
        for array in () if noisy is None else (cache.keys, cache.values):
            place = array[..., noisy, :]
            noise = self.noise[: int(np.prod(place.shape))].reshape(place.shape)
            place[...] = torch.from_numpy(noise) if model.port else noise
        return model.run(self.inputs, cache, self.positions, self.visible if visible is None else visible)


cases_of_masks = st.builds(Case, any_seed, st.integers(1, 6), st.integers(1, 4), st.sampled_from([0.1, 0.5, 0.9]))


@both_packages
@on_kinds
@given(case=cases_of_masks)
def test_a_mask_over_all_positions_is_that_of_the_pass_where_all_are_seen_or_none_is_in_the_way(
    package: str, kind: str, case: Case
) -> None:
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


@both_packages
@on_kinds
@given(case=cases_of_masks)
def test_a_row_depends_on_the_cached_positions_that_it_sees_and_on_no_other(
    package: str, kind: str, case: Case
) -> None:
    """It attends to them itself, or in the layers before through rows that it attends to."""
    model, cached, config = passes(package, kind), case.cached, KINDS[kind]
    standing = np.concatenate([np.arange(cached), case.positions])
    near = case.positions[:, None] - standing < (config.sliding_window or 100)
    every = config.sliding_window is None or config.sliding_layers is not None  # some layer has no window
    seen = case.visible if every else case.visible & near
    inside = seen[:, cached:].astype(int)
    reached = np.linalg.matrix_power(inside, config.num_hidden_layers) @ seen[:, :cached] > 0
    before = case.logits(model)
    for column in range(cached):
        after = case.logits(model, noisy=column)
        assert same_bits(after[~reached[:, column]], before[~reached[:, column]])
        direct = (case.visible & near)[:, column]
        assert (np.abs(after - before).max(axis=1) > EXACT)[direct].all()


@both_packages
def test_the_two_kinds_of_mask_are_told_apart_by_their_width(package: str) -> None:
    """With nothing cached they are one."""
    model = Passes(package, KINDS["qwen3, norms and some windows"])
    found = model.run(np.arange(5), None, None, np.tri(5, dtype=bool))
    assert difference(found, model.run(np.arange(5))) <= EXACT
