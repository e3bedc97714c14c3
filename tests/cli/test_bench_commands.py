"""`pass-sampling bench`: what it prints and draws, and which methods it leaves out and why."""

import json
import sys

import pytest

from console import read_strictly, run
from pass_sampling.gpu.cli.console import Bar

FIELDS = """method options tokens_per_second spread ratio_to_plain tokens_per_forward positions_per_forward
accepted_per_position expected_tokens_per_forward repeated_8grams milliseconds_per_pass""".split()
PEERS = ["transformers", "transformers-prompt-lookup", "transformers-assisted"]
SHAPE = """machine versions shape dtype gigabytes_per_second weights_gigabytes milliseconds_per_pass times_one_row
of_the_limit tokens_per_second overhead transformers times_transformers""".split()


def arguments(box, *more):
    argv = ["bench", "--model", box.model, "--prompts", box.prompts, "--max-new-tokens", 10, "--quick"]
    return [*argv, "--repeats", 1, *more]


def bench(box, capsys, *more):
    assert run(*arguments(box, "--json", *more)) == 0
    printed = capsys.readouterr()
    assert "writing" in printed.err and "expecting" in printed.err
    return read_strictly(printed.out)


def test_all_that_can_run_is_compared_and_every_figure_agrees_with_the_others(box, capsys):
    sources = ["--lookahead", box.vectors, "--draft-model", box.draft, "--ngram", box.ngram]
    assert run("plan", "--model", box.model, *sources) == 0  # --quick makes none
    capsys.readouterr()
    found = bench(box, capsys, *sources, "--repeats", 2)
    assert set(found) == {"machine", "versions", "settings", "rows", "plan"}
    rows, plan, settings = {row["method"]: row for row in found["rows"]}, found["plan"], found["settings"]
    ours = ["autoregressive", "pass", "pass-one-call", "draft-model", "prompt-lookup", "ngram", "lookup-ngram"]
    assert list(rows) == [*ours, "planned", *PEERS] and settings["left_out"].keys() == {"blockwise", "blockwise-paths"}
    assert rows["planned"]["options"].get("method") == plan["options"]["method"] in ours
    predicted = f"planned is {plan['options']['method']}: {plan['prediction']['ratio_to_plain']:.2f} times plain"
    (note,) = [note for note in settings["notes"] if note.startswith(f"{predicted} decoding was predicted")]
    assert note.endswith(f"it was {rows['planned']['ratio_to_plain']:.2f} times")
    for name, row in rows.items():
        assert [field for field in FIELDS if field not in row] == []
        assert row["spread"][0] <= row["tokens_per_second"] <= row["spread"][1]
        assert row["ratio_spread"][0] <= row["ratio_to_plain"] <= row["ratio_spread"][1]
        assert 0 <= row["texts_that_count"] <= row["texts"] == 4 and row["tokens"] == 10 * row["texts_that_count"]
        if row["texts_that_count"]:
            assert row["tokens_per_forward"] == row["tokens"] / row["num_forward_passes"] >= 1
        assert (row["accepted_per_position"] is None) == (name in PEERS) == (row["expected_tokens_per_forward"] is None)
        assert (row["num_draft_passes"] > 0) == (name in ("draft-model", "transformers-assisted"))
    plain = rows["autoregressive"]
    assert plain["ratio_to_plain"] == 1 == plain["expected_tokens_per_forward"] and plain["ratio_spread"] == [1, 1]
    assert plain["expected_standard_error"] == 0 and plain["accepted_per_position"] == []
    one_call = {"num_lookahead": 3, "parts": [], "refine": "unrefined", "verify": "token"}
    assert rows["pass"]["options"] == {"num_lookahead": 3, "verify": "token"}
    assert rows["pass-one-call"]["options"] == one_call
    assert rows["draft-model"]["options"] == {"drafter": "small", "num_draft": 4, "verify": "token"}
    assert rows["transformers-assisted"]["options"] == {"assistant": "small", "num_draft": 4}
    assert len(rows["draft-model"]["accepted_per_position"]) == 4
    assert settings["repeats"] == 2 and settings["quick"] and not settings["enough_repeats"]
    assert settings["prompts"]["source"] == str(box.prompts) and len(settings["prompts"]["lengths"]) == 2
    assert 2 <= settings["places"]["count"] <= 24 and settings["seed"] == 0 and settings["dtype"] == "float32"
    assert any("too few paired runs" in note for note in settings["notes"])
    assert found["versions"].keys() >= {"python", "torch", "transformers", "numpy", "pass-sampling"}
    assert found["machine"]["threads"] >= 1 and found["machine"]["device"] == "cpu"


def test_what_cannot_run_on_the_checkpoint_is_left_out_with_the_reason(box, capsys, monkeypatch, tmp_path):
    monkeypatch.setenv("LOCALAPPDATA" if sys.platform == "win32" else "XDG_CACHE_HOME", str(tmp_path))  # without a plan
    found = bench(box, capsys)
    ours = ["autoregressive", "prompt-lookup"]
    assert [row["method"] for row in found["rows"]] == [*ours, "transformers", "transformers-prompt-lookup"]
    flags = {"pass": "--lookahead", "pass-one-call": "--lookahead", "draft-model": "--draft-model"}
    flags |= {"ngram": "--ngram", "lookup-ngram": "--ngram"}
    said = {"planned": "no saved plan"} | {name: f"expected {flag} FOLDER" for name, flag in flags.items()}
    said |= dict.fromkeys(("blockwise", "blockwise-paths"), "expected --lookahead FOLDER")
    said |= {"transformers-assisted": "expected --draft-model FOLDER"}
    left_out = found["settings"]["left_out"]
    assert left_out.keys() == said.keys()
    for name, reason in left_out.items():
        assert said[name] in reason and f"{name} is left out: {reason}" in found["settings"]["notes"]


