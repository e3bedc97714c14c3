"""The plan: what is chosen from what was measured, how it is kept, and that it changes nothing but the speed."""

from __future__ import annotations

import json
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from console import read_strictly, run

pytestmark = pytest.mark.torch
FIGURES = ("tokens_per_step", "milliseconds_per_step", "tokens_per_second", "ratio_to_plain")
PREDICTED = dict.fromkeys(FIGURES, 1.5)
NOTHING_MEASURED = SimpleNamespace(pass_milliseconds={1: 1.0})  # a calibration that nobody looks at
PLANNED = ["--max-new-tokens", "12", "--json"]


def survivals(num_draft: int = 4):
    """Chances that at least 1, 2, ... drafts are accepted: they never rise."""
    chances = st.lists(st.floats(0, 1), min_size=num_draft, max_size=num_draft)
    return chances.map(lambda rates: np.cumprod(rates))


@given(survival=survivals(), groups=st.sets(st.integers(1, 4)).map(lambda rest: (0, *sorted(rest))))
def test_the_share_of_steps_with_drafts_is_the_stationary_one(survival, groups):
    """Of the chain that goes from drafting to drafting where a group hangs, and from not drafting always."""
    from pass_sampling.gpu.bench.choice import group_share

    ends = -np.diff(np.concatenate([[1.0], survival, [0.0]]))
    stays = ends[list(groups)].sum()
    chain = np.array([[stays, 1.0 - stays], [1.0, 0.0]])
    values, vectors = np.linalg.eig(chain.T)
    stationary = np.real(vectors[:, np.argmax(np.real(values))])
    assert group_share(survival, groups) == pytest.approx(stationary[0] / stationary.sum(), abs=1e-9)


@given(survival=survivals())
def test_groups_after_every_number_leave_no_step_without_drafts(survival):
    from pass_sampling.gpu.bench.choice import group_share

    assert group_share(survival, (0, 1, 2, 3, 4)) == pytest.approx(1.0)


def calibration_of(method_milliseconds, survival, plain=1.0):
    from pass_sampling.gpu.bench.calibration import Calibration, Measured

    measured = Measured(method_milliseconds, 0.0, tuple(survival), tuple(survival), 0.0)
    return Calibration({1: 1.0, 100: 100.0}, plain, (measured,))


def way():
    from pass_sampling.gpu.bench.ways import Candidate

    return Candidate("ngram", None, {})  # type: ignore[arg-type]  # the choice asks only what kind it is


@given(survival=survivals(3), cost=st.floats(0.01, 2.0), plain=st.floats(0.5, 2.0))
def test_the_fastest_is_chosen_and_plain_decoding_where_nothing_pays(survival, cost, plain):
    from pass_sampling.gpu.bench.choice import best_outcomes

    milliseconds = {depth: 1.0 + cost * depth for depth in (1, 2, 3)}
    outcomes = best_outcomes(calibration_of(milliseconds, survival, plain), [way()])
    speeds = {depth: 1000 * (1 + survival[:depth].sum()) / ms for depth, ms in milliseconds.items()}
    best, threshold = outcomes[0], 1.02 * 1000 / plain
    assume(max(speeds.values()) != pytest.approx(threshold, rel=1e-12))  # where rounding decides
    if max(speeds.values()) >= threshold:
        assert best.way == 0 and best.tokens_per_second == pytest.approx(max(speeds.values()))
    else:
        assert best.way is None and best.tokens_per_second == pytest.approx(1000 / plain)


def test_a_plan_is_read_as_it_was_written(tmp_path):
    from pass_sampling.gpu.bench.plan import Plan

    options = {"num_draft": 3, "groups": [0, 3], "verify": "block"}
    plan = Plan("pass-one-call", options, {"dtype": "float32"}, PREDICTED, {"considered": []})
    plan.save(tmp_path / "plan.json")
    assert Plan.load(tmp_path / "plan.json") == plan
    assert [path.name for path in tmp_path.iterdir()] == ["plan.json"]


@pytest.mark.parametrize(
    "change, said",
    [
        ({"format_version": 2}, "is no plan of format_version 1, expected one"),
        ({"more": 1}, "is no plan of format_version 1, expected one"),
        ({"method": 3}, "found method 3, expected a plan's"),
        ({"options": {"temperature": 0.5}}, "found the option temperature=0.5, expected one of lookahead"),
        ({"options": {"num_draft": "3"}}, "found the option num_draft='3', expected one of"),
        ({"options": {"groups": [0, -1]}}, "found groups=[0, -1], expected small numbers"),
        ({"prediction": PREDICTED | {"tokens_per_second": "fast"}}, "expected a number"),
        ({"prediction": {"tokens_per_second": 3.5}}, "is a plan without what it was chosen from, expected a whole one"),
        ({"calibration": {}}, "is a plan without what it was chosen from, expected a whole one"),
    ],
)
def test_a_file_that_holds_something_else_is_refused(tmp_path, change, said):
    from pass_sampling.gpu.bench.plan import Plan

    path = tmp_path / "plan.json"
    Plan("autoregressive", prediction=PREDICTED, calibration={"considered": []}).save(path)
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(ValueError, match="plan") as error:
        Plan.load(path)
    assert said in str(error.value)


