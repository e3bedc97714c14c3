"""Training look-ahead vectors, an adapter and a sampler head: what each learns, what stays as it is, what is kept."""

import importlib
import json
import os
import pkgutil
from dataclasses import asdict, replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import pass_sampling.gpu.training as home
from folders import as_numpy, both_packages, module
from lookaheads import PARTS, on_parts
from pass_sampling.gpu import LookAhead, PromptLookup, SamplingConfig, load_model
from pass_sampling.gpu.training import pretrain as of_base_models
from pass_sampling.gpu.training import train as of_look_ahead
from pass_sampling.gpu.training.acceptance import LOSSES, AnchoredRows, acceptance_of, anchored_rows, drafter_acceptance
from pass_sampling.gpu.training.ngram_counts import NgramConfig, count_ngrams
from pass_sampling.gpu.training.text import own_text
from pass_sampling.gpu.training.train import first_parts, most_frequent, train
from shapes import checked, functions_of, signature
from training import LOOK_AHEAD, ROOT, TINY, TOKENS, TRAINERS, VOCAB, checkpoint, model, settings_for, tensors

on_trained = pytest.mark.parametrize("parts", [parts for parts in PARTS if parts != "vectors"])
LONG = replace(LOOK_AHEAD, num_steps=80, context=16, num_anchors=8, matrix_learning_rate=0.02, depth_decay=0.9)
SUCCESSORS = np.random.default_rng(0).integers(VOCAB, size=(VOCAB, VOCAB, 2))


def text_of(length: int, seed: int) -> np.ndarray:
    """Return a text in which one of two tokens follows from the last two; which of them is a matter of chance."""
    generator, text = np.random.default_rng(seed), [0, 1]
    while len(text) < length:
        text.append(int(SUCCESSORS[text[-2], text[-1], generator.integers(2)]))
    return np.array(text)


HELD_OUT = text_of(200, 2)


@cache
def learnt(parts: str, loss: str) -> tuple[LookAhead, list[dict[str, Any]]]:
    """Train some parts for long; return them, and what was reported."""
    news: list[dict[str, Any]] = []
    output = Path(ROOT.name) / f"learnt {parts}, {loss}"
    found = train(model(), text_of(600, 1), HELD_OUT, output, settings_for(parts, LONG, loss=loss), news.append)
    return found, news


def all_bits(lookahead: Any) -> dict[str, bytes]:
    """Return everything that was trained, as bytes."""
    found = {"vectors": lookahead.vectors}
    for part in (lookahead.adapter, lookahead.head):
        found |= part.matrices if part else {}
    return {name: as_numpy(tensor).tobytes() for name, tensor in found.items()}


@on_trained
def test_untrained_parts_change_nothing(parts: str) -> None:
    """The matrices that they end in are 0, so it all begins as vectors alone, or as the last row of the text."""
    found = first_parts(model(), settings_for(parts))
    tokens, anchors = torch.from_numpy(HELD_OUT[None, :20]), torch.arange(17)
    expected = anchored_rows(model(), found.vectors, tokens, anchors).draft_logits
    if found.head is not None and not found.head.uses_lookahead:
        last = model().hidden(model().embed(tokens), model().new_cache(20))[:, anchors]
        expected = model().logits(last).unsqueeze(2).expand_as(expected)
    rows = anchored_rows(model(), found.vectors, tokens, anchors, found.adapter, found.head)
    assert torch.equal(rows.draft_logits, expected)
    assert torch.equal(found.vectors, first_parts(model(), settings_for("vectors")).vectors)
    zeros = {name for name, tensor in found.matrices().items() if not tensor.any()}
    assert zeros == {name for name in found.matrices() if name.endswith((".up", ".out"))} != set()


@given(num_steps=st.integers(1, 300))
def test_the_learning_rate_rises_then_falls_and_stays_positive(num_steps: int) -> None:
    for schedule, config in (
        (of_look_ahead.schedule, replace(LOOK_AHEAD, num_steps=num_steps)),
        (of_base_models.schedule, replace(TINY, num_steps=num_steps)),
    ):
        rates = [schedule(step, config) for step in range(num_steps)]
        assert all(0 < rate <= 1 for rate in rates)
        top = rates.index(max(rates))
        assert rates == sorted(rates[:top]) + sorted(rates[top:], reverse=True)


