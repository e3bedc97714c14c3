"""What commands refuse: exit status 2, one sentence on standard error, nothing on standard output or on disk.

The options of a method are refused by `DecodeOptions`, see test_plan.py.
"""

import errno
import json
import os
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from console import Box, buffered, run
from folders import contents
from pass_sampling.gpu.bench.plan import Plan
from pass_sampling.gpu.decode_options import DecodeOptions

GENERATE = "generate --model {model} --prompt def"
DEMO = "demo --model {model} --lookahead {vectors} --prompt def --max-new-tokens 8"
LEARN = "--batch-size 2 --steps 2 --output {root}/new"
TRAIN = f"train --model {{model}} --context 16 {LEARN} --text {{text}}"
SELF = f"train --model {{model}} --context 16 {LEARN} --self"
ALONE = "--head-alone --head-width 4"
PRETRAIN = f"pretrain --vocab-size 300 --hidden-size 16 --intermediate-size 8 --layers 1 --heads 2 --context 16 {LEARN}"
PRETRAIN += " --held-out-list {root}/list.txt --text {text}"
NGRAM = "ngram --model {model} --output {root}/new --text {text}"
BENCH = "bench --model {model} --prompts {prompts} --max-new-tokens 10 --quick"
TREE = "--method prompt-lookup --candidates 2,2"

