"""`DecodeOptions`: which options each method takes, which method options ask for, and how they are written down."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from pass_sampling.gpu.bench.plan import Plan
from pass_sampling.gpu.checkpoints import MODEL
from pass_sampling.gpu.decode_options import DecodeOptions, flag_of, parse_candidates, written_candidates

VECTORS, FOLDER = Path("vectors"), Path("folder")
FIGURES = ("tokens_per_step", "milliseconds_per_step", "tokens_per_second", "ratio_to_plain")
PREDICTED = dict.fromkeys(FIGURES, 1.5)
VALUES = {  # a value of every option
    **{"lookahead": VECTORS, "draft_model": FOLDER, "ngram": FOLDER, "num_draft": 3, "candidates": (3, (2, 1, 0))},
    **{"verify": "block", "schedule": "entropy", "refine": "head", "groups": (0, 3)},
    "lenience": 0.5,
}
DRAFTER = {"candidates", "lenience", "num_draft", "schedule", "verify"}
TAKEN = {
    "autoregressive": set(),
    "pass": {"lookahead", "num_draft", "verify"},
    "pass-one-call": {"lookahead", "num_draft", "verify"} | {"candidates", "groups", "ngram", "refine"},
    "blockwise": {"lookahead", "num_draft", "verify", "groups", "ngram", "refine"},
    "draft-model": DRAFTER | {"draft_model"},
    "prompt-lookup": DRAFTER,
    "ngram": DRAFTER | {"ngram"},
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
    who = "plain decoding (--method autoregressive)" if method == "autoregressive" else f"--method {method}, which has"
    assert str(error.value).startswith(f"{flag_of(name)}: found ") and f" with {who}" in str(error.value)
    takers = [f"--method {other}" for other, taken in TAKEN.items() if name in taken]
    assert str(error.value).endswith(f"expected {' or '.join(takers)}")


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
        ({"format_version": 1}, "is no plan of format_version 3, expected one"),
        ({"more": 1}, "is no plan of format_version 3, expected one"),
        ({"options": 3}, "found options 3, expected that of a plan"),
        ({"options": {"temperature": 0.5}}, "found the options {'temperature': 0.5}, expected some of method"),
        ({"options": {"method": "guess"}}, "method: found 'guess', expected one of autoregressive"),
        ({"options": {"verify": "guess"}}, "verify: found 'guess', expected one of token, block, match"),
        ({"options": {"schedule": "guess"}}, "schedule: found 'guess', expected one of fixed, heuristic, entropy"),
        ({"options": {"refine": "guess"}}, "refine: found 'guess', expected one of none, ngram, head"),
        ({"options": {"num_draft": "3"}}, "num_draft: found '3', expected a value of another kind"),
        ({"options": {"num_draft": True}}, "num_draft: found True, expected a value of another kind"),
        ({"options": {"lenience": True}}, "lenience: found True, expected a value of another kind"),
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
