"""Where drafts come from, on the command line: draft models, schedules, lenience; and what does not go together."""

from __future__ import annotations

import shutil
from dataclasses import replace

import pytest

from console import WORDS, read_strictly, run

pytestmark = pytest.mark.torch


def generate(box, *flags):
    return run("generate", "--model", box.model, "--prompt", "def", "--max-new-tokens", 12, *flags)


def test_a_draft_model_drafts_and_a_schedule_says_how_many(box, capsys):
    texts = set()
    for schedule in ("fixed", "heuristic", "entropy"):
        flags = ["--method", "draft-model", "--draft-model", box.model, "--schedule", schedule, "--json"]
        assert generate(box, *flags, "--temperature", 0) == 0
        found = read_strictly(capsys.readouterr().out)
        assert found["num_draft_passes"] > 0 and found["options"]["drafter"] == "model"
        assert found["options"].get("schedule") == {"heuristic": "Heuristic", "entropy": "EntropyBound"}.get(schedule)
        texts.add(found["text"])
    assert len(texts) == 1, "greedy text does not depend on how it was drafted"


def test_lenience_is_labelled_lossy_wherever_it_is_reported(box, capsys):
    flags = ["--method", "draft-model", "--draft-model", box.model]
    assert generate(box, *flags, "--lenience", 0.5) == 0
    assert capsys.readouterr().err.rstrip().endswith("method draft-model, LOSSY: lenience 0.5")
    assert generate(box, *flags, "--lenience", 0.5, "--json") == 0
    assert read_strictly(capsys.readouterr().out)["options"]["lossy_lenience"] == 0.5
    for exact in ([], ["--lenience", 1]):
        assert generate(box, *flags, *exact) == 0
        assert "LOSSY" not in capsys.readouterr().err


def test_a_draft_model_with_another_tokenizer_is_refused(box, capsys, tmp_path):
    """Of the same size, so that only what the tokens stand for tells them apart."""
    from pass_sampling.gpu.training.tokens import train_tokenizer

    other = tmp_path / "other"
    shutil.copytree(box.model, other)
    train_tokenizer([" ".join(reversed(WORDS)) * 3 + " zebra yak xerox " * 9], 300, 96).save_pretrained(str(other))
    assert generate(box, "--method", "draft-model", "--draft-model", other) == 2
    printed = capsys.readouterr()
    assert printed.out == ""
    assert printed.err == (
        f"pass-sampling generate: --draft-model: {other} has another tokenizer than {box.model}, expected the same\n"
    )


def test_look_ahead_drafts_are_refined_as_asked(box, capsys):
    """The vectors of the box have no head; an n-gram model of another tokenizer is refused as everywhere."""
    flags = ["--lookahead", box.vectors, "--method", "pass-one-call", "--json"]
    for refine in ([], ["--refine", "none"]):
        assert generate(box, *flags, *refine) == 0
        assert read_strictly(capsys.readouterr().out)["options"]["refine"] == "unrefined"
    assert generate(box, *flags, "--refine", "head") == 2
    assert "--refine: found head, and vectors without one, expected none, ngram or" in capsys.readouterr().err
    assert generate(box, *flags, "--refine", "none", "--draft-vocab-size", 8) == 2
    assert "--draft-vocab-size: found 8 with --refine none, expected --refine head" in capsys.readouterr().err
    assert generate(box, *flags, "--draft-vocab-size", 8) == 2
    assert "--draft-vocab-size: found 8, and vectors without a head, expected another" in capsys.readouterr().err
    assert generate(box, *flags, "--refine", "ngram") == 2
    assert "found no n-gram model for" in capsys.readouterr().err


def test_a_head_drafts_from_a_lattice_as_asked(box, capsys, tmp_path):
    """Greedy text is the same with it."""
    from pass_sampling.gpu import LookAhead, SamplerHead

    vectors = LookAhead.load(box.vectors)
    head = SamplerHead.random(vectors.hidden_size, 5, 3)
    replace(vectors, head=head).save(tmp_path / "vectors")
    flags, texts = ["--lookahead", tmp_path / "vectors", "--temperature", 0, "--json"], set()
    for draft_vocab_size in (
        ["--refine", "head"],
        ["--draft-vocab-size", 1],
        ["--refine", "head", "--draft-vocab-size", 8],
    ):
        assert generate(box, *flags, *draft_vocab_size) == 0
        found = read_strictly(capsys.readouterr().out)
        assert (found["method"], found["options"]["refine"]) == ("pass-one-call", "head")
        assert found["options"].get("draft_vocab_size") == (
            draft_vocab_size[-1] if "--draft-vocab-size" in draft_vocab_size else None
        )
        texts.add(found["text"])
    assert len(texts) == 1
    assert generate(box, *flags, "--draft-vocab-size", 500) == 2
    assert "draft-vocab-size: found 500, expected at most" in capsys.readouterr().err


