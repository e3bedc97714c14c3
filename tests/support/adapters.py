"""One small interface over both packages, NumPy in and NumPy out, so that one property runs on either.

Everything takes rows side by side, N of them. The reference goes through them one by one, the port takes them as one
batch, on the CPU and, where there is one, on a CUDA device.

Logits and distributions are [..., V]. A verification takes a target [N, K+1, V], drafts [N, K, V] and their tokens
[N, K], and uniforms [N, K+1]: K acceptances and the final draw. Glossary of shapes: N rows, K drafts, V vocabulary.
"""

from collections.abc import Sequence
from types import ModuleType
from typing import Any

import numpy as np
import pytest

from folders import module

Array = np.ndarray


class Reference:
    """The specification, row by row."""

    package, device = "reference", "cpu"

    def module(self, name: str) -> ModuleType:
        """Return one of the package's modules."""
        return module(self.package, name)

    def sampling(self, **settings: Any) -> Any:
        """Return sampling settings of this package."""
        return self.module("config").SamplingConfig(**settings)

    def probs(self, logits: Array, **settings: Any) -> Array:
        function, config = self.module("sampling").probs_from_logits, self.sampling(**settings)
        rows = [function(row, config) for row in logits.reshape(-1, logits.shape[-1])]
        return np.stack(rows).reshape(logits.shape)

    def cell_edges(self, probs: Array) -> Array:
        return self.module("sampling").cell_edges(probs)

    def draw(self, probs: Array, uniforms: Array) -> Array:
        """Draw from one distribution with each of the uniforms."""
        function = self.module("sampling").draw
        edges = self.cell_edges(probs)
        return np.array([function(edges, uniform) for uniform in uniforms], dtype=np.int64)

    def residual(self, target: Array, draft: Array) -> Array:
        return self.module("verify").residual_probs(target, draft)

    def uniform_stream(self, seed: int, request: int, step: int, num_uniforms: int) -> Array:  # [num_uniforms]
        return self.module("uniforms").uniform_stream(seed, request, step, num_uniforms)

    def stream_rows(self, seed: int, requests: Sequence[int], step: int, num_uniforms: int) -> Array:
        return np.stack([self.uniform_stream(seed, request, step, num_uniforms) for request in requests])

    def verify(
        self, rule: str, target: Array, draft: Array, tokens: Array, uniforms: Array
    ) -> tuple[Array, Array, Array]:
        """Return `num_accepted`, `final_token` and `accept_probs` of every row."""
        verify, draws = self.module("verify").RULES[rule], self.module("uniforms").UniformRow
        named_uniforms = {"accept": tokens.shape[1], "final": 1}
        verifications = [
            verify(target[n], draft[n], tokens[n], draws(uniforms[n], named_uniforms)) for n in range(len(tokens))
        ]
        return (
            np.array([verification.num_accepted for verification in verifications], dtype=np.int64),
            np.array([verification.final_token for verification in verifications], dtype=np.int64),
            np.array([verification.accept_probs for verification in verifications]).reshape(tokens.shape),
        )


class Port(Reference):
    """The port, all rows in one batch."""

    package = "gpu"

    def __init__(self, device: str):
        self.device = device

    def tensor(self, array: Any) -> Any:
        """Return a NumPy array as a tensor on the device, with its dtype."""
        import torch

        return torch.from_numpy(np.ascontiguousarray(array)).to(self.device)

    def probs(self, logits: Array, **settings: Any) -> Array:
        return self.module("sampling").probs_from_logits(self.tensor(logits), self.sampling(**settings)).cpu().numpy()

    def cell_edges(self, probs: Array) -> Array:
        return self.module("sampling").cell_edges(self.tensor(probs)).cpu().numpy()

    def draw(self, probs: Array, uniforms: Array) -> Array:
        rows = self.tensor(self.cell_edges(probs)).repeat(len(uniforms), 1)
        return self.module("sampling").draw(rows, self.tensor(uniforms)).cpu().numpy()

    def residual(self, target: Array, draft: Array) -> Array:
        return self.module("verify").residual_probs(self.tensor(target), self.tensor(draft)).cpu().numpy()

    def uniform_stream(self, seed: int, request: int, step: int, num_uniforms: int) -> Array:  # [num_uniforms]
        return (
            self.module("uniforms").uniform_stream(seed, request, step, num_uniforms, device=self.device).cpu().numpy()
        )

    def stream_rows(self, seed: int, requests: Sequence[int], step: int, num_uniforms: int) -> Array:
        return (
            self.module("uniforms").uniform_stream(seed, requests, step, num_uniforms, device=self.device).cpu().numpy()
        )

    def verify(
        self, rule: str, target: Array, draft: Array, tokens: Array, uniforms: Array
    ) -> tuple[Array, Array, Array]:
        num_draft, active = np.full(len(tokens), tokens.shape[1]), np.ones(len(tokens), dtype=np.bool_)
        return self.verify_some(rule, target, draft, tokens, uniforms, num_draft, active)

    def verify_some(
        self,
        rule: str,
        target: Array,
        draft: Array,
        tokens: Array,
        uniforms: Array,
        num_draft: Array,
        active: Array,
        has_bonus_row: Array | None = None,
    ) -> tuple[Array, Array, Array]:
        """Verify rows of which some have fewer drafts than others, some have ended, and some drafts end the text."""
        has_bonus_row = np.ones(len(tokens), dtype=np.bool_) if has_bonus_row is None else has_bonus_row
        arguments = [self.tensor(array) for array in (target, draft, tokens)]
        draws = self.module("uniforms").UniformRow(self.tensor(uniforms), {"accept": tokens.shape[1], "final": 1})
        rows = [self.tensor(each) for each in (num_draft, has_bonus_row, active)]
        verification = self.module("verify").RULES[rule](*arguments, draws, *rows)
        return tuple(
            part.cpu().numpy()
            for part in (verification.num_accepted, verification.final_token, verification.accept_probs)
        )


REFERENCE, PORT, CUDA = Reference(), Port("cpu"), Port("cuda")
_ON_CPU = pytest.param(PORT, id="gpu", marks=pytest.mark.torch)
_ON_CUDA = pytest.param(CUDA, id="gpu-cuda", marks=[pytest.mark.torch, pytest.mark.gpu])

# Run a test on both packages, the port also on a CUDA device where there is one; or on the port alone.
each_impl = pytest.mark.parametrize("impl", [pytest.param(REFERENCE, id="reference"), _ON_CPU, _ON_CUDA])
each_port = pytest.mark.parametrize("port", [_ON_CPU, _ON_CUDA])
