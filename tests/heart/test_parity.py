"""The same uniform stream through NumPy and torch: the same tokens and the same records, number by number."""

from __future__ import annotations

from dataclasses import fields
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import pass_sampling.reference as reference
from models import WINDOWED, lookahead, package, table, transformer

pytestmark = pytest.mark.torch

SHAPES: dict[str, dict[str, Any]] = {
    "llama": {},
    "windowed": WINDOWED,
    "llama3": dict(
        num_attention_heads=4,
        num_key_value_heads=2,
        rope_theta=500.0,
        tie_word_embeddings=True,
        attention_bias=True,
        attention_output_bias=True,
    ),
}
SAMPLING: list[dict[str, Any]] = [
    {},
    {"temperature": 0.0},
    {"temperature": 0.8, "top_k": 10},
    {"temperature": 1.3, "top_p": 0.8},
    {"temperature": 0.7, "top_k": 7, "top_p": 0.9},
]
METHODS = ["autoregressive", "pass-token", "pass-block", "pass-match", "pass-own-draft", "pass-fixed-token", "pass-L0"]


def method_of(pkg: Any, name: str, model: Any, sampling: dict[str, Any], processor: Any = None) -> Any:
    settings = pkg.SamplingConfig(**sampling)
    if name == "autoregressive":
        return pkg.Autoregressive(model, settings, processor)
    vectors = lookahead(pkg, model, num_lookahead=3)
    if name == "pass-fixed-token":
        return pkg.PaSS(model, None, settings, num_lookahead=3, fixed_token=1, processor=processor)
    if name == "pass-L0":
        return pkg.PaSS(model, vectors, settings, num_lookahead=0, processor=processor)
    own = pkg.SamplingConfig(temperature=0.5, top_k=2) if name == "pass-own-draft" else None
    rule = name.removeprefix("pass-") if name in ("pass-match", "pass-block") else "token"
    return pkg.PaSS(model, vectors, settings, own, rule, processor)


def assert_same(one: Any, other: Any) -> None:
    """Compare two generations: integers and strings exactly, probabilities to rounding."""
    assert one.tokens == other.tokens
    assert (one.prompt, one.end, one.text) == (other.prompt, other.end, other.text)
    assert len(one.records) == len(other.records)
    for left, right in zip(one.records, other.records, strict=True):
        for field in fields(left):
            mine, yours = getattr(left, field.name), getattr(right, field.name)
            if field.name == "choices":
                assert_same_choices(mine, yours)
            elif field.name.endswith("probs"):
                np.testing.assert_allclose(mine, yours, rtol=1e-9, atol=1e-12, err_msg=field.name)
            else:
                assert mine == yours, field.name


def assert_same_choices(mine: Any, yours: Any) -> None:
    assert (mine is None) == (yours is None)
    for left, right in zip(mine or (), yours or (), strict=True):
        assert (left.column, left.outcome) == (right.column, right.outcome)
        np.testing.assert_allclose(left.edges, right.edges, rtol=0, atol=1e-12)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("sampling", SAMPLING, ids=str)
def test_same_stream_same_tokens_and_records(shape: str, method: str, sampling: dict[str, Any]) -> None:
    gpu = package("gpu")
    settings = {**SHAPES[shape], "vocab_size": 40}
    results = []
    for pkg in (reference, gpu):
        running = method_of(pkg, method, transformer(pkg, seed=2, **settings), sampling)
        results.append(pkg.generate(running, [1, 5, 3], 40, eos_token_ids=(7, 11), seed=3, request=9, trace=True))
    assert_same(*results)


@given(
    method=st.sampled_from(METHODS),
    sampling=st.sampled_from(SAMPLING),
    shape=st.sampled_from(sorted(SHAPES)),
    prompts=st.lists(st.lists(st.integers(0, 19), min_size=1, max_size=9), min_size=1, max_size=4),
    max_new_tokens=st.integers(1, 12),
    eos=st.lists(st.integers(0, 19), max_size=3),
    seed=st.integers(0, 2**64 - 1),
)
def test_a_batch_of_the_port_is_the_reference_row_by_row(
    method: str,
    sampling: dict[str, Any],
    shape: str,
    prompts: list[list[int]],
    max_new_tokens: int,
    eos: list[int],
    seed: int,
) -> None:
    gpu = package("gpu")
    settings = {**SHAPES[shape], "vocab_size": 20}
    results = [
        pkg.generate_batch(
            method_of(pkg, method, transformer(pkg, seed=5, **settings), sampling),
            prompts,
            max_new_tokens,
            eos_token_ids=eos,
            seed=seed,
            trace=True,
        )
        for pkg in (reference, gpu)
    ]
    assert len(results[0]) == len(results[1]) == len(prompts)
    for one, other in zip(*results, strict=True):
        assert_same(one, other)


def penalty(prefix: tuple[int, ...], logits: Any) -> Any:
    """Lower each token by how often it stands in the prefix."""
    counts = [0.3 * prefix.count(token) for token in range(len(logits))]
    return logits - (np.array(counts) if isinstance(logits, np.ndarray) else logits.new_tensor(counts))


@pytest.mark.parametrize("method", METHODS)
def test_same_records_under_a_processor_and_stop_strings(method: str) -> None:
    gpu = package("gpu")
    results = []
    for pkg in (reference, gpu):
        running = method_of(pkg, method, table(pkg, num_lookahead=3, vocab_size=6, seed=4), {"top_p": 0.9}, penalty)
        results.append(
            pkg.generate_batch(
                running,
                [[1], [2, 3, 4], [5, 0]],
                40,
                stop_strings=("fa", "cc"),
                decode=lambda tokens: "".join("abcdef"[token] for token in tokens),
                seed=12,
                trace=True,
            )
        )
    for one, other in zip(*results, strict=True):
        assert_same(one, other)
    assert {result.end for result in results[0]} & {"stop_string"}


def test_the_vocabularies_of_real_models_agree() -> None:
    """At 32,000 tokens the two packages still draw the same text from the same uniform stream."""
    gpu = package("gpu")
    results = []
    for pkg in (reference, gpu):
        model = transformer(pkg, seed=1, vocab_size=32_000)
        running = method_of(pkg, "pass-token", model, {"temperature": 0.9, "top_p": 0.95})
        results.append(pkg.generate(running, [17, 4000, 31_999], 16, seed=1))
    assert_same(*results)