@pytest.mark.parametrize("verify", ["without-replacement", "with-replacement", "k-seq", "match"])
def test_trees_of_candidates_are_drafted_as_asked(verify, box, capsys):
    """By every drafter, and from look-ahead rows; greedy text is the same whatever drafted it."""
    texts = set()
    ways = [
        ["--method", "pass-one-call", "--lookahead", box.vectors, "--candidates", "3,2+0+1"],
        ["--method", "draft-model", "--draft-model", box.model, "--candidates", "2,1"],
        ["--method", "prompt-lookup", "--candidates", "1,1"],
    ]
    for way in ways:
        assert generate(box, *way, "--verify", verify, "--temperature", 0, "--json") == 0
        found = read_strictly(capsys.readouterr().out)
        assert found["options"]["candidates"] == way[-1] and found["verify"] == found["options"]["verify"] == verify
        texts.add(found["text"])
    assert len(texts) == 1
    assert generate(box, "--lookahead", box.vectors, "--candidates", "2,2", "--json") == 0
    found = read_strictly(capsys.readouterr().out)
    assert (found["method"], found["verify"]) == ("pass-one-call", "without-replacement")


TREE = ["--method", "prompt-lookup", "--candidates", "2,2"]


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        ([*TREE, "--verify", "block"], ["--verify: found block for a tree of candidates, expected one of without-re"]),
        ([*TREE, "--num-draft", "3"], ["--num-draft: found 3 with --candidates, a tree, expected it without"]),
        ([*TREE, "--schedule", "entropy"], ["--schedule: found entropy with --candidates, a tree"]),
        ([*TREE, "--lenience", "0.5"], ["--lenience: found 0.5 with --candidates, a tree, expected it without"]),
        (["--candidates", "2,x"], ["--candidates: found '2,x', expected numbers, such as 3,2,1 or 3,2+1+0,1"]),
        (["--candidates", "2,0"], ["--candidates: found 0, expected an integer from 1 to 65536"]),
        (["--candidates", "2,1+1+1"], ["--candidates: found (1, 1, 1) after 2 places, expected a number for each"]),
        (["--method", "pass", "--candidates", "2"], ["--candidates: found 2 with --method pass, which has"]),
        (
            ["--method", "prompt-lookup", "--verify", "k-seq"],
            ["--verify: found k-seq for drafts without --candidates, expected one of token, block, match"],
        ),
        (["--method", "pass", "--schedule", "heuristic"], ["--schedule: found heuristic with --method pass"]),
        (["--method", "autoregressive", "--lenience", "0.5"], ["--lenience: found 0.5 with plain decoding"]),
        (["--method", "prompt-lookup", "--lenience", "0"], ["lenience: found 0.0, expected a number above 0"]),
        (
            ["--method", "prompt-lookup", "--lenience", "0.5", "--verify", "block"],
            ["lenience: found 0.5 with the rule 'block', expected the rule 'token'"],
        ),
        (["--method", "draft-model", "--schedule", "guess"], ["--schedule", "'guess'", "'heuristic'"]),
        (["--method", "draft-model", "--draft-model", "nowhere"], ["nowhere"]),
        (["--method", "pass", "--refine", "none"], ["--refine: found none with --method pass"]),
        (
            ["--method", "pass", "--draft-vocab-size", "8"],
            ["--draft-vocab-size: found 8 with --method pass, which has no use"],
        ),
    ],
)
def test_what_does_not_go_together_is_refused_by_name(flags, words, box, capsys):
    assert generate(box, *flags) == 2
    printed = capsys.readouterr()
    assert printed.out == "" and printed.err.count("\n") == 1
    assert all(word in printed.err for word in words), printed.err
