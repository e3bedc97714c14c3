"""Options of methods, and the plan: what is taken and chosen, how it is kept, and that it changes only the speed."""

import contextlib
import json
import os
import sys
from dataclasses import make_dataclass, replace
from pathlib import Path

import numpy as np
import pytest

from console import read_strictly, run
from pass_sampling.gpu.bench import plan as home
from pass_sampling.gpu.bench.plan import Plan, Prediction
from pass_sampling.gpu.checkpoints import FUSED, LOOKAHEAD, MODEL
from pass_sampling.gpu.cli import plan as command
from pass_sampling.gpu.decode_options import DecodeOptions, flag_of, parse_candidates, written_candidates

# As much of a method as a choice of settings asks for.
Drafting = make_dataclass("Drafting", ["num_draft", ("rule", str, "token")])


@pytest.mark.parametrize("gain", [0.5, 1.01, 1.03, 3.0])
def test_the_fastest_is_chosen_and_plain_decoding_if_nothing_pays(gain, monkeypatch):
    """From figures that are given instead of measured: `gain` times plain decoding at the best number of drafts."""
    written = []

    def text(method, prefix, length, seed):
        written.append((method.num_draft, tuple(prefix), seed))
        return np.array([1.0, *({0: (1.0, 1.0), 2: (2.0, 2.0 / gain)}.get(method.num_draft, (1.0, 9.0)))])

    monkeypatch.setattr(home, "_written", text)
    found = home.predict(Drafting(0), [home.Candidate(DecodeOptions("ngram"), Drafting(3))], [[0], [1], [2]], 0.1)
    assert [each.options.method for each in found] == ["ngram", "autoregressive"][:: 1 if gain > 1.02 else -1]
    (best,) = [each for each in found if each.options.method == "ngram"]
    assert (best.options.num_draft, best.options.verify, best.tokens_per_step) == (2, "block", 2.0)
    assert best.tokens_per_second == pytest.approx(1000 * gain)
    rounds = [each for each in written[1:] if each[2] > 0]  # the same prompts and seeds for all
    assert {num_draft for num_draft, *_ in rounds} == {0, 1, 2, 3} and len({each[1:] for each in rounds[:4]}) == 1


@pytest.fixture(scope="module")
def plan_file(box, tmp_path_factory):
    """A plan for the small model, made once."""
    path = tmp_path_factory.mktemp("plan") / "plan.json"
    with path.open("w") as file, contextlib.redirect_stdout(file):
        assert run("plan", "--model", box.model, "--lookahead", box.vectors, "--json") == 0
    return path


def generate(box, capsys, *more):
    argv = ["generate", "--model", box.model, "--prompt", "def", "--max-new-tokens", 12, "--json"]
    assert run(*argv, *more) == 0
    printed = capsys.readouterr()
    assert printed.err == ""
    return read_strictly(printed.out)


def test_a_plan_is_measured_once_and_told_as_a_table(box, plan_file, capsys, monkeypatch):
    monkeypatch.setattr(command, "predict", lambda *some, **named: pytest.fail("measured again"))
    assert run("plan", "--model", box.model, "--lookahead", box.vectors) == 0
    printed = capsys.readouterr()
    assert printed.err == "" and "expected of" in printed.out and printed.out.splitlines()[-1].startswith("plan: ")
    plan = json.loads(plan_file.read_text())
    considered = plan["considered"]
    assert {each["options"]["method"] for each in considered} == {"autoregressive", "pass", "pass-one-call"}
    assert considered[0]["tokens_per_second"] == plan["prediction"]["tokens_per_second"]
    assert plan["options"] == considered[0]["options"]
    found = generate(box, capsys, "--lookahead", box.vectors)
    assert found["method"] == plan["options"]["method"] and found["plan"] == plan


def test_a_plan_is_done_again_to_the_token(box, plan_file, capsys):
    one, again = (generate(box, capsys, "--plan", plan_file) for _ in range(2))
    assert one["tokens"] == again["tokens"] and one["method"] == one["plan"]["options"]["method"]
    assert one["plan"] == json.loads(plan_file.read_text())


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
        options, *_ = [each.options for each in candidates if each.options.method == method]
        return [Prediction(options, 2.0, 1.0), Prediction(DecodeOptions("autoregressive"), 1.0, 1.0)]

    monkeypatch.setattr(command, "predict", predict)
    file = tmp_path / "plan.json"
    assert run("plan", "--again", "--json") == 0
    file.write_text(capsys.readouterr().out)
    assert Path(json.loads(file.read_text())["options"]["lookahead"]).samefile(folder)
    assert run("generate", "--plan", file, "--prompt", "def", "--max-new-tokens", 4, "--json") == 0
    assert read_strictly(capsys.readouterr().out)["method"] == method


@pytest.mark.parametrize("change", [{"options": {"method": "guess"}}, {"considered": {}}, None])
def test_a_kept_plan_that_is_not_whole_is_made_again(change, box, plan_file, capsys, monkeypatch):
    predicted = [Prediction(DecodeOptions("autoregressive"), 1.0, 1.0)]
    monkeypatch.setattr(command, "predict", lambda *some, **named: predicted)
    whole = json.loads(plan_file.read_text())
    folder = Path(os.environ["XDG_CACHE_HOME"]) / "pass-sampling" / "plans"
    (kept,) = [path for path in folder.glob("*.json") if path.read_text() == plan_file.read_text()]
    kept.write_text(json.dumps([] if change is None else whole | change))
    assert run("plan", "--model", box.model, "--lookahead", box.vectors, "--json") == 0
    assert read_strictly(capsys.readouterr().out)["options"] == {"method": "autoregressive"}
    assert Plan.load(kept).options.method == "autoregressive"
    kept.write_text(plan_file.read_text())