@given(seed=st.integers(0, 2**32), temperature=st.sampled_from([0.25, 1.0, 1.5]))
def test_the_losses_are_their_equations(seed: int, temperature: float) -> None:
    """In float32: logits of order 10 are wrong by 2^-24 of that, and so are their logarithms."""
    generator = np.random.default_rng(seed)
    draft, target = 3 * generator.standard_normal((2, 2, 3, 2, 5))
    tokens = generator.integers(5, size=(2, 3, 2))
    rows = AnchoredRows(torch.from_numpy(draft), torch.from_numpy(target), torch.from_numpy(tokens))

    def log_probs(logits: np.ndarray) -> np.ndarray:
        return logits - np.log(np.exp(logits).sum(axis=-1, keepdims=True))

    target_log, draft_log = log_probs(target / temperature), log_probs(draft / temperature)
    expected = {
        "kl": (np.exp(target_log) * (target_log - draft_log)).sum(axis=-1),
        "cross-entropy": -np.take_along_axis(log_probs(draft), tokens[..., None], axis=-1)[..., 0],
    }
    assert expected.keys() == LOSSES.keys()
    for name, values in expected.items():
        assert LOSSES[name](rows, temperature).numpy() == pytest.approx(values, abs=1e-4)
    same = rows._replace(draft_logits=rows.target_logits)
    assert float(LOSSES["kl"](same, temperature).abs().max()) < 1e-6


@on_parts
@pytest.mark.parametrize("loss", LOSSES)
def test_the_loss_falls_and_drafts_are_accepted_more_often_than_untrained_ones(parts: str, loss: str) -> None:
    """The text itself, which cross-entropy is about, says less about acceptance than the model's distributions."""
    lookahead, news = learnt(parts, loss)
    assert all(map(torch.equal, tensors(model()), tensors(load_model(checkpoint())))), "the frozen model has changed"
    outcome = lookahead.training["held_out"]
    assert news[-1] == outcome
    assert [part["step"] for part in news[:-1]] == list(range(1, 81))
    losses = [part["loss"] for part in news[:-1]]
    assert sum(losses[-10:]) < (1.0 if parts == "vectors" else 0.95) * sum(losses[:10])
    tokens, anchors = torch.from_numpy(HELD_OUT[None, :40]), torch.arange(37)
    with torch.no_grad():
        values = [
            LOSSES[loss](anchored_rows(model(), each.vectors, tokens, anchors, each.adapter, each.head), 1.0).mean()
            for each in (lookahead, first_parts(model(), settings_for(parts)))
        ]
    assert values[0] < values[1]
    reads_on = loss != "cross-entropy" and parts != "block heads"  # these see neither the drafts between nor the text
    for place in (outcome, outcome["temperature_1"]) if reads_on else ():
        assert place["expected_tokens"] > place["random_expected_tokens"] + 0.02
        assert place["expected_tokens"] > place["fixed_token_expected_tokens"] + 0.02


@pytest.mark.parametrize("parts", [parts for parts in PARTS if parts != "block heads"])
def test_trained_drafts_are_accepted_more_often_than_the_fixed_token(parts: str) -> None:
    outcome = learnt(parts, "kl")[0].training["held_out"]
    pairs = list(zip(outcome["acceptance"], outcome["fixed_token_acceptance"], strict=True))
    assert len(pairs) == 2 and all(trained > fixed + 0.03 for trained, fixed in pairs)


