"""`pass-sampling bench`: what it prints and draws, whom it leaves out and why, what it refuses before anything runs."""

from __future__ import annotations

import json
import re
import shutil
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from console import Box, read_strictly, run
from folders import contents, tiny_config, write_checkpoint
from pass_sampling.gpu import LookAhead
from pass_sampling.gpu.bench.report import notes_of
from pass_sampling.gpu.cli.bench import _spare_threads
from pass_sampling.gpu.cli.console import Bar
from pass_sampling.gpu.drafters import NgramModel
from pass_sampling.gpu.lookahead.head import SamplerHead

KEYS = {"machine", "versions", "settings", "rows"}
FIELDS = """method options tokens_per_second spread ratio_to_plain tokens_per_forward positions_per_forward
accepted_per_position expected_tokens_per_forward repeated_8grams milliseconds_per_pass""".split()
PEERS = ["transformers", "transformers-prompt-lookup", "transformers-assisted"]


@pytest.fixture(scope="module")
def draft(box: Box, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A smaller model with the same tokenizer."""
    folder = tmp_path_factory.mktemp("draft") / "small"
    write_checkpoint(folder, tiny_config(vocab_size=300, max_position_embeddings=96, num_hidden_layers=1), seed=1)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(box.model / name, folder / name)
    return folder


@pytest.fixture(scope="module")
def ngram(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The n-gram model that knows no context."""
    folder = tmp_path_factory.mktemp("ngram") / "unigram"
    NgramModel(torch.arange(1.0, 301.0)).save(folder)
    return folder


@pytest.fixture(scope="module")
def prompts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("prompts") / "two.jsonl"
    lines = [{"prompt": "def value list of the index"}, {"prompt": "café return"}]
    path.write_text("\n".join(map(json.dumps, lines)), encoding="utf-8")
    return path


def arguments(box: Box, prompts: Path | None, *more: object) -> list[object]:
    given = [] if prompts is None else ["--prompts", prompts]
    return ["bench", "--model", box.model, *given, "--max-new-tokens", 10, "--quick", *more]


def bench(box: Box, capsys: pytest.CaptureFixture[str], prompts: Path | None, *more: object) -> dict:
    assert run(*arguments(box, prompts, "--json", *more)) == 0
    printed = capsys.readouterr()
    assert "writing" in printed.err and "expecting" in printed.err
    return read_strictly(printed.out)


def test_all_that_can_run_is_compared_and_every_figure_agrees_with_the_others(box, capsys, prompts, draft, ngram):
    sources = ["--lookahead", box.vectors, "--draft-model", draft, "--ngram", ngram]
    assert run("plan", "--model", box.model, *sources) == 0  # --quick makes none
    capsys.readouterr()
    found = bench(box, capsys, prompts, *sources, "--repeats", 2)
    assert set(found) == KEYS | {"plan"}
    rows = {row["method"]: row for row in found["rows"]}
    ours = ["autoregressive", "pass", "pass-one-call", "draft-model", "prompt-lookup", "ngram"]
    assert list(rows) == [*ours, "planned", *PEERS]
    predicted = found["plan"]["prediction"]["ratio_to_plain"]
    assert rows["planned"]["options"].get("method") == found["plan"]["options"]["method"] in ours
    assert any(
        note.startswith(
            f"planned is {found['plan']['options']['method']}: {predicted:.2f} times plain decoding was predicted"
        )
        and note.endswith(f"it was {rows['planned']['ratio_to_plain']:.2f} times")
        for note in found["settings"]["notes"]
    )
    assert found["settings"]["left_out"] == {}
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
    assert rows["pass"]["options"] == {"num_lookahead": 3, "verify": "token"}
    assert rows["pass-one-call"]["options"] == {
        "num_lookahead": 3,
        "parts": [],
        "refine": "unrefined",
        "verify": "token",
    }
    assert rows["draft-model"]["options"] == {"drafter": "small", "num_draft": 4, "verify": "token"}
    assert rows["transformers-assisted"]["options"] == {"assistant": "small", "num_draft": 4}
    assert len(rows["draft-model"]["accepted_per_position"]) == 4
    settings = found["settings"]
    assert settings["repeats"] == 2 and settings["quick"] and not settings["enough_repeats"]
    assert settings["prompts"]["source"] == str(prompts) and len(settings["prompts"]["lengths"]) == 2
    assert 2 <= settings["places"]["count"] <= 24 and settings["seed"] == 0 and settings["dtype"] == "float32"
    assert any("too few paired runs" in note for note in settings["notes"])
    assert found["versions"].keys() >= {"python", "torch", "transformers", "numpy", "pass-sampling"}
    assert found["machine"]["threads"] >= 1 and found["machine"]["device"] == "cpu"


def test_what_cannot_run_on_the_checkpoint_is_left_out_with_the_reason(box, capsys, monkeypatch, prompts, tmp_path):
    monkeypatch.setenv("LOCALAPPDATA" if sys.platform == "win32" else "XDG_CACHE_HOME", str(tmp_path))  # without a plan
    found = bench(box, capsys, prompts, "--repeats", 1)
    ours = ["autoregressive", "prompt-lookup"]
    assert [row["method"] for row in found["rows"]] == [*ours, "transformers", "transformers-prompt-lookup"]
    left_out = found["settings"]["left_out"]
    reason = left_out.pop("planned")
    assert "no plan that is kept" in reason and f"planned is left out: {reason}" in found["settings"]["notes"]
    assert list(left_out) == ["pass", "pass-one-call", "draft-model", "ngram", "transformers-assisted"]
    flags = ["--lookahead", "--lookahead", "--draft-model", "--ngram", "--draft-model"]
    for name, flag in zip(left_out, flags, strict=True):
        assert f"expected {flag} FOLDER" in left_out[name]
        assert f"{name} is left out: {left_out[name]}" in found["settings"]["notes"]


def test_vectors_with_a_head_leave_out_the_method_that_has_no_use_for_it(box, capsys, prompts, tmp_path):
    vectors = LookAhead.load(box.vectors)
    replace(vectors, head=SamplerHead.random(vectors.hidden_size, 8, seed=0)).save(tmp_path / "vectors")
    found = bench(box, capsys, prompts, "--lookahead", tmp_path / "vectors", "--repeats", 1)
    assert "pass-one-call" in found["settings"]["left_out"]["pass"]
    (fused,) = [row for row in found["rows"] if row["method"] == "pass-one-call"]
    assert fused["options"]["parts"] == ["head"] and fused["expected_tokens_per_forward"] > 1


def test_a_machine_that_was_not_steady_is_noted():
    settings = {"partial": False, "fewer": {}, "left_out": {}, "enough_repeats": True, "most_repeated_8grams": 0.2}
    where = {"load": None, "cores": 2, "threads": 1}
    row = {"method": "autoregressive", "options": {}, "texts": 3, "texts_that_count": 3}
    assert notes_of([row | {"spread": [100.0, 140.0]}], settings, where) == []
    (note,) = notes_of([row | {"spread": [100.0, 310.0]}], settings, where)
    assert note.startswith("unsteady: plain decoding itself was 3.1 times as fast in one run as in another")


def test_what_is_lossy_is_called_so(box, capsys, prompts):
    found = bench(box, capsys, prompts, "--methods", "prompt-lookup", "--lenience", 0.5, "--repeats", 1)
    assert found["rows"][1]["options"]["lossy_lenience"] == 0.5
    assert "LOSSY, with another distribution than plain decoding: prompt-lookup" in found["settings"]["notes"]


def test_only_the_methods_asked_for_run_and_plain_decoding_with_them(box, capsys, prompts):
    found = bench(
        box, capsys, prompts, "--methods", "prompt-lookup, transformers", "--num-draft", 2, "--verify", "match"
    )
    assert [row["method"] for row in found["rows"]] == ["autoregressive", "prompt-lookup", "transformers"]
    assert found["rows"][1]["options"] == {"drafter": "prompt lookup", "num_draft": 2, "verify": "match"}
    assert found["settings"]["left_out"] == {} and found["settings"]["repeats"] == 3


def test_the_tokens_are_the_same_for_the_same_seed(box, capsys, prompts):
    one, again, other = (
        bench(box, capsys, prompts, "--methods", "pass", "--lookahead", box.vectors, "--repeats", 1, "--seed", seed)
        for seed in (3, 3, 4)
    )
    exact = ["tokens", "num_forward_passes", "repeated_8grams", "expected_tokens_per_forward"]
    figures = [[[row[name] for name in exact] for row in found["rows"]] for found in (one, again, other)]
    assert figures[0] == figures[1] != figures[2]
    assert one["settings"]["prompts"] == other["settings"]["prompts"]


def test_without_prompts_they_are_pieces_of_held_out_files(box, capsys, monkeypatch):
    only = ["--methods", "autoregressive", "--repeats", 1, "--seed", 5]
    found = bench(box, capsys, None, *only)
    settings = found["settings"]
    assert settings["prompts"]["source"] == "held-out files of the standard library"
    assert set(settings["prompts"]["lengths"]) == {86}  # the model reads 96 tokens
    monkeypatch.setattr("pass_sampling.gpu.bench.prompts.read_library", lambda names: {})
    settings = bench(box, capsys, None, *only)["settings"]
    assert settings["prompts"]["source"] == "beginnings that come with the package"


def test_the_table_says_what_it_is_a_table_of(box, capsys, prompts):
    assert run(*arguments(box, prompts, "--methods", "pass", "--lookahead", box.vectors, "--repeats", 1)) == 0
    out = capsys.readouterr().out
    assert re.search(r"^model, float32 on cpu: .+ cores, threads \d+", out)
    assert "prompts: 2 (" in out and "new tokens: 10 each, no token ends a text early" in out and "seed 0" in out
    assert (
        "paired runs that take turns: 1, of which the medians" in out
        and "* too few paired runs for a claim: 1, which takes 5" in out
    )
    figures = {line.split()[0]: line.split()[1:] for line in out.splitlines() if re.match(r"(auto|pass)\w* +\d", line)}
    assert list(figures) == ["autoregressive", "pass"]
    assert figures["autoregressive"][2] == "1.00"
    assert all(len(line) <= 140 for line in out.splitlines() if line.startswith(tuple(figures)))


@pytest.mark.parametrize(
    ("what", "stop", "repeats", "expected"), [("writing", 5, 0, 0), ("writing", 11, 1, 0), ("expecting", 1, 3, 1)]
)
def test_a_comparison_that_is_stopped_prints_and_keeps_what_there_is(
    what, stop, repeats, expected, box, capsys, monkeypatch, prompts, tmp_path
):
    show = Bar.show

    def interrupted(bar: Bar, done: int, total: int, **figures: str) -> None:
        show(bar, done, total, **figures)
        if bar._what == what and done == stop:
            raise KeyboardInterrupt

    monkeypatch.setattr(Bar, "show", interrupted)
    output = tmp_path / "found.json"
    argv = arguments(box, prompts, "--methods", "prompt-lookup", "--json", "--output", output)
    assert run(*argv) == 130
    printed = capsys.readouterr().out
    assert (printed == "") == (not output.exists()) == (not repeats)
    if repeats:
        found = read_strictly(printed)
        assert found == read_strictly(output.read_text())
        settings = found["settings"]
        assert settings["partial"] and settings["notes"][0] == "partial: this comparison was not finished"
        assert settings["repeats"] == repeats and ("repeats" in settings["fewer"]) == (repeats < 3)
        assert [row["method"] for row in found["rows"]] == ["autoregressive", "prompt-lookup"]
        told = [row for row in found["rows"] if row["expected_tokens_per_forward"] is not None]
        assert len(told) == expected
    assert list(tmp_path.iterdir()) == ([output] if repeats else [])
    monkeypatch.setattr(Bar, "show", show)
    assert run(*argv) == 0
    whole = read_strictly(output.read_text())
    assert whole == read_strictly(capsys.readouterr().out) and not whole["settings"]["partial"]


def test_quick_says_what_there_was_no_time_for(box, capsys, monkeypatch, prompts):
    monkeypatch.setattr("pass_sampling.gpu.cli.bench.QUICK_SECONDS", 0.0)
    found = bench(box, capsys, prompts, "--methods", "prompt-lookup", "--repeats", 2)
    assert found["settings"]["fewer"] == {
        "max_new_tokens": [8, 10],
        "prompts": [1, 2],
        "repeats": [1, 2],
        "places": [2, found["settings"]["fewer"]["places"][1]],
    }
    assert any(
        note.startswith("less than was asked for, to keep to two minutes: ") for note in found["settings"]["notes"]
    )
    monkeypatch.undo()
    assert bench(box, capsys, prompts, "--methods", "prompt-lookup", "--repeats", 2)["settings"]["fewer"] == {}


def test_quick_leaves_busy_cores_alone_unless_told_otherwise(monkeypatch):
    chosen: list[int] = []
    monkeypatch.setattr("torch.set_num_threads", chosen.append)
    monkeypatch.setattr("torch.get_num_threads", lambda: 8)
    monkeypatch.setattr("os.cpu_count", lambda: 8)
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    for load in (0.1, 2.6, 11.0):
        monkeypatch.setattr("os.getloadavg", lambda load=load: (load, 0.0, 0.0), raising=False)
        _spare_threads("cpu")
    _spare_threads("cuda")
    monkeypatch.setenv("OMP_NUM_THREADS", "8")
    _spare_threads("cpu")
    assert chosen == [8, 5, 1]


def lines(*entries: str) -> str:
    return "\n".join(entries)


BAD_PROMPTS = {
    "": "holds no prompt",
    "\n \n": "holds no prompt",
    "def main():": "line 1 of",
    lines('{"prompt": "a"}', '{"prompt": "b"'): "line 2 of",
    lines('{"prompt": "a"}', '{"text": "b"}'): "line 2 of",
    '["a"]': "has no prompt",
    '{"prompt": ""}': "has no prompt",
    '{"prompt": 7}': "has no prompt",
    '{"prompt": "\\udc00"}': "--prompts is not UTF-8",
    "[" * 100_000: "is no JSON",
}


def refused(argv: list[object], box: Box, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> str:
    """Run what must be refused in one sentence before anything runs, and change nothing."""
    monkeypatch.setattr("pass_sampling.gpu.bench.runs.run_all", lambda *some: pytest.fail("something ran"))
    before = contents(box.root)
    assert run(*argv) == 2
    printed = capsys.readouterr()
    assert printed.out == "" and printed.err.startswith("pass-sampling bench: ") and printed.err.count("\n") == 1
    assert contents(box.root) == before
    return printed.err


@pytest.mark.parametrize("content, said", BAD_PROMPTS.items(), ids=range(len(BAD_PROMPTS)))
def test_a_bad_file_of_prompts_is_refused(content, said, box, capsys, monkeypatch, tmp_path):
    path = tmp_path / "bad.jsonl"
    path.write_text(content, encoding="utf-8")
    sentence = refused(arguments(box, path), box, capsys, monkeypatch)
    assert said in sentence and "--prompts" in sentence and "expected" in sentence


REFUSED = [
    (["--prompts", "{root}/none"], ["--prompts: ", "none cannot be read", "expected JSON lines"]),
    (["--prompts", "{text}"], ["--prompts: ", "cannot be read"]),
    (["--prompts", "{root}/latin-1"], ["--prompts: ", "latin-1 is not UTF-8"]),
    (["--methods", "beam"], ["--methods: found 'beam'", "expected some of autoregressive, pass"]),
    (["--methods", ""], ["--methods: found ''"]),
    (["--methods", "pass,pass"], ["--methods: found pass twice"]),
    (["--methods", "pass"], ["--methods pass: found no look-ahead vectors", "--lookahead FOLDER"]),
    (["--methods", "draft-model"], ["--methods draft-model: found no draft model", "--draft-model FOLDER"]),
    (["--methods", "ngram"], ["--methods ngram: found no n-gram model", "--ngram FOLDER"]),
    (["--methods", "transformers", "--lookahead", "{vectors}"], ["--lookahead: found it without a method"]),
    (["--methods", "autoregressive", "--num-draft", "2"], ["--num-draft: found it without a method"]),
    (["--lookahead", "{root}/none"], ["none is not a folder"]),
    (["--draft-model", "{root}/empty"], ["config.json is missing"]),
    (["--ngram", "{root}/empty"], ["config.json is missing"]),
    (["--repeats", "0"], ["--repeats: found 0"]),
    (["--num-draft", "0"], ["--num-draft: found 0"]),
    (["--max-new-tokens", "0"], ["--max-new-tokens: found 0"]),
    (["--max-new-tokens", "96"], ["--max-new-tokens: found", "96 together"]),
    (["--num-draft", "90"], ["--num-draft: found 90", "expected fewer drafts"]),
    (["--verify", "guess"], ["--verify", "'guess'"]),
    (["--temperature", "-1"], ["--temperature: found -1.0"]),
    (["--top-k", "301"], ["--top-k: found 301"]),
    (["--seed", "-1"], ["--seed: found -1"]),
    (["--dtype", "int8"], ["--dtype: found int8"]),
    (["--device", "tpu"], ["--device: found tpu"]),
    (["--model", "{root}/none"], ["none is not a folder"]),
    (["--model", "{root}/bare"], ["bare holds no tokenizer"]),
    (["--output", "{root}"], ["--output: ", "cannot be written", "a file in a folder that is there"]),
]


@pytest.mark.parametrize("more, said", REFUSED, ids=[" ".join(more) for more, _ in REFUSED])
def test_bad_input_is_refused_before_anything_runs(more, said, box, capsys, monkeypatch, prompts):
    given = [argument.format(**box._asdict()) for argument in more]
    sentence = refused(arguments(box, prompts, *given), box, capsys, monkeypatch)
    assert [part for part in said if part not in sentence] == []


def test_a_flag_that_a_method_has_no_use_for_is_refused_by_generate(box, capsys, draft):
    argv = ["generate", "--model", box.model, "--prompt", "def", "--max-new-tokens", 4]
    for more, said in (
        (["--method", "draft-model", "--lookahead", box.vectors], "--lookahead: found it with --method draft-model"),
        (["--method", "prompt-lookup", "--draft-model", draft], "--draft-model: found it with --method prompt-lookup"),
        (["--method", "autoregressive", "--num-draft", 2], "--num-draft: found 2 with plain decoding"),
        (
            ["--lookahead", box.vectors, "--draft-model", draft, "--num-draft", 2],
            "found --lookahead and --draft-model, expected one of",
        ),
        (["--lookahead", box.vectors, "--num-draft", 4], "--num-draft: found 4, expected at most 3"),
        (["--method", "draft-model"], "--method draft-model: found no draft model"),
    ):
        assert run(*argv, *more) == 2
        assert said in capsys.readouterr().err


def test_generate_decodes_by_every_method_and_greedily_all_write_the_same(box, capsys, draft, ngram):
    argv = ["generate", "--model", box.model, "--prompt", "def of the of", "--max-new-tokens", 16, "--json"]
    texts = set()
    for more in (
        ["--method", "autoregressive"],
        ["--lookahead", box.vectors, "--num-draft", 2],
        ["--lookahead", box.vectors, "--method", "pass-one-call"],
        ["--draft-model", draft, "--num-draft", 3],
        ["--ngram", ngram, "--method", "ngram"],
        ["--method", "prompt-lookup", "--num-draft", 6, "--verify", "block"],
    ):
        assert run(*argv, "--temperature", 0, *more) == 0
        found = read_strictly(capsys.readouterr().out)
        assert (found["num_draft_passes"] > 0) == ("--draft-model" in more)
        texts.add(tuple(found["tokens"]))
    assert found["method"] == "prompt-lookup" and len(texts) == 1
