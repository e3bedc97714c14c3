"""Look-ahead rows after many anchors at once: each is what PaSS's own draft call computes there, and no more."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import cache
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from folders import LINEAR, LLAMA3, tiny_config
from lookaheads import in_float64, on_parts, with_parts
from pass_sampling.gpu import FusedPaSS, SamplingConfig, Transformer, generate
from pass_sampling.gpu.lookahead.adapter import Adapter
from pass_sampling.gpu.lookahead.head import SamplerHead
from pass_sampling.gpu.sampling import probs_from_logits
from pass_sampling.gpu.training import acceptance as anchors_module
from pass_sampling.gpu.training.acceptance import AnchoredRows, anchored_rows
from pass_sampling.gpu.training.train import Parts
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
                upto = text[: anchor + i + 2]  # the target row after the text that draft i + 1 stands for
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


def check_drafts(model: Transformer, lookahead: Any, prompt: list[int], seed: int) -> int:
    """Compare the distributions of every draft of a running text with those that training sees at that place.

    A step drafts after a text of which the last token was fed nowhere yet: the anchor is the one before. The
    distributions that drafts were drawn from are traced, as edges of cells, and so are the target's probabilities of
    the drafts."""
    sampling, count = SamplingConfig(0.7), 0
    method = FusedPaSS(model, lookahead, sampling)
    text = list(prompt)
    for record in generate(method, prompt, 12, (), seed=seed, trace=True).records:
        drafts = list(record.draft_tokens)
        if drafts:
            tokens = torch.tensor([text + drafts + [0] * (lookahead.num_lookahead + 1)])
            anchors = torch.tensor([len(text) - 2])
            rows = anchors_module.anchored_rows(
                model, lookahead.vectors, tokens, anchors, lookahead.adapter, lookahead.head
            )
            draft_probs, target_probs = (probs_from_logits(logits[0, 0], sampling) for logits in rows[:2])
            traced = [np.diff(choice.edges, prepend=0.0) for choice in record.choices if choice.column < len(drafts)]
            assert difference(draft_probs[: len(drafts)].numpy(), np.stack(traced)) <= EXACT, "a draft distribution"
            likely = target_probs[torch.arange(len(drafts)), drafts].numpy()
            reached = slice(record.num_accepted + 1)
            assert difference(likely[reached], np.array(record.target_token_probs)[reached]) <= EXACT, (
                "a target distribution"
            )
            count += len(drafts)
        text += record.tokens
    return count


@on_parts
@given(
    kind=st.sampled_from(sorted(KINDS)),
    seed=st.integers(0, 2**32),
    prompt=st.lists(st.integers(0, VOCAB - 1), min_size=1, max_size=4),
)
@torch.no_grad()
def test_training_sees_the_distributions_that_the_running_step_drafts_from(
    parts: str, kind: str, seed: int, prompt: list[int]
) -> None:
    model = passes("gpu", kind).model
    assert check_drafts(model, with_parts("gpu", model, parts, 3, seed), prompt, seed) > 6


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


def leaves_of(parts: Any) -> dict[str, torch.Tensor]:
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
        SamplerHead.of(head, parts.head.uses_lookahead) if parts.head else None,
    )


@on_parts
@settings(max_examples=20)
@given(kind=st.sampled_from(sorted(KINDS)), case=cases(), seed=st.integers(0, 2**32))
def test_gradients_of_every_part_agree_with_finite_differences(parts: str, kind: str, case: Any, seed: int) -> None:
    """As above, along one direction in all parameters together; the sums are of the order of 1000 here."""
    model, (vectors, tokens, anchors) = passes("gpu", kind).model, case
    lookahead, step = with_parts("gpu", model, parts, len(vectors), seed), 2.0**-15
    adapter, head = (in_float64("gpu", part) for part in (lookahead.adapter, lookahead.head))
    whole = Parts(lookahead.vectors.double(), adapter, head).copy()
    generator = torch.Generator().manual_seed(seed)
    shape = (len(tokens), len(anchors), len(vectors), VOCAB)
    weights = torch.randn(shape, dtype=torch.float64, generator=generator)
    directions = {
        name: torch.randn(tensor.shape, dtype=torch.float64, generator=generator) / tensor.numel() ** 0.5
        for name, tensor in leaves_of(whole).items()
    }

    def total(parts: Parts) -> torch.Tensor:  # []
        rows = anchored_rows(model, parts.vectors, tokens, anchors, parts.adapter, parts.head)
        return (weights * rows.draft_logits).sum()

    total(whole).backward()
    found = {name: tensor.grad for name, tensor in leaves_of(whole).items()}
    assert {name for name, gradient in found.items() if gradient is not None} == whole.parameters().keys()
    assert all(float(found[name].abs().max()) > 0 for name in whole.parameters())

    def slope(step: float) -> float:
        with torch.no_grad():
            return float(total(moved(whole, directions, step)) - total(moved(whole, directions, -step))) / (2 * step)

    coarse, fine = slope(step), slope(step / 2)
    exact = sum(float((found[name] * directions[name]).sum()) for name in whole.parameters())
    assert abs(exact - fine) <= abs(coarse - fine) + 1e-7
    assert abs(coarse - fine) <= 1e-4


@on_kinds
@on_parts
def test_only_the_parts_get_gradients(kind: str, parts: str) -> None:
    model = passes("gpu", kind).model
    lookahead = with_parts("gpu", model, parts, 2)
    whole = Parts(lookahead.vectors, lookahead.adapter, lookahead.head).copy()
    rows = anchored_rows(model, whole.vectors, torch.arange(8)[None], torch.tensor([0, 4]), whole.adapter, whole.head)
    assert rows.draft_logits.requires_grad and not rows.target_logits.requires_grad
    names = {id(tensor): name for name, tensor in leaves_of(whole).items()}
    pending, seen, found = [rows.draft_logits.grad_fn], set(), set()
    while pending:  # everything that a backward pass would reach
        node = pending.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        pending += [before for before, _ in node.next_functions]
        if hasattr(node, "variable"):
            found.add(names.get(id(node.variable), "a tensor of the model"))
    assert found == whole.parameters().keys()


# --- Mistakes that the comparison must notice ---


def leaky(visible: Callable[..., Any]) -> Callable[..., Any]:
    """Every group sees the groups before it."""

    def mutant(anchors: Any, depth: Any, length: int) -> Any:
        mask = visible(anchors, depth, length)
        mask[:, length:] = torch.ones(len(mask), len(mask), dtype=torch.bool).tril()
        return mask

    return mutant


def one_token_more(visible: Callable[..., Any]) -> Callable[..., Any]:
    """Draft rows see the exact token after the anchor, which a draft call does not know."""
    return lambda anchors, depth, length: torch.cat(
        [visible(anchors + 1, depth, length)[:, :length], visible(anchors, depth, length)[:, length:]], dim=1
    )


def all_of_the_group(visible: Callable[..., Any]) -> Callable[..., Any]:
    """Draft rows see the vectors after them, too."""
    return lambda anchors, depth, length: visible(anchors, torch.ones_like(depth), length)


def shifted_positions(hidden: Callable[..., Any]) -> Callable[..., Any]:
    def mutant(self: Any, inputs: Any, cache: Any, positions: Any = None, visible: Any = None, *rest: Any) -> Any:
        return hidden(self, inputs, cache, None if visible is None else positions + 1, visible, *rest)

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


def own_token(refined: Callable[..., Any]) -> Callable[..., Any]:
    """The head is given the token that a draft stands for, which drafting does not know."""
    return lambda model, head, hidden, real, tokens: refined(model, head, hidden, real, tokens.roll(-1, dims=2))


def no_memory(refined: Callable[..., Any]) -> Callable[..., Any]:
    """The head begins anew at every draft."""

    def mutant(model: Any, head: Any, hidden: Any, real: Any, tokens: Any) -> Any:
        rows = range(hidden.shape[2])
        each = [refined(model, head, hidden[:, :, i : i + 1], real, tokens[:, :, i : i + 1]) for i in rows]
        return torch.cat(each, dim=2)

    return mutant


def next_row(refined: Callable[..., Any]) -> Callable[..., Any]:
    """The head begins with the first look-ahead row in the place of the last text row."""
    return lambda model, head, hidden, real, tokens: refined(model, head, hidden, hidden[:, :, 0] + 1, tokens)


def without_adapter(hidden: Callable[..., Any]) -> Callable[..., Any]:
    def mutant(
        self: Any, inputs: Any, cache: Any, positions: Any = None, visible: Any = None, *rest: Any, **by: Any
    ) -> Any:
        rest = () if isinstance(cache, anchors_module.FrozenCache) else rest
        return hidden(self, inputs, cache, positions, visible, *rest, **by)

    return mutant


@torch.no_grad()
@pytest.mark.parametrize(
    "home, name, mutate, parts",
    [
        (anchors_module, "_refined", own_token, "head"),
        (anchors_module, "_refined", own_token, "head alone"),
        (anchors_module, "_refined", no_memory, "adapter and head"),
        (anchors_module, "_refined", next_row, "head"),
        (Transformer, "hidden", without_adapter, "adapter"),
        (anchors_module, "_visible", one_token_more, "adapter and head"),
    ],
)
def test_the_comparison_with_the_running_step_rejects_a_mistake(
    home: Any, name: str, mutate: Any, parts: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = passes("gpu", "qwen3, norms and some windows").model
    lookahead = with_parts("gpu", model, parts)
    check_drafts(model, lookahead, [3, 1, 4], 1)
    monkeypatch.setattr(home, name, mutate(getattr(home, name)))
    with pytest.raises(AssertionError, match="a draft distribution"):
        check_drafts(model, lookahead, [3, 1, 4], 1)


# --- Masks over all slots, which the anchors need, in both packages ---


class Case:
    """A pass of rows after cached ones, with a mask over all slots; every row sees itself."""

    def __init__(self, seed: int, cached: int, rows: int, seen: float):
        generator = np.random.default_rng(seed)
        self.prefix, self.inputs = generator.integers(VOCAB, size=cached), generator.standard_normal((rows, 24))
        self.positions = generator.integers(cached, cached + rows, size=rows)
        self.visible = generator.random((rows, cached + rows)) < seen
        self.visible[:, cached:] |= np.eye(rows, dtype=bool)
        self.noise = generator.standard_normal(10**4)

    def logits(self, model: Passes, visible: Any = None, kept: Any = None, noisy: int | None = None) -> np.ndarray:
        """Run the pass; `kept` drops all other cached positions first, `noisy` is a slot that then holds noise."""
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
    kv_length = case.visible if every else case.visible & near
    inside = kv_length[:, cached:].astype(int)
    reached = np.linalg.matrix_power(inside, config.num_hidden_layers) @ kv_length[:, :cached] > 0
    before = case.logits(model)
    for column in range(cached):
        after = case.logits(model, noisy=column)
        assert same_bits(after[~reached[:, column]], before[~reached[:, column]])
        direct = (case.visible & near)[:, column]
        assert (np.abs(after - before).max(axis=1) > EXACT)[direct].all()


def test_the_two_kinds_of_mask_are_told_apart_by_their_width() -> None:
    """With nothing cached they are one."""
    for package in ("reference", "gpu"):
        model = Passes(package, KINDS["qwen3, norms and some windows"])
        mask = np.tri(5, dtype=bool)
        plain = model.run(np.arange(5))
        assert difference(model.run(np.arange(5), None, None, mask), plain) <= EXACT
