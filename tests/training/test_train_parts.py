"""Training an adapter and a sampler head with the vectors: what each learns, what stays as it is, what is kept."""

from __future__ import annotations

import json
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from folders import as_numpy, both_packages, module, tiny_config, write_checkpoint
from lookaheads import PARTS
from pass_sampling.gpu import SamplingConfig, Transformer, load_model
from pass_sampling.gpu.training.acceptance import LOSSES, anchored_rows
from pass_sampling.gpu.training.resume import Progress
from pass_sampling.gpu.training.train import TrainConfig, first_parts, optimizers_for, train

VOCAB = 23
SUCCESSORS = np.random.default_rng(0).integers(VOCAB, size=(VOCAB, VOCAB, 2))
TRAINED = [parts for parts in PARTS if parts != "vectors"]
on_trained = pytest.mark.parametrize("parts", TRAINED)
SHORT = TrainConfig(2, SamplingConfig(0.5), num_steps=5, batch_size=2, context=8, num_anchors=3)
LONG = replace(SHORT, num_steps=80, context=16, num_anchors=8, matrix_learning_rate=0.02)


def text_of(length: int, seed: int) -> np.ndarray:
    """A text in which one of two tokens follows from the last two, and which of them is a matter of chance."""
    generator, text = np.random.default_rng(seed), [0, 1]
    while len(text) < length:
        text.append(int(SUCCESSORS[text[-2], text[-1], generator.integers(2)]))
    return np.array(text)


TRAINING, HELD_OUT = text_of(600, 1), text_of(200, 2)


def settings(parts: str, config: TrainConfig = SHORT, **changes: Any) -> TrainConfig:
    rank, width, alone = PARTS[parts]
    return replace(config, adapter_rank=rank, head_width=width, head_alone=alone, **changes)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_checkpoint(tmp_path_factory.mktemp("models") / "tiny", tiny_config())


@pytest.fixture(scope="module")
def model(folder: Path) -> Transformer:
    return load_model(folder)


def all_bits(lookahead: Any) -> dict[str, bytes]:
    """Return everything that was trained, as bytes."""
    tensors = {"vectors": lookahead.vectors}
    for part in (lookahead.adapter, lookahead.head):
        tensors |= part.tensors() if part else {}
    return {name: as_numpy(tensor).tobytes() for name, tensor in tensors.items()}


def bits_of(model: Transformer) -> list[bytes]:
    layers = [value for layer in model.weights.layers for value in vars(layer).values()]
    tensors = [model.weights.embedding, model.weights.norm, model.weights.output, *layers]
    return [tensor.numpy().tobytes() for tensor in tensors if tensor is not None]


# --- Where training begins ---


@on_trained
def test_untrained_parts_change_nothing(parts: str, model: Transformer) -> None:
    """The matrices that they end in are 0, so it all begins as vectors alone, or as the last row of the text."""
    found = first_parts(model, settings(parts))
    tokens, anchors = torch.from_numpy(HELD_OUT[None, :20]), torch.arange(17)
    alone = found.head is not None and not found.head.uses_lookahead
    expected = anchored_rows(model, found.vectors, tokens, anchors).draft_logits
    if alone:
        last = model.hidden(model.embed(tokens), model.new_cache(20))[:, anchors]
        expected = model.logits(last).unsqueeze(2).expand_as(expected)
    rows = anchored_rows(model, found.vectors, tokens, anchors, found.adapter, found.head)
    assert torch.equal(rows.draft_logits, expected)
    assert torch.equal(found.vectors, first_parts(model, settings("vectors")).vectors)
    zeros = {name for name, tensor in found.matrices().items() if not tensor.any()}
    assert zeros == {name for name in found.matrices() if name.endswith((".up", ".out"))} != set()


@on_trained
def test_every_part_has_the_sizes_asked_for_and_one_optimizer(parts: str, model: Transformer) -> None:
    config, (rank, width, alone) = settings(parts), PARTS[parts]
    found = first_parts(model, config)
    assert (found.adapter.rank if found.adapter else 0) == rank
    assert ((found.head.width, found.head.uses_lookahead) if found.head else (0, True)) == (width, not alone)
    learning = [
        each
        for optimizer in optimizers_for(found, config)
        for group in optimizer.param_groups
        for each in group["params"]
    ]
    assert {id(each) for each in learning} == {id(each) for each in found.parameters().values()}
    assert len(learning) == len(found.parameters()) and ("vectors" in found.parameters()) == (not alone)
    rates = {type(optimizer).__name__: optimizer.defaults["lr"] for optimizer in optimizers_for(found, config)}
    assert rates == {"Muon": 0.003} | ({} if alone else {"AdamW": 0.05})


def test_the_temperature_of_the_loss() -> None:
    """That of sampling for vectors alone, as ever; 1 with parts that could learn more than the few likeliest tokens."""
    assert [settings(parts).temperature for parts in PARTS] == [0.5, 1.0, 1.0, 1.0, 1.0]
    assert replace(SHORT, sampling=SamplingConfig(0.0)).temperature == 1.0
    assert [settings(parts, loss_temperature=0.3).temperature for parts in PARTS] == 5 * [0.3]


# --- What training achieves, and what it leaves alone ---


