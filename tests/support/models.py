"""The two packages side by side, and models small enough to enumerate, the same in both."""

from importlib import import_module
from typing import Any

import pytest

from pass_sampling.reference.exactness.cases import TINY, WINDOWED
from pass_sampling.reference.exactness.suite import plain_distribution

__all__ = ["PACKAGES", "TINY", "WINDOWED", "exact_target", "lookahead", "package", "table", "transformer"]

PACKAGES = ("reference", "gpu")
exact_target = plain_distribution  # the distribution that everything is compared with


def package(name: str) -> Any:
    """Return a package by its short name; asking for the port where torch is missing skips the test."""
    if name == "gpu":
        pytest.importorskip("torch", reason="needs the gpu extra: torch not installed")
    return import_module(f"pass_sampling.{name}")


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
