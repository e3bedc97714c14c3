"""Speculative sampling with a tree of drafts: its distribution, its shape, its caches, and what it writes down."""

from __future__ import annotations

import math
from dataclasses import fields, replace
from importlib import import_module
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import pass_sampling.reference as reference
from models import PACKAGES, WINDOWED, exact_target, package, table, transformer
from pass_sampling.reference.exactness.distribution import OutputDistribution, output_distribution
from pass_sampling.reference.methods.tree_rules import RULES
from pass_sampling.reference.theory import candidate_acceptance, expected_tokens

EXACT = 1e-12  # sums of some thousand products of numbers in [0, 1], each wrong by a few times 2^-53
PROMPT = (1, 0)
EACH_RULE = sorted(RULES)
each_rule = pytest.mark.parametrize("rule", EACH_RULE)
each_main_rule = pytest.mark.parametrize("rule", ["without-replacement", "k-seq", "match"])


@pytest.fixture(params=PACKAGES)
def pkg(request: pytest.FixtureRequest) -> Any:
    return package(request.param)


def is_port(pkg: Any) -> bool:
    return bool(pkg.__name__.endswith("gpu"))


def home(pkg: Any, name: str) -> Any:
    return import_module(f"{pkg.__name__}.{name}")


class Hashed:
    """A drafter without a cache: a fresh pass of a table over the text, so its logits depend on the tokens alone."""

    name, passes_per_draft, max_position_embeddings = "hashed", 0, None

    def __init__(self, pkg: Any, seed: int = 50, **options: Any):
        self.model = table(pkg, **{"num_lookahead": 0, "seed": seed, **options})
        self.vocab_size = self.model.vocab_size

    def new_cache(self, capacity: int, batch_size: int = 1) -> None:
        return None

    def logits(self, tokens: Any, cache: Any, lengths: Any = None, max_pending: int = 0) -> Any:
        if lengths is None:
            return self._row(list(tokens))
        texts = [row[:length] for row, length in zip(tokens.tolist(), lengths.tolist(), strict=True)]
        return import_module("torch").stack([self._row([text])[0] for text in texts])

    def _row(self, tokens: Any) -> Any:
        hidden = self.model.hidden(self.model.embed(tokens), self.model.new_cache(64))
        return hidden[-1] if hidden.ndim == 2 else hidden[:, -1]


def target_of(pkg: Any, kind: str = "table", **options: Any) -> Any:
    if kind == "table":
        return table(pkg, **{"seed": 12, "num_lookahead": 0, "zeros": 0.1, "spread": 1.0, **options})
    return transformer(pkg, seed=4, **(WINDOWED if kind == "windowed" else {}), **options)


def drafter_of(pkg: Any, kind: str = "table") -> Any:
    if kind == "table":
        return Hashed(pkg, zeros=0.1, spread=1.0)
    return pkg.ModelDrafter(transformer(pkg, 50, num_hidden_layers=1))


def method_of(pkg: Any, kind: str = "table", **options: Any) -> Any:
    """Return the method; settings may be given as dictionaries."""
    for name in ("sampling", "draft_sampling"):
        if isinstance(options.get(name), dict):
            options[name] = pkg.SamplingConfig(**options[name])
    made = {"model": target_of(pkg, kind), "drafter": drafter_of(pkg, kind), **options}
    return pkg.Candidates(**made)


def distribution_of(pkg: Any, method: Any, ending: dict[str, Any], **options: Any) -> OutputDistribution:
    return output_distribution(method, PROMPT, pkg.Ending(**ending), **options)


def definition(kind: str, sampling: dict[str, Any], ending: dict[str, Any], **options: Any) -> OutputDistribution:
    model = target_of(reference, kind)
    return exact_target(model, reference.SamplingConfig(**sampling), PROMPT, reference.Ending(**ending), **options)


def assert_exact(distribution: OutputDistribution, target: OutputDistribution, verified_steps: int = 2) -> None:
    assert distribution.largest_deviation(target) <= EXACT
    assert abs(sum(distribution.values()) - 1.0) <= EXACT
    assert set(distribution) <= set(target), "a sequence came out that the target cannot produce"
    assert sum(count > 0 for count in distribution.verified) >= verified_steps, distribution.verified


# --- The distribution ---


