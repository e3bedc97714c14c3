"""Look-ahead rows behind many anchors at once: each is what PaSS's own draft call computes there, and no more."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import cache
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from folders import LINEAR, LLAMA3, tiny_config
from pass_sampling.gpu import Transformer
from pass_sampling.gpu.training import anchors as anchors_module
from pass_sampling.gpu.training.anchors import AnchoredRows, anchored_rows
from passes import Passes, difference, same_bits

EXACT = 1e-12  # logits of order 1 to 10 from a few hundred roundings of 2^-53
VOCAB = 23

KINDS = {
    "llama, llama3 rope": replace(tiny_config("llama"), rope_scaling=LLAMA3),
    "mistral, a window": tiny_config("mistral", sliding_window=3),
    "qwen2, biases and linear rope": replace(tiny_config("qwen2"), rope_scaling=LINEAR),
    "qwen3, norms and some windows": tiny_config("qwen3", sliding_window=4, sliding_layers=(False, True)),
}
on_kinds = pytest.mark.parametrize("kind", KINDS)


@cache
def passes(package: str, kind: str) -> Passes:
    return Passes(package, KINDS[kind])


def draft_call(model: Transformer, vectors: torch.Tensor, text: torch.Tensor) -> torch.Tensor:  # [L, V]
    """Return the draft rows of PaSS's first call, as its step makes it: the text, then the vectors, a fresh cache."""
    inputs = torch.cat([model.embed(text[None]), vectors[None].to(model.dtype)], dim=1)
    hidden = model.hidden(inputs, model.new_cache(inputs.shape[1]))
    return model.logits(hidden)[0, len(text) :]


def plain_pass(model: Transformer, text: torch.Tensor) -> torch.Tensor:  # [T, V]
    return model.forward(text[None])[0]


def check(rows: AnchoredRows, model: Transformer, vectors: torch.Tensor, tokens: torch.Tensor, anchors: Any) -> None:
    """Compare every row with a pass of its own."""
    for b, text in enumerate(tokens):
        for n, anchor in enumerate(anchors.tolist()):
            behind = draft_call(model, vectors, text[: anchor + 1])
            assert difference(rows.draft_logits[b, n].numpy(), behind.numpy()) <= EXACT, "a draft row"
            for i in range(len(vectors)):
                upto = text[: anchor + i + 2]  # the target row behind the text that draft i + 1 stands for
                found = rows.target_logits[b, n, i]
                assert difference(found.numpy(), plain_pass(model, upto)[-1].numpy()) <= EXACT, "a target row"
                assert rows.next_tokens[b, n, i] == text[anchor + i + 2], "the next token"


@st.composite
def cases(draw: Any) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:  # [L, D], [B, T], [N]
    """Vectors, sequences and anchors: any places in any order, the first, the last and the same one twice."""
    generator = np.random.default_rng(draw(st.integers(0, 2**32)))
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
    model = passes("gpu", kind).model
    check(anchored_rows(model, *case), model, *case)


@on_kinds
@given(case=cases(), seed=st.integers(0, 2**32))
@torch.no_grad()
def test_later_text_changes_no_bit_of_a_draft_row(kind: str, case: Any, seed: int) -> None:
    model, (vectors, tokens, anchors) = passes("gpu", kind).model, case
    before = anchored_rows(model, vectors, tokens, anchors)
    for n, anchor in enumerate(anchors.tolist()):
        other = tokens.clone()
        noise = np.random.default_rng(seed).integers(VOCAB, size=other[:, anchor + 1 :].shape)
        other[:, anchor + 1 :] = torch.from_numpy(noise)
        after = anchored_rows(model, vectors, other, anchors)
        assert same_bits(after.draft_logits[:, n].numpy(), before.draft_logits[:, n].numpy())


@on_kinds
@given(case=cases(), seed=st.integers(0, 2**32))
def test_gradients_agree_with_finite_differences(kind: str, case: Any, seed: int) -> None:
    """Central differences over a step h err by c h^2, with c the third derivative over 6, so those over h and over h/2
    differ by three times what the second still errs. Beside that stand roundings: of sums of the order of 100, wrong
    by some 2^-50 of it, over h = 2^-15; below 1e-8.
    """
    model, (vectors, tokens, anchors) = passes("gpu", kind).model, case
    generator, step = torch.Generator().manual_seed(seed), 2.0**-15
    vectors = vectors / vectors.norm(dim=1, keepdim=True) * vectors.shape[1] ** 0.5
    shape = (len(tokens), len(anchors), len(vectors), VOCAB)
    weights = torch.randn(shape, dtype=torch.float64, generator=generator)
    direction = torch.randn(vectors.shape, dtype=torch.float64, generator=generator)

    def total(moved: torch.Tensor) -> torch.Tensor:  # []
        return (weights * anchored_rows(model, moved, tokens, anchors).draft_logits).sum()

    leaf = vectors.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(total(leaf), leaf)

    def slope(step: float) -> float:
        with torch.no_grad():
            return float(total(vectors + step * direction) - total(vectors - step * direction)) / (2 * step)

    coarse, fine = slope(step), slope(step / 2)
    assert abs(float((gradient * direction).sum()) - fine) <= abs(coarse - fine) + 1e-8
    assert abs(coarse - fine) <= 1e-4  # or else the line above says nothing
    assert float(gradient.abs().max()) > 1e-3