@both_packages
@on_parts
def test_the_folder_opens_in_both_packages_and_fits_the_model(parts: str, package: str, tmp_path: Path) -> None:
    config, saved = settings_for(parts), TRAINERS[parts](tmp_path / "parts")
    assert os.listdir(tmp_path) == ["parts"]
    loaded = module(package, "lookahead.vectors").LookAhead.load(tmp_path / "parts")
    other = module(package, "checkpoint.load").load_model(checkpoint())
    loaded.check(other)
    assert all_bits(loaded) == all_bits(saved)
    assert (loaded.base_model, loaded.fingerprint) == ("tiny", model().fingerprint)
    assert asdict(loaded.sampling) == asdict(config.sampling)
    sizes = {
        name: getattr(model().config, name) for name in ("vocab_size", *module(package, "lookahead.adapter").SIZES)
    }
    assert loaded.base_shapes == sizes and len(sizes) == 7
    record = loaded.training
    assert record == json.loads(json.dumps(saved.training, allow_nan=False)) == saved.training
    assert record["settings"] == {name: value for name, value in asdict(config).items() if name != "sampling"}
    assert (record["training_tokens"], record["held_out_tokens"]) == (200, len(TOKENS) - 200)
    assert record["parameters"] == sum(each.numel() for each in first_parts(model(), config).parameters().values())
    method = module(package, "methods.pass_one_call").PaSSOneCall(other, loaded)
    text = module(package, "generation").generate(method, [1, 2], 9, (), seed=0)
    assert len(text.tokens) == 9 and text.num_draft_tokens > 0


@on_parts
def test_drafts_are_learnt_and_stored_among_the_most_frequent_tokens(parts: str, tmp_path: Path) -> None:
    training = np.concatenate([np.repeat([3, 3, 7, 9, 9, 9], 30), np.arange(VOCAB)])
    found = TRAINERS[parts](tmp_path / "few", training=training, draft_vocab_size=3)
    assert found.draft_vocab.tolist() == [3, 7, 9]
    assert LookAhead.load(tmp_path / "few").draft_vocab.tolist() == [3, 7, 9]
    assert most_frequent(np.array([5, 5, 2, 8]), VOCAB, 3).tolist() == [2, 5, 8]
    assert most_frequent(np.array([5, 5, 2, 8]), VOCAB, 2).tolist() == [2, 5]  # the lower id of two as frequent


def test_hidden_states_on_disk_are_those_of_the_model(tmp_path: Path) -> None:
    """So a head alone learns the same with them as without, but for rounding: batches have other heights."""
    learnt = []
    for name, rows in ("kept", anchored_rows), ("computed", lambda *given: anchored_rows(*given[:7])):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(of_look_ahead, "anchored_rows", rows)
            learnt.append(TRAINERS["head alone"](tmp_path / name, num_steps=30))
    kept, computed = (each.head.matrices for each in learnt)
    for name, tensor in kept.items():
        assert torch.allclose(tensor, computed[name], rtol=2**-7, atol=1e-4) and bool(tensor.any())
    assert sorted(os.listdir(tmp_path)) == ["computed", "kept"]


def test_every_array_has_the_shape_that_its_comment_says(tmp_path: Path) -> None:
    modules = [importlib.import_module(f"{home.__name__}.{each.name}") for each in pkgutil.iter_modules(home.__path__)]
    functions = [function for each in modules for function in functions_of(each)]
    commented = [function for function in functions if signature(function).comments]
    with checked(commented) as calls:
        for loss in LOSSES:
            TRAINERS["adapter and head"](tmp_path / loss, loss=loss, num_steps=1)
        for trainer in ("base model", "student"):
            TRAINERS[trainer](tmp_path / trainer, num_steps=1)
        acceptance_of(model(), torch.zeros(2, 24), HELD_OUT[None], [SamplingConfig(0.5)])
        drafter_acceptance(model(), PromptLookup(VOCAB), HELD_OUT[None], [SamplingConfig(0.5)])
        TRAINERS["head alone"](tmp_path / "few", draft_vocab_size=5, num_steps=2)
        own_text(model(), 5, 3, SamplingConfig(0.5), 0)
        count_ngrams([HELD_OUT], VOCAB, NgramConfig(2, (1,)))
    never = {f"{function.__module__}.{function.__qualname__}" for function in commented} - calls.keys()
    assert len(commented) > 20 and never == set()
