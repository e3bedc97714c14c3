"""The plan: what is chosen from what was measured, how it is kept, and that it changes nothing but the speed."""

from __future__ import annotations

import json
import os
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from console import read_strictly, run
from pass_sampling.gpu.bench import plan as home
from pass_sampling.gpu.bench.plan import Plan, Prediction
from pass_sampling.gpu.checkpoints import FUSED, LOOKAHEAD
from pass_sampling.gpu.decode_options import DecodeOptions
from pass_sampling.reference.record import Record

PASSES = {1: 1.0, 100: 100.0}


def survivals(num_draft=4):
    """Chances that at least 1, 2, ... drafts are accepted: they never rise."""
    chances = st.lists(st.floats(0, 1), min_size=num_draft, max_size=num_draft)
    return chances.map(lambda rates: np.cumprod(rates))


# --- The choice ---


@given(survival=survivals(), groups=st.sets(st.integers(1, 4)).map(lambda rest: (0, *sorted(rest))))
def test_the_share_of_steps_with_drafts_is_the_stationary_one(survival, groups):
    """Of the chain that stays where there are look-ahead rows, and always returns from a step without drafts."""
    ends = -np.diff(np.concatenate([[1.0], survival, [0.0]]))
    stays = ends[list(groups)].sum()
    values, vectors = np.linalg.eig(np.array([[stays, 1.0 - stays], [1.0, 0.0]]).T)
    stationary = np.real(vectors[:, np.argmax(np.real(values))])
    assert home.group_share(survival, groups) == pytest.approx(stationary[0] / stationary.sum(), abs=1e-9)
    assert home.group_share(survival, (0, 1, 2, 3, 4)) == pytest.approx(1.0)


@given(survival=survivals(3), cost=st.floats(0.01, 2.0), plain=st.floats(0.5, 2.0), off=st.floats(0.5, 2.0))
def test_the_fastest_is_chosen_and_plain_decoding_if_nothing_pays(survival, cost, plain, off):
    """From figures that are given instead of measured; texts were written `off` times as fast as was expected."""
    milliseconds = {depth: 1.0 + cost * depth for depth in (1, 2, 3)}
    costs = {(0, depth, "token"): each for depth, each in milliseconds.items()}
    costs |= {(0, 3, "block"): milliseconds[3], (-1, 0, ""): plain}
    candidate, chosen = home.Candidate(DecodeOptions("ngram"), SimpleNamespace(num_draft=3)), []

    def expected(depth):
        return 1000 * (1 + survival[:depth].sum()) / milliseconds[depth]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(home, "pass_milliseconds", lambda *given: PASSES)
        patch.setattr(home, "_step_costs", lambda *given: costs)
        patch.setattr(home, "_survivals", lambda *given: ({"token": survival, "block": survival}, 0.0))
        patch.setattr(home.Candidate, "planned", lambda candidate, options: chosen.append(options) or options)
        patch.setattr(home, "_rates", lambda methods, *given: [1000 / plain, off * expected(methods[1].num_draft)])
        (best, *_), _ = home.predict(SimpleNamespace(model=None), [candidate], [[0]])
    speed, threshold = max(map(expected, milliseconds)), 1.02 * 1000 / plain
    assert expected(chosen[0].num_draft) == pytest.approx(speed)
    assume(off * speed != pytest.approx(threshold, rel=1e-12))  # where rounding decides
    pays = off * speed >= threshold
    assert best.options.method == ("ngram" if pays else "autoregressive")
    assert best.tokens_per_second == pytest.approx(off * speed if pays else 1000 / plain)


def test_many_vectors_take_no_longer_to_choose_from():
    found = list(home._with_groups(DecodeOptions("pass-one-call"), np.cumprod(np.full(24, 0.9)), 30.0, 1.0, PASSES))
    assert len(found) == 25 and all(each.milliseconds_per_step > 0 for each in found)
    assert all(0 in each.options.groups for each in found)


@pytest.mark.parametrize(("rule", "chances"), [("token", [0.5, 0.125, 0.0]), ("block", [1 - 0.5 * 0.75, 0.25, 0.0])])
def test_the_chances_of_survival_are_those_of_the_record(rule, chances):
    """Two drafts that are accepted with the chances 1/2 and 1/4, by the token rule one after the other."""
    record = Record((), (), (), draft_tokens=(0, 0), accept_probs=(0.5, 0.25))
    assert home._survival(record, 3, rule) == pytest.approx(chances)


# --- The commands ---


@pytest.fixture(scope="module")
def plan_file(box, tmp_path_factory):
    """A plan for the small model, made once."""
    path = tmp_path_factory.mktemp("plan") / "plan.json"
    assert run("plan", "--model", box.model, "--lookahead", box.vectors, "--output", path, "--json") == 0
    return path


def generate(box, capsys, *more):
    argv = ["generate", "--model", box.model, "--prompt", "def", "--max-new-tokens", 12, "--json"]
    assert run(*argv, *more) == 0
    printed = capsys.readouterr()
    assert printed.err == ""
    return read_strictly(printed.out)


def test_the_notice_that_a_plan_is_measured_is_no_output(box, capsys):
    assert run("plan", "--model", box.model, "--again") == 0
    printed = capsys.readouterr()
    assert printed.out.startswith("rows of a pass") and printed.err.startswith("measuring which way of drafting pays")