@each_rule
@pytest.mark.parametrize("shape", [(1,), (2,), (3,), (1, 2)], ids=str)
def test_the_distribution_is_the_targets_on_tables(pkg: Any, rule: str, shape: tuple[int, ...]) -> None:
    """V = 3, a different row at every prefix, long enough that a second drafted step is verified."""
    ending = {"max_new_tokens": 5 if len(shape) == 1 else 4, "eos_token_ids": (2,)}
    distribution = distribution_of(pkg, method_of(pkg, rule=rule, num_candidates=shape), ending)
    assert_exact(distribution, definition("table", {}, ending))


@each_rule
@pytest.mark.parametrize("shape", [(2, 2), (2, 1, 2)], ids=str)
def test_the_distribution_is_the_targets_for_larger_trees(pkg: Any, rule: str, shape: tuple[int, ...]) -> None:
    """The drafts choose between two tokens, which keeps the enumeration small; the target among three."""
    ending, drafts = {"max_new_tokens": 4, "eos_token_ids": (2,)}, {"temperature": 0.7, "top_k": 2}
    distribution = distribution_of(pkg, method_of(pkg, rule=rule, num_candidates=shape, draft_sampling=drafts), ending)
    assert_exact(distribution, definition("table", {}, ending))


@pytest.mark.slow
@each_main_rule
@pytest.mark.parametrize("shape", [(2, 2), (2, 1, 2)], ids=str)
def test_the_distribution_is_the_targets_for_larger_trees_and_all_tokens(rule: str, shape: tuple[int, ...]) -> None:
    """Some ten thousand executions, each run again at both ends of its cells."""
    gpu, ending = package("gpu"), {"max_new_tokens": 5, "eos_token_ids": (2,)}
    distribution = distribution_of(gpu, method_of(gpu, rule=rule, num_candidates=shape), ending, probe=True)
    assert_exact(distribution, definition("table", {}, ending))


@each_main_rule
@pytest.mark.parametrize("kind", ["transformer", "windowed"])
def test_the_distribution_is_the_targets_on_a_transformer(pkg: Any, rule: str, kind: str) -> None:
    """With both caches, rotary positions, the tree's mask and a sliding window shorter than the text."""
    ending = {"max_new_tokens": 4, "eos_token_ids": (0,)}
    method = method_of(pkg, kind, rule=rule, num_candidates=(2, 1), draft_sampling={"top_k": 2})
    assert_exact(distribution_of(pkg, method, ending), definition(kind, {}, ending))


SETTINGS: dict[str, tuple[dict[str, Any], dict[str, Any] | None]] = {
    "greedy": ({"temperature": 0.0}, None),
    "greedy target": ({"temperature": 0.0}, {}),
    "greedy drafts": ({}, {"temperature": 0.0}),
    "top-k": ({"top_k": 2}, None),
    "wide drafts": ({"top_k": 2}, {"temperature": 2.0}),
    "top-p drafts": ({"temperature": 0.7}, {"top_p": 0.6}),
    "all": ({"temperature": 0.8, "top_k": 2, "top_p": 0.9}, None),
}


@each_main_rule
@pytest.mark.parametrize("name", SETTINGS)
def test_the_distribution_is_the_targets_whatever_the_settings(pkg: Any, rule: str, name: str) -> None:
    sampling, own = SETTINGS[name]
    ends = {"max_new_tokens": 9, "eos_token_ids": ()} if name == "greedy" else {"max_new_tokens": 4}
    method = method_of(pkg, rule=rule, num_candidates=(2,), sampling=sampling, draft_sampling=own)
    assert_exact(distribution_of(pkg, method, ends), definition("table", sampling, ends))


def repetition_penalty(prefix: tuple[int, ...], logits: Any) -> Any:
    """Lower what has been said before, the more the more often."""
    processed = logits.copy() if isinstance(logits, np.ndarray) else logits.clone()
    for token in range(len(logits)):
        processed[token] = processed[token] - 0.4 * prefix.count(token)
    return processed


def end_or_ban(prefix: tuple[int, ...], logits: Any) -> Any:
    """Know nothing to say after the end of a text, as grammars do."""
    processed = repetition_penalty(prefix, logits)
    if 2 in prefix[len(PROMPT) :]:
        processed[:] = -np.inf
    return processed


