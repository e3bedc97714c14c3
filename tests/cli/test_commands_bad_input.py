"""What a command refuses: exit status 2, one sentence on standard error, nothing on standard output or on disk."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from console import Box, buffered, run
from folders import contents

GENERATE = ["generate", "--model", "{model}", "--prompt", "def"]
DEMO = "demo --model {model} --lookahead {vectors} --prompt def --max-new-tokens 8".split()
TRAIN = "train --model {model} --context 16 --batch-size 2 --steps 2 --output {root}/new --text {text}".split()
SELF = [*TRAIN[:-2], "--self"]
ALONE = ["--head-alone", "--head-width", "4"]
PRETRAIN = "pretrain --vocab-size 300 --hidden-size 16 --intermediate-size 8 --layers 1 --heads 2 --context 16".split()
PRETRAIN += "--steps 2 --batch-size 2 --held-out-list {root}/list.txt --output {root}/new --text {text}".split()
NGRAM = "ngram --model {model} --output {root}/new --text {text}".split()

# A command, and what its sentence must name and say.
REFUSED: list[tuple[list[str], list[str]]] = [
    ([], ["pass-sampling: ", "COMMAND"]),
    (["dance"], ["pass-sampling: ", "'dance'", "'generate'"]),
    (["demo", "--fast"], ["pass-sampling demo: ", "--fast"]),
    (["generate", "--prom", "a"], ["unrecognized arguments: --prom a"]),
    (["generate"], ["found 0 of --prompt, --prompt-file and --interactive, expected one"]),
    ([*GENERATE, "--temp", "1"], ["--temp"]),
    ([*GENERATE, "--unknown\nflag"], ["--unknown flag"]),
    (["generate", "--model", "{model}"], ["--prompt", "--prompt-file"]),
    ([*GENERATE, "--prompt-file", "x"], ["--prompt-file", "--prompt"]),
    (["generate", "--model", "{root}/none", "--prompt", "a"], ["none is not a folder"]),
    (["generate", "--model", "{root}/empty", "--prompt", "a"], ["config.json is missing"]),
    (["generate", "--model", "{root}/short.txt", "--prompt", "a"], ["short.txt is not a folder"]),
    (["generate", "--model", "{root}/bare", "--prompt", "a"], ["bare holds no tokenizer", "expected"]),
    (["generate", "--model", "{root}/bad-tokenizer", "--prompt", "a"], ["bad-tokenizer holds no tokenizer"]),
    (["generate", "--model", "{root}/damaged", "--prompt", "a"], ["model.safetensors is damaged"]),
    ([*GENERATE, "--lookahead", "{model}"], ["expected a look-ahead folder"]),
    ([*GENERATE, "--lookahead", "{root}/none"], ["none is not a folder"]),
    ([*GENERATE, "--lookahead", "{root}/others"], ["trained for the model 'another'"]),
    ([*GENERATE, "--method", "beam"], ["--method", "'beam'", "pass-one-call"]),
    ([*GENERATE, "--method", "lookahead"], ["--method", "'lookahead'", "'pass'"]),
    ([*GENERATE, "--method", "pass"], ["--method pass", "--lookahead FOLDER"]),
    ([*GENERATE, "--method", "autoregressive", "--lookahead", "{vectors}"], ["--lookahead", "--method autoregressive"]),
    ([*GENERATE, "--verify", "guess"], ["--verify", "'guess'", "'block'"]),
    ([*GENERATE, "--method", "autoregressive", "--verify", "block"], ["--verify: found block with plain decoding"]),
    ([*GENERATE, "--dtype", "int8"], ["--dtype: found int8", "bfloat16"]),
    ([*GENERATE, "--device", "tpu"], ["--device: found tpu", "cpu or cuda"]),
    ([*GENERATE, "--device", ""], ["--device"]),
    ([*GENERATE, "--device", "meta"], ["--device: found meta"]),
    ([*GENERATE, "--device", "cuda:99999999999999999999"], ["--device"]),
    ([*GENERATE, "--temperature", "-1"], ["--temperature: found -1.0"]),
    ([*GENERATE, "--temperature", "nan"], ["--temperature: found nan"]),
    ([*GENERATE, "--temperature", "inf"], ["--temperature: found inf"]),
    ([*GENERATE, "--temperature", "hot"], ["--temperature", "'hot'"]),
    ([*GENERATE, "--top-k", "301"], ["--top-k: found 301", "300"]),
    ([*GENERATE, "--top-k", "-1"], ["--top-k: found -1"]),
    ([*GENERATE, "--top-k", "1" + "0" * 30], ["--top-k: found 1000"]),
    ([*GENERATE, "--top-p", "0"], ["--top-p: found 0.0"]),
    ([*GENERATE, "--top-p", "nan"], ["--top-p: found nan"]),
    ([*GENERATE, "--max-new-tokens", "0"], ["--max-new-tokens: found 0"]),
    ([*GENERATE, "--max-new-tokens", "96"], ["--max-new-tokens: found", "96 together"]),
    ([*GENERATE, "--max-new-tokens", "1" + "0" * 30], ["--max-new-tokens: found 1000"]),
    ([*GENERATE, "--seed", "-1"], ["--seed: found -1"]),
    ([*GENERATE, "--seed", str(2**64)], [f"--seed: found {2**64}"]),
    ([*GENERATE, "--stop", ""], ["--stop: found", "non-empty"]),
    ([*GENERATE, "--stop", "\ufffd"], ["--stop: found", "U+FFFD"]),
    ([*GENERATE, "--stop", "\udcff"], ["--stop is not UTF-8"]),
    ([*GENERATE[:-1], "\udcff"], ["--prompt is not UTF-8"]),
    (["generate", "--model", "{root}/no-bos", "--prompt", ""], ["--prompt is empty"]),
    (["generate", "--model", "{root}/no-bos", "--prompt-file", "{root}/nothing"], ["nothing is empty"]),
    (["generate", "--model", "{model}", "--prompt-file", "{root}/none"], ["none cannot be read"]),
    (["generate", "--model", "{model}", "--prompt-file", "{root}/latin-1"], ["latin-1 is not UTF-8"]),
    (["generate", "--model", "{model}", "--prompt-file", "{text}"], ["text cannot be read"]),
    (["demo", "--model", "{model}"], ["--lookahead FOLDER"]),
    ([*DEMO, "--repeats", "0"], ["--repeats: found 0"]),
    ([*DEMO, "--max-new-tokens", "0"], ["--max-new-tokens: found 0"]),
    ([*DEMO, "--max-new-tokens", "96"], ["--max-new-tokens: found"]),
    ([*DEMO, "--seed", "-1"], ["--seed: found -1"]),
    ([*DEMO, "--prompt", "\udcff"], ["--prompt is not UTF-8"]),
    ([*DEMO, "--top-k", "301"], ["--top-k: found 301"]),
    (TRAIN[:-4], ["--output"]),
    (TRAIN[:-2], ["--text", "--standard-library", "--self"]),
    ([*TRAIN, "--output", "{vectors}"], ["vectors is there already"]),
    ([*TRAIN, "--output", "{root}/short.txt"], ["short.txt is there already"]),
    ([*TRAIN, "--output", "{root}/short.txt/new"], ["--output", "short.txt takes no new folder"]),
    ([*TRAIN, "--output", "{root}/" + "x" * 250], ["xxx"]),
    ([*TRAIN, "--model", "{root}/bare"], ["bare holds no tokenizer"]),
    ([*TRAIN, "--text", "{root}/none"], ["none is not there"]),
    ([*TRAIN, "--text", "{root}/empty"], ["empty holds no text"]),
    ([*TRAIN, "--text", "{root}/latin-1"], ["latin-1 holds no text"]),
    ([*TRAIN, "--text", "{text}", "{text}"], ["found before"]),
    ([*TRAIN, "--text", "{root}/short.txt"], ["--text: found", "expected at least 64 tokens"]),
    ([*TRAIN, "--standard-library"], ["--text", "--standard-library"]),
    ([*TRAIN, "--self"], ["--text", "--self"]),
    ([*TRAIN, "--self-tokens", "7"], ["--self-tokens", "without --self"]),
    ([*SELF, "--self-tokens", "0"], ["--self-tokens: found 0"]),
    ([*SELF, "--self-tokens", "63"], ["--self-tokens: found 63", "expected at least 64"]),
    ([*SELF, "--context", "97"], ["--context: found 97", "96"]),
    ([*TRAIN, "--context", "97"], ["--context: found 97", "96"]),
    ([*TRAIN, "--context", "5"], ["--context: found 5"]),
    ([*TRAIN, "--steps", "0"], ["--steps: found 0"]),
    ([*TRAIN, "--num-lookahead", "0"], ["--num-lookahead: found 0"]),
    ([*TRAIN, "--batch-size", "0"], ["--batch-size: found 0"]),
    ([*TRAIN, "--anchors", "0"], ["--anchors: found 0"]),
    ([*TRAIN, "--learning-rate", "nan"], ["--learning-rate: found nan"]),
    ([*TRAIN, "--learning-rate", "0"], ["--learning-rate: found 0"]),
    ([*TRAIN, "--loss", "hinge"], ["--loss", "'hinge'"]),
    ([*TRAIN, "--loss-temperature", "0"], ["--loss-temperature: found 0.0"]),
    ([*TRAIN, "--loss-temperature", "1", "--loss", "cross-entropy"], ["--loss-temperature: found 1.0 with"]),
    ([*TRAIN, "--depth-decay", "1.1"], ["--depth-decay: found 1.1"]),
    ([*TRAIN, "--adapter-rank", "-1"], ["--adapter-rank: found -1"]),
    ([*TRAIN, "--head-width", "-1"], ["--head-width: found -1"]),
    ([*TRAIN, "--head-alone"], ["--head-alone: found it without a head"]),
    ([*TRAIN, *ALONE, "--adapter-rank", "2"], ["--head-alone: found it with an adapter"]),
    ([*TRAIN, *ALONE, "--learning-rate", "1"], ["--learning-rate: found it with --head-alone"]),
    ([*TRAIN, *ALONE, "--matrix-learning-rate", "0"], ["--matrix-learning-rate: found 0.0"]),
    ([*TRAIN, "--matrix-learning-rate", "1"], ["--matrix-learning-rate: found it alone", "--adapter-rank"]),
    ([*TRAIN, "--seed", str(2**63)], [f"--seed: found {2**63}"]),
    (NGRAM[:-2], ["--text", "--standard-library"]),
    ([*NGRAM, "--output", "{vectors}"], ["vectors is there already"]),
    ([*NGRAM, "--output", "{root}/short.txt/new"], ["--output", "short.txt takes no new folder"]),
    ([*NGRAM, "--model", "{root}/bare"], ["bare holds no tokenizer"]),
    ([*NGRAM, "--model", "{root}/none"], ["none is not a folder"]),
    ([*NGRAM, "--text", "{root}/none"], ["none is not there"]),
    ([*NGRAM, "--text", "{root}/short.txt"], ["--text: found", "to hold out", "a longer text"]),
    ([*NGRAM, "--standard-library"], ["--text", "--standard-library"]),
    ([*NGRAM, "--held-out-list", "{root}/nothing"], ["nothing names 0 of the 12 texts"]),
    ([*NGRAM, "--held-out-list", "{root}/latin-1"], ["latin-1 is not UTF-8"]),
    ([*NGRAM, "--order", "5"], ["--order: found 5", "1 to 4"]),
    ([*NGRAM, "--order", "two"], ["--order", "'two'"]),
    ([*NGRAM, "--min-count", "0"], ["--min-count: found 0"]),
    ([*NGRAM, "--min-count", "2", "2"], ["--min-count: found 2 numbers", "or 3"]),
    ([*NGRAM, "--max-successors", "0"], ["--max-successors: found 0"]),
    ([*NGRAM, "--max-megabytes", "nan"], ["--max-megabytes: found nan"]),
    ([*NGRAM, "--max-megabytes", "0.001"], ["--max-megabytes: found 0.001", "0.001238 for 300 tokens"]),
    ([*NGRAM, "--held-out-sequences", "0"], ["--held-out-sequences: found 0"]),
    ([*NGRAM, "--device", "tpu"], ["--device: found tpu"]),
    (PRETRAIN[:-2], ["--text", "--standard-library"]),
    ([*PRETRAIN, "--output", "{vectors}"], ["vectors is there already"]),
    ([*PRETRAIN, "--output", "{root}/short.txt/new"], ["--output", "short.txt takes no new folder"]),
    ([*PRETRAIN, "--hidden-size", "nan"], ["--hidden-size", "'nan'"]),
    ([*PRETRAIN, "--hidden-size", "18"], ["--hidden-size: found 18"]),
    ([*PRETRAIN, "--layers", "0"], ["--layers: found 0"]),
    ([*PRETRAIN, "--heads", "0"], ["--heads: found 0"]),
    ([*PRETRAIN, "--kv-heads", "3"], ["--kv-heads: found 3"]),
    ([*PRETRAIN, "--steps", "0"], ["--steps: found 0"]),
    ([*PRETRAIN, "--context", "1"], ["--context: found 1"]),
    ([*PRETRAIN, "--learning-rate", "nan"], ["--learning-rate: found nan"]),
    ([*PRETRAIN, "--seed", "-1"], ["--seed: found -1"]),
    ([*PRETRAIN, "--device", "tpu"], ["--device: found tpu"]),
    ([*PRETRAIN, "--held-out-list", "{root}/none"], ["none cannot be used", "No such file"]),
    ([*PRETRAIN, "--held-out-list", "{root}/latin-1"], ["latin-1 is not UTF-8"]),
    ([*PRETRAIN, "--held-out-list", "{root}/nothing"], ["nothing names 0 of the 12 texts"]),
    ([*PRETRAIN, "--vocab-size", "9"], ["--vocab-size: found 9"]),
    ([*PRETRAIN, "--text", "{root}/short.txt"], ["list.txt names 0 of the 1 texts"]),
    ([*PRETRAIN, "--teacher", "{root}/none"], ["--teacher: ", "none is not a folder"]),
    ([*PRETRAIN, "--teacher", "{root}/short.txt"], ["--teacher: ", "short.txt is not a folder"]),
    ([*PRETRAIN, "--teacher", "{root}/bare"], ["bare holds no tokenizer"]),
    ([*PRETRAIN, "--teacher", "{root}/damaged"], ["model.safetensors is damaged"]),
    ([*PRETRAIN, "--teacher", "{vectors}"], ["vectors"]),
    ([*PRETRAIN, "--teacher", "{model}", "--vocab-size", "301"], ["--vocab-size: found 301", "300, the teacher's"]),
    ([*PRETRAIN, "--teacher", "{model}", "--context", "97"], ["--context: found 97", "at most 96, the teacher's"]),
]


def refused(argv: list[str], box: Box, capsys: pytest.CaptureFixture[str]) -> str:
    """Run a command that must be refused and change nothing; return its sentence."""
    before = contents(box.root)
    assert run(*(argument.format(**box._asdict()) for argument in argv)) == 2
    printed = capsys.readouterr()
    assert printed.out == ""
    assert printed.err.startswith("pass-sampling") and printed.err.endswith("\n") and printed.err.count("\n") == 1
    assert contents(box.root) == before
    return printed.err


@pytest.mark.parametrize("argv, said", REFUSED, ids=[" ".join(argv)[-60:] for argv, _ in REFUSED])
def test_bad_input_is_refused_in_one_sentence_and_changes_nothing(argv, said, box, capsys):
    sentence = refused(argv, box, capsys)
    if argv and argv[0] in ("demo", "generate", "train", "pretrain", "ngram"):
        assert sentence.startswith(f"pass-sampling {argv[0]}: ")
    assert [part for part in said if part not in sentence] == []


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
@pytest.mark.parametrize("argv", [GENERATE, DEMO, TRAIN, PRETRAIN], ids=lambda argv: argv[0])
def test_a_device_that_is_not_there_is_named(argv, box, capsys):
    assert "--device: found cuda" in refused([*argv, "--device", "cuda"], box, capsys)


def test_a_text_that_the_model_has_no_tokens_for_is_refused(box, capsys, monkeypatch):
    monkeypatch.setattr("pass_sampling.gpu.training.tokens.encode_texts", lambda *some: [torch.arange(400).numpy()])
    assert "model: its tokenizer gives the token 399" in refused(TRAIN, box, capsys)


def test_a_folder_that_may_not_be_written_to_is_refused_before_training(box, capsys, monkeypatch):
    def mkdtemp(**where: object) -> str:
        raise PermissionError(errno.EACCES, "Permission denied", str(box.root))

    monkeypatch.setattr("tempfile.mkdtemp", mkdtemp)
    for argv in (TRAIN, PRETRAIN):
        assert "takes no new folder (Permission denied)" in refused(argv, box, capsys)


def test_a_full_disk_ends_training_in_one_sentence_and_leaves_nothing_half_written(box, capsys, monkeypatch):
    def fsync(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", fsync)
    before = contents(box.root)
    assert run(*(argument.format(**box._asdict()) for argument in TRAIN)) == 2
    printed = capsys.readouterr()
    assert printed.out == ""
    assert "new cannot be used (No space left on device)" in printed.err.splitlines()[-1]
    assert contents(box.root) == before


def test_too_little_memory_is_one_sentence_and_any_other_runtime_error_is_a_bug(box, capsys, monkeypatch):
    def load(error: BaseException) -> None:
        raise error

    place = "pass_sampling.gpu.cli.options.ModelOptions.load"
    for error in (RuntimeError("DefaultCPUAllocator: can't allocate memory:\nmore"), MemoryError()):
        monkeypatch.setattr(place, lambda arguments, error=error: load(error))
        assert "found too little memory" in refused(GENERATE, box, capsys)
    monkeypatch.setattr(place, lambda arguments: load(RuntimeError("a row left the batch")))
    with pytest.raises(RuntimeError):
        run(*GENERATE)


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