def test_a_plan_is_measured_once_and_told_as_a_table(box, plan_file, capsys, monkeypatch):
    monkeypatch.setattr(home, "predict", lambda *some, **named: pytest.fail("measured again"))
    assert run("plan", "--model", box.model, "--lookahead", box.vectors) == 0
    printed = capsys.readouterr()
    assert printed.err == "" and "rows of a pass" in printed.out and printed.out.splitlines()[-1].startswith("plan: ")
    plan = json.loads(plan_file.read_text())
    considered = plan["considered"]
    assert {each["options"]["method"] for each in considered} == {"autoregressive", "pass", "pass-one-call"}
    assert considered[0]["tokens_per_second"] == plan["prediction"]["tokens_per_second"]
    assert plan["options"] == considered[0]["options"]
    found = generate(box, capsys, "--lookahead", box.vectors)
    assert found["method"] == plan["options"]["method"] and {"format_version": 2} | found["plan"] == plan


def test_a_plan_is_done_again_to_the_token(box, plan_file, capsys):
    one, again = (generate(box, capsys, "--plan", plan_file) for _ in range(2))
    assert one["tokens"] == again["tokens"] and one["method"] == one["plan"]["options"]["method"]
    assert {"format_version": 2} | one["plan"] == json.loads(plan_file.read_text())


def test_without_options_long_texts_are_planned_and_short_ones_follow_a_plan_that_is_kept(box, capsys, monkeypatch):
    monkeypatch.setenv("LOCALAPPDATA" if sys.platform == "win32" else "XDG_CACHE_HOME", str(box.root / "no plans"))
    short = generate(box, capsys)
    assert short["plan"] is None and short["method"] == "autoregressive"
    monkeypatch.setattr("pass_sampling.gpu.cli.generate.ENOUGH_TOKENS", 1)
    one = generate(box, capsys)
    monkeypatch.undo()
    monkeypatch.setenv("LOCALAPPDATA" if sys.platform == "win32" else "XDG_CACHE_HOME", str(box.root / "no plans"))
    again = generate(box, capsys)
    assert one["tokens"] == again["tokens"] and one["plan"] == again["plan"]
    assert one["plan"]["options"]["method"] == one["method"]
    methods = {each["options"]["method"] for each in one["plan"]["considered"]}
    assert methods == {"autoregressive", "prompt-lookup"}


def test_every_plan_writes_the_same_greedy_text(box, plan_file, tmp_path, capsys):
    """Whatever its options: a plan affects speed only."""
    plan, texts = Plan.load(plan_file), set()
    for options in (
        DecodeOptions("autoregressive"),
        DecodeOptions("pass", box.vectors, num_draft=2, verify="token"),
        DecodeOptions("pass-one-call", box.vectors, num_draft=3, verify="block", groups=(0, 2)),
        DecodeOptions("pass-one-call", box.vectors, candidates=(2, (1, 0)), verify="without-replacement"),
        DecodeOptions("prompt-lookup", num_draft=2, verify="block"),
    ):
        replace(plan, options=options).save(tmp_path / "plan.json")
        found = generate(box, capsys, "--plan", tmp_path / "plan.json", "--temperature", 0)
        assert found["method"] == options.method and DecodeOptions.from_json(found["plan"]["options"]) == options
        texts.add(tuple(found["tokens"]))
    assert len(texts) == 1


@pytest.mark.parametrize(("method", "folder"), [("pass", LOOKAHEAD), ("pass-one-call", FUSED)])
def test_a_plan_knows_the_folder_of_its_own_method(method, folder, tmp_path, capsys, monkeypatch):
    """Two methods may draft from two folders of one kind: the bundled ones do."""

    def predict(plain, candidates, prefixes, report):
        (options,) = [each.options for each in candidates if each.options.method == method]
        return [Prediction(options, 2.0, 1.0), Prediction(DecodeOptions("autoregressive"), 1.0, 1.0)], PASSES

    monkeypatch.setattr(home, "predict", predict)
    file = tmp_path / "plan.json"
    assert run("plan", "--again", "--output", file, "--json") == 0
    found = json.loads(file.read_text())
    assert (
        Path(found["options"]["lookahead"]).samefile(folder) and found["made_for"]["lookahead"]["name"] == folder.name
    )
    capsys.readouterr()
    assert run("generate", "--plan", file, "--prompt", "def", "--max-new-tokens", 4, "--json") == 0
    assert read_strictly(capsys.readouterr().out)["method"] == method


@pytest.mark.parametrize("change", [{"options": {"method": "guess"}}, {"considered": {}}, None])
def test_a_kept_plan_that_is_not_whole_is_made_again(change, box, plan_file, capsys, monkeypatch):
    predicted = [Prediction(DecodeOptions("autoregressive"), 1.0, 1.0)], PASSES
    monkeypatch.setattr(home, "predict", lambda *some, **named: predicted)
    whole = json.loads(plan_file.read_text())
    folder = Path(os.environ["XDG_CACHE_HOME"]) / "pass-sampling" / "plans"
    (kept,) = [path for path in folder.glob("*.json") if path.read_text() == plan_file.read_text()]
    kept.write_text(json.dumps([] if change is None else whole | change))
    assert run("plan", "--model", box.model, "--lookahead", box.vectors, "--json") == 0
    assert read_strictly(capsys.readouterr().out)["options"] == {"method": "autoregressive"}
    assert Plan.load(kept).options.method == "autoregressive"
    kept.write_text(plan_file.read_text())