# Commands, and by the flags after them what their sentence must contain.
REFUSED: dict[str, dict[str, str | tuple[str, ...]]] = {
    "": {
        "": ("pass-sampling: ", "COMMAND"),
        "dance": ("pass-sampling: ", "'dance'", "'generate'"),
        "generate": "found neither --prompt nor --interactive, expected one of them",
        "demo --model {model}": "--lookahead FOLDER",
        "train --model {model} --text {text}": "--output",
        f"train --model {{model}} {LEARN}": ("--text", "--standard-library", "--self"),
    },
    GENERATE: {
        "'--unknown\nflag'": "--unknown flag",
        "--interactive": "found both --prompt and --interactive, expected one of them",
        "--model {root}/bare": ("bare holds no tokenizer", "expected"),
        "--model {root}/damaged": "model.safetensors is damaged",
        "--model {root}/no-bos --prompt ''": "--prompt is empty",
        "--lookahead {root}/none": "none is not a folder",
        "--lookahead {root}/others": "trained for the model 'another'",
        "--draft-model {root}/other": "other has another tokenizer than {model}, expected the same",
        "--method lookahead": "found 'lookahead', which is called 'pass' now",
        "--method beam": "--method: found 'beam', expected one of autoregressive, pass, pass-one-call",
        "--method pass": ("--method pass: found no look-ahead vectors", "--lookahead FOLDER", "pass-sampling train"),
        "--method autoregressive --lookahead {vectors}": "--lookahead: found it with --method autoregressive",
        "--lookahead x --draft-model x --verify token": "found --lookahead and --draft-model, expected one of them",
        "--lookahead {vectors} --num-draft 4": "--num-draft: found 4, expected at most 3",
        "--verify guess": ("--verify", "'guess'", "'block'"),
        "--candidates 2,x": "--candidates: found '2,x', expected numbers, such as 3,2,1 or 3,2+1+0,1",
        "--groups 0,x": "--groups: found '0,x', expected numbers with commas between",
        f"{TREE} --verify block": "--verify: found block for a tree of candidates, expected one of without-re",
        f"{TREE} --lenience 0.5": "--lenience: found 0.5 with --candidates, expected one of them",
        "--method pass-one-call --lookahead {vectors} --candidates 2,2,1 --temperature 0.5 --accept-top-k 2": (
            "--accept-top-k: found 2 with --candidates, expected one of them"
        ),
        "--method pass-one-call --lookahead {vectors} --temperature 0.5 --accept-top-k 2": (
            "--accept-top-k: found 2 with temperature 0.5, expected temperature 0"
        ),
        "--method prompt-lookup --verify k-seq": "--verify: found k-seq for drafts without --candidates, expected one",
        "--lookahead {vectors} --refine head": "--refine: found head with vectors without a head, expected none",
        "--lookahead {vectors} --refine ngram": "found no n-gram model for",
        "--lookahead {root}/headed --method pass": "expected --method pass-one-call for them",
        "--plan {root}/none.json": "none.json is not a file, expected a plan",
        "--plan {root}/none.json --verify block": "--plan: found it with --verify, expected one of them",
        "--dtype int8": ("--dtype: found int8", "bfloat16"),
        "--device tpu": ("--device: found tpu", "cpu or cuda"),
        "--top-k 301": ("--top-k: found 301", "300"),
        f"--seed {2**64}": f"--seed: found {2**64}",
        "--max-new-tokens 96": ("--max-new-tokens: found", "96 together"),
        "--stop ''": ("--stop: found", "non-empty"),
        "--stop \ufffd": ("--stop: found", "U+FFFD"),
        "--stop a\udcff": "--stop is not UTF-8",
        "--chat --system \udcff": "--system is not UTF-8",
        "--system b": "--system: found it without --chat",
        "--chat": "--chat: found no chat template in the tokenizer of",
        "--model {chat} --chat --prompt never": "does not take (first of all, no), expected",
    },
    "generate --model {model}": {
        "": ("--prompt", "--interactive"),
        "--interactive --json": "--json: found it with --interactive",
        "--model {root}/no-bos --prompt=": "--prompt is empty",
    },
    TRAIN: {
        "--output {vectors}": "vectors already exists",
        "--model {root}/bare": "bare holds no tokenizer",
        "--text {root}/latin-1": "latin-1 holds no text",
        "--text {root}/short.txt": ("the text has", "expected at least 48 for batches of 2 windows of 16"),
        "--self-tokens 7": ("--self-tokens", "without --self"),
        "--prompts {root}/two.jsonl": "--prompts: found it without --self, expected both or neither",
        "--chat": "--chat: found it without --self, expected both or neither",
        "--draft-vocab-size 301": "--draft-vocab-size: found 301, expected at most 300, the vocabulary",
        "--draft-vocab-size 5 --loss cross-entropy": "--draft-vocab-size: found 5 with cross-entropy",
        "--loss hinge": ("--loss", "'hinge'"),
        "--head-alone": "--head-alone: found it without a head",
        f"{ALONE} --adapter-rank 2": "--head-alone: found it with an adapter",
        "--matrix-learning-rate 1": ("--matrix-learning-rate: found it alone", "--adapter-rank"),
        f"--seed {2**63}": f"--seed: found {2**63}",
    },
    SELF: {
        "--self-tokens 63": ("--self-tokens: found 63", "expected at least 64"),
        "--prompts {root}/none": "none",
        "--prompts {root}/two.jsonl --chat": "--chat: found no chat template",
    },
    NGRAM: {
        "--output {vectors}": "vectors already exists",
        "--model {root}/bare": "bare holds no tokenizer",
        "--text {root}/short.txt": ("--text: found", "to hold out", "a longer text"),
        "--held-out-list {root}/nothing": "held_out names 0 of the 12 texts",
        "--self": "found several texts, expected one of --self, --text and --standard-library",
        "--order 5": ("--order: found 5", "1 to 4"),
        "--min-count 2 2": ("--min-count: found 2 numbers", "or 3"),
    },
    PRETRAIN: {
        "--output {vectors}": "vectors already exists",
        "--held-out-list {root}/none": ("none cannot be used", "No such file"),
        "--held-out-list {root}/nothing": "held_out names 0 of the 12 texts",
        "--text {root}/short.txt": "held_out names 0 of the 1 texts",
        "--teacher {root}/short.txt": ("--teacher: ", "short.txt is not a folder"),
        "--teacher {root}/damaged": "model.safetensors is damaged",
        "--teacher {model} --vocab-size 301": ("--vocab-size: found 301", "300, the teacher's"),
        "--teacher {model} --context 97": ("--context: found 97", "at most 96, the teacher's"),
    },
    BENCH: {
        "--prompts {root}/none": ("--prompts: ", "none cannot be read", "expected JSON lines"),
        "--prompts {root}/latin-1": ("--prompts: ", "latin-1 is not UTF-8"),
        "--prompts {root}/nothing": ("--prompts: ", "nothing holds no prompt, expected"),
        "--methods beam": ("--methods: found 'beam'", "expected some of autoregressive, pass"),
        "--methods pass,pass": "--methods: found pass twice",
        "--methods pass": ("--methods pass: found no look-ahead vectors", "--lookahead FOLDER"),
        "--methods transformers --lookahead {vectors}": "--lookahead: found it without a method",
        "--lookahead {root}/none": "none is not a folder",
        "--num-draft 90": ("--num-draft: found 90", "expected fewer drafts"),
        "--max-new-tokens 96": ("--max-new-tokens: found", "96 together"),
        "--model {root}/bare": "bare holds no tokenizer",
    },
    "verify": {  # a proof of the small models must not look like one of something else
        "--device cuda": "--device: found it without --model, expected both or neither",
        "--temperature 0": "--temperature: found it without --model, expected both or neither",
        "--lookahead none": "--lookahead: found it without --model, expected both or neither",
        "--package reference --model somewhere": "--package: found it with --model",
    },
    "plan --model {model}": {
        "--lookahead {root}/none": "none is not a folder",
    },
}
# Commands, and values that are refused as `--flag: found value`.
VALUES = {
    "verify --model {model}": "--seconds 0, --seconds -1, --seconds nan",
    GENERATE: (
        "--device meta, --temperature -1.0, --temperature nan, --temperature inf, --top-k -1, --top-p 0.0, "
        "--top-p nan, --seed -1, --max-new-tokens 0"
    ),
    DEMO: "--repeats 0, --max-new-tokens 0, --seed -1, --top-k 301",
    TRAIN: (
        "--context 5, --steps 0, --num-lookahead 0, --batch-size 0, --anchors 0, --learning-rate nan, "
        "--learning-rate 0, --depth-decay 1.1, --adapter-rank -1, --head-width -1"
    ),
    SELF: "--self-tokens 0",
    NGRAM: "--min-count 0, --max-successors 0, --held-out-sequences 0, --device tpu",
    PRETRAIN: (
        "--hidden-size 18, --layers 0, --heads 0, --kv-heads 3, --steps 0, --context 1, --learning-rate nan, "
        "--seed -1, --device tpu, --vocab-size 9"
    ),
    BENCH: (
        "--repeats 0, --num-draft 0, --max-new-tokens 0, --temperature -1.0, --top-k 301, --seed -1, --dtype "
        "int8, --device tpu"
    ),
}
CASES = [(command, flags, said) for command, rows in REFUSED.items() for flags, said in rows.items()]
CASES += [(command, each, each.replace(" ", ": found ")) for command, row in VALUES.items() for each in row.split(", ")]


