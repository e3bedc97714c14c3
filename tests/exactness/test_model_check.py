"""Checks of a user's checkpoint: right samplers pass them, wrong ones do not, and their bounds are bounds."""

import json
import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

import pass_sampling.gpu as port
import pass_sampling.gpu.exactness.model_check as model_check
import pass_sampling.gpu.verify as verify
from models import lookahead, transformer
from pass_sampling.gpu.__main__ import main
from pass_sampling.gpu.exactness.model_check import chi_square_limit, draw_check, row_check

MODEL = transformer(port, seed=3, vocab_size=11, max_position_embeddings=64)
TEXTS = np.random.default_rng(0).integers(11, size=(40, 33)).tolist()


def drawn(texts: int, *settings: Any, rule: str = "token") -> Any:
    """Return the check of the draws of PaSS over the model, in one batch."""
    method = port.PaSS(MODEL, lookahead(port, MODEL, 2), *settings, rule=rule)
    return draw_check(method, [1, 2], seconds=1e-9, batch_size=texts)


@pytest.mark.parametrize("sampling", [{}, {"temperature": 0.7, "top_k": 4}])
def test_rows_of_a_float64_model_agree_and_are_counted(sampling: dict[str, Any]) -> None:
    found = row_check(MODEL, TEXTS, port.SamplingConfig(**sampling), num_draft=4, positions=500)
    assert found.positions >= 500
    assert found.mean <= found.largest < 1e-12


def test_a_pass_that_forgets_a_row_shows(monkeypatch: pytest.MonkeyPatch) -> None:
    right = port.Transformer.hidden

    def forgetful(self: Any, inputs: Any, cache: Any, *rest: Any) -> Any:
        shifted = inputs.roll(1, dims=1) if inputs.shape[1] > 1 else inputs
        return right(self, shifted, cache, *rest)

    monkeypatch.setattr(port.Transformer, "hidden", forgetful)
    assert row_check(MODEL, TEXTS, port.SamplingConfig(), num_draft=4).largest > 0.01


@pytest.mark.parametrize("rule", ["token", "block", "match"])
def test_draws_of_a_right_sampler_pass(rule: str) -> None:
    found = drawn(16000, rule=rule)
    assert found.passed and found.texts == 16000 and found.cells > 20
    assert 0.0 < found.detectable < 0.2


def test_draws_of_a_wrong_sampler_fail(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every draft is accepted: the second token's distribution is then that of the drafts."""
    monkeypatch.setattr(verify, "accept_probs", lambda target, draft, tokens: torch.ones(tokens.shape).double())
    assert not drawn(4000, port.SamplingConfig(), port.SamplingConfig(temperature=0.3)).passed


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_an_outcome_that_cannot_be_fails_however_rare(monkeypatch: pytest.MonkeyPatch, temperature: float) -> None:
    """One text in a thousand is forged; under greedy decoding, and where top-k leaves two tokens."""
    right, sampling = model_check.generate_batch, port.SamplingConfig(temperature, top_k=2)

    def forged(*arguments: Any, **options: Any) -> Any:
        results = right(*arguments, **options)
        return [replace(result, tokens=(99, 99, 99)) if i == 7 else result for i, result in enumerate(results)]

    assert drawn(1000, sampling).passed
    monkeypatch.setattr(model_check, "generate_batch", forged)
    assert not drawn(1000, sampling).passed


@pytest.mark.parametrize("degrees", [1, 2, 10, 63])
def test_the_limit_is_exceeded_with_at_most_the_stated_probability(degrees: int) -> None:
    """Simulated at a tail that can be simulated: of a million draws at most as many as the tail says lie beyond."""
    draws = np.random.default_rng(degrees).chisquare(degrees, size=1_000_000)
    for tail in (1e-1, 1e-2, 1e-3):
        assert np.mean(draws > chi_square_limit(degrees, tail)) <= tail
    if degrees == 2:  # a variable with two degrees exceeds x with probability exp(-x/2), at any tail
        assert math.exp(-chi_square_limit(2, 1e-9) / 2) <= 1e-9


def test_verify_checks_a_checkpoint_from_the_command_line(box: Any, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["verify", "--model", str(box.model), "--lookahead", str(box.vectors), "--seconds", "0.1"]
    assert main([*arguments, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["rows"]["positions"] >= 500
    assert found["draws"]["passed"] and found["draws"]["texts"] > 0
    assert main(arguments) == 0
    assert "would have been detected" in capsys.readouterr().out