@on_kinds
def test_only_the_vectors_get_gradients(kind: str) -> None:
    model = passes("gpu", kind).model
    vectors = torch.ones(2, 24, dtype=torch.float64, requires_grad=True)
    rows = anchored_rows(model, vectors, torch.arange(8)[None], torch.tensor([0, 4]))
    assert rows.draft_logits.requires_grad and not rows.target_logits.requires_grad
    leaves = {id(model.weights.embedding): "embedding", id(model.weights.output): "output"}
    leaves |= {id(value): name for layer in model.weights.layers for name, value in vars(layer).items()}
    pending, seen, found = [rows.draft_logits.grad_fn], set(), set()
    while pending:  # everything that a backward pass would reach
        node = pending.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        pending += [before for before, _ in node.next_functions]
        if hasattr(node, "variable"):
            found.add(leaves.get(id(node.variable), "vectors" if node.variable is vectors else "another"))
    assert found == {"vectors"}


# --- Mistakes that the comparison must notice ---


def leaky(visible: Callable[..., Any]) -> Callable[..., Any]:
    """Every group sees the groups before it."""

    def mutant(anchors: Any, depth: Any, length: int) -> Any:
        mask = visible(anchors, depth, length)
        mask[:, length:] = torch.ones(len(mask), len(mask), dtype=torch.bool).tril()
        return mask

    return mutant


def one_token_more(visible: Callable[..., Any]) -> Callable[..., Any]:
    """Draft rows see the exact token behind the anchor, which a draft call does not know."""
    return lambda anchors, depth, length: torch.cat(
        [visible(anchors + 1, depth, length)[:, :length], visible(anchors, depth, length)[:, length:]], dim=1
    )


def all_of_the_group(visible: Callable[..., Any]) -> Callable[..., Any]:
    """Draft rows see the vectors behind them, too."""
    return lambda anchors, depth, length: visible(anchors, torch.ones_like(depth), length)


def shifted_positions(hidden: Callable[..., Any]) -> Callable[..., Any]:
    def mutant(self: Any, inputs: Any, cache: Any, positions: Any = None, visible: Any = None) -> Any:
        return hidden(self, inputs, cache, None if visible is None else positions + 1, visible)

    return mutant


def targets_off_by_one(rows: Callable[..., Any]) -> Callable[..., Any]:
    def mutant(model: Any, vectors: Any, tokens: Any, anchors: Any) -> Any:
        longer = torch.cat([tokens, tokens[:, :1]], dim=1)
        later = rows(model, vectors, longer, anchors + 1)
        return rows(model, vectors, tokens, anchors)._replace(target_logits=later.target_logits)

    return mutant


def next_off_by_one(rows: Callable[..., Any]) -> Callable[..., Any]:
    def mutant(model: Any, vectors: Any, tokens: Any, anchors: Any) -> Any:
        found = rows(model, vectors, tokens, anchors)
        return found._replace(next_tokens=rows(model, vectors, tokens.roll(1, 1), anchors).next_tokens)

    return mutant


