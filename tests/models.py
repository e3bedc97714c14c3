"""The two packages side by side, and models small enough to enumerate, the same in both."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from importlib import import_module
from typing import Any

import pytest

import pass_sampling.reference as reference
from pass_sampling.reference.law import OutputLaw, target_law

PACKAGES = ("reference", "gpu")


def package(name: str) -> Any:
    """Return a package by its short name; asking for the port where torch is missing skips the test."""
    if name == "gpu":
        pytest.importorskip("torch", reason="needs the gpu extra: torch not installed")
    return import_module(f"pass_sampling.{name}")


TINY = dict(
    vocab_size=3,
    hidden_size=8,
    intermediate_size=12,
    num_hidden_layers=2,
    num_attention_heads=2,
    num_key_value_heads=1,
    head_dim=4,
    max_position_embeddings=64,
)
WINDOWED = dict(TINY, sliding_window=3, query_key_norm=True, attention_bias=True)


def table(pkg: Any, **settings: Any) -> Any:
    """Return a table model of a package, by default with 3 tokens and 2 look-ahead vectors."""
    return pkg.TableModel(**{"vocab_size": 3, "num_lookahead": 2, **settings})


def transformer(pkg: Any, seed: int = 0, **changes: Any) -> Any:
    """Return a tiny random transformer of a package in float64."""
    config = pkg.ModelConfig(**{**TINY, **changes})
    return pkg.Transformer(config, pkg.Weights.random(config, seed))


def lookahead(pkg: Any, model: Any, num_lookahead: int = 2) -> Any:
    """Return look-ahead vectors for either kind of model."""
    if hasattr(model, "lookahead"):
        return model.lookahead()
    return pkg.LookAhead.random(num_lookahead, model.hidden_size, seed=7)


def exact_target(
    model: Any,
    sampling: Any,
    prompt: Sequence[int],
    ending: Any,
    num_tokens: int | None = None,
    processor: Callable[..., Any] | None = None,
) -> OutputLaw:
    """Return the target's law by its definition: one fresh pass of the reference's model per prefix, no cache."""
    method = reference.Autoregressive(model, sampling, processor)

    def next_probs(tokens: tuple[int, ...]) -> Any:
        prefix = (*prompt, *tokens)
        hidden = model.hidden(model.embed(prefix), model.new_cache())
        return method.law(prefix, model.logits(hidden[-1]))

    return target_law(next_probs, ending, num_tokens)