VECTORS, FOLDER = Path("vectors"), Path("folder")
FIGURES = ("tokens_per_step", "milliseconds_per_step", "tokens_per_second", "ratio_to_plain")
PREDICTED = dict.fromkeys(FIGURES, 1.5)
VALUES = {  # a value of every option
    **{"lookahead": VECTORS, "draft_model": FOLDER, "ngram": FOLDER, "num_draft": 3, "candidates": (3, (2, 1, 0))},
    **{"verify": "block", "schedule": "entropy", "refine": "head", "groups": (0, 3)},
    **{"lenience": 0.5, "accept_top_k": 3, "rescorer": FOLDER, "lattice": 8, "paths": 2},
}
DRAFTER = {"candidates", "lenience", "num_draft", "schedule", "verify"}
REFINED = {"lookahead", "verify", "groups", "ngram", "refine", "rescorer", "lattice"}
TAKEN = {
    "autoregressive": set(),
    "pass": {"lookahead", "num_draft", "verify"},
    "pass-one-call": REFINED | {"num_draft", "candidates", "accept_top_k"},
    "blockwise": REFINED | {"num_draft", "accept_top_k"},
    "blockwise-paths": REFINED | {"paths"},
    "draft-model": DRAFTER | {"draft_model"},
    "prompt-lookup": DRAFTER,
    "ngram": DRAFTER | {"ngram"},
    "lookup-ngram": DRAFTER | {"ngram"},
}


@pytest.mark.parametrize("method", TAKEN)
@pytest.mark.parametrize("name", VALUES)
def test_an_option_is_taken_or_refused_by_its_flag_with_the_methods_that_take_it(name, method):
    options = DecodeOptions(method, **{name: VALUES[name]})
    if name in TAKEN[method]:
        assert options.checked(FOLDER) == options
        return
    with pytest.raises(ValueError) as error:
        options.checked(FOLDER)
    said = str(error.value)
    assert said.startswith(f"{flag_of(name)}: found ") and f" with --method {method}, which" in said
    takers = [f"--method {other}" for other, taken in TAKEN.items() if name in taken]
    assert said.endswith(f"expected {' or '.join(takers)}")


@pytest.mark.parametrize(
    ("given", "method"),
    [
        ({}, "autoregressive"),
        ({"lookahead": VECTORS}, "pass"),
        ({"draft_model": FOLDER, "schedule": "heuristic"}, "draft-model"),
        ({"ngram": FOLDER, "candidates": (2,)}, "ngram"),
        ({"candidates": (2,)}, "pass-one-call"),
        ({"lookahead": VECTORS, "candidates": (2,)}, "pass-one-call"),
        ({"lookahead": VECTORS, "refine": "head"}, "pass-one-call"),
        ({"ngram": FOLDER, "refine": "ngram"}, "pass-one-call"),
    ],
)
def test_the_other_options_tell_which_method_is_meant(given, method):
    options = DecodeOptions(**given)
    assert options.checked(FOLDER) == DecodeOptions(method, **given)
    assert options.is_open == (given.keys() <= {"lookahead", "draft_model", "ngram"})
    assert not DecodeOptions(method).is_open


def test_without_options_the_bundled_model_drafts_from_its_vectors():
    assert DecodeOptions().checked(MODEL / ".." / MODEL.name).method == "pass"
    with pytest.raises(ValueError, match="found --lookahead and --draft-model and --ngram, expected one"):
        DecodeOptions(lookahead=VECTORS, draft_model=FOLDER, ngram=FOLDER).checked(MODEL)


@pytest.mark.parametrize("method", TAKEN)
def test_options_and_plans_are_read_as_they_were_written(method, tmp_path):
    options = DecodeOptions(method, **{name: VALUES[name] for name in TAKEN[method]})
    assert DecodeOptions.from_json(json.loads(json.dumps(options.to_json()))) == options
    plan = Plan(options, PREDICTED)
    plan.save(tmp_path / "plan.json")
    assert Plan.load(tmp_path / "plan.json") == plan
    assert [path.name for path in tmp_path.iterdir()] == ["plan.json"]


def test_a_tree_is_written_as_it_is_read():
    assert parse_candidates("3,2+0+1,1") == (3, (2, 0, 1), 1)
    assert written_candidates((3, (2, 0, 1), 1)) == "3,2+0+1,1"


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"format_version": 1}, "is not a plan of format_version 3, expected one"),
        ({"options": 3}, "found the options 3, expected some of method"),
        ({"options": {"temperature": 0.5}}, "found the options {'temperature': 0.5}, expected some of method"),
        ({"options": {"verify": "guess"}}, "verify: found 'guess', expected one of token, block, match"),
        ({"options": {"num_draft": "3"}}, "num_draft: found '3', expected an integer from 1"),
        ({"options": {"num_draft": 0}}, "num_draft: found 0, expected an integer from 1"),
        ({"options": {"groups": [0, -1]}}, "groups: found -1, expected an integer from 0"),
        ({"options": {"candidates": [2, [1]]}}, "found (1,) after 2 places, expected a number for each"),
        ({"prediction": PREDICTED | {"tokens_per_second": "fast"}}, "found the prediction {"),
        ({"prediction": {"tokens_per_second": 3.5}}, "found the prediction {'tokens_per_second': 3.5}, expected milli"),
    ],
)
def test_a_plan_that_holds_something_else_is_refused(change, said, tmp_path):
    path = tmp_path / "plan.json"
    Plan(DecodeOptions("autoregressive"), PREDICTED).save(path)
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(ValueError, match="plan") as error:
        Plan.load(path)
    assert said in str(error.value)