@on_trained
@pytest.mark.parametrize("loss", ["kl", "total-variation"])
def test_the_loss_falls_and_drafts_are_accepted_more_often_than_untrained_ones(
    parts: str, loss: str, model: Transformer, tmp_path: Path
) -> None:
    news: list[dict[str, Any]] = []
    before = bits_of(model)
    lookahead = train(
        model, TRAINING, HELD_OUT, tmp_path / "parts", settings(parts, LONG, loss=loss, depth_decay=0.9), news.append
    )
    assert bits_of(model) == before, "the frozen model has changed"
    losses = [part["loss"] for part in news if "loss" in part]
    assert len(losses) == 80 and sum(losses[-10:]) < 0.95 * sum(losses[:10])
    outcome = lookahead.training["held_out"]
    for place in (outcome, outcome["temperature_1"]):
        assert place["expected_tokens"] > place["random_expected_tokens"] + 0.02
        assert place["expected_tokens"] > place["fixed_token_expected_tokens"] + 0.02
    untrained = first_parts(model, settings(parts))
    tokens, anchors = torch.from_numpy(HELD_OUT[None, :40]), torch.arange(37)
    values = [
        LOSSES[loss](anchored_rows(model, each.vectors, tokens, anchors, each.adapter, each.head), 1.0).mean()
        for each in (lookahead, untrained)
    ]
    assert values[0] < values[1]


def test_a_head_knows_what_vectors_cannot(model: Transformer, tmp_path: Path) -> None:
    """A later draft depends on the token before, which no look-ahead row sees."""
    found = {}
    for parts in ("vectors", "head", "adapter and head"):
        config = settings(parts, LONG, num_steps=200, learning_rate=0.02, loss_temperature=0.5)
        outcome = train(model, TRAINING, HELD_OUT, tmp_path / parts, config).training["held_out"]
        found[parts] = outcome["acceptance"][1]
    assert min(found["head"], found["adapter and head"]) > found["vectors"] + 0.03


def test_a_head_alone_leaves_the_vectors_as_they_begin(model: Transformer, tmp_path: Path) -> None:
    config = settings("head alone")
    lookahead = train(model, TRAINING, HELD_OUT, tmp_path / "alone", config)
    assert torch.equal(lookahead.vectors, first_parts(model, config).vectors) and not lookahead.head.uses_lookahead


# --- What is kept ---


@both_packages
@pytest.mark.parametrize("parts", PARTS)
def test_the_folder_opens_in_both_packages_and_fits_the_model(
    parts: str, package: str, folder: Path, model: Transformer, tmp_path: Path
) -> None:
    config = settings(parts)
    saved = train(model, TRAINING, HELD_OUT, tmp_path / "parts", config)
    loaded = module(package, "lookahead.vectors").LookAhead.load(tmp_path / "parts")
    other = module(package, "checkpoint.load").load_model(folder)
    loaded.check(other)
    assert all_bits(loaded) == all_bits(saved)
    sizes = {name: getattr(model.config, name) for name in ("vocab_size", *module(package, "lookahead.adapter").SIZES)}
    assert loaded.base_shapes == sizes and len(sizes) == 7
    record = loaded.training
    assert record == json.loads(json.dumps(saved.training, allow_nan=False)) == saved.training
    assert record["settings"] == {name: value for name, value in asdict(config).items() if name != "sampling"}
    learnt = first_parts(model, config).parameters()
    assert record["parameters"] == sum(tensor.numel() for tensor in learnt.values())
    text = module(package, "generation").generate(
        module(package, "methods.pass_one_call").FusedPaSS(other, loaded), [1, 2], 9, (), seed=0
    )
    assert len(text.tokens) == 9 and text.num_draft_tokens > 0


# --- A run that is interrupted ---


class Interrupted(BaseException):
    """Stands for what ends a run between two steps."""


@on_trained
def test_a_run_that_was_interrupted_goes_on_to_the_same_bits(
    parts: str, model: Transformer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module("gpu", "training.train"), "Progress", partial(Progress, every=0.0))
    whole = train(model, TRAINING, HELD_OUT, tmp_path / "whole", settings(parts))

    def interrupt(news: dict[str, Any]) -> None:
        if news.get("step") in (2, 4) and news["step"] not in stopped:
            stopped.append(news["step"])
            raise Interrupted

    stopped: list[int] = []
    for _ in range(2):
        with pytest.raises(Interrupted):
            train(model, TRAINING, HELD_OUT, tmp_path / "parts", settings(parts), interrupt)
    news: list[dict[str, Any]] = []
    found = train(model, TRAINING, HELD_OUT, tmp_path / "parts", settings(parts), news.append)
    assert stopped == [2, 4] and news[0]["first_step"] == 3
    assert all_bits(found) == all_bits(whole)
    assert [path.name for path in sorted(tmp_path.iterdir())] == ["parts", "whole"]


@pytest.mark.parametrize("parts", PARTS)
def test_a_run_goes_on_from_what_another_has_trained(model, tmp_path, parts):
    """With no step to speak of, everything stays; a part of another size is refused, and nothing is written."""
    first = train(model, TRAINING, HELD_OUT, tmp_path / "first", settings(parts))
    tiny = settings(parts, num_steps=1, learning_rate=1e-12, matrix_learning_rate=1e-12)
    second = train(model, TRAINING, HELD_OUT, tmp_path / "second", tiny, begin=first)
    assert all_bits(second) == all_bits(first)
    assert second.training["began_with"]["settings"]["num_steps"] == SHORT.num_steps
    other = replace(tiny, num_lookahead=3)
    with pytest.raises(ValueError, match=r"^begin: found num_lookahead 2, expected 3, what is to be trained$"):
        train(model, TRAINING, HELD_OUT, tmp_path / "third", other, begin=first)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["first", "second"]
