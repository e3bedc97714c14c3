"""The plan: what is chosen from what was measured, how it is kept, and that it changes nothing but the speed."""

from __future__ import annotations

import json
import os
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from console import read_strictly, run

pytestmark = pytest.mark.torch
FIGURES = ("tokens_per_step", "milliseconds_per_step", "tokens_per_second", "ratio_to_plain")
PREDICTED = dict.fromkeys(FIGURES, 1.5)
PLANNED = ["--max-new-tokens", "12", "--json"]
PASSES = {1: 1.0, 100: 100.0}


def survivals(num_draft: int = 4):
    """Chances that at least 1, 2, ... drafts are accepted: they never rise."""
    chances = st.lists(st.floats(0, 1), min_size=num_draft, max_size=num_draft)
    return chances.map(lambda rates: np.cumprod(rates))


@given(survival=survivals(), groups=st.sets(st.integers(1, 4)).map(lambda rest: (0, *sorted(rest))))
def test_the_share_of_steps_with_drafts_is_the_stationary_one(survival, groups):
    """Of the chain that stays where there are look-ahead rows, and comes back from a step without drafts always."""
    from pass_sampling.gpu.bench.plan import group_share

    ends = -np.diff(np.concatenate([[1.0], survival, [0.0]]))
    stays = ends[list(groups)].sum()
    values, vectors = np.linalg.eig(np.array([[stays, 1.0 - stays], [1.0, 0.0]]).T)
    stationary = np.real(vectors[:, np.argmax(np.real(values))])
    assert group_share(survival, groups) == pytest.approx(stationary[0] / stationary.sum(), abs=1e-9)
    assert group_share(survival, (0, 1, 2, 3, 4)) == pytest.approx(1.0)


def predicted(monkeypatch, survival, milliseconds, plain):
    """Predict one way of drafting from figures that are given instead of measured."""
    from pass_sampling.gpu.bench import plan as module
    from pass_sampling.gpu.decode_options import DecodeOptions

    costs = {(0, depth, "token"): cost for depth, cost in milliseconds.items()}
    costs |= {(0, max(milliseconds), "block"): milliseconds[max(milliseconds)], (-1, 0, ""): plain}
    monkeypatch.setattr(module, "pass_milliseconds", lambda *given: PASSES)
    monkeypatch.setattr(module, "_step_costs", lambda *given: costs)
    monkeypatch.setattr(module, "_survivals", lambda *given: ({"token": survival, "block": survival}, 0.0))
    method = SimpleNamespace(num_draft=len(survival))
    return module.predict(SimpleNamespace(model=None), [module.Candidate(DecodeOptions("ngram"), method)], [[0]])[0]


@given(survival=survivals(3), cost=st.floats(0.01, 2.0), plain=st.floats(0.5, 2.0))
def test_the_fastest_is_chosen_and_plain_decoding_where_nothing_pays(survival, cost, plain):
    milliseconds = {depth: 1.0 + cost * depth for depth in (1, 2, 3)}
    with pytest.MonkeyPatch.context() as monkeypatch:
        best = predicted(monkeypatch, survival, milliseconds, plain)[0]
    speeds = {depth: 1000 * (1 + survival[:depth].sum()) / ms for depth, ms in milliseconds.items()}
    threshold = 1.02 * 1000 / plain
    assume(max(speeds.values()) != pytest.approx(threshold, rel=1e-12))  # where rounding decides
    if max(speeds.values()) >= threshold:
        assert best.options.method == "ngram" and best.tokens_per_second == pytest.approx(max(speeds.values()))
    else:
        assert best.options.method == "autoregressive" and best.tokens_per_second == pytest.approx(1000 / plain)


def test_many_vectors_take_no_longer_to_choose_from():
    from pass_sampling.gpu.bench.plan import _with_groups
    from pass_sampling.gpu.decode_options import DecodeOptions

    found = list(_with_groups(DecodeOptions("pass-one-call"), np.cumprod(np.full(24, 0.9)), 30.0, 1.0, PASSES))
    assert len(found) == 25 and all(each.milliseconds_per_step > 0 for each in found)
    assert all(0 in each.options.groups for each in found)


