"""`generate --trace`: the page of every way of decoding, and what happens to the file where decoding fails."""

import json
import re
from pathlib import Path
from typing import Any

import pytest

from console import read_strictly, run
from pass_sampling.gpu.cli import generate as command

WAYS = [
    "--method autoregressive",
    "--lookahead {vectors} --verify block",
    "--lookahead {root}/headed --method pass-one-call --verify match",
    "--lookahead {vectors} --method pass-one-call --groups 0,2",
    "--lookahead {vectors} --candidates 3,2+0+1",
    "--draft-model {draft} --num-draft 3",
    "--draft-model {draft} --candidates 2,1 --verify k-seq",
    "--ngram {ngram} --method ngram --verify match",
    "--method prompt-lookup --lenience 0.5",
]


def content(path: Path) -> Any:
    (found,) = re.findall(r'id="trace">(.*?)</script>', path.read_text(encoding="utf-8"), re.DOTALL)
    return json.loads(found)


@pytest.mark.parametrize("way", WAYS)
def test_the_page_shows_the_text_that_the_command_writes(way, box, tmp_path, capsys):
    path = tmp_path / "page.html"
    settings = ["--prompt", "def café value", "--max-new-tokens", 20, "--seed", 4, "--temperature", 1, "--top-k", 0]
    flags = way.format(**box._asdict()).split()
    assert run("generate", "--model", box.model, *settings, *flags, "--trace", path, "--json") == 0
    printed = capsys.readouterr()
    told = read_strictly(printed.out)
    assert printed.err.endswith(f"wrote {path}\n")
    assert run("generate", "--model", box.model, *settings, *flags, "--json") == 0
    assert read_strictly(capsys.readouterr().out)["tokens"] == told["tokens"]  # a trace changes nothing
    found = content(path)
    mine, *others = found["runs"]
    assert [found["ids"][token] for step in mine["steps"] for token in step["tokens"]] == told["tokens"]
    assert mine["name"].startswith(told["method"]) and ("LOSSY" in mine["name"]) == ("--lenience" in way)
    assert "".join(mine["pieces"]) == told["text"]
    assert [other["name"] for other in others] == ["plain decoding"] * (told["method"] != "autoregressive")
    for other in others:
        assert run("generate", "--model", box.model, *settings, "--method", "autoregressive", "--json") == 0
        assert "".join(other["pieces"]) == read_strictly(capsys.readouterr().out)["text"]
    drafts = [draft for step in mine["steps"] for draft in step["drafts"] if draft.get("row")]
    for draft in drafts:
        tops = dict(zip(draft["row"][::3], draft["row"][1::3], strict=True))
        assert tops.get(draft["token"], draft["target"]) == pytest.approx(draft["target"], abs=1e-4)
    assert drafts or told["num_drafts"] == 0


def test_a_place_that_cannot_be_written_is_refused_before_anything_is_loaded(box, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(command, "load_tokenizer", lambda folder: pytest.fail("loaded"))
    for path in (tmp_path, tmp_path / "nowhere" / "page.html"):
        assert run("generate", "--model", box.model, "--prompt", "def", "--trace", path) == 2
        said = capsys.readouterr().err
        assert said.startswith(f"pass-sampling generate: --trace: {path} cannot be written") and said.count("\n") == 1
    assert run("generate", "--model", box.model, "--interactive", "--trace", tmp_path / "page.html") == 2
    assert "--trace: found it with --interactive, expected one of them" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_a_page_that_is_there_is_kept_until_the_new_one_is_whole(box, tmp_path, capsys, monkeypatch):
    def fail(*arguments: Any, **settings: Any) -> None:
        raise ValueError("logits: found a fault, expected none")

    path = tmp_path / "page.html"
    path.write_text("kept", encoding="utf-8")
    monkeypatch.setattr(command, "generate", fail)
    flags = ["--model", box.model, "--method", "autoregressive", "--max-new-tokens", 4, "--trace", path]
    assert run("generate", "--prompt", "def", *flags) == 2
    assert path.read_text(encoding="utf-8") == "kept" and list(tmp_path.iterdir()) == [path]
    assert "logits: found a fault" in capsys.readouterr().err
    monkeypatch.undo()
    assert run("generate", "--prompt", "def", *flags) == 0
    assert path.read_text(encoding="utf-8").startswith("<!doctype html>") and list(tmp_path.iterdir()) == [path]
