"""Distillation: a student's distributions come near its teacher's, and nothing else changes."""

from __future__ import annotations

import importlib
import json
import os
import re
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from transformers import AutoTokenizer

from console import read_strictly, run
from folders import as_numpy, both_packages, contents, edit_json, module, tiny_config, write_checkpoint
from pass_sampling.gpu.training.distillation import (
    SAMPLINGS,
    Teacher,
    distillation_loss,
    draft_acceptance,
    read_teacher,
)
from pass_sampling.gpu.training.pretrain import PretrainConfig, loss_of, new_model, pretrain
from pass_sampling.gpu.training.tokens import evenly_spaced
from shapes import checked, functions_of, signature
from test_pretrain import TEXTS, TINY

home = importlib.import_module("pass_sampling.gpu.training.pretrain")
STUDENT = replace(TINY, hidden_size=8, intermediate_size=12, num_attention_heads=1, seed=1)
SHORT = replace(STUDENT, num_steps=6)
TOKENIZER = ("tokenizer.json", "tokenizer_config.json")


class Pair(NamedTuple):
    teacher: Path
    student: Path
    record: dict[str, Any]
    before: dict[str, Any]  # what was in the teacher's folder
    held_out: np.ndarray  # [N]


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Pair:
    """A tiny teacher and its student; no tokenizer may be trained for the second."""
    root = tmp_path_factory.mktemp("pair")
    held_out = pretrain(root / "teacher", TEXTS, TINY)["held_out_files"]
    before = contents(root / "teacher")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(home, "train_tokenizer", lambda *_: pytest.fail("a tokenizer was trained"))
        record = pretrain(root / "student", TEXTS, STUDENT, teacher=root / "teacher")
    tokenizer = AutoTokenizer.from_pretrained(root / "teacher")
    tokens = [0]
    for name in held_out:
        tokens += [*tokenizer.encode(TEXTS[name], add_special_tokens=False), 0]
    return Pair(root / "teacher", root / "student", record, before, np.array(tokens))


# --- What comes out ---


@pytest.mark.parametrize("place", range(len(SAMPLINGS)))
def test_a_student_comes_nearer_to_its_teacher_than_an_untrained_model(place: int, pair: Pair) -> None:
    teacher, sampling = read_teacher(pair.teacher), SAMPLINGS[place]
    windows = evenly_spaced(pair.held_out, 16, 128)
    untrained = draft_acceptance(teacher, new_model(STUDENT, 0), windows, sampling)
    found = pair.record["acceptance"][place]
    assert (found["temperature"], found["top_k"]) == (sampling.temperature, sampling.top_k)
    assert found["expected"] > untrained + 0.2
    assert pair.record["acceptance_windows"] == len(windows)


@both_packages
@pytest.mark.parametrize("place", range(len(SAMPLINGS)))
def test_the_acceptance_in_the_record_follows_from_both_folders(package: str, place: int, pair: Pair) -> None:
    """Once more in float64.

    The record's was computed by products in bfloat16, which moves a logit, of order 5, by 2^-9 of it, 0.01. A
    distribution whose logits move by d has moved by less than d in total variation, and so has the mass that two
    distributions share; there are two distributions, and a temperature of 0.8 makes 5/4 of it."""
    sampling = module(package, "config").SamplingConfig(SAMPLINGS[place].temperature, SAMPLINGS[place].top_k)
    models = [
        module(package, "checkpoint.load").load_model(folder, "float64") for folder in (pair.teacher, pair.student)
    ]
    probs_from_logits, shared = module(package, "sampling").probs_from_logits, []
    for window in evenly_spaced(pair.held_out, 16, 128):
        rows = [model.forward(window if package == "reference" else window[None]) for model in models]
        distributions = [
            [as_numpy(probs_from_logits(row, sampling)) for row in logits.reshape(16, 300)] for logits in rows
        ]
        shared.append(np.minimum(*distributions).sum(axis=1).mean())
    assert abs(np.mean(shared) - pair.record["acceptance"][place]["expected"]) < 0.025


def test_the_tokenizer_is_the_teachers_byte_for_byte_and_the_teacher_stays_as_it_is(pair: Pair) -> None:
    assert contents(pair.teacher) == pair.before
    for name in TOKENIZER:
        assert (pair.student / name).read_bytes() == (pair.teacher / name).read_bytes()
    assert set(os.listdir(pair.student)) == set(os.listdir(pair.teacher))