@pytest.mark.parametrize("rule", ["token", "block"])
def test_the_chances_of_survival_are_those_of_the_record(rule):
    """Two drafts that are accepted with the chances 1/2 and 1/4, by the token rule one after the other."""
    from pass_sampling.gpu.bench.plan import _survival
    from pass_sampling.reference.record import Record

    record = Record((), (), (), draft_tokens=(0, 0), accept_probs=(0.5, 0.25))
    expected = {"token": [0.5, 0.125, 0.0], "block": [1 - 0.5 * 0.75, 0.25, 0.0]}
    assert _survival(record, 3, rule) == pytest.approx(expected[rule])


def plan_of(**options):
    from pass_sampling.gpu.bench.plan import Plan
    from pass_sampling.gpu.decode_options import DecodeOptions

    return Plan(DecodeOptions(**options), {"dtype": "float32"}, PREDICTED)


@pytest.mark.parametrize(
    "options",
    [
        {"method": "autoregressive"},
        {"method": "pass-one-call", "num_draft": 3, "groups": (0, 3), "verify": "block", "lookahead": Path("vectors")},
        {"method": "ngram", "candidates": (3, (2, 1, 0)), "verify": "k-seq"},
        {"method": "draft-model", "schedule": "entropy", "lenience": 0.5, "draft_model": Path("small")},
    ],
)
def test_a_plan_is_read_as_it_was_written(options, tmp_path):
    from pass_sampling.gpu.bench.plan import Plan

    plan = plan_of(**options)
    plan.save(tmp_path / "plan.json")
    assert Plan.load(tmp_path / "plan.json") == plan
    assert [path.name for path in tmp_path.iterdir()] == ["plan.json"]


@pytest.mark.parametrize(
    "change, sentence",
    [
        ({"format_version": 1}, "is no plan of format_version 2, expected one"),
        ({"more": 1}, "is no plan of format_version 2, expected one"),
        ({"options": 3}, "found options 3, expected that of a plan"),
        ({"options": {"temperature": 0.5}}, "found the options {'temperature': 0.5}, expected some of method"),
        ({"options": {"method": "guess"}}, "method: found 'guess', expected one of autoregressive"),
        ({"options": {"num_draft": "3"}}, "num_draft: found '3', expected a value of another kind"),
        ({"options": {"num_draft": 0}}, "num_draft: found 0, expected an integer from 1"),
        ({"options": {"groups": [0, -1]}}, "groups: found -1, expected an integer from 0"),
        ({"options": {"candidates": [2, [1]]}}, "found (1,) after 2 places, expected a number for each"),
        ({"prediction": PREDICTED | {"tokens_per_second": "fast"}}, "found the prediction {"),
        ({"prediction": {"tokens_per_second": 3.5}}, "found the prediction {'tokens_per_second': 3.5}, expected milli"),
        ({"made_for": {"model": "mine"}}, "found made_for ['mine'], expected names and fingerprints"),
    ],
)
def test_a_file_that_holds_something_else_is_refused(tmp_path, change, sentence):
    from pass_sampling.gpu.bench.plan import Plan

    path = tmp_path / "plan.json"
    plan_of(method="autoregressive").save(path)
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(ValueError, match="plan") as error:
        Plan.load(path)
    assert sentence in str(error.value)


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
    considered = plan["considered"]
    assert {each["options"]["method"] for each in considered} == {"autoregressive", "pass", "pass-one-call"}
    assert considered[0]["tokens_per_second"] == plan["prediction"]["tokens_per_second"]
    assert plan["options"] == considered[0]["options"]


def test_a_plan_is_done_again_to_the_token(box, plan_file, capsys):
    found = []
    for _ in range(2):
        assert run("generate", "--model", box.model, "--plan", plan_file, "--prompt", "def", *PLANNED) == 0
        found.append(read_strictly(capsys.readouterr().out))
    assert found[0]["tokens"] == found[1]["tokens"] and found[0]["method"] == found[0]["plan"]["options"]["method"]
    assert {"format_version": 2} | found[0]["plan"] == json.loads(plan_file.read_text())


