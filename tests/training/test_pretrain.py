"""Pretraining: a folder that opens everywhere, figures that can be checked, and a run that survives being killed."""

from __future__ import annotations

import importlib
import json
import math
import os
import re
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer

import hf_float64
from folders import as_numpy, both_packages, contents, module
from killed import kill_at_random
from pass_sampling.gpu.training.pretrain import PretrainConfig, held_out_loss, loss_of, new_model, pretrain, schedule
from pass_sampling.gpu.training.resume import partial_file
from pass_sampling.gpu.training.text import split_texts
from shapes import checked, functions_of, signature

home = importlib.import_module("pass_sampling.gpu.training.pretrain")
WORDS = "alpha beta gamma delta epsilon zeta eta theta iota kappa lambda mu nu xi omicron pi rho sigma tau".split()
TINY = PretrainConfig(
    vocab_size=300,
    hidden_size=16,
    intermediate_size=24,
    num_hidden_layers=1,
    num_attention_heads=2,
    num_key_value_heads=1,
    context=16,
    num_steps=60,
    batch_size=4,
    learning_rate=0.02,
)
SHORT = replace(TINY, num_steps=6)
SHARDS = "model.safetensors"


def text(number: int) -> str:
    """Return a small text with structure, which names itself and has nothing in common with others."""
    words = np.random.default_rng(number).choice(WORDS, size=60)
    lines = [f"{one} = {other}({number}, 'é')" for one, other in zip(words[::2], words[1::2], strict=True)]
    return f"# text {number} of many\n" + "\n".join(lines) + "\n"


TEXTS = {f"notes/text_{i:02}.py": text(i) for i in range(40)}


class Prediction(NamedTuple):
    folder: Path
    record: dict[str, Any]
    news: list[dict[str, Any]]
    training: list[str]
    held_out: list[str]


@pytest.fixture(scope="module")
def outcome(tmp_path_factory: pytest.TempPathFactory) -> Prediction:
    folder, news = tmp_path_factory.mktemp("runs") / "tiny", []
    record = pretrain(folder, TEXTS, TINY, report=news.append)
    return Prediction(folder, record, news, *split_texts(TEXTS))


def weights(folder: Path) -> bytes:
    return (folder / SHARDS).read_bytes()


# --- What comes out ---


def test_the_folder_opens_in_transformers_and_is_left_as_it_is(outcome: Prediction) -> None:
    before = contents(outcome.folder)
    model = AutoModelForCausalLM.from_pretrained(outcome.folder)
    tokenizer = AutoTokenizer.from_pretrained(outcome.folder)
    assert model.dtype == torch.bfloat16 and len(tokenizer) == model.config.vocab_size == 300
    assert tokenizer.eos_token_id == model.config.eos_token_id == model.generation_config.eos_token_id
    assert tokenizer.model_max_length == model.config.max_position_embeddings == 16
    for content in TEXTS.values():
        assert tokenizer.decode(tokenizer(content, add_special_tokens=False, verbose=False)["input_ids"]) == content
    assert contents(outcome.folder) == before
    assert {"config.json", "tokenizer.json", SHARDS, "pretraining.json"} <= set(os.listdir(outcome.folder))
    assert os.listdir(outcome.folder.parent) == ["tiny"]


@both_packages
def test_both_packages_read_the_folder_and_compute_what_transformers_does(package: str, outcome: Prediction) -> None:
    """Float64 on both sides: logits of order 10 from a few hundred roundings of 2^-53."""
    tokens = np.random.default_rng(0).integers(300, size=16)
    expected = hf_float64.logits(hf_float64.load(outcome.folder), tokens)
    model = module(package, "checkpoint.load").load_model(outcome.folder, "float64")
    found = model.forward(tokens if package == "reference" else tokens[None].tolist())
    assert np.abs(as_numpy(found).reshape(16, 300) - expected).max() <= 1e-12
    assert model.eos_token_ids == (0,)