def test_vectors_with_a_head_leave_out_the_method_that_has_no_use_for_it(box, capsys):
    found = bench(box, capsys, "--lookahead", box.root / "headed")
    assert "pass-one-call" in found["settings"]["left_out"]["pass"]
    (fused,) = [row for row in found["rows"] if row["method"] == "pass-one-call"]
    assert fused["options"]["parts"] == ["head"] and fused["expected_tokens_per_forward"] > 1


def test_only_the_methods_asked_for_run_and_plain_decoding_with_them_and_lossy_ones_are_named(box, capsys):
    more = ["--methods", "prompt-lookup, transformers", "--num-draft", 2, "--lenience", 0.5]
    found = bench(box, capsys, *more, "--repeats", 3)
    assert [row["method"] for row in found["rows"]] == ["autoregressive", "prompt-lookup", "transformers"]
    asked = {"drafter": "prompt lookup", "num_draft": 2, "verify": "token", "lossy_lenience": 0.5}
    assert found["rows"][1]["options"] == asked
    assert found["settings"]["left_out"] == {} and found["settings"]["repeats"] == 3
    assert "LOSSY, with another distribution than plain decoding: prompt-lookup" in found["settings"]["notes"]


@pytest.mark.parametrize(
    ("library", "source"),
    [(True, "held-out files of the standard library"), (False, "beginnings that come with the package")],
)
def test_without_prompts_they_are_pieces_of_held_out_files(library, source, box, capsys, monkeypatch):
    if not library:
        monkeypatch.setattr("pass_sampling.gpu.cli.bench.read_library", lambda names: {})
    argv = ["bench", "--model", box.model, "--max-new-tokens", 10, "--quick", "--repeats", 1, "--json"]
    assert run(*argv, "--methods", "autoregressive") == 0
    settings = read_strictly(capsys.readouterr().out)["settings"]
    assert settings["prompts"]["source"] == source
    if library:
        assert set(settings["prompts"]["lengths"]) == {86}  # the model reads 96 tokens


@pytest.mark.parametrize(
    ("what", "stop", "prompts", "expected"), [("writing", 5, 0, 0), ("writing", 13, 1, 0), ("expecting", 1, 2, 1)]
)
def test_a_comparison_that_is_stopped_prints_what_there_is(what, stop, prompts, expected, box, capsys, monkeypatch):
    show = Bar.show

    def interrupted(bar, done, total, **figures):
        show(bar, done, total, **figures)
        if bar._what == what and done == stop:
            raise KeyboardInterrupt

    monkeypatch.setattr(Bar, "show", interrupted)
    argv = arguments(box, "--methods", "prompt-lookup", "--repeats", 3, "--json")
    assert run(*argv) == 130
    printed = capsys.readouterr().out
    assert (printed == "") == (not prompts)
    if prompts:
        found = read_strictly(printed)
        settings = found["settings"]
        assert settings["partial"] and settings["notes"][0] == "partial: this comparison was not finished"
        assert len(settings["prompts"]["lengths"]) == prompts
        assert [row["method"] for row in found["rows"]] == ["autoregressive", "prompt-lookup"]
        told = [row for row in found["rows"] if row["expected_tokens_per_forward"] is not None]
        assert len(told) == expected
    monkeypatch.setattr(Bar, "show", show)
    assert run(*argv) == 0
    assert not read_strictly(capsys.readouterr().out)["settings"]["partial"]


def test_chat_answers_are_compared_by_category(box, capsys, tmp_path):
    """A question of two turns is two prompts, the second with plain decoding's answer to the first."""
    questions = [{"category": "qa", "turns": [word]} for word in ("def", "for", "while")]
    questions.append({"category": "coding", "turns": ["index", "value"]})
    (tmp_path / "q.jsonl").write_text("\n".join(map(json.dumps, questions)))
    argv = ["bench", "--model", box.chat, "--prompts", tmp_path / "q.jsonl", "--chat", "--limit", 2, "--repeats", 1]
    argv += ["--methods", "prompt-lookup,transformers", "--max-new-tokens", 8]
    assert run(*argv, "--json") == 0
    found = read_strictly(capsys.readouterr().out)
    assert (
        set(found["categories"]) == {"qa", "multi-turn", "overall"}
        and len(found["settings"]["prompts"]["lengths"]) == 4
    )
    for methods in found["categories"].values():
        assert list(methods) == ["autoregressive", "prompt-lookup", "transformers"]
        assert methods["autoregressive"]["ratio_to_plain"] == 1
    assert run(*argv) == 0
    out = capsys.readouterr().out
    assert "times plain decoding, and tokens per pass:" in out and "or until the model ends it" in out
    assert run("bench", "--chat") == 2 and "--chat: found it without --prompts" in capsys.readouterr().err


def test_the_shape_of_a_model_is_measured_with_every_figure(capsys, monkeypatch):
    import roofline

    monkeypatch.setattr("sys.argv", ["roofline.py", "--shape", "tiny", "--repeats", "1"])
    roofline.main()
    found = read_strictly(capsys.readouterr().out)
    assert list(found) == SHAPE and found["shape"] == "tiny" and found["dtype"] == "bfloat16"
    passes = {int(rows): each for rows, each in found["milliseconds_per_pass"].items()}
    assert list(passes) == [1, 2, 5, 9, 16, 25, 32, 64, 128] and all(each > 0 for each in passes.values())
    assert found["overhead"] < 1 and 0 < found["of_the_limit"] and found["transformers"].keys() == {"eager"}