def test_every_plan_writes_the_same_greedy_text(box, plan_file, tmp_path, capsys):
    """Whatever it says: it is about speed alone."""
    from pass_sampling.gpu.bench.plan import Plan
    from pass_sampling.gpu.decode_options import DecodeOptions

    plan, texts = Plan.load(plan_file), set()
    for options in (
        DecodeOptions("autoregressive"),
        DecodeOptions("pass", box.vectors, num_draft=2, verify="token"),
        DecodeOptions("pass-one-call", box.vectors, num_draft=3, verify="block", groups=(0, 2)),
        DecodeOptions("pass-one-call", box.vectors, candidates=(2, (1, 0)), verify="without-replacement"),
        DecodeOptions("prompt-lookup", num_draft=2, verify="block"),
    ):
        replace(plan, options=options).save(tmp_path / "plan.json")
        argv = ["generate", "--model", box.model, "--plan", tmp_path / "plan.json", "--temperature", 0]
        assert run(*argv, "--prompt", "def", *PLANNED) == 0
        texts.add(tuple(read_strictly(capsys.readouterr().out)["tokens"]))
    assert len(texts) == 1


def test_a_plan_for_something_else_is_refused(box, plan_file, tmp_path, capsys):
    from pass_sampling.gpu.bench.plan import Plan
    from pass_sampling.gpu.decode_options import DecodeOptions

    plan = Plan.load(plan_file)
    argv = ["generate", "--model", box.model, "--prompt", "def", *PLANNED]

    def complaint(changed, *more):
        changed.save(tmp_path / "plan.json")
        assert run(*argv, "--plan", tmp_path / "plan.json", *more) == 2
        printed = capsys.readouterr()
        assert printed.out == ""
        return printed.err

    other = {"name": "another", "fingerprint": "f" * 64}
    sentence = complaint(replace(plan, made_for=plan.made_for | {"model": other}))
    assert "plan: found it made for 'another' (ffffffffffff), expected the model 'model' (" in sentence
    vectors = replace(plan, options=DecodeOptions("pass", box.vectors))
    sentence = complaint(replace(vectors, made_for=plan.made_for | {"lookahead": other}))
    assert "expected the look-ahead vectors 'vectors' (" in sentence
    assert "expected the look-ahead vectors it was made with" in complaint(
        replace(vectors, options=DecodeOptions("pass", tmp_path / "gone"))
    )
    assert "found a plan without a method" in complaint(replace(plan, options=DecodeOptions()))
    assert "--plan: found it with --verify, expected one of them" in complaint(plan, "--verify", "block")
    assert run(*argv, "--plan", tmp_path / "none.json") == 2
    assert "none.json is not a file, expected a plan" in capsys.readouterr().err


def test_a_plan_knows_the_folder_of_its_own_method(tmp_path, capsys, monkeypatch):
    """Two methods may draft from two folders of one kind: the bundled ones do."""
    from pass_sampling.gpu.bench.plan import Prediction
    from pass_sampling.gpu.checkpoints import FUSED, LOOKAHEAD
    from pass_sampling.gpu.decode_options import DecodeOptions

    def choosing(method):
        def predict(plain, candidates, prefixes, report):
            (options,) = [each.options for each in candidates if each.options.method == method]
            return [Prediction(options, 2.0, 1.0), Prediction(DecodeOptions("autoregressive"), 1.0, 1.0)], PASSES

        return predict

    for method, folder in (("pass", LOOKAHEAD), ("pass-one-call", FUSED)):
        monkeypatch.setattr("pass_sampling.gpu.bench.plan.predict", choosing(method))
        file = tmp_path / f"{method}.json"
        assert run("plan", "--again", "--output", file, "--json") == 0
        found = json.loads(file.read_text())
        assert found["options"]["lookahead"] == str(folder) and found["made_for"]["lookahead"]["name"] == folder.name
        capsys.readouterr()
        assert run("generate", "--plan", file, "--prompt", "def", "--max-new-tokens", 4, "--json") == 0
        assert read_strictly(capsys.readouterr().out)["method"] == method


def test_a_kept_plan_that_is_not_whole_is_made_again(box, plan_file, capsys):
    folder = Path(os.environ["XDG_CACHE_HOME"]) / "pass-sampling" / "plans"
    (kept,) = [path for path in folder.glob("*.json") if path.read_text() == plan_file.read_text()]
    whole = json.loads(kept.read_text())
    for broken in (whole | {"options": {"method": "guess"}}, whole | {"considered": {}}, []):
        kept.write_text(json.dumps(broken))
        assert run("plan", "--model", box.model, "--lookahead", box.vectors, "--json") == 0
        capsys.readouterr()
        assert json.loads(kept.read_text()).keys() == whole.keys()