@torch.no_grad()
@pytest.mark.parametrize(
    "home, name, mutate, what",
    [
        (anchors_module, "_visible", leaky, "a draft row"),
        (anchors_module, "_visible", one_token_more, "a draft row"),
        (anchors_module, "_visible", all_of_the_group, "a draft row"),
        (Transformer, "hidden", shifted_positions, "a draft row"),
        (anchors_module, "anchored_rows", targets_off_by_one, "a target row"),
        (anchors_module, "anchored_rows", next_off_by_one, "the next token"),
    ],
)
@on_kinds
def test_the_comparison_rejects_a_mistake(
    kind: str, home: Any, name: str, mutate: Any, what: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, generator = passes("gpu", kind).model, np.random.default_rng(0)
    vectors, tokens = torch.from_numpy(generator.standard_normal((2, 24))), torch.arange(20)[None, 10:]
    anchors = torch.tensor([2, 3, 6])
    check(anchors_module.anchored_rows(model, vectors, tokens, anchors), model, vectors, tokens, anchors)
    monkeypatch.setattr(home, name, mutate(getattr(home, name)))
    with pytest.raises(AssertionError, match=what):
        check(anchors_module.anchored_rows(model, vectors, tokens, anchors), model, vectors, tokens, anchors)


# --- Masks over all slots, which the anchors need, in both packages ---


class Case:
    """A pass of rows behind cached ones, with a mask over all slots; every row sees itself."""

    def __init__(self, seed: int, cached: int, rows: int, seen: float):
        generator = np.random.default_rng(seed)
        self.prefix, self.inputs = generator.integers(VOCAB, size=cached), generator.standard_normal((rows, 24))
        self.positions = generator.integers(cached, cached + rows, size=rows)
        self.visible = generator.random((rows, cached + rows)) < seen
        self.visible[:, cached:] |= np.eye(rows, dtype=bool)
        self.noise = generator.standard_normal(10**4)

    def logits(self, model: Passes, visible: Any = None, kept: Any = None, noisy: int | None = None) -> np.ndarray:
        """Run the pass; `kept` drops all other cached slots first, `noisy` is a slot that then holds noise."""
        cached = model.cache()
        if len(self.prefix):
            model.run(self.prefix, cached)
        if kept is not None:
            model.keep(cached, kept)
        if noisy is not None:
            for array in (cached.keys, cached.values):
                place = array[..., noisy, :]
                noise = self.noise[: int(np.prod(place.shape))].reshape(place.shape)
                place[...] = torch.from_numpy(noise) if model.port else noise
        return model.run(self.inputs, cached, self.positions, self.visible if visible is None else visible)


cases_of_masks = st.builds(
    Case, st.integers(0, 2**32), st.integers(1, 6), st.integers(1, 4), st.sampled_from([0.1, 0.5, 0.9])
)


@on_kinds
@given(case=cases_of_masks)
def test_a_mask_over_all_slots_means_the_same_in_both_packages(kind: str, case: Case) -> None:
    assert difference(case.logits(passes("gpu", kind)), case.logits(passes("reference", kind))) <= EXACT


@pytest.mark.parametrize("package", ["reference", "gpu"])
@on_kinds
@given(case=cases_of_masks)
def test_a_mask_that_shows_every_cached_slot_is_the_mask_of_the_pass_alone(package: str, kind: str, case: Case) -> None:
    model, cached = passes(package, kind), len(case.prefix)
    case.visible[:, :cached] = True
    assert difference(case.logits(model), case.logits(model, case.visible[:, cached:])) <= EXACT


@pytest.mark.parametrize("package", ["reference", "gpu"])
@pytest.mark.parametrize("kind", [kind for kind in KINDS if KINDS[kind].sliding_window is None])
@given(case=cases_of_masks)
def test_a_cached_slot_that_no_row_sees_might_as_well_be_absent(package: str, kind: str, case: Case) -> None:
    """Without windows, which tell slots by their places."""
    model, cached = passes(package, kind), len(case.prefix)
    seen = np.flatnonzero(case.visible[:, :cached].any(axis=0))
    columns = np.concatenate([seen, np.arange(cached, case.visible.shape[1])])
    assert difference(case.logits(model), case.logits(model, case.visible[:, columns], kept=seen)) <= EXACT


@pytest.mark.parametrize("package", ["reference", "gpu"])
@on_kinds
@given(case=cases_of_masks)
def test_a_row_depends_on_the_cached_slots_that_it_sees_and_on_no_other(package: str, kind: str, case: Case) -> None:
    """It sees them itself, or in the layers before through rows that it sees."""
    model, cached, config = passes(package, kind), len(case.prefix), KINDS[kind]
    standing = np.concatenate([np.arange(cached), case.positions])
    near = case.positions[:, None] - standing < (config.sliding_window or 100)
    every = config.sliding_window is None or config.sliding_layers is not None  # some layer has no window
    sight = case.visible if every else case.visible & near
    inside = sight[:, cached:].astype(int)
    reached = np.linalg.matrix_power(inside, config.num_hidden_layers) @ sight[:, :cached] > 0
    before = case.logits(model)
    for slot in range(cached):
        after = case.logits(model, noisy=slot)
        assert same_bits(after[~reached[:, slot]], before[~reached[:, slot]])
        direct = (case.visible & near)[:, slot]
        assert (np.abs(after - before).max(axis=1) > EXACT)[direct].all()


def test_the_two_kinds_of_mask_are_told_apart_by_their_width() -> None:
    """With nothing cached they are one."""
    for package in ("reference", "gpu"):
        model = Passes(package, KINDS["qwen3, norms and some windows"])
        mask = np.tri(5, dtype=bool)
        plain = model.run(np.arange(5))
        assert difference(model.run(np.arange(5), None, None, mask), plain) <= EXACT
