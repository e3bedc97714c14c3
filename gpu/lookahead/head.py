"""The sampler head: a small recurrent network that conditions each draft on the drafts before it.

A look-ahead row's hidden state depends on the text only. Left to right, the head adds to it what follows from the
tokens between, before the model's output projection. The resulting draft distribution is explicit, so the target's
distribution is kept.

Glossary of shapes: D hidden state, F width of the head.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from pass_sampling.reference.lookahead.head import TENSORS, tensor_shapes

from ..model.linear import Linear, laid_out

__all__ = ["SamplerHead", "tensor_shapes"]

EPSILON = 1e-6  # of the norm that brings embeddings to the size of hidden states


@dataclass(frozen=True, eq=False)
class SamplerHead:
    """A recurrent network on [look-ahead hidden state; embedding of the token before; its own state].

    state_0 = first real_hidden, of the last text row

    state_i = silu(inner [hidden_i; norm(embedding(x_{i-1})); state_{i-1}]), refined_i = hidden_i + out state_i

    Source: Samragh et al. 2025 (arXiv 2507.11851), for a sampler on hidden state and token; the recurrence is ours.
    """

    first: Tensor  # [F, D]
    inner: Tensor  # [F, 2D+F]
    out: Tensor  # [D, F]
    uses_lookahead: bool = True  # or from the last text row's hidden state, without look-ahead rows

    @property
    def width(self) -> int:
        """F."""
        return self.first.shape[0]

    @staticmethod
    def of(tensors: Mapping[str, Tensor], uses_lookahead: bool = True) -> SamplerHead:
        """Return the head with these tensors."""
        return SamplerHead(**{name: tensors[name] for name in TENSORS}, uses_lookahead=uses_lookahead)

    def tensors(self) -> dict[str, Tensor]:
        """Return every tensor by its name."""
        return {name: getattr(self, name) for name in TENSORS}

    def to(self, dtype: torch.dtype, device: torch.device | str = "cpu") -> SamplerHead:
        """Return the head in a dtype, on a device."""
        tensors = {name: tensor.to(device, dtype) for name, tensor in self.tensors().items()}
        return SamplerHead.of(tensors, self.uses_lookahead)

    @staticmethod
    def random(hidden_size: int, width: int, seed: int) -> SamplerHead:
        """Draw an untrained head that changes what it refines; the same in both packages."""
        generator, shapes = np.random.default_rng(seed), tensor_shapes(hidden_size, width)
        tensors = {
            name: torch.from_numpy(generator.standard_normal(shape) / shape[1] ** 0.5).float()
            for name, shape in shapes.items()
        }
        return SamplerHead.of(tensors)

    def start(
        self,
        real_hidden: Tensor,  # [..., D]
    ) -> Tensor:  # [..., F]
        """Return the state before the first draft, from the hidden state of the last text row."""
        return self._linears["first"](real_hidden)

    def step(
        self,
        hidden: Tensor,  # [..., D]
        embedding: Tensor,  # [..., D]
        state: Tensor,  # [..., F]
    ) -> tuple[Tensor, Tensor]:  # [..., D], [..., F]
        """Return a look-ahead row's refined hidden state and the next state, given the token before its own."""
        token = functional.rms_norm(embedding, embedding.shape[-1:], None, EPSILON)
        state = functional.silu(self._linears["inner"](torch.cat([hidden, token, state], dim=-1)))
        return hidden + self._linears["out"](state), state

    @cached_property
    def _linears(self) -> dict[str, Linear]:
        return {name: Linear(tensor, None, laid_out(tensor)) for name, tensor in self.tensors().items()}
