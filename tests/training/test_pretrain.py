"""Base models, and students that learn from one: folders that open everywhere, and figures that can be checked."""

from __future__ import annotations

import importlib
import json
import math
import os
import re
from dataclasses import asdict, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer

import hf_float64
from console import Box, read_strictly, run
from folders import as_numpy, both_packages, contents, module
from pass_sampling.gpu import load_model
from pass_sampling.gpu.training.pretrain import (
    SAMPLINGS,
    distillation_loss,
    draft_acceptance,
    held_out_loss,
    loss_of,
    new_model,
    pretrain,
    read_teacher,
)
from pass_sampling.gpu.training.text import split_texts
from pass_sampling.gpu.training.tokens import evenly_spaced
from training import STUDENT, TEXTS, TINY, interrupt, pretrained, steps_of

home = importlib.import_module("pass_sampling.gpu.training.pretrain")
TOKENS = torch.arange(32).reshape(2, 16)
on_samplings = pytest.mark.parametrize("place", range(len(SAMPLINGS)))


def held_out_tokens() -> np.ndarray:  # [N]
    """Return the held-out text as the base model reads it."""
    tokenizer, tokens = AutoTokenizer.from_pretrained(pretrained().folder), [0]
    for name in pretrained().record["held_out_files"]:
        tokens += [*tokenizer.encode(TEXTS[name], add_special_tokens=False), 0]
    return np.array(tokens)


# --- A base model ---


def test_the_folder_opens_in_transformers_and_is_left_as_it_is() -> None:
    folder = pretrained().folder
    before = contents(folder)
    model, tokenizer = AutoModelForCausalLM.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
    assert model.dtype == torch.bfloat16 and len(tokenizer) == model.config.vocab_size == 300
    assert tokenizer.eos_token_id == model.config.eos_token_id == model.generation_config.eos_token_id
    assert tokenizer.model_max_length == model.config.max_position_embeddings == 16
    for content in TEXTS.values():
        assert tokenizer.decode(tokenizer(content, add_special_tokens=False, verbose=False)["input_ids"]) == content
    assert contents(folder) == before
    assert {"config.json", "tokenizer.json", "model.safetensors", "pretraining.json"} <= set(os.listdir(folder))
    assert os.listdir(folder.parent) == ["tiny"]


@both_packages
def test_both_packages_read_the_folder_and_compute_what_transformers_does(package: str) -> None:
    """Float64 on both sides: logits of order 10 from a few hundred roundings of 2^-53."""
    folder, tokens = pretrained().folder, np.random.default_rng(0).integers(300, size=16)
    expected = hf_float64.logits(hf_float64.load(folder), tokens)
    model = module(package, "checkpoint.load").load_model(folder, "float64")
    found = model.forward(tokens if package == "reference" else tokens[None].tolist())
    assert np.abs(as_numpy(found).reshape(16, 300) - expected).max() <= 1e-12
    assert model.eos_token_ids == (0,)


def test_the_loss_falls() -> None:
    news, losses = pretrained().news, [part["loss"] for part in pretrained().news]
    assert [part["step"] for part in news] == list(range(1, 61))
    assert abs(losses[0] - math.log(300)) < 0.5, "an untrained model knows nothing"
    assert max(*losses[-5:], pretrained().record["held_out_loss"]) < losses[0] - 1.0
    extra = [sorted(part.keys() & {"first_step", "seconds_per_step", "memory"}) for part in news[:3]]
    assert extra == [[], ["first_step", "memory", "seconds_per_step"], []]


def test_the_figures_of_the_record_follow_from_the_folder() -> None:
    """The loss once more, by the specification in float64.

    The record's was computed with weights in float32 and products in bfloat16, the folder holds weights in bfloat16.
    Either rounding moves a logit, of order 5, by 2^-9 of it, 0.01; a mean over tokens no more than twice that.
    """
    folder, record, _ = pretrained()
    model, tokens = module("reference", "checkpoint.load").load_model(folder, "float64"), held_out_tokens()
    losses = []
    for window in evenly_spaced(tokens, 16, len(tokens)):
        logits = model.forward(window)[:-1]
        log_probs = logits - np.log(np.exp(logits).sum(axis=1, keepdims=True))
        losses.append(-log_probs[np.arange(15), window[1:]].mean())
    assert abs(np.mean(losses) - record["held_out_loss"]) < 0.02
    training, held_out = split_texts(TEXTS)
    num_bytes = sum(len(TEXTS[name].encode()) for name in held_out)
    assert record["held_out_tokens"] == len(tokens)
    assert record["bytes_per_token"] == round(num_bytes / len(tokens), 3)
    # Both figures are rounded to 4 digits, and a nat is 1.44 bits, here spread over more than one byte.
    bits = record["held_out_loss"] / math.log(2) * len(tokens) / num_bytes
    assert len(tokens) < num_bytes and abs(record["bits_per_byte"] - bits) <= (1 + 1 / math.log(2)) * 5e-5
    assert record["num_parameters"] == sum(value.numel() for value in load_file(folder / "model.safetensors").values())
    assert record["settings"] == asdict(TINY)
    assert (record["training_files"], record["held_out_files"]) == (len(training), held_out)
    assert json.loads((folder / "pretraining.json").read_text()) == record


