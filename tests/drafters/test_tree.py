"""Trees of drafts, from a drafter and in one call: their distribution, shape, caches, and what they write down."""

import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

import pass_sampling.reference as reference
from models import transformer
from pass_sampling.reference.exactness.cases import penalty
from pass_sampling.reference.exactness.distribution import output_distribution
from pass_sampling.reference.methods.tree_rules import RULES
from pass_sampling.reference.theory import candidate_acceptance, expected_tokens
from trees import (
    EXACT,
    PROMPT,
    TREES,
    RowDrafter,
    array_of,
    assert_exact,
    assert_states_may_be_merged,
    checked_steps,
    definition,
    distribution_of,
    distributions_after,
    drafter_of,
    home,
    method_of,
    target_of,
)

each_tree = pytest.mark.parametrize("name", TREES)
each_rule = pytest.mark.parametrize("rule", RULES)
MAIN_RULES = ("without-replacement", "k-seq", "match")
each_main_rule = pytest.mark.parametrize("rule", MAIN_RULES)
TOP_2 = {"draft_sampling": {"top_k": 2}}  # keeps an enumeration small; the target chooses among three tokens


def no_distribution_after_the_end(prefix: tuple[int, ...], logits: Any) -> Any:
    """Have no token to continue with after the end of a text, as grammars do."""
    return penalty(prefix, logits) - (math.inf if 2 in prefix[len(PROMPT) :] else 0.0)


CASES: dict[str, dict[str, Any]] = {
    "two at each depth": {"shape": (2, 2), "draft_sampling": {"temperature": 0.7, "top_k": 2}},
    "three depths": {"shape": (2, 1, 2), "draft_sampling": {"temperature": 0.7, "top_k": 2}},
    "none after the first": {"shape": (2, (0, 2)), **TOP_2},
    "three uneven depths": {"shape": (2, (1, 0), 1), **TOP_2},
    "beyond a window": {"kind": "windowed", "shape": (2, 1), **TOP_2},
    "a greedy target": {"sampling": {"temperature": 0.0}, "draft_sampling": {}, "eos_token_ids": ()},
    "no distribution after the end": {"shape": (2, 1), "processor": no_distribution_after_the_end, **TOP_2},
    "stop strings inside the tree": {"shape": (2, 1), "stop_strings": ("ba", "cc"), "eos_token_ids": (), **TOP_2},
}


# Every case with every tree and, over both trees, with every rule.
COVERING = [
    (name, MAIN_RULES[(i + j + k) % 3], case)
    for i, case in enumerate(CASES)
    for j in (0, 1)
    for k, name in enumerate(TREES)
]


def decode(tokens: Any) -> str:
    return "".join("abc"[token] for token in tokens)