@each_main_rule
@pytest.mark.parametrize("processor", [repetition_penalty, end_or_ban])
def test_a_processor_runs_on_every_path_of_the_tree_and_after_no_end(pkg: Any, rule: str, processor: Any) -> None:
    ending, drafts = {"max_new_tokens": 4, "eos_token_ids": (2,)}, {"top_k": 2}
    method = method_of(pkg, rule=rule, num_candidates=(2, 1), processor=processor, draft_sampling=drafts)
    assert_exact(distribution_of(pkg, method, ending), definition("table", {}, ending, processor=processor))


@each_main_rule
def test_stop_strings_end_the_text_inside_the_tree(pkg: Any, rule: str) -> None:
    ending = {
        "max_new_tokens": 4,
        "stop_strings": ("ba", "cc"),
        "decode": lambda tokens: "".join("abc"[token] for token in tokens),
    }
    method = method_of(pkg, rule=rule, num_candidates=(2, 1), draft_sampling={"top_k": 2})
    distribution = distribution_of(pkg, method, ending)
    assert_exact(distribution, definition("table", {}, ending))
    assert any(len(tokens) < 4 for tokens in distribution)


class Silent(Hashed):
    """Has nothing to say after a text that ends in 1, and only one token after one that ends in 2."""

    def _row(self, tokens: Any) -> Any:
        row, last = super()._row(tokens), int(np.ravel(tokens)[-1])
        for token in ((), (0, 1, 2), (0, 2))[last]:
            row[..., token] = -math.inf
        return row


@each_main_rule
def test_a_drafter_may_be_silent_or_have_but_one_token(pkg: Any, rule: str) -> None:
    method = method_of(pkg, rule=rule, num_candidates=(2, 2), drafter=Silent(pkg, spread=1.0))
    distribution = distribution_of(pkg, method, {"max_new_tokens": 4})
    assert_exact(distribution, definition("table", {}, {"max_new_tokens": 4}))


@each_main_rule
def test_a_row_without_a_distribution_matters_only_where_the_text_comes(pkg: Any, rule: str) -> None:
    """Drafts that the target bans are no error, although after them there is no distribution."""

    def dead_end(prefix: tuple[int, ...], logits: Any) -> Any:
        processed = logits.copy() if isinstance(logits, np.ndarray) else logits.clone()
        if 1 in prefix[len(PROMPT) :]:
            processed[:] = np.nan
        else:
            processed[1] = -np.inf
        return processed

    class Careless(pkg.Candidates):  # type: ignore[misc]
        def _draft(self, *arguments: Any) -> Any:
            return replace(self, processor=None)._own(*arguments)

        def _own(self, *arguments: Any) -> Any:
            return super()._draft(*arguments)

    method = Careless(target_of(pkg), drafter_of(pkg), rule=rule, num_candidates=(2, 1), processor=dead_end)
    distribution = distribution_of(pkg, method, {"max_new_tokens": 4})
    assert_exact(distribution, definition("table", {}, {"max_new_tokens": 4}, processor=dead_end))
    assert not any(1 in tokens for tokens in distribution)


@each_main_rule
def test_the_enumeration_assumes_nothing_about_states(pkg: Any, rule: str) -> None:
    """Every path continued on its own, from the very caches that it left; and both ends of every cell."""
    method = method_of(pkg, "transformer", rule=rule, num_candidates=(2,), draft_sampling={"top_k": 2})
    merged, unmerged = (
        distribution_of(pkg, method, {"max_new_tokens": 4}, merge=merge, probe=merge) for merge in (True, False)
    )
    assert merged.largest_deviation(unmerged) <= EXACT and unmerged.executions > merged.executions
    assert merged.expected == pytest.approx(dict(unmerged.expected), abs=EXACT)


def _siblings_see_each_other(pkg: Any, patch: pytest.MonkeyPatch) -> None:
    tree = home(pkg, "methods.tree_shape").DraftTree
    right = tree.visible.func
    patch.setattr(tree, "visible", property(lambda self: right(self) | _tri(pkg, len(self.children))))


def _tri(pkg: Any, size: int) -> Any:
    return import_module("torch").ones(size, size).tril().bool() if is_port(pkg) else np.tri(size, dtype=bool)


def _the_first_rows_are_kept(pkg: Any, patch: pytest.MonkeyPatch) -> None:
    cache = pkg.TableModel(3).new_cache().__class__

    def wrong(self: Any, rows: Any, length: Any, *count: Any) -> None:
        self.truncate(length + (count[0] if count else rows.size))

    patch.setattr(cache, "keep", wrong)