def test_held_out_texts_reach_neither_the_tokenizer_nor_a_batch(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every text names itself; so does all that is trained on."""
    seen: list[str] = []
    batches: list[np.ndarray] = []
    train_tokenizer, step_loss = home.train_tokenizer, home.loss_of

    def watched(texts: Any, *rest: Any) -> Any:
        seen.extend(texts)
        return train_tokenizer(seen, *rest)

    def watching(model: Any, tokens: torch.Tensor) -> torch.Tensor:
        if torch.is_grad_enabled():  # held-out texts are read without
            batches.append(tokens.numpy())
        return step_loss(model, tokens)

    monkeypatch.setattr(home, "train_tokenizer", watched)
    monkeypatch.setattr(home, "loss_of", watching)
    held_out = ["notes/text_03.py", "notes/text_30.py", "not among them"]
    record = pretrain(tmp_path / "tiny", TEXTS, TINY, held_out)
    assert record["held_out_files"] == held_out[:2]
    assert sorted(seen) == sorted(TEXTS[name] for name in TEXTS if name not in held_out)
    assert len(batches) == 60
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "tiny")
    read = "\n".join(tokenizer.decode(window) for window in np.concatenate(batches))
    named = {int(number) for number in re.findall(r"\((\d+),", read)}
    assert not named & {3, 30}
    assert len(named) > 30, "most of the others are read"


def test_making_a_model_leaves_the_random_numbers_of_others_alone() -> None:
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    first = new_model(TINY, 0)
    assert torch.equal(torch.rand(3), expected)
    assert all(map(torch.equal, first.parameters(), new_model(TINY, 0).parameters()))
    assert not torch.equal(new_model(replace(TINY, seed=1), 0).lm_head.weight, first.lm_head.weight)


@pytest.mark.parametrize("count", [1, 5, 8, 11])
def test_the_held_out_loss_is_the_mean_over_windows_however_many(count: int) -> None:
    """Products in bfloat16 may round otherwise in another batch: by 2^-9 of logits that here are below 1."""
    model, windows = new_model(TINY, 0), np.random.default_rng(0).integers(300, size=(count, 16))
    alone = [float(loss_of(model, torch.from_numpy(window[None])).detach()) for window in windows]
    assert abs(held_out_loss(model, windows) - np.mean(alone)) < 2.0**-9


# --- A student ---


class Taught(NamedTuple):
    """A student that was trained to the end, and what was in its teacher's folder before."""

    folder: Path
    record: dict[str, Any]
    before: dict[str, Any]


@pytest.fixture(scope="module")
def taught(tmp_path_factory: pytest.TempPathFactory) -> Taught:
    teacher, folder = pretrained().folder, tmp_path_factory.mktemp("runs") / "student"
    before = contents(teacher)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(home, "train_tokenizer", lambda *_: pytest.fail("a tokenizer was trained"))
        return Taught(folder, pretrain(folder, TEXTS, STUDENT, teacher=teacher), before)


@on_samplings
def test_a_student_comes_nearer_to_its_teacher_than_an_untrained_model(place: int, taught: Taught) -> None:
    sampling, windows = SAMPLINGS[place], evenly_spaced(held_out_tokens(), 16, 128)
    untrained = draft_acceptance(read_teacher(pretrained().folder).model, new_model(STUDENT, 0), windows, sampling)
    found = taught.record["acceptance"][place]
    assert (found["temperature"], found["top_k"]) == (sampling.temperature, sampling.top_k)
    assert found["expected"] > untrained + 0.2
    assert taught.record["acceptance_windows"] == len(windows)


@both_packages
@on_samplings
def test_the_acceptance_in_the_record_follows_from_both_folders(package: str, place: int, taught: Taught) -> None:
    """Once more in float64.

    The record's was computed by products in bfloat16, which moves a logit, of order 5, by 2^-9 of it, 0.01. A
    distribution whose logits move by d has moved by less than d in total variation, and so has the mass that two
    distributions share; there are two distributions, and a temperature of 0.8 makes 5/4 of it."""
    sampling = module(package, "config").SamplingConfig(SAMPLINGS[place].temperature, SAMPLINGS[place].top_k)
    load = module(package, "checkpoint.load").load_model
    probs_from_logits = module(package, "sampling").probs_from_logits
    models, shared = [load(folder, "float64") for folder in (pretrained().folder, taught.folder)], []
    for window in evenly_spaced(held_out_tokens(), 16, 128):
        rows = [model.forward(window if package == "reference" else window[None]).reshape(16, 300) for model in models]
        distributions = [[as_numpy(probs_from_logits(row, sampling)) for row in logits] for logits in rows]
        shared.append(np.minimum(*distributions).sum(axis=1).mean())
    assert abs(np.mean(shared) - taught.record["acceptance"][place]["expected"]) < 0.025


def test_the_tokenizer_is_the_teachers_byte_for_byte_and_the_record_names_the_teacher(taught: Taught) -> None:
    teacher, record = pretrained().folder, taught.record
    assert contents(teacher) == taught.before
    for name in ("tokenizer.json", "tokenizer_config.json"):
        assert (taught.folder / name).read_bytes() == (teacher / name).read_bytes()
    assert set(os.listdir(taught.folder)) == set(os.listdir(teacher))
    assert record["teacher"] == {"name": "tiny", "fingerprint": load_model(teacher).fingerprint}
    assert json.loads((taught.folder / "pretraining.json").read_text()) == record
    assert record["held_out_tokens"] == len(held_out_tokens())
    assert not {"teacher", "acceptance"} & pretrained().record.keys()


def test_a_run_goes_on_under_the_same_teacher_in_another_place(tmp_path: Path) -> None:
    interrupt("student", tmp_path / "student", 3)
    (tmp_path / "moved").mkdir()
    for file in pretrained().folder.iterdir():
        (tmp_path / "moved" / file.name).write_bytes(file.read_bytes())
    assert steps_of("student", tmp_path / "student", teacher=tmp_path / "moved") == [3, 4]


def test_the_loss_is_the_cross_entropy_of_the_distributions() -> None:
    """Logits of an untrained model are below 1, and products in bfloat16 round them by 2^-9 of that."""
    student = new_model(STUDENT, 0)
    target_logits = 3 * torch.randn(2, 16, 300, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        log_probs = student(TOKENS).logits.double().log_softmax(-1)
    expected = -(target_logits.double().softmax(-1) * log_probs).sum(-1).mean()
    assert abs(float(distillation_loss(student, TOKENS, target_logits).detach()) - float(expected)) < 2.0**-9


def test_the_loss_is_least_and_flat_where_the_distributions_agree() -> None:
    """It is then the distributions' entropy; the gradient is rounding, beside what it is for the text itself."""
    student = new_model(STUDENT, 0)
    with torch.no_grad():
        for weight in student.parameters():
            weight *= 3.0  # distributions that are far from uniform
        with torch.autocast("cpu", torch.bfloat16):
            own = student(TOKENS, use_cache=False).logits
    log_probs, loss = own.double().log_softmax(-1), distillation_loss(student, TOKENS, own)
    assert abs(float(loss.detach()) + float((log_probs.exp() * log_probs).sum(-1).mean())) < 1e-5  # float32

    def steepness(value: torch.Tensor) -> float:
        gradients = torch.autograd.grad(value, list(student.parameters()))
        return max(float(gradient.abs().max()) for gradient in gradients)

    assert steepness(loss) < 1e-4 * steepness(loss_of(student, TOKENS))


def test_a_model_accepts_its_own_drafts_always_and_of_uniform_ones_what_its_distribution_leaves_room_for() -> None:
    """Sums of 300 numbers in float64; a student is stood for by a multiple of the teacher's logits."""
    teacher, windows = read_teacher(pretrained().folder), evenly_spaced(held_out_tokens(), 16, 7)

    def scaled(factor: float) -> Any:
        def student(tokens: torch.Tensor, use_cache: bool) -> Any:
            return SimpleNamespace(logits=factor * teacher.model.forward(tokens))

        student.device = "cpu"
        return student

    for sampling in SAMPLINGS:
        assert abs(draft_acceptance(teacher.model, scaled(1.0), windows, sampling) - 1) < 1e-12
    probs = teacher.model.forward(torch.from_numpy(windows)).double().softmax(-1)
    expected = float(probs.clamp(max=1 / 300).sum(-1).mean())
    assert abs(draft_acceptance(teacher.model, scaled(0.0), windows, SAMPLINGS[0]) - expected) < 1e-12


def test_the_command_takes_the_teachers_vocabulary_and_says_how_often_drafts_are_accepted(
    box: Box, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
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
