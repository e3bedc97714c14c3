"""Candidate trees in one call per step: their distribution, their drafts, what rows see, and what stays."""

from __future__ import annotations

from dataclasses import fields, replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import pass_sampling.reference as reference
from folders import as_numpy
from models import PACKAGES, exact_target, package, table, transformer
from pass_sampling.reference.exactness.cases import bigrams, penalty
from pass_sampling.reference.exactness.distribution import OutputDistribution
from test_draft_tree import _the_first_rows_are_kept, assert_exact, distribution_of, home, is_port, same_course, step
from test_lookahead_fused import KINDS, lookahead_of

EXACT = 1e-12  # sums of some thousand products of numbers in [0, 1], each wrong by a few times 2^-53
PROMPT = (1, 0)
EACH_RULE = ("without-replacement", "with-replacement", "k-seq", "match")
each_rule = pytest.mark.parametrize("rule", EACH_RULE)
each_main_rule = pytest.mark.parametrize("rule", ["without-replacement", "k-seq", "match"])


@pytest.fixture(params=PACKAGES)
def pkg(request: pytest.FixtureRequest) -> Any:
    return package(request.param)


def method_of(pkg: Any, kind: str = "table", shape: tuple[Any, ...] = (2,), seed: int = 4, **options: Any) -> Any:
    """Return the method over a table, or over a transformer with untrained parts; settings as dictionaries."""
    for name in ("sampling", "draft_sampling"):
        if isinstance(options.get(name), dict):
            options[name] = pkg.SamplingConfig(**options[name])
    if kind in ("table", "table and n-grams"):
        model = table(pkg, num_lookahead=max(3, len(shape)), **{"seed": 12, "zeros": 0.1, "spread": 1.0})
        vectors = model.lookahead()
    else:
        model = transformer(pkg, seed, **options.pop("model", {}))
        vectors = lookahead_of(pkg, model, kind, max(3, len(shape)))
    if kind.endswith("n-grams"):
        options["refinement"] = home(pkg, "lookahead.refinement").NgramRefinement(bigrams(pkg, 3))
    return pkg.FusedCandidates(model, vectors, num_candidates=shape, **options)


def definition(kind: str, sampling: dict[str, Any], ending: dict[str, Any], **options: Any) -> OutputDistribution:
    model = method_of(reference, kind).model
    return exact_target(model, reference.SamplingConfig(**sampling), PROMPT, reference.Ending(**ending), **options)


# --- The distribution ---


@each_rule
@pytest.mark.parametrize("shape", [(2,), (3,), (1, 1), (2, (1, 0))], ids=str)
def test_the_distribution_is_the_targets_on_tables(pkg: Any, rule: str, shape: tuple[Any, ...]) -> None:
    """V = 3, a different row at every prefix, long enough that a second drafted step is verified."""
    ending = {"max_new_tokens": 5, "eos_token_ids": (2,)}
    distribution = distribution_of(pkg, method_of(pkg, shape=shape, rule=rule), ending)
    assert_exact(distribution, definition("table", {}, ending))


@each_rule
@pytest.mark.parametrize("shape", [(2, 1), (2, (0, 2)), (1, 2), (2, (1, 0), 1)], ids=str)
def test_the_distribution_is_the_targets_for_larger_trees(pkg: Any, rule: str, shape: tuple[Any, ...]) -> None:
    """The drafts choose between two tokens, which keeps the enumeration small; the target among three."""
    ending, drafts = {"max_new_tokens": 5, "eos_token_ids": (2,)}, {"temperature": 0.7, "top_k": 2}
    distribution = distribution_of(pkg, method_of(pkg, shape=shape, rule=rule, draft_sampling=drafts), ending)
    assert_exact(distribution, definition("table", {}, ending))


@each_main_rule
@pytest.mark.parametrize("kind", [*KINDS, "n-grams"])
def test_the_distribution_is_the_targets_whatever_drafts_are_made_of(pkg: Any, rule: str, kind: str) -> None:
    """The head's memory, rotary positions and the mask of tree and groups are under the distribution."""
    ending = {"max_new_tokens": 4}
    distribution = distribution_of(pkg, method_of(pkg, kind, (2, 1), rule=rule, draft_sampling={"top_k": 2}), ending)
    assert_exact(distribution, definition(kind, {}, ending))


