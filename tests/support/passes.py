"""Run passes of either package's transformer with NumPy arrays in and out, one sequence at a time."""

from importlib import import_module
from typing import Any

import numpy as np
import pytest

from folders import as_numpy, module, tiny_config
from pass_sampling.reference.model.config import ModelConfig

Array = np.ndarray

# Runs a test on both packages, the port also on a CUDA device where there is one.
everywhere = pytest.mark.parametrize(
    "package, device",
    [
        pytest.param("reference", "cpu", id="reference"),
        pytest.param("gpu", "cpu", id="gpu", marks=pytest.mark.torch),
        pytest.param("gpu", "cuda", id="gpu-cuda", marks=[pytest.mark.torch, pytest.mark.gpu]),
    ],
)

# One model per kind of attention: plain, and with a window far shorter than the sequences of the tests.
KINDS = {
    "full": tiny_config("llama"),
    "window": tiny_config("mistral", sliding_window=3),
    "some": tiny_config("qwen3", sliding_window=4, sliding_layers=(False, True)),
}


def own_config(package: str, config: ModelConfig) -> Any:
    """Return the same settings as an object of one of the packages."""
    classes, fields = module(package, "model.config"), dict(vars(config))
    if config.rope_scaling is not None:
        fields["rope_scaling"] = classes.RopeScaling(**vars(config.rope_scaling))
    return classes.ModelConfig(**fields)


class Passes:
    """A model of one package with random weights, the same in both."""

    def __init__(
        self, package: str, config: Any, device: str = "cpu", dtype: str = "float64", seed: int = 0, model: Any = None
    ):
        self.port, self.device = package == "gpu", device
        if model is None:
            config = own_config(package, config)
            options = (getattr(import_module("torch"), dtype), device) if self.port else (np.dtype(dtype),)
            weights = module(package, "model.weights").Weights.random(config, seed, *options)
            model = module(package, "model.transformer").Transformer(config, weights)
        self.model = model

    def cache(self, capacity: int = 64) -> Any:
        return self.model.new_cache(capacity)

    def length(self, cache: Any) -> int:
        return int(cache.lengths[0]) if self.port else cache.length

    def run(
        self,
        inputs: Any,  # [T] tokens or [T, D] vectors
        cache: Any = None,
        positions: Array | None = None,  # [T]
        visible: Array | None = None,  # [T, T]
    ) -> Array:  # [T, V]
        """Return the logits of a pass; those of bfloat16 as float32, which is exact."""
        if not self.port:
            return self.model.forward(np.asarray(inputs), cache, positions, visible)
        rows = self.tensor(np.asarray(inputs))[None]
        places = None if positions is None else self.tensor(positions)[None]
        seen = None if visible is None else self.tensor(visible)
        return as_numpy(self.model.forward(rows, cache, places, seen)[0])

    def embed(self, tokens: Any) -> Array:  # [T, D]
        if not self.port:
            return self.model.embed(tokens)
        return as_numpy(self.model.embed(self.tensor(np.asarray(tokens))[None])[0])

    def truncate(self, cache: Any, length: int) -> None:
        cache.truncate(self.tensor(np.array([length])) if self.port else length)

    def keep(self, cache: Any, rows: Array) -> None:
        cache.keep(self.tensor(rows)[None] if self.port else rows)

    def cached(self, cache: Any) -> tuple[Array, Array]:  # [layers, G, S, E], [layers, G, S, E]
        """Return what the cache holds below its length."""
        length = self.length(cache)
        keys, values = (cache.keys[:, 0], cache.values[:, 0]) if self.port else (cache.keys, cache.values)
        return as_numpy(keys[:, :, :length]), as_numpy(values[:, :, :length])

    def tensor(self, array: Array) -> Any:
        """Return an array for the model: vectors in its dtype, tokens, positions and masks as they are."""
        import torch

        tensor = torch.from_numpy(np.array(array)).to(self.device)
        return tensor.to(self.model.dtype) if tensor.is_floating_point() else tensor


def difference(found: Array, expected: Array) -> float:
    """Return the largest difference, infinite where something is not a number."""
    assert found.shape == expected.shape
    worst = np.abs(found.astype(np.float64) - expected.astype(np.float64)).max(initial=0.0)
    return float(worst) if np.isfinite(worst) else float("inf")


def same_bits(found: Array, expected: Array) -> bool:
    return found.shape == expected.shape and found.dtype == expected.dtype and found.tobytes() == expected.tobytes()