def test_the_record_names_the_teacher_and_is_what_the_file_says(pair: Pair) -> None:
    model = module("gpu", "checkpoint.load").load_model(pair.teacher)
    assert pair.record["teacher"] == {"name": "teacher", "fingerprint": model.fingerprint}
    assert json.loads((pair.student / "pretraining.json").read_text()) == pair.record
    assert pair.record["held_out_tokens"] == len(pair.held_out)
    assert not {"teacher", "acceptance"} & json.loads((pair.teacher / "pretraining.json").read_text()).keys()


def test_every_array_has_the_shape_that_its_comment_says(pair: Pair, tmp_path: Path) -> None:
    commented = [each for each in functions_of(module("gpu", "training.distillation")) if signature(each).comments]
    with checked(commented) as calls:
        pretrain(tmp_path / "student", TEXTS, SHORT, teacher=pair.teacher)
    assert len(calls) == len(commented) == 4


# --- The loss ---


def test_the_loss_is_the_cross_entropy_of_the_distributions() -> None:
    """Logits of an untrained model are below 1, and products in bfloat16 round them by 2^-9 of that."""
    student, tokens = new_model(STUDENT, 0), torch.arange(32).reshape(2, 16)
    target_logits = 3 * torch.randn(2, 16, 300, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        log_probs = student(tokens).logits.double().log_softmax(-1)
    expected = -(target_logits.double().softmax(-1) * log_probs).sum(-1).mean()
    assert abs(float(distillation_loss(student, tokens, target_logits).detach()) - float(expected)) < 2.0**-9


def test_the_loss_is_least_and_flat_where_the_distributions_agree() -> None:
    """It is then the distributions' entropy; the gradient is rounding, beside what it is for the text itself."""
    student, tokens = new_model(STUDENT, 0), torch.arange(32).reshape(2, 16)
    with torch.no_grad():
        for weight in student.parameters():
            weight *= 3.0  # distributions that are far from uniform
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        own = student(tokens, use_cache=False).logits
    log_probs = own.double().log_softmax(-1)
    loss = distillation_loss(student, tokens, own)
    assert abs(float(loss.detach()) + float((log_probs.exp() * log_probs).sum(-1).mean())) < 1e-5  # float32

    def steepness(value: torch.Tensor) -> float:
        gradients = torch.autograd.grad(value, list(student.parameters()))
        return max(float(gradient.abs().max()) for gradient in gradients)

    assert steepness(loss) < 1e-4 * steepness(loss_of(student, tokens))


@dataclass(frozen=True)
class Scaled:
    """Stands for a student: answers with a multiple of the teacher's logits."""

    teacher: Teacher
    factor: float
    device: str = "cpu"

    def __call__(self, tokens: torch.Tensor, use_cache: bool) -> Any:
        return SimpleNamespace(logits=self.factor * self.teacher.logits(tokens))


def test_a_model_accepts_its_own_drafts_always_and_of_uniform_ones_what_its_distribution_leaves_room_for(
    pair: Pair,
) -> None:
    """Sums of 300 numbers in float64."""
    teacher, windows = read_teacher(pair.teacher), evenly_spaced(pair.held_out, 16, 7)
    for sampling in SAMPLINGS:
        assert abs(draft_acceptance(teacher, Scaled(teacher, 1.0), windows, sampling) - 1) < 1e-12
    probs = teacher.logits(torch.from_numpy(windows)).double().softmax(-1)
    expected = float(probs.clamp(max=1 / 300).sum(-1).mean())
    assert abs(draft_acceptance(teacher, Scaled(teacher, 0.0), windows, SAMPLINGS[0]) - expected) < 1e-12


# --- A run that is interrupted ---


class Interrupted(BaseException):
    """Stands for what ends a run between two steps."""


def interrupted_run(output: Path, teacher: Path | None) -> None:
    def report(news: dict[str, Any]) -> None:
        if news["step"] == 4:
            raise Interrupted

    with pytest.raises(Interrupted), pytest.MonkeyPatch.context() as patch:
        patch.setattr(home, "Progress", partial(home.Progress, every=0.0))
        pretrain(output, TEXTS, SHORT, report=report, teacher=teacher)


def test_a_run_that_was_interrupted_goes_on_to_the_same_weights(pair: Pair, tmp_path: Path) -> None:
    pretrain(tmp_path / "whole", TEXTS, SHORT, teacher=pair.teacher)
    interrupted_run(tmp_path / "parts", pair.teacher)
    moved = write_copy(pair.teacher, tmp_path / "moved")
    news: list[dict[str, Any]] = []
    pretrain(tmp_path / "parts", TEXTS, SHORT, report=news.append, teacher=moved)
    assert [part["step"] for part in news] == [4, 5, 6]
    whole, parts = ((tmp_path / name / "model.safetensors").read_bytes() for name in ("whole", "parts"))
    assert whole == parts


@pytest.mark.parametrize("first", ["teacher", "another", None])
def test_a_run_does_not_go_on_under_another_teacher_or_without(first: str | None, pair: Pair, tmp_path: Path) -> None:
    """All have the same tokenizer, also the one that is trained where nobody teaches: nothing else tells them apart."""
    config = tiny_config(vocab_size=300, max_position_embeddings=16)
    another = write_checkpoint(tmp_path / "another", config, eos_token_id=0, bos_token_id=0, dtype="bfloat16")
    for name in TOKENIZER:
        (another / name).write_bytes((pair.teacher / name).read_bytes())
    teachers = {"teacher": pair.teacher, "another": another, None: None}
    interrupted_run(tmp_path / "student", teachers[first])
    before = contents(tmp_path)
    for name, folder in teachers.items():
        if name != first:
            with pytest.raises(ValueError, match=r"^\S+ is an unfinished run with other settings, another model or "):
                pretrain(tmp_path / "student", TEXTS, SHORT, teacher=folder)
    assert contents(tmp_path) == before


# --- What is refused ---


def write_copy(folder: Path, to: Path) -> Path:
    """Copy a folder's files."""
    to.mkdir()
    for path in folder.iterdir():
        (to / path.name).write_bytes(path.read_bytes())
    return to


def test_a_teacher_that_cannot_teach_is_refused_and_nothing_is_written(pair: Pair, tmp_path: Path) -> None:
    mute = write_copy(pair.teacher, tmp_path / "mute")
    edit_json(mute / "tokenizer_config.json", eos_token=...)
    wide = write_checkpoint(tmp_path / "wide", tiny_config(vocab_size=280, max_position_embeddings=16))
    for name in TOKENIZER:
        (wide / name).write_bytes((pair.teacher / name).read_bytes())
    cases: list[tuple[Path, PretrainConfig, type[Exception], str]] = [
        (tmp_path / "none", SHORT, FileNotFoundError, r"none is not a folder, expected one with config\.json"),
        (mute, SHORT, ValueError, r"^teacher: found no end of text in the tokenizer of \S+mute, expected one"),
        (wide, SHORT, ValueError, r"^vocab_size: found 300, expected 280, the teacher's$"),
        (wide, replace(SHORT, vocab_size=280), ValueError, r"^teacher: found the token \d+, expected 0 to 279, "),
        (pair.teacher, replace(SHORT, vocab_size=301), ValueError, r"^vocab_size: found 301, expected 300, "),
        (pair.teacher, replace(SHORT, context=17), ValueError, r"^context: found 17, expected at most 16, the "),
    ]
    before = contents(tmp_path)
    for teacher, config, kind, message in cases:
        with pytest.raises(kind, match=message):
            pretrain(tmp_path / "student", TEXTS, config, teacher=teacher)
    assert contents(tmp_path) == before


# --- The command ---


def test_the_command_takes_the_teachers_vocabulary_and_says_how_often_drafts_are_accepted(box, capsys, tmp_path):
    sizes = "--hidden-size 16 --intermediate-size 8 --layers 1 --heads 2 --context 32 --steps 3 --batch-size 2".split()
    argv = ["pretrain", "--teacher", box.model, *sizes, "--text", box.text, "--output", tmp_path / "draft"]
    assert run(*argv) == 0
    printed = capsys.readouterr().out
    lines = re.findall(r"^expected acceptance of its drafts at (.+): 0\.\d{3}$", printed, re.MULTILINE)
    assert lines == ["temperature 1, top-k 0", "temperature 0.8, top-k 10"]
    argv[-1] = tmp_path / "again"
    assert run(*argv, "--json") == 0
    record = read_strictly(capsys.readouterr().out)
    assert record["teacher"]["name"] == "model" and record["settings"]["vocab_size"] == 300
    assert run("generate", "--model", tmp_path / "draft", "--prompt", "def", "--max-new-tokens", 3) == 0