def arguments(line: str, box: Box) -> list[str]:
    """Return a command as a list, with the paths of the box in it."""
    return [argument.format(**box._asdict()) for argument in shlex.split(line)]


def refused(line: str, box: Box, capsys: pytest.CaptureFixture[str]) -> str:
    """Run a command that must be refused and change nothing; return its sentence."""
    before = contents(box.root)
    assert run(*arguments(line, box)) == 2
    printed = capsys.readouterr()
    assert printed.out == ""
    name = line.split()[0] if line.split()[:1] in ([each.split()[0]] for each in REFUSED if each) else ""
    assert printed.err.startswith(f"pass-sampling {name}".rstrip()) and printed.err.endswith("\n")
    assert printed.err.count("\n") == 1 and contents(box.root) == before
    return printed.err


@pytest.mark.parametrize(("command", "flags", "said"), CASES, ids=[f"{each[0][:9]} {each[1]}"[-60:] for each in CASES])
def test_bad_input_is_refused_in_one_sentence_and_changes_nothing(command, flags, said, box, capsys, monkeypatch):
    for place in ("bench.run_all", "plan.predict"):
        monkeypatch.setattr(f"pass_sampling.gpu.cli.{place}", lambda *some, **named: pytest.fail("something ran"))
    sentence = refused(f"{command} {flags}", box, capsys)
    parts = [part.format(**box._asdict()) for part in ((said,) if isinstance(said, str) else said)]
    assert [part for part in parts if part not in sentence] == []


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({}, "found a plan without a method, expected one of autoregressive"),
        ({"method": "pass", "lookahead": "gone"}, "gone is not a folder"),
        ({"method": "guess"}, "plan.json: method: found 'guess', expected one of autoregressive"),
    ],
)
def test_a_plan_for_something_else_is_refused(options, said, box, capsys, tmp_path):
    figures = dict.fromkeys(("tokens_per_step", "milliseconds_per_step", "tokens_per_second", "ratio_to_plain"), 1.5)
    plan, file = Plan(DecodeOptions("autoregressive"), figures), tmp_path / "plan.json"
    plan.save(file)
    paths = {name: str(box.root / value) for name, value in options.items() if name == "lookahead"}
    file.write_text(json.dumps(json.loads(file.read_text()) | {"options": options | paths}))
    assert said in refused(f"{GENERATE} --plan {file}", box, capsys)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
