"""Base models, and students that learn from one: folders that open everywhere, and figures that can be checked."""

import importlib
import json
import math
import os
import re
from dataclasses import asdict
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from console import read_strictly, run
from folders import contents, module
from pass_sampling.gpu import load_model
from pass_sampling.gpu.training.pretrain import SAMPLINGS, draft_acceptance, new_model, pretrain, read_teacher
from pass_sampling.gpu.training.text import split_texts
from pass_sampling.gpu.training.tokens import evenly_spaced
from training import STUDENT, TEXTS, TINY, pretrained

home = importlib.import_module("pass_sampling.gpu.training.pretrain")
TOKENS = torch.arange(32).reshape(2, 16)
on_samplings = pytest.mark.parametrize("place", range(len(SAMPLINGS)))


def held_out_tokens() -> np.ndarray:  # [N]
    """Return the held-out text as the base model reads it."""
    tokenizer, tokens = AutoTokenizer.from_pretrained(pretrained().folder), [0]
    for name in pretrained().record["held_out_files"]:
        tokens += [*tokenizer.encode(TEXTS[name], add_special_tokens=False), 0]
    return np.array(tokens)


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


def test_the_loss_falls() -> None:
    news, losses = pretrained().news, [part["loss"] for part in pretrained().news]
    assert [part["step"] for part in news] == list(range(1, 61))
    assert abs(losses[0] - math.log(300)) < 0.5, "an untrained model knows nothing"
    assert max(*losses[-5:], pretrained().record["held_out_loss"]) < losses[0] - 1.0


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


def test_held_out_texts_reach_neither_the_tokenizer_nor_a_batch(tmp_path, monkeypatch):
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


def test_the_loss_is_the_cross_entropy_of_the_distributions() -> None:
    """Logits of an untrained model are below 1, and products in bfloat16 round them by 2^-9 of that."""
    student = new_model(STUDENT, 0)
    target_logits = 3 * torch.randn(2, 16, 300, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        log_probs = student(TOKENS).logits.double().log_softmax(-1)
    expected = -(target_logits.double().softmax(-1) * log_probs).sum(-1).mean()
    assert abs(float(home.loss_of(student, TOKENS, target_logits).detach()) - float(expected)) < 2.0**-9


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