def case_of(pkg: Any, name: str, options: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
    """Return the method of a case, and where its texts end."""
    ending = {"max_new_tokens": 5 if "one-call" in name else 4, "eos_token_ids": (2,), "stop_strings": ()}
    ending |= {key: value for key, value in options.items() if key in ending}
    options = {key: value for key, value in options.items() if key not in ending}
    return method_of(pkg, name, **options), ending | {"decode": decode}


@pytest.mark.parametrize(("name", "rule", "case"), COVERING)
def test_the_distribution_is_the_targets(pkg: Any, name: str, rule: str, case: str) -> None:
    method, ending = case_of(pkg, name, {"rule": rule, **CASES[case]})
    distribution = assert_exact(pkg, method, ending, CASES[case].get("kind", "table"))
    if case.startswith("stop"):
        assert any(len(tokens) < ending["max_new_tokens"] for tokens in distribution)


@each_main_rule
def test_a_drafter_may_have_no_token_or_only_one(pkg: Any, rule: str) -> None:
    rows = [[0.5, 1.0, -0.5], [-math.inf] * 3, [-math.inf, 0.0, -math.inf]]
    method = method_of(pkg, "draft-model-tree", shape=(2, 2), rule=rule, drafter=RowDrafter(rows))
    assert_exact(pkg, method, {"max_new_tokens": 4})


@each_tree
@each_main_rule
def test_a_row_without_a_distribution_matters_only_where_the_text_comes(pkg, name, rule, monkeypatch):
    """Drafts that the target bans are no error, although after them there is no distribution."""

    def dead_end(prefix: tuple[int, ...], logits: Any) -> Any:
        processed = logits.copy() if isinstance(logits, np.ndarray) else logits.clone()
        processed[1] = -math.inf
        return processed * (math.nan if 1 in prefix[len(PROMPT) :] else 1.0)

    method = method_of(pkg, name, shape=(2, 1), rule=rule, processor=dead_end)
    trees = home(pkg, "methods.tree")
    draw = trees.draw_tree  # without the processor: drafts may be what the target never draws
    monkeypatch.setattr(
        trees, "draw_tree", lambda method, *rest, **how: draw(replace(method, processor=None), *rest, **how)
    )
    distribution = assert_exact(pkg, method, {"max_new_tokens": 4})
    assert not any(1 in tokens for tokens in distribution)


@each_main_rule
def test_the_enumeration_assumes_nothing_about_states(pkg: Any, rule: str) -> None:
    method = method_of(pkg, "draft-model-tree", "transformer", rule=rule, **TOP_2)
    assert_states_may_be_merged(pkg, method, {"max_new_tokens": 4})


def siblings_attend_to_each_other(pkg: Any, patch: pytest.MonkeyPatch) -> None:
    tree = home(pkg, "methods.tree_shape").DraftTree
    right = tree.visible.func

    def visible(self: Any) -> Any:
        return right(self) | array_of(pkg, np.tri(self.num_drafts + 1, dtype=bool))

    def depths(self: Any) -> Any:
        return array_of(pkg, np.array([len(self.path(place)) for place in range(self.num_drafts + 1)]))

    patch.setattr(tree, "visible", property(visible))
    patch.setattr(tree, "depths", property(depths))


def the_first_rows_are_kept(pkg: Any, patch: pytest.MonkeyPatch) -> None:
    def wrong(self: Any, rows: Any, length: Any, *count: Any) -> None:
        self.truncate(length + (count[0] if count else rows.size))

    patch.setattr(pkg.TableModel(3).new_cache().__class__, "keep", wrong)


def each_place_is_a_position(pkg: Any, patch: pytest.MonkeyPatch) -> None:
    def depths(self: Any) -> Any:
        return array_of(pkg, np.arange(self.num_drafts + 1))

    patch.setattr(home(pkg, "methods.tree_shape").DraftTree, "depths", property(depths))


def rejections_are_forgotten(pkg: Any, patch: pytest.MonkeyPatch) -> None:
    patch.setattr(home(pkg, "methods.tree_rules"), "residual_probs", lambda target, draft: target)


ANYWHERE = siblings_attend_to_each_other, the_first_rows_are_kept, rejections_are_forgotten
MISTAKES = [(name, mistake) for name in TREES for mistake in ANYWHERE]
MISTAKES += [("draft-model-tree", each_place_is_a_position)]


@pytest.mark.parametrize(("name", "mistake"), MISTAKES)
def test_a_mistake_is_seen(pkg: Any, name: str, mistake: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    method, ending = case_of(pkg, name, {"shape": (2, 1), **TOP_2})
    assert_exact(pkg, method, ending)
    target = definition(method, ending)
    mistake(pkg, monkeypatch)
    method, _ = case_of(pkg, name, {"shape": (2, 1), **TOP_2})
    try:
        distribution = distribution_of(pkg, method, ending, merge=False)
    except ValueError as error:  # what depends on draws that were not asked for has no distribution
        assert "of the probability" in str(error) or "total probability" in str(error)
    else:
        assert distribution.largest_deviation(target) > 1e-3


@each_rule
@pytest.mark.parametrize("count", [1, 2, 3])
def test_candidates_are_accepted_as_often_as_theory_says(pkg: Any, rule: str, count: int) -> None:
    """One position of candidates, then one more token: 1 + the chance that one is accepted, from one pass."""
    rate = candidate_acceptance(*distributions_after(target_of(reference), drafter_of(reference), PROMPT), count, rule)
    method = method_of(pkg, "draft-model-tree", shape=(count,), rule=rule)
    found = distribution_of(pkg, method, {"max_new_tokens": 2}).expected
    assert found["num_accepted_tokens"] == pytest.approx(rate, abs=EXACT)
    assert found["num_forward_passes"] == pytest.approx(2 - rate, abs=EXACT)


@each_rule
def test_depths_multiply_where_all_positions_are_alike(rule: str) -> None:
    class Flat(reference.TableModel):
        """The same row after every prefix."""

        def hidden(self, inputs: Any, *rest: Any) -> Any:
            rows = super().hidden(inputs, *rest)
            return np.broadcast_to(self.row(np.zeros(1, dtype=np.uint64)), rows.shape)

    model, drafter = Flat(3, seed=1), RowDrafter([[0.3, -0.8, 1.1]] * 3)
    method = method_of(reference, "draft-model-tree", model=model, drafter=drafter, rule=rule, shape=(2, 1))
    distributions = distributions_after(model, drafter, PROMPT)
    rates = np.array([candidate_acceptance(*distributions, count, rule) for count in (2, 1)])
    found = output_distribution(method, PROMPT, reference.Ending(3), num_tokens=1).expected
    assert found["num_accepted_tokens"] == pytest.approx(expected_tokens(rates, 2) - 1, abs=EXACT)


def test_every_record_tells_a_tree_and_the_path_through_it(pkg: Any) -> None:
    method = method_of(pkg, "draft-model-tree", "transformer", shape=(3, 2, 1))
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
        verified = {accepted[:depth] for depth in range(len(accepted) + 1)}
        for path, chance, draft, target in zip(
            paths, record.accept_probs, record.draft_token_probs, record.target_token_probs, strict=True
        ):
            assert math.isnan(chance) == math.isnan(target) == (path[:-1] not in verified)
            assert 0 < draft <= 1
            if path[:-1] in verified:
                prefix = (*text, *path[:-1])
                row = plain.probs(prefix, plain.model.forward(prefix)[-1])
                assert target == pytest.approx(float(row[path[-1]]), abs=1e-10)
        text += record.tokens
        assert record.draft_depth <= 3
    assert result.num_accepted_tokens == sum(result.accepted_per_position) and len(result.accepted_per_position) == 3
    assert result.num_forward_passes < 60 and result.tokens == tuple(text[3:])


def test_drafts_stop_where_the_text_must_end(pkg: Any) -> None:
    """Neither the target nor the drafter is asked about a position that it does not have."""
    model = transformer(pkg, seed=1, max_position_embeddings=12)
    drafter = pkg.ModelDrafter(transformer(pkg, seed=2, max_position_embeddings=12))
    method = method_of(pkg, "draft-model-tree", model=model, drafter=drafter, shape=(2, 1, 1, 1))
    for max_new_tokens in range(1, 10):
        result = pkg.generate(method, [1, 2, 1], max_new_tokens, ())
        assert len(result.tokens) == max_new_tokens >= result.num_forward_passes
        for record, done in zip(result.records, np.cumsum([0] + [len(r.tokens) for r in result.records]), strict=False):
            assert record.draft_depth <= max_new_tokens - done - 1


@each_rule
def test_what_was_rejected_leaves_no_trace(pkg: Any, rule: str) -> None:
    for _ in checked_steps(pkg, method_of(pkg, "draft-model-tree", "windowed", shape=(3, 2), rule=rule)):
        pass


def test_the_shape_of_a_tree(pkg: Any) -> None:
    tree = home(pkg, "methods.tree_shape").DraftTree((2, 1, 2))
    assert tree.num_drafts == 8 and tree.parents == (-1, 0, 0, 1, 2, 3, 3, 4, 4)
    assert [list(each) for each in tree.children] == [[1, 2], [3], [4], [5, 6], [7, 8], [], [], [], []]
    assert tree.path(0) == [] and tree.path(7) == [2, 4, 7]
    assert [tree.first_uniform(depth) for depth in range(4)] == [0, 2, 3, 5]
    assert np.flatnonzero(np.asarray(tree.visible[7])).tolist() == [0, 2, 4, 7]
    assert home(pkg, "methods.tree_shape").DraftTree(()).num_drafts == 0


UNEVEN = "after 2 places, expected a number for each, and one above 0"


@each_tree
@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"rule": "block"}, "rule: found 'block', expected one of k-seq, match, with-replacement, without-replacement"),
        ({"shape": (2, 0)}, "num_candidates: found 0, expected an integer from 1 to 65536"),
        ({"shape": (2, (1, -1))}, "num_candidates: found -1, expected an integer from 0 to 65536"),
        ({"shape": (2, (1, 1, 0))}, f"num_candidates: found (1, 1, 0) {UNEVEN}"),
        ({"shape": (300, 300)}, "num_candidates: found (300, 300), a tree of 90300 drafts, expected at most 65536"),
        ({"sampling": {"top_k": 4}}, "top_k: found 4, expected at most the vocabulary size 3"),
    ],
    ids=str,
)
def test_what_does_not_fit_is_refused_by_name(pkg: Any, name: str, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError) as error:
        method_of(pkg, name, **options)
    assert str(error.value) == message


@each_tree
@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_logits_without_a_distribution_are_refused_with_their_position(pkg: Any, name: str, value: float) -> None:
    def spoilt(prefix: tuple[int, ...], logits: Any) -> Any:
        return logits if len(prefix) < 5 else logits * 0 + value

    with pytest.raises(ValueError) as error:
        pkg.generate(method_of(pkg, name, processor=spoilt, model=target_of(pkg, zeros=0.0)), PROMPT, 9, ())
    assert str(error.value) == f"logits after position 4: the largest logit is {value}, expected a finite number"