def test_the_loss_falls(outcome: Prediction) -> None:
    steps = [news["step"] for news in outcome.news]
    losses = [news["loss"] for news in outcome.news]
    assert steps == list(range(1, 61))
    assert abs(losses[0] - math.log(300)) < 0.5, "an untrained model knows nothing"
    assert max(losses[-5:]) < losses[0] - 1.0
    assert outcome.record["held_out_loss"] < losses[0] - 1.0
    assert [sorted(news.keys() & {"first_step", "seconds_per_step", "memory"}) for news in outcome.news[:3]] == [
        [],
        ["first_step", "memory", "seconds_per_step"],
        [],
    ]


def test_the_figures_of_the_record_follow_from_the_folder(outcome: Prediction) -> None:
    """The loss once more, by the specification in float64.

    The record's was computed with weights in float32 and products in bfloat16, the folder holds weights in bfloat16.
    Either rounding moves a logit, of order 5, by 2^-9 of it, 0.01; a mean over tokens no more than twice that.
    """
    record = outcome.record
    tokenizer = AutoTokenizer.from_pretrained(outcome.folder)
    model = module("reference", "checkpoint.load").load_model(outcome.folder, "float64")
    tokens = [0]
    for name in outcome.held_out:
        tokens += [*tokenizer.encode(TEXTS[name], add_special_tokens=False), 0]
    starts = np.linspace(0, len(tokens) - 16, len(tokens) // 16).astype(int)
    total = 0.0
    for start in starts:
        window = np.array(tokens[start : start + 16])
        logits = model.forward(window)[:-1]
        log_probs = logits - np.log(np.exp(logits).sum(axis=1, keepdims=True))
        total -= log_probs[np.arange(15), window[1:]].mean() / len(starts)
    assert abs(total - record["held_out_loss"]) < 0.02
    num_bytes = sum(len(TEXTS[name].encode()) for name in outcome.held_out)
    assert record["held_out_tokens"] == len(tokens)
    assert record["bytes_per_token"] == round(num_bytes / len(tokens), 3)
    # Both figures are rounded to 4 digits, and a nat is 1.44 bits, here spread over more than one byte.
    bits = record["held_out_loss"] / math.log(2) * len(tokens) / num_bytes
    assert len(tokens) < num_bytes and abs(record["bits_per_byte"] - bits) <= (1 + 1 / math.log(2)) * 5e-5
    assert record["num_parameters"] == sum(value.numel() for value in load_file(outcome.folder / SHARDS).values())
    assert record["settings"] == asdict(TINY)
    assert (record["training_files"], record["held_out_files"]) == (len(outcome.training), outcome.held_out)
    assert json.loads((outcome.folder / "pretraining.json").read_text()) == record


def test_held_out_texts_reach_neither_the_tokenizer_nor_a_batch(
    tmp_path: Path, outcome: Prediction, monkeypatch: pytest.MonkeyPatch
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


def test_every_array_has_the_shape_that_its_comment_says(tmp_path: Path) -> None:
    commented = [function for function in functions_of(home) if signature(function).comments]
    with checked(commented) as calls:
        pretrain(tmp_path / "tiny", TEXTS, SHORT)
    never = {f"{function.__module__}.{function.__qualname__}" for function in commented} - calls.keys()
    assert len(commented) > 1 and never == set()


def test_making_a_model_leaves_the_random_numbers_of_others_alone() -> None:
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    first = new_model(TINY, 0)
    assert torch.equal(torch.rand(3), expected)
    second = new_model(TINY, 0)
    assert all(map(torch.equal, first.parameters(), second.parameters()))
    assert not torch.equal(new_model(replace(TINY, seed=1), 0).lm_head.weight, first.lm_head.weight)


@pytest.mark.parametrize("count", [1, 5, 8, 11])
def test_the_held_out_loss_is_the_mean_over_windows_however_many(count: int) -> None:
    """Products in bfloat16 may round otherwise in another batch: by 2^-9 of logits that here are below 1."""
    model, windows = new_model(TINY, 0), np.random.default_rng(0).integers(300, size=(count, 16))
    alone = [float(loss_of(model, torch.from_numpy(window[None])).detach()) for window in windows]
    assert abs(held_out_loss(model, windows) - np.mean(alone)) < 2.0**-9


@given(num_steps=st.integers(1, 300), warmup=st.floats(0, 1), cooldown=st.floats(0, 1))
def test_the_learning_rate_rises_stays_and_falls(num_steps: int, warmup: float, cooldown: float) -> None:
    config = replace(TINY, num_steps=num_steps, warmup=warmup, cooldown=cooldown)
    rates = [schedule(step, config) for step in range(num_steps)]
    assert all(0 < rate <= 1 for rate in rates)
    top = rates.index(max(rates))
    assert rates == sorted(rates[:top]) + sorted(rates[top:], reverse=True)


# --- A run that is interrupted ---


class Interrupted(BaseException):
    """Stands for what ends a run between two steps."""


@pytest.fixture
def saving_often(monkeypatch: pytest.MonkeyPatch) -> None:
    """Save after every step instead of every 20 seconds."""
    monkeypatch.setattr(home, "Progress", partial(home.Progress, every=0.0))


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    folder = tmp_path_factory.mktemp("runs") / "tiny"
    pretrain(folder, TEXTS, SHORT)
    return weights(folder)


def interrupted_run(output: Path, step: int) -> None:
    def report(news: dict[str, Any]) -> None:
        if news["step"] == step:
            raise Interrupted

    with pytest.raises(Interrupted):
        pretrain(output, TEXTS, SHORT, report=report)


KILLED = """
import importlib, sys
from functools import partial
home = importlib.import_module("pass_sampling.gpu.training.pretrain")
home.Progress = partial(home.Progress, every=0.0)
sys.path.insert(0, sys.argv[1])
from test_pretrain import SHORT, TEXTS
home.pretrain(sys.argv[2], TEXTS, SHORT, report=lambda news: print(news, flush=True))
"""


def test_a_run_that_was_killed_goes_on_to_the_same_weights(uninterrupted: bytes, tmp_path: Path) -> None:
    output = tmp_path / "tiny"
    kill_at_random(KILLED, Path(__file__).parent, output, most=6)
    if not output.exists():  # else it was killed just after the end
        pretrain(output, TEXTS, SHORT)
        left = [name for name in os.listdir(tmp_path) if not re.fullmatch(r"\.tiny\.[0-9a-f]{16}\.new", name)]
        assert left == ["tiny"], "something is left of the killed run, but for what saving.py warns of"
    assert weights(output) == uninterrupted


def test_a_run_that_was_interrupted_twice_goes_on_to_the_same_weights(
    uninterrupted: bytes, saving_often: None, tmp_path: Path
) -> None:
    output = tmp_path / "tiny"
    interrupted_run(output, 3)
    assert os.listdir(tmp_path) == ["tiny.partial.safetensors"]
    interrupted_run(output, 6)
    news: list[dict[str, Any]] = []
    record = pretrain(output, TEXTS, SHORT, report=news.append)
    assert [part["step"] for part in news] == [6]
    assert record["seconds"] >= 0 and weights(output) == uninterrupted


def test_what_is_measured_on_the_way_survives_an_interruption(
    saving_often: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(home, "EVERY", 2)
    whole = pretrain(tmp_path / "whole", TEXTS, SHORT)
    interrupted_run(tmp_path / "tiny", 5)
    record = pretrain(tmp_path / "tiny", TEXTS, SHORT)
    assert [step for step, _ in record["curve"]] == [2, 4, 6]
    assert record["curve"] == whole["curve"]
    assert json.loads((tmp_path / "tiny" / "pretraining.json").read_text()) == record


@pytest.mark.parametrize("what", ["num_steps", "seed", "weight_decay", "text"])
def test_a_run_does_not_go_on_as_another_one(what: str, saving_often: None, tmp_path: Path) -> None:
    interrupted_run(tmp_path / "tiny", 3)
    before = contents(tmp_path)
    changes: dict[str, Any] = {"num_steps": 7, "seed": 1, "weight_decay": 0.2}
    config = replace(SHORT, **{what: changes[what]}) if what in changes else SHORT
    texts = TEXTS if what != "text" else {name: text.replace("alpha", "omega") for name, text in TEXTS.items()}
    with pytest.raises(
        ValueError, match=r"^\S+ is an unfinished run with other settings, another model or .+ expected"
    ):
        pretrain(tmp_path / "tiny", texts, config)
    assert contents(tmp_path) == before


@pytest.mark.parametrize("target, first", [("partial.safetensors", None), ("tiny", 6)])
def test_a_full_disk_leaves_nothing_half_written_and_the_run_goes_on_afterwards(
    target: str, first: int | None, uninterrupted: bytes, saving_often: None, tmp_path: Path
) -> None:
    real, output = os.replace, tmp_path / "tiny"

    def full(source: Any, to: Any) -> None:
        if str(to).endswith(target):
            raise OSError(28, "No space left on device")
        real(source, to)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "replace", full)
        with pytest.raises(OSError, match="No space left"):
            pretrain(output, TEXTS, SHORT)
    assert os.listdir(tmp_path) == ([] if first is None else [partial_file(output).name])
    pretrain(output, TEXTS, SHORT)
    assert weights(output) == uninterrupted
    assert os.listdir(tmp_path) == ["tiny"]


def test_the_last_step_is_saved_before_the_result_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """However long the state was not due: what remains is measured and written again, not trained again."""
    with monkeypatch.context() as patch:
        patch.setattr(home, "replace_folder", lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            pretrain(tmp_path / "tiny", TEXTS, SHORT)
    news: list[dict[str, Any]] = []
    pretrain(tmp_path / "tiny", TEXTS, SHORT, report=news.append)
    assert news == []


# --- What is refused ---

WRONG_SETTINGS = [
    *[
        (name, 0, rf"^{name}: found 0, ")
        for name in ("vocab_size", "hidden_size", "num_steps", "batch_size", "context")
    ],
    ("hidden_size", 18, r"^hidden_size: found 18, expected a multiple of twice the 2 heads$"),
    ("num_key_value_heads", 3, r"^num_key_value_heads: found 3, expected a divisor of the 2 heads$"),
    ("context", 1, r"^context: found 1, expected at least 2"),
    ("seed", -1, r"^seed: found -1, "),
    *[("learning_rate", rate, r"^learning_rate: found ") for rate in (0.0, -1.0, math.nan, math.inf)],
    *[("weight_decay", rate, r"^weight_decay: found ") for rate in (-1.0, math.nan, math.inf)],
    *[(name, part, rf"^{name}: found ") for name in ("warmup", "cooldown") for part in (-0.1, 1.1, math.nan)],
]


@pytest.mark.parametrize("name, value, message", WRONG_SETTINGS)
def test_settings_that_make_no_model_are_refused(name: str, value: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        replace(TINY, **{name: value})


FEW = dict.fromkeys(sorted(TEXTS)[:2], "the same text twice")
WRONG_TEXTS = [
    ({}, TINY, None, r"^found 0 texts, too few to hold any out"),
    (FEW, TINY, None, r"^found 2 texts, too few to hold any out"),
    (TEXTS, TINY, ["elsewhere"], r"^held_out names 0 of the 40 texts, expected some of them and not all$"),
    (TEXTS, TINY, list(TEXTS), r"^held_out names 40 of the 40 texts, expected some of them and not all$"),
    (TEXTS, replace(TINY, vocab_size=256), None, r"^vocab_size: found 256, expected at least 257"),
    (TEXTS, replace(TINY, vocab_size=9000), None, r"^the text is too short: it gives a vocabulary of \d+ tokens"),
    (TEXTS, replace(TINY, batch_size=5000), None, r"^the text has \d+ tokens, expected at least 80016 for batches"),
    (TEXTS, replace(TINY, context=4096, batch_size=1), ["notes/text_03.py"], r"^the held-out text has \d+ tokens"),
]


@pytest.mark.parametrize("texts, config, held_out, message", WRONG_TEXTS)
def test_text_that_no_model_can_be_made_from_is_refused(
    texts: Any, config: Any, held_out: Any, message: str, tmp_path: Path
) -> None:
    with pytest.raises(ValueError, match=message):
        pretrain(tmp_path / "tiny", texts, config, held_out)
    assert os.listdir(tmp_path) == []


def test_an_output_that_is_taken_is_refused_and_not_touched(outcome: Prediction) -> None:
    before = contents(outcome.folder)
    with pytest.raises(ValueError, match=r"tiny is there already, expected a new path for the model$"):
        pretrain(outcome.folder, TEXTS, TINY)
    assert contents(outcome.folder) == before