def _each_depth_stands_one_further(pkg: Any, patch: pytest.MonkeyPatch) -> None:
    right = pkg.TableModel.hidden

    def wrong(self: Any, inputs: Any, cache: Any, positions: Any = None, visible: Any = None) -> Any:
        rows = len(positions) if positions is not None and not is_port(pkg) else 0
        moved = positions
        if rows > 1:
            moved = np.arange(positions[0], positions[0] + rows)
        elif positions is not None and is_port(pkg):
            moved = positions[:, :1] + import_module("torch").arange(positions.shape[1])
        return right(self, inputs, cache, moved, visible)

    patch.setattr(pkg.TableModel, "hidden", wrong)


def _distributions_of_the_first_place(pkg: Any, patch: pytest.MonkeyPatch) -> None:
    """After every draft, verify with the distribution after its sibling."""
    if is_port(pkg):
        right = home(pkg, "methods.tree_shape").row
        patch.setattr(home(pkg, "methods.tree_shape"), "row", lambda rows, place: right(rows, place.clamp(max=1)))
    else:
        used, walk = home(pkg, "methods.tree"), home(pkg, "methods.tree_shape").walk_tree
        patch.setattr(
            used,
            "walk_tree",
            lambda method, state, drafts, logits, *more: walk(
                method, state, drafts, {place: logits[min(place, 1)] for place in logits}, *more
            ),
        )