@pytest.fixture(scope="module")
def plan_file(box, tmp_path_factory):
    """A plan for the small model, made once."""
    path = tmp_path_factory.mktemp("plan") / "plan.json"
    assert run("plan", "--model", box.model, "--lookahead", box.vectors, "--output", path, "--json") == 0
    return path


def test_what_was_measured_is_told(box, plan_file, capsys):
    """The second time, nothing is measured."""
    assert run("plan", "--model", box.model, "--lookahead", box.vectors) == 0
    printed = capsys.readouterr()
    assert printed.err == "" and "rows of a pass" in printed.out and printed.out.splitlines()[-1].startswith("plan: ")
    plan = json.loads(plan_file.read_text())
    assert {each["method"] for each in plan["calibration"]["considered"]} == {
        "autoregressive",
        "pass",
        "pass-one-call",
    }
    considered = plan["calibration"]["considered"]
    assert considered[0]["tokens_per_second"] == plan["prediction"]["tokens_per_second"]
    assert plan["method"] == considered[0]["method"]


def test_a_plan_is_done_again_to_the_token(box, plan_file, capsys):
    found = []
    for _ in range(2):
        assert run("generate", "--model", box.model, "--plan", plan_file, "--prompt", "def", *PLANNED) == 0
        found.append(read_strictly(capsys.readouterr().out))
    assert found[0]["tokens"] == found[1]["tokens"] and found[0]["method"] == found[0]["plan"]["method"]
    assert found[0]["plan"] == {
        name: value for name, value in json.loads(plan_file.read_text()).items() if "format" not in name
    }


def test_every_plan_writes_the_same_greedy_text(box, plan_file, tmp_path, capsys):
    """Whatever it says: it is about speed alone."""
    from pass_sampling.gpu.bench.plan import Plan

    plan, texts = Plan.load(plan_file), set()
    vectors = {"lookahead": str(box.vectors)}
    for method, options in (
        ("autoregressive", {}),
        ("pass", vectors | {"num_draft": 2, "verify": "token"}),
        ("pass-one-call", vectors | {"num_draft": 3, "verify": "block", "groups": [0, 2]}),
        ("pass-one-call", vectors | {"candidates": "2,1+0", "verify": "without-replacement"}),
        ("prompt-lookup", {"num_draft": 2, "verify": "block"}),
    ):
        replace(plan, method=method, options=options).save(tmp_path / "plan.json")
        argv = ["generate", "--model", box.model, "--plan", tmp_path / "plan.json", "--temperature", 0]
        assert run(*argv, "--prompt", "def", *PLANNED) == 0
        texts.add(tuple(read_strictly(capsys.readouterr().out)["tokens"]))
    assert len(texts) == 1


def test_a_plan_for_something_else_is_refused(box, plan_file, tmp_path, capsys):
    from pass_sampling.gpu.bench.plan import Plan

    plan = Plan.load(plan_file)
    argv = ["generate", "--model", box.model, "--prompt", "def", *PLANNED]

    def complaint(changed, *more):
        changed.save(tmp_path / "plan.json")
        assert run(*argv, "--plan", tmp_path / "plan.json", *more) == 2
        printed = capsys.readouterr()
        assert printed.out == ""
        return printed.err

    other = {"name": "another", "fingerprint": "f" * 64}
    said = complaint(replace(plan, made_for=plan.made_for | {"model": other}))
    assert "plan: found it made for 'another' (ffffffffffff), expected the model 'model' (" in said
    vectors = replace(plan, options={"lookahead": str(box.vectors)}, method="pass")
    said = complaint(replace(vectors, made_for=plan.made_for | {"lookahead": other}))
    assert "expected the look-ahead vectors 'vectors' (" in said
    assert "expected the look-ahead vectors it was made with" in complaint(
        replace(vectors, options={"lookahead": str(tmp_path / "gone")})
    )
    assert "found the method 'guess', expected one of autoregressive" in complaint(replace(plan, method="guess"))
    assert "--plan: found it with --verify, expected one of them" in complaint(plan, "--verify", "block")
    assert run(*argv, "--plan", tmp_path / "none.json") == 2
    assert "none.json is not a file, expected a plan" in capsys.readouterr().err


