"""Logits that tie on paper: rounding, which differs between passes of different heights, decides nothing."""

from __future__ import annotations

from dataclasses import replace
from importlib import import_module
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from models import PACKAGES, package
from strategies import grid_logits

SETTINGS: dict[str, dict[str, Any]] = {
    "greedy": {"temperature": 0.0},
    "top-k": {"top_k": 3},
    "top-p": {"top_p": 0.5},
    "both": {"temperature": 0.7, "top_k": 9, "top_p": 0.25},
}
METHODS = ("plain", "two calls", "one call", "draft_vocab_size")
PROMPTS = [[1, 2], [3, 4, 5], [7], [8, 3, 5]]


def model_with_equal_rows(pkg: Any, seed: int, vocab_size: int) -> Any:
    """A transformer in float64 whose output rows are one row over and over: on paper, all its logits are equal."""
    sizes = {"hidden_size": 64, "intermediate_size": 90, "num_hidden_layers": 1, "head_dim": 16}
    heads = {"num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 64}
    config = pkg.ModelConfig(vocab_size=vocab_size, **sizes, **heads)
    weights = pkg.Weights.random(config, seed)
    equal = weights.output.copy() if isinstance(weights.output, np.ndarray) else weights.output.clone()
    equal[1:] = equal[:1]
    return pkg.Transformer(config, replace(weights, output=equal))


def method_of(pkg: Any, name: str, model: Any, sampling: Any, seed: int) -> Any:
    if name == "plain":
        return pkg.Autoregressive(model, sampling)
    vectors = pkg.LookAhead.random(4, model.hidden_size, seed)
    if name == "two calls":
        return pkg.PaSS(model, vectors, sampling)
    refinement = None
    if name == "draft_vocab_size":
        refine = import_module(f"{pkg.__name__}.lookahead.refinement")
        head = pkg.SamplerHead.random(model.hidden_size, 5, seed)
        refinement = replace(
            refine.refinement_of(replace(vectors, head=head), model.weights.embedding.dtype), draft_vocab_size=3
        )
    return pkg.FusedPaSS(model, vectors, sampling, refinement=refinement)


@pytest.mark.parametrize("name", PACKAGES)
@given(data=st.data(), size=st.integers(1, 9), seed=st.integers(0, 2**32))
def test_rounding_of_a_pass_moves_a_distribution_by_rounding(
    name: str, data: st.DataObject, size: int, seed: int
) -> None:
    """On logits that are far apart or equal, and top-p at fractions that equal tokens reach exactly."""
    pkg = package(name)
    logits = data.draw(grid_logits(size))
    settings = {"temperature": data.draw(st.sampled_from([0.0, 0.5, 1.0])), "top_k": data.draw(st.integers(0, size))}
    equal = data.draw(st.booleans())
    logits = np.zeros(size) if equal else logits
    top_p = data.draw(st.integers(1, size)) / size if equal else data.draw(st.sampled_from([1e-3, 0.501, 1.0]))
    sampling = pkg.SamplingConfig(**settings, top_p=top_p)
    noise = np.random.default_rng(seed).uniform(-1e-14, 1e-14, size)
    array = np.asarray if name == "reference" else import_module("torch").tensor
    exact, rounded = (np.asarray(pkg.probs_from_logits(array(each), sampling)) for each in (logits, logits + noise))
    np.testing.assert_allclose(rounded, exact, rtol=0, atol=1e-12)


@pytest.mark.parametrize("settings", SETTINGS)
@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("name", PACKAGES)
def test_a_text_with_ties_is_the_same_alone_and_in_company_and_greedily_that_of_plain_decoding(
    name: str, method: str, settings: str
) -> None:
    pkg = package(name)
    sampling = pkg.SamplingConfig(**SETTINGS[settings])
    for seed in range(2):
        model = model_with_equal_rows(pkg, seed, 11)
        decoder = method_of(pkg, method, model, sampling, seed)
        alone = [pkg.generate(decoder, prompt, 14, (), request=i).tokens for i, prompt in enumerate(PROMPTS)]
        assert [text.tokens for text in pkg.generate_batch(decoder, PROMPTS, 14, ())] == alone
        if settings == "greedy":
            plain = pkg.Autoregressive(model, sampling)
            assert [pkg.generate(plain, prompt, 14, ()).tokens for prompt in PROMPTS] == alone