@pytest.mark.parametrize(
    "mistake",
    [
        _siblings_see_each_other,
        _the_first_rows_are_kept,
        _each_depth_stands_one_further,
        _distributions_of_the_first_place,
    ],
)
def test_a_mistake_in_the_tree_is_seen(pkg: Any, mistake: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    ending, drafts = {"max_new_tokens": 4, "eos_token_ids": (2,)}, {"top_k": 2}
    method = method_of(pkg, num_candidates=(2, 1), draft_sampling=drafts)
    target = definition("table", {}, ending)
    assert distribution_of(pkg, method, ending).largest_deviation(target) <= EXACT
    mistake(pkg, monkeypatch)
    method = method_of(pkg, num_candidates=(2, 1), draft_sampling=drafts)
    assert distribution_of(pkg, method, ending, merge=False).largest_deviation(target) > 1e-3


# --- How often candidates are accepted ---


def distributions_behind(model: Any, drafter: Any, prefix: tuple[int, ...]) -> tuple[Any, Any]:
    plain = reference.Autoregressive(model)
    row = model.hidden(model.embed(prefix), model.new_cache())[-1]
    return plain.probs(prefix, row), plain.probs(prefix, drafter.logits(prefix, None))


@each_rule
@pytest.mark.parametrize("count", [1, 2, 3])
def test_candidates_are_accepted_as_often_as_theory_says(pkg: Any, rule: str, count: int) -> None:
    """One position of candidates, then one more token: 1 + the chance that one is accepted, from one pass."""
    rate = candidate_acceptance(*distributions_behind(target_of(reference), drafter_of(reference), PROMPT), count, rule)
    found = distribution_of(pkg, method_of(pkg, rule=rule, num_candidates=(count,)), {"max_new_tokens": 2}).expected
    assert found["num_accepted_tokens"] == pytest.approx(rate, abs=EXACT)
    assert found["num_forward_passes"] == pytest.approx(2 - rate, abs=EXACT)


class Flat(Hashed):
    """The same logits after every text."""

    def _row(self, tokens: Any) -> Any:
        return super()._row([0] if np.ndim(tokens) == 1 else [[0]])


class FlatTable(reference.TableModel):
    """The same row after every prefix."""

    def hidden(self, inputs: Any, *rest: Any) -> Any:
        rows = super().hidden(inputs, *rest)
        return np.broadcast_to(self.row(np.zeros(1, dtype=np.uint64)), rows.shape)


@each_rule
def test_depths_multiply_where_all_positions_are_alike(rule: str) -> None:
    model, drafter = FlatTable(3, seed=1), Flat(reference, seed=2)
    method = method_of(reference, model=model, drafter=drafter, rule=rule, num_candidates=(2, 1))
    target, draft = distributions_behind(model, drafter, PROMPT)
    rates = np.array([candidate_acceptance(target, draft, count, rule) for count in (2, 1)])
    found = output_distribution(method, PROMPT, reference.Ending(3), num_tokens=1).expected
    assert found["num_accepted_tokens"] == pytest.approx(expected_tokens(rates, 2) - 1, abs=EXACT)


# --- Generations ---


def same_course(one: Any, other: Any) -> None:
    """Compare two generations record by record: integers exactly, probabilities to rounding."""
    assert one.tokens == other.tokens and len(one.records) == len(other.records)
    for left, right in zip(one.records, other.records, strict=True):
        for field in fields(left):
            mine, yours = getattr(left, field.name), getattr(right, field.name)
            if field.name.endswith("probs"):
                np.testing.assert_allclose(mine, yours, rtol=1e-9, atol=1e-12, err_msg=field.name)
            elif field.name == "choices":
                made = [[(each.column, each.outcome) for each in some or ()] for some in (mine, yours)]
                assert made[0] == made[1]
            else:
                assert mine == yours, field.name


@pytest.mark.torch
@settings(max_examples=40)
@given(
    seed=st.integers(0, 2**32),
    rule=st.sampled_from(EACH_RULE),
    shape=st.lists(st.integers(1, 3), min_size=1, max_size=3).map(tuple),
    kind=st.sampled_from(["table", "transformer", "windowed"]),
    sampling=st.sampled_from([{}, {"temperature": 0.0}, {"temperature": 0.7, "top_k": 2}]),
    own=st.sampled_from([None, {}, {"temperature": 0.0}, {"top_p": 0.8}]),
    processor=st.sampled_from([None, repetition_penalty]),
    prompts=st.lists(st.lists(st.integers(0, 2), min_size=1, max_size=6), min_size=1, max_size=4),
    max_new_tokens=st.integers(1, 16),
    eos=st.sampled_from([(), (1,), (2, 0)]),
)
def test_a_batch_of_the_port_is_the_reference_row_by_row(
    seed: int,
    rule: str,
    shape: tuple[int, ...],
    kind: str,
    sampling: dict[str, Any],
    own: dict[str, Any] | None,
    processor: Any,
    prompts: list[list[int]],
    max_new_tokens: int,
    eos: tuple[int, ...],
) -> None:
    """The same uniforms, the same tokens and records: rows of different lengths, rows that end, rows that leave."""
    results = []
    for name in PACKAGES:
        pkg = package(name)
        options = {"rule": rule, "num_candidates": shape, "sampling": sampling, "draft_sampling": own}
        method = method_of(pkg, kind, processor=processor, **options)
        results.append(pkg.generate_batch(method, prompts, max_new_tokens, eos, seed=seed, trace=True))
    for one, other in zip(*results, strict=True):
        same_course(one, other)


@each_rule
def test_a_row_of_a_batch_is_the_row_alone(pkg: Any, rule: str) -> None:
    method = method_of(pkg, "transformer", rule=rule, num_candidates=(2, 2, 1))
    prompts = [[1], [2, 0, 1, 2, 2], [0, 0]]
    for request, (prompt, result) in enumerate(
        zip(prompts, pkg.generate_batch(method, prompts, 24, (), seed=5), strict=True)
    ):
        same_course(pkg.generate(method, prompt, 24, (), seed=5, request=request), result)


@pytest.mark.parametrize("shape", [(1,), (1, 1, 1)], ids=str)
def test_a_chain_is_speculative_sampling(pkg: Any, shape: tuple[int, ...]) -> None:
    """With one candidate everywhere, the same uniforms give the same tokens as a draft model's chain."""
    for kind in ("table", "transformer"):
        chain = pkg.SpeculativeSampling(target_of(pkg, kind), drafter_of(pkg, kind), num_draft=len(shape))
        for rule in ("without-replacement", "with-replacement", "k-seq"):
            tree = method_of(pkg, kind, rule=rule, num_candidates=shape)
            assert tree.named_uniforms == chain.named_uniforms
            one, other = (pkg.generate(each, PROMPT, 30, (2,), seed=3) for each in (tree, chain))
            assert one.tokens == other.tokens and one.sources == other.sources
            for name in ("draft_tokens", "num_accepted", "num_forward_passes", "num_positions", "num_draft_passes"):
                assert [getattr(record, name) for record in one.records] == [
                    getattr(record, name) for record in other.records
                ]


@each_rule
def test_greedy_text_is_that_of_plain_decoding(pkg: Any, rule: str) -> None:
    greedy = pkg.SamplingConfig(temperature=0.0)
    model = transformer(pkg, seed=3, vocab_size=30)
    drafter = pkg.ModelDrafter(transformer(pkg, seed=3, vocab_size=30, num_hidden_layers=1))
    plain = pkg.generate(pkg.Autoregressive(model, greedy), [4, 9], 40)
    method = method_of(pkg, model=model, drafter=drafter, sampling=greedy, rule=rule, num_candidates=(3, 2))
    assert pkg.generate(method, [4, 9], 40).tokens == plain.tokens


def test_every_record_tells_a_tree_and_the_path_through_it(pkg: Any) -> None:
    method = method_of(pkg, "transformer", num_candidates=(3, 2, 1))
    result = pkg.generate(method, [1, 2, 0], 60, (), seed=1)
    plain = reference.Autoregressive(target_of(reference, "transformer"))
    text = [1, 2, 0]
    first = result.records[0]
    assert first.num_positions == 3 + 3 + 3 * 2 + 3 * 2 and first.num_forward_passes == 1
    assert first.draft_parents == (-1, -1, -1, 0, 0, 1, 1, 2, 2, 3, 4, 5, 6, 7, 8)
    assert first.num_draft_passes == 1 + 3 + 6
    for record in result.records:
        paths: list[tuple[int, ...]] = []
        for token, parent in zip(record.draft_tokens, record.draft_parents, strict=True):
            paths.append((*(paths[parent] if parent >= 0 else ()), token))
        accepted = record.tokens[: record.num_accepted]
        assert record.num_accepted == 0 or accepted in paths
        assert record.sources[: len(accepted)] == ("accepted",) * len(accepted)
        assert not accepted or (*accepted, record.final_token) not in paths or record.sources[-1] == "correction"
        come = {accepted[:depth] for depth in range(len(accepted) + 1)}  # where verification came
        for path, chance, draft, target in zip(
            paths, record.accept_probs, record.draft_token_probs, record.target_token_probs, strict=True
        ):
            assert math.isnan(chance) == math.isnan(target) == (path[:-1] not in come)
            assert 0 < draft <= 1
            if path[:-1] in come:
                behind = (*text, *path[:-1])
                row = plain.probs(behind, plain.model.forward(behind)[-1])
                assert target == pytest.approx(float(row[path[-1]]), abs=1e-10)
        text += record.tokens
        assert record.draft_depth <= 3
    assert result.num_accepted_tokens == sum(result.accepted_per_position) and len(result.accepted_per_position) == 3
    assert result.num_forward_passes < 60
    assert result.tokens == tuple(text[3:])


def test_drafts_stop_where_the_text_must_end(pkg: Any) -> None:
    """Neither the target nor the drafter is asked about a position that it does not have."""
    model = transformer(pkg, seed=1, max_position_embeddings=12)
    drafter = pkg.ModelDrafter(transformer(pkg, seed=2, max_position_embeddings=12))
    for max_new_tokens in range(1, 10):
        method = method_of(pkg, model=model, drafter=drafter, num_candidates=(2, 1, 1, 1))
        result = pkg.generate(method, [1, 2, 1], max_new_tokens, ())
        assert len(result.tokens) == max_new_tokens >= result.num_forward_passes
        for record, done in zip(result.records, np.cumsum([0] + [len(r.tokens) for r in result.records]), strict=False):
            assert record.draft_depth <= max_new_tokens - done - 1


# --- The caches ---


def step(pkg: Any, method: Any, state: Any, uniforms: Any) -> tuple[Any, Any]:
    if not is_port(pkg):
        return method.step(state, uniforms)
    state, record = method.step(state, import_module("torch").tensor(uniforms[None]))
    return state, record.rows()[0]


def held(pkg: Any, cache: Any) -> int:
    return int(cache.lengths[0]) if is_port(pkg) else cache.length


@each_rule
def test_what_was_rejected_leaves_no_trace(pkg: Any, rule: str) -> None:
    """After every step both caches hold the committed text's own rows; what lies after them is never read."""
    method = method_of(pkg, "windowed", rule=rule, num_candidates=(3, 2))
    clean, dirty = (method.start(PROMPT, pkg.Ending(30)) for _ in range(2))
    rejected = 0
    for number in range(6):
        uniforms = np.random.default_rng((7, number)).random(method.num_uniforms)
        clean, record = step(pkg, method, clean, uniforms)
        dirty, other = step(pkg, method, dirty, uniforms)
        assert other.tokens == record.tokens and dirty.agrees(clean)
        rejected += record.num_accepted < 2
        text = [*PROMPT, *clean.new_tokens]
        for cache, model in ((clean.cache, method.model), (clean.draft_cache, method.drafter.model)):
            fresh, length = model.new_cache(len(text)), held(pkg, cache)
            assert length < len(text)
            model.hidden(model.embed([text[:length]] if is_port(pkg) else text[:length]), fresh)
            assert cache.agrees(fresh)
        assert held(pkg, clean.cache) == len(text) - 1
        for cache in dirty.caches:
            for array in (cache.keys, cache.values):
                array[..., held(pkg, cache) :, :] = 1e150 if is_port(pkg) else np.nan
    assert rejected


# --- Shapes, and what is refused ---


def test_the_shape_of_a_tree(pkg: Any) -> None:
    tree = home(pkg, "methods.tree_shape").DraftTree((2, 1, 2))
    assert tree.num_drafts == 8
    assert tree.parents == (-1, 0, 0, 1, 2, 3, 3, 4, 4)
    children = [range(1, 3), range(3, 4), range(4, 5), range(5, 7), range(7, 9), *[range(0)] * 4]
    assert [list(each) for each in tree.children] == [list(each) for each in children]
    assert tree.path(0) == [] and tree.path(7) == [2, 4, 7]
    assert [tree.first_uniform(depth) for depth in range(4)] == [0, 2, 3, 5]
    assert np.flatnonzero(np.asarray(tree.visible[7])).tolist() == [0, 2, 4, 7]
    assert home(pkg, "methods.tree_shape").DraftTree(()).num_drafts == 0


def test_a_tree_without_depth_is_plain_decoding(pkg: Any) -> None:
    ending = {"max_new_tokens": 4}
    distribution = distribution_of(pkg, method_of(pkg, num_candidates=()), ending)
    assert_exact(distribution, definition("table", {}, ending), verified_steps=0)
    assert distribution.expected["num_draft_passes"] == distribution.expected["num_draft_tokens"] == 0


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"rule": "token"}, "rule: found 'token', expected one of k-seq, match, with-replacement, without-replacement"),
        ({"num_candidates": (2, 0)}, "num_candidates: found 0, expected an integer from 1 to 65536"),
        ({"num_candidates": (2, 1.5)}, "num_candidates: found 1.5, expected an integer from 1 to 65536"),
        (
            {"num_candidates": (300, 300)},
            "num_candidates: found (300, 300), a tree of 90300 drafts, expected at most 65536",
        ),
        ({"sampling": {"top_k": 4}}, "top_k: found 4, expected at most the vocabulary size 3"),
        ({"draft_sampling": {"top_k": 4}}, "top_k: found 4, expected at most the vocabulary size 3"),
    ],
    ids=str,
)
def test_what_does_not_fit_is_refused_by_name(pkg: Any, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError) as error:
        method_of(pkg, **options)
    assert str(error.value) == message


def test_a_drafter_that_does_not_fit_is_refused_by_name(pkg: Any) -> None:
    with pytest.raises(ValueError) as error:
        method_of(pkg, drafter=Hashed(pkg, vocab_size=4))
    assert str(error.value) == ("drafter: found 'hashed' with a vocabulary of 4, expected 3 as in the model 'table'")
    short = pkg.ModelDrafter(transformer(pkg, max_position_embeddings=8))
    with pytest.raises(ValueError, match=r"expected at most 8 together, the max_position_embeddings of the drafter ''"):
        method_of(pkg, drafter=short).start(PROMPT, pkg.Ending(7))


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_logits_without_a_distribution_are_refused_with_their_position(pkg: Any, value: float) -> None:
    def spoilt(prefix: tuple[int, ...], logits: Any) -> Any:
        return logits if len(prefix) < 5 else logits * 0 + value

    with pytest.raises(ValueError) as error:
        pkg.generate(method_of(pkg, processor=spoilt, model=target_of(pkg, zeros=0.0)), PROMPT, 9, ())
    assert str(error.value) == f"logits after position 4: the largest logit is {value}, expected a finite number"