def test_a_plan_knows_the_folder_of_its_own_method(box, tmp_path, capsys, monkeypatch):
    """Two ways may draft from two folders of one kind: the bundled ones do."""
    from pass_sampling.gpu.bench.choice import Prediction
    from pass_sampling.gpu.checkpoints import FUSED, LOOKAHEAD

    def chosen(method):
        def outcomes(calibration, ways):
            place = [way.name for way in ways].index(method)
            return [Prediction(place, 2, "token", None, 2.0, 1.0), Prediction(None, 0, "", None, 1.0, 1.0)]

        return outcomes

    monkeypatch.setattr("pass_sampling.gpu.bench.calibration.calibrate", lambda *given, **named: NOTHING_MEASURED)
    for method, folder in (("pass", LOOKAHEAD), ("pass-one-call", FUSED)):
        monkeypatch.setattr("pass_sampling.gpu.bench.choice.best_outcomes", chosen(method))
        file = tmp_path / f"{method}.json"
        assert run("plan", "--again", "--output", file, "--json") == 0
        found = json.loads(file.read_text())
        assert found["options"]["lookahead"] == str(folder) and found["made_for"]["lookahead"]["name"] == folder.name
        capsys.readouterr()
        assert run("generate", "--plan", file, "--prompt", "def", "--max-new-tokens", 4, "--json") == 0
        assert read_strictly(capsys.readouterr().out)["method"] == method


def test_a_kept_plan_that_is_not_whole_is_made_again(box, plan_file, capsys):
    import os
    from pathlib import Path

    (kept,) = [
        path
        for path in (Path(os.environ["XDG_CACHE_HOME"]) / "pass-sampling" / "plans").glob("*.json")
        if path.read_text() == plan_file.read_text()
    ]
    whole = json.loads(kept.read_text())
    for broken in (whole | {"method": "guess"}, whole | {"calibration": {}}, []):
        kept.write_text(json.dumps(broken))
        assert run("plan", "--model", box.model, "--lookahead", box.vectors, "--json") == 0
        capsys.readouterr()
        assert json.loads(kept.read_text()).keys() == whole.keys()


def test_many_vectors_take_no_longer_to_choose_from():
    from pass_sampling.gpu.bench.choice import _with_groups

    survival = np.cumprod(np.full(24, 0.9))
    outcomes = list(_with_groups(0, "token", survival, 30.0, calibration_of({24: 30.0}, survival)))
    assert len(outcomes) == 24 and all(each.milliseconds_per_step > 0 for each in outcomes)


def rates():
    """For each depth chances of candidates, none above the one before it."""
    ranks = st.lists(st.floats(0, 1), min_size=1, max_size=3).map(lambda found: sorted(found, reverse=True))
    return st.lists(ranks, min_size=1, max_size=3)


@given(rates=rates(), budget=st.integers(1, 9))
def test_the_trees_of_a_plan_are_the_best_of_their_size(rates, budget):
    """As the specification's dynamic programming finds them, where every draft takes one row."""
    from pass_sampling.gpu.bench.tree_shapes import best_shapes
    from pass_sampling.reference.theory import best_tree, tree_tokens

    for shape, tokens in best_shapes(rates, [budget]):
        assert tokens == pytest.approx(tree_tokens(rates, shape))
        assert tokens == pytest.approx(tree_tokens(rates, best_tree(rates, budget)))
    assert best_shapes(rates, [budget]) or rates[0][0] == 0


def test_rates_are_those_that_the_records_speak_of():
    """Of two trees: accepted first, second, or neither; a third candidate is never said to come before a second."""
    from pass_sampling.gpu.bench.tree_shapes import rank_rates
    from pass_sampling.reference.record import Record

    def record(*accept):
        parents = (-1, -1, -1, 0, 1)
        return Record((), (), (), draft_tokens=(0,) * 5, accept_probs=accept, draft_parents=parents)

    found = rank_rates([record(0.5, 0.2, 0.5, 1.0, 0.5), record(0.7, 0.0, 0.0, 0.5, 0.5)], "without-replacement")
    first, second = (0.5 + 0.7) / 2, 0.5 * 0.2 / 2
    assert found[0] == pytest.approx([first, second, second])
    assert found[1] == pytest.approx([(0.5 * 1.0 + 0.7 * 0.5 + 0.1 * 0.5) / (0.5 + 0.7 + 0.1)])


def test_a_tree_is_planned_where_it_is_the_fastest():
    from pass_sampling.gpu.bench.calibration import MeasuredTree
    from pass_sampling.gpu.bench.choice import best_outcomes
    from pass_sampling.gpu.commands.planned import _settings

    calibration = calibration_of({2: 1.5}, [0.6, 0.3])
    trees = (MeasuredTree((2, (1, 0)), 1.4, 2.2), MeasuredTree((3, 1), 2.0, 2.4))
    measured = replace(calibration.ways[0], trees=trees)
    best, chain, plain = best_outcomes(replace(calibration, ways=(measured,)), [way()])
    assert best.candidates == (2, (1, 0)) and best.tokens_per_second == pytest.approx(2200 / 1.4)
    assert chain.candidates is None and chain.num_draft == 2 and plain.way is None
    assert _settings(best, [way()]) == {"candidates": "2,1+0", "verify": "without-replacement"}