@each_main_rule
@pytest.mark.parametrize("groups", [(), (0,), (1,), (0, 2), (2, 1, 0)])
def test_the_distribution_is_the_targets_wherever_groups_hang(pkg: Any, rule: str, groups: tuple[int, ...]) -> None:
    ending = {"max_new_tokens": 5}
    method = method_of(pkg, shape=(2, 1), rule=rule, groups=groups, draft_sampling={"top_k": 2})
    distribution = distribution_of(pkg, method, ending)
    assert_exact(distribution, definition("table", {}, ending), 0)
    assert (distribution.expected["num_draft_tokens"] > 0) == (0 in groups), "the first group hangs after no draft"


SETTINGS: dict[str, tuple[dict[str, Any], dict[str, Any] | None]] = {
    "greedy": ({"temperature": 0.0}, None),
    "greedy target": ({"temperature": 0.0}, {}),
    "greedy drafts": ({}, {"temperature": 0.0}),
    "wide drafts": ({"top_k": 2}, {"temperature": 2.0}),
    "all": ({"temperature": 0.8, "top_k": 2, "top_p": 0.9}, None),
}


@each_main_rule
@pytest.mark.parametrize("name", SETTINGS)
def test_the_distribution_is_the_targets_whatever_the_settings(pkg: Any, rule: str, name: str) -> None:
    sampling, own = SETTINGS[name]
    ending = {"max_new_tokens": 9, "eos_token_ids": ()} if name == "greedy" else {"max_new_tokens": 4}
    distribution = distribution_of(pkg, method_of(pkg, rule=rule, sampling=sampling, draft_sampling=own), ending)
    assert_exact(distribution, definition("table", sampling, ending))


@each_main_rule
def test_a_processor_runs_on_every_path_of_the_tree(pkg: Any, rule: str) -> None:
    ending, drafts = {"max_new_tokens": 5, "eos_token_ids": (2,)}, {"top_k": 2}
    method = method_of(pkg, "table and n-grams", (2, 1), rule=rule, processor=penalty, draft_sampling=drafts)
    assert_exact(distribution_of(pkg, method, ending), definition("table", {}, ending, processor=penalty))


@each_main_rule
def test_stop_strings_end_the_text_inside_the_tree(pkg: Any, rule: str) -> None:
    decode = {"decode": lambda tokens: "".join("abc"[token] for token in tokens)}
    ending = {"max_new_tokens": 5, "stop_strings": ("ba", "cc"), **decode}
    distribution = distribution_of(pkg, method_of(pkg, shape=(2, 1), rule=rule, draft_sampling={"top_k": 2}), ending)
    assert_exact(distribution, definition("table", {}, ending))
    assert any(len(tokens) < 5 for tokens in distribution)


@pytest.mark.parametrize("kind", ["vectors", "adapter and head", "head alone"])
def test_the_enumeration_assumes_nothing_about_states(pkg: Any, kind: str) -> None:
    """Every path continued on its own, from the very caches that it left; and both ends of every cell."""
    method = method_of(pkg, kind, (2,), draft_sampling={"top_k": 2})
    merged, unmerged = (
        distribution_of(pkg, method, {"max_new_tokens": 4}, merge=merge, probe=merge) for merge in (True, False)
    )
    assert merged.largest_deviation(unmerged) <= EXACT and unmerged.executions > merged.executions
    assert merged.expected == pytest.approx(dict(unmerged.expected), abs=EXACT)


# --- Mistakes ---


def _siblings_see_each_other(pkg: Any, patch: pytest.MonkeyPatch) -> None:
    tree = home(pkg, "methods.tree_shape").DraftTree
    right = tree.visible.func

    def tensor(array: np.ndarray) -> Any:
        return __import__("torch").from_numpy(array) if is_port(pkg) else array

    def seen(self: Any) -> Any:
        return right(self) | tensor(np.tri(self.num_drafts + 1, dtype=bool))

    def depths(self: Any) -> Any:
        return tensor(np.array([len(self.path(place)) for place in range(self.num_drafts + 1)]))

    patch.setattr(tree, "visible", property(seen))
    patch.setattr(tree, "depths", property(depths))


def _text_sees_the_groups(pkg: Any, patch: pytest.MonkeyPatch) -> None:
    """Every row sees all rows, the groups after it among them."""
    trees = home(pkg, "methods.tree_shape")
    right = trees.layout

    def wrong(*arguments: Any) -> Any:
        places, visible = right(*arguments)
        return places, visible | True

    for user in (trees, home(pkg, "methods.pass_one_call")):
        if hasattr(user, "layout"):
            patch.setattr(user, "layout", wrong)