@pytest.mark.parametrize("command", [GENERATE, DEMO, TRAIN, PRETRAIN], ids=lambda line: line.split()[0])
def test_a_device_that_is_not_there_is_named(command, box, capsys):
    assert "--device: found cuda" in refused(f"{command} --device cuda", box, capsys)


def test_a_text_that_the_model_has_no_tokens_for_is_refused(box, capsys, monkeypatch):
    monkeypatch.setattr("pass_sampling.gpu.cli.training.encode_texts", lambda *some: [torch.arange(400).numpy()])
    assert "found the token" in refused(TRAIN, box, capsys)


def test_a_folder_that_may_not_be_written_to_is_refused_before_training(box, capsys, monkeypatch):
    def mkdtemp(**where: object) -> str:
        raise PermissionError(errno.EACCES, "Permission denied", str(box.root))

    monkeypatch.setattr("tempfile.mkdtemp", mkdtemp)
    for command in (TRAIN, PRETRAIN):
        assert "is not writable (Permission denied)" in refused(command, box, capsys)


def test_pretrain_with_compile_needs_a_compiler(box, capsys, monkeypatch):
    monkeypatch.setattr("shutil.which", lambda name: None)
    assert "pretrain: --compile: found no C++ compiler" in refused(f"{PRETRAIN} --compile", box, capsys)


def test_a_full_disk_ends_training_in_one_sentence_and_leaves_nothing_half_written(box, capsys, monkeypatch):
    def fsync(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", fsync)
    before = contents(box.root)
    assert run(*arguments(TRAIN, box)) == 2
    printed = capsys.readouterr()
    assert printed.out == "" and contents(box.root) == before
    assert "new cannot be used (No space left on device)" in printed.err.splitlines()[-1]


def test_too_little_memory_is_one_sentence_and_any_other_runtime_error_is_a_bug(box, capsys, monkeypatch):
    def load(error: BaseException) -> None:
        raise error

    place = "pass_sampling.gpu.cli.options.ModelOptions.load"
    for error in (RuntimeError("DefaultCPUAllocator: can't allocate memory:\nmore"), MemoryError()):
        monkeypatch.setattr(place, lambda options, error=error: load(error))
        assert "found too little memory" in refused(GENERATE, box, capsys)
    monkeypatch.setattr(place, lambda options: load(RuntimeError("a row left the batch")))
    with pytest.raises(RuntimeError, match="a row left"):
        run(*arguments(GENERATE, box))


@pytest.mark.parametrize("package", ["torch", "transformers"])
def test_a_missing_package_is_named_with_the_extra_that_installs_it(package, box, capsys, monkeypatch):
    if package == "torch":
        monkeypatch.delitem(sys.modules, "pass_sampling.gpu.checkpoint.load", raising=False)
    monkeypatch.setitem(sys.modules, package, None)
    assert f"found no {package}, expected it installed: pip install '.[gpu]'" in refused(GENERATE, box, capsys)


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs a device that is always full")
def test_a_standard_output_that_is_full_is_one_sentence():
    with open("/dev/full", "w") as full:
        command = [sys.executable, "-m", "pass_sampling.gpu", "--help"]
        done = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, text=True, env=buffered())
    assert done.returncode == 2
    assert done.stderr.startswith("pass-sampling: standard output cannot be written") and done.stderr.count("\n") == 1