def _distributions_are_those_of_the_place_before(pkg: Any, patch: pytest.MonkeyPatch) -> None:
    """After every draft, verify with the distribution after the first one."""
    if is_port(pkg):
        right = home(pkg, "methods.tree_shape").row
        patch.setattr(home(pkg, "methods.tree_shape"), "row", lambda rows, place: right(rows, place.clamp(max=1)))
        return
    walk = home(pkg, "methods.tree_shape").walk_tree
    patch.setattr(
        home(pkg, "methods.tree"),
        "walk_tree",
        lambda method, state, drafts, logits, *more: walk(
            method, state, drafts, {place: logits[min(place, 1)] for place in logits}, *more
        ),
    )


def _siblings_are_judged_as_if_each_were_alone(pkg: Any, patch: pytest.MonkeyPatch) -> None:
    """What one candidate's rejection leaves of the target is forgotten."""
    patch.setattr(home(pkg, "methods.tree_rules"), "residual_probs", lambda target, draft: target)


@pytest.mark.parametrize(
    "mistake",
    [
        _siblings_see_each_other,
        _text_sees_the_groups,
        _the_first_rows_are_kept,
        _distributions_are_those_of_the_place_before,
        _siblings_are_judged_as_if_each_were_alone,
    ],
)
def test_a_mistake_is_seen(pkg: Any, mistake: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    ending, options = {"max_new_tokens": 5, "eos_token_ids": (2,)}, {"shape": (2, 1), "draft_sampling": {"top_k": 2}}
    target = definition("table", {}, ending)
    assert distribution_of(pkg, method_of(pkg, **options), ending).largest_deviation(target) <= EXACT
    mistake(pkg, monkeypatch)
    try:
        distribution = distribution_of(pkg, method_of(pkg, **options), ending, merge=False)
    except ValueError as error:  # what depends on draws that were not asked for has no distribution
        assert "of the probability" in str(error) or "total probability" in str(error)
    else:
        assert distribution.largest_deviation(target) > 1e-3


# --- One call, and where drafts come from ---


@pytest.mark.parametrize("kind", KINDS)
def test_every_step_is_one_call(pkg: Any, kind: str) -> None:
    result = pkg.generate(method_of(pkg, kind, (2, (1, 0), 2)), PROMPT, 40, (), seed=2)
    assert all(record.num_forward_passes == 1 for record in result.records)
    assert result.num_forward_passes == len(result.records) == 40 - result.num_accepted_tokens
    first, *middle, _, _, _ = result.records
    rows = 0 if kind == "head alone" else 3
    assert first.num_positions == len(PROMPT) + rows and first.draft_tokens == ()
    assert all(each.num_positions == (1 + 2 + 1 + 2) * (1 + rows) for each in middle[:-4])
    assert middle[0].draft_parents == (-1, -1, 0, 2, 2)


def test_a_chain_of_candidates_is_pass_in_one_call(pkg: Any) -> None:
    """With one candidate everywhere the same uniforms give the same tokens, by every rule but match."""
    for kind in ("vectors", "adapter and head", "head alone", "n-grams"):
        tree = method_of(pkg, kind, (1, 1, 1))
        chain = pkg.FusedPaSS(tree.model, tree.lookahead, refinement=tree.refinement)
        for rule in ("without-replacement", "with-replacement", "k-seq"):
            one, other = (pkg.generate(each, PROMPT, 30, (2,), seed=3) for each in (replace(tree, rule=rule), chain))
            for mine, yours in zip(one.records, other.records, strict=True):
                for name in ("tokens", "sources", "draft_tokens", "num_accepted", "num_positions"):
                    assert getattr(mine, name) == getattr(yours, name)
                assert len(mine.draft_parents) == len(mine.draft_tokens)


@pytest.mark.parametrize("window", [None, 3])
def test_every_draft_has_the_distribution_of_a_draft_call_refined_along_its_own_path(
    pkg: Any, window: int | None
) -> None:
    """The rows are those of a separate call after the last accepted draft; the head goes down each path anew."""
    method = method_of(pkg, "adapter and head", (3, 2, 1), model={"sliding_window": window})
    model, torch = method.model, __import__("torch") if is_port(pkg) else None
    state, seen = method.start(PROMPT, pkg.Ending(60)), set()
    for number in range(9):
        text = [*PROMPT, *state.new_tokens]
        state, record = step(pkg, method, state, np.random.default_rng(number).random(method.num_uniforms))
        seen.add(record.num_accepted)
        if step == 0:
            continue
        embedded = model.embed([text[:-1]] if torch else text[:-1])
        fed = (
            torch.cat([embedded, method.vectors[None]], dim=1) if torch else np.concatenate([embedded, method.vectors])
        )
        cache = model.new_cache(fed.shape[-2])
        adapted = {"adapter": method.adapter, "num_adapted": len(method.vectors)}
        rows = as_numpy(model.hidden(fed, cache, **adapted)).reshape(fed.shape[-2], -1)[-4:]
        paths: list[tuple[int, ...]] = []
        for token, parent, prob in zip(
            record.draft_tokens, record.draft_parents, record.draft_token_probs, strict=True
        ):
            paths.append((*(paths[parent] if parent >= 0 else ()), token))
            before = [paths[place][-1] for place in range(len(paths) - 1) if record.draft_parents[place] == parent]
            distribution = head_distribution(method, rows, [*text, *paths[-1][:-1]], len(paths[-1]))
            distribution[before] = 0.0
            assert prob == pytest.approx(distribution[token] / distribution.sum(), abs=1e-10)
    assert len(seen) > 1


def head_distribution(method: Any, rows: np.ndarray, text: list[int], depth: int) -> np.ndarray:
    """Return the distribution of the draft at a depth, by the specification's head, from the start of its path."""
    head = reference.SamplerHead.of({name: as_numpy(each) for name, each in method.refinement.head.tensors().items()})
    model = transformer(reference, 4)
    memory = head.start(rows[0])
    for place in range(depth):
        token = text[len(text) - depth + place]
        refined, memory = head.step(rows[1 + place], model.embed([token])[0], memory)
    return reference.probs_from_logits(model.logits(refined), reference.SamplingConfig())


@pytest.mark.parametrize("kind", KINDS)
def test_nothing_but_the_text_stays_in_the_cache(pkg: Any, kind: str) -> None:
    method = method_of(pkg, kind, (3, 2), model={"sliding_window": 3})
    clean, dirty = (method.start(PROMPT, pkg.Ending(40)) for _ in range(2))
    for number in range(8):
        uniforms = np.random.default_rng(number).random(method.num_uniforms)
        clean, record = step(pkg, method, clean, uniforms)
        dirty, other = step(pkg, method, dirty, uniforms)
        assert other.tokens == record.tokens and dirty.agrees(clean)
        text = [*PROMPT, *clean.new_tokens][:-1]
        fresh = method.model.new_cache(len(text))
        method.model.hidden(method.model.embed([text] if is_port(pkg) else text), fresh)
        held = int(clean.cache.lengths[0]) if is_port(pkg) else clean.cache.length
        assert held == len(text) and clean.cache.agrees(fresh)
        for array in (dirty.cache.keys, dirty.cache.values):
            array[..., held:, :] = 1e150 if is_port(pkg) else np.nan  # what lies after is never read


@pytest.mark.parametrize("kind", KINDS)
def test_what_look_ahead_rows_are_fed_changes_no_bit_of_the_text_rows(pkg: Any, kind: str) -> None:
    """After one state, other vectors of whatever size and another adapter: the same rows of text, bit for bit."""
    model, found = transformer(pkg, 4), []
    for seed, scale in ((7, 1.0), (8, 1e30)):
        first = pkg.FusedCandidates(model, lookahead_of(pkg, model, kind), num_candidates=(3, 2))
        vectors = lookahead_of(pkg, model, kind, 2, seed)
        second = replace(
            first, lookahead=replace(vectors, vectors=vectors.vectors * scale), refinement=first.refinement
        )
        uniforms = np.random.default_rng(2).random((2, first.num_uniforms))
        state, _ = step(pkg, first, first.start((0, 2, 1), pkg.Ending(9)), uniforms[0])
        after, record = step(pkg, second, state, uniforms[1])
        assert record.draft_tokens
        cache, length = after.cache, 3 + len(after.new_tokens) - 1
        described = tuple(repr(getattr(record, each.name)) for each in fields(record))
        found.append((described, *(as_numpy(each)[..., :length, :].tobytes() for each in (cache.keys, cache.values))))
    assert found[0] == found[1]


# --- Batches, and the other package ---


def in_slots(result: Any) -> Any:
    """Put the choices of each step in the order of their slots: the port draws a depth of the tree at once."""
    records = [
        replace(record, choices=tuple(sorted(record.choices or (), key=lambda choice: choice.column)))
        for record in result.records
    ]
    return replace(result, records=tuple(records))


@pytest.mark.torch
@settings(max_examples=40)
@given(
    seed=st.integers(0, 2**32),
    rule=st.sampled_from(EACH_RULE),
    shape=st.sampled_from([(2,), (1, 1), (3, 2), (2, (2, 0), (0, 1)), (3, (0, 1, 3)), (2, 1, 2)]),
    kind=st.sampled_from(["table", "table and n-grams", "n-grams", *KINDS]),
    sampling=st.sampled_from([{}, {"temperature": 0.0}, {"temperature": 0.7, "top_k": 2}]),
    own=st.sampled_from([None, {}, {"temperature": 0.0}, {"top_p": 0.8}]),
    processor=st.sampled_from([None, penalty]),
    groups=st.sampled_from([None, None, (0, 1), (0,)]),
    prompts=st.lists(st.lists(st.integers(0, 2), min_size=1, max_size=6), min_size=1, max_size=4),
    max_new_tokens=st.integers(1, 16),
    eos=st.sampled_from([(), (1,), (2, 0)]),
)
def test_a_batch_of_the_port_is_the_reference_row_by_row(
    seed: int,
    rule: str,
    shape: tuple[Any, ...],
    kind: str,
    sampling: dict[str, Any],
    own: dict[str, Any] | None,
    processor: Any,
    groups: tuple[int, ...] | None,
    prompts: list[list[int]],
    max_new_tokens: int,
    eos: tuple[int, ...],
) -> None:
    """The same uniforms, the same tokens and records: rows of different lengths, rows that end, rows that leave."""
    results = []
    for name in PACKAGES:
        pkg = package(name)
        options = {"rule": rule, "sampling": sampling, "draft_sampling": own, "groups": groups}
        method = method_of(pkg, kind, shape, processor=processor, **options)
        results.append(pkg.generate_batch(method, prompts, max_new_tokens, eos, seed=seed, trace=True))
    for one, other in zip(*results, strict=True):
        same_course(in_slots(one), in_slots(other))


@each_rule
@pytest.mark.parametrize("kind", ["adapter and head", "head alone"])
def test_a_row_of_a_batch_is_the_row_alone(pkg: Any, rule: str, kind: str) -> None:
    """Prompts of different lengths begin together: each row's groups hang after its own tree."""
    method = method_of(pkg, kind, (2, (2, 1), 1), rule=rule)
    prompts = [[1], [2, 0, 1, 2, 2], [0, 0]]
    batch = pkg.generate_batch(method, prompts, 24, (), seed=5)
    for request, (prompt, result) in enumerate(zip(prompts, batch, strict=True)):
        same_course(pkg.generate(method, prompt, 24, (), seed=5, request=request), result)


@each_rule
def test_greedy_text_is_plain_decodings(pkg: Any, rule: str) -> None:
    greedy = pkg.SamplingConfig(0.0)
    plain = pkg.generate(pkg.Autoregressive(transformer(pkg, 4), greedy), PROMPT, 40, ()).tokens
    for kind in KINDS:
        assert pkg.generate(method_of(pkg, kind, (3, 2), rule=rule, sampling=greedy), PROMPT, 40, ()).tokens == plain


# --- Refusals ---


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"rule": "block"}, "rule: found 'block', expected one of k-seq, match, with-replacement, without-replacement"),
        ({"shape": (2, 0)}, "num_candidates: found 0, expected an integer from 1 to 65536"),
        (
            {"shape": (2, (1, 1, 0))},
            "num_candidates: found (1, 1, 0) after 2 places, expected a number for each, and one above 0",
        ),
        (
            {"shape": (2, (0, 0))},
            "num_candidates: found (0, 0) after 2 places, expected a number for each, and one above 0",
        ),
        ({"shape": (2, (1, -1))}, "num_candidates: found -1, expected an integer from 0 to 65536"),
        ({"groups": (2,)}, "groups: found (2,), expected different numbers of drafts, 0 to 1"),
    ],
    ids=str,
)
def test_what_does_not_fit_is_refused_by_name(pkg: Any, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError) as error:
        method_of(pkg, **options)
    assert str(error.value) == message


def test_more_depths_than_vectors_are_refused(pkg: Any) -> None:
    model = transformer(pkg, 4)
    message = "num_candidates: found (1, 1, 1), expected at most 2 depths, one per look-ahead vector"
    with pytest.raises(ValueError) as error:
        pkg.FusedCandidates(model, lookahead_of(pkg, model, "vectors", 2), num_candidates=(1, 1, 1))
    assert str(error.value) == message
