"""The sampler head: a small recurrent network that conditions each draft on the drafts before it.

The equations and the source are in the reference.

Glossary of shapes: D hidden state, F width of the head.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor
from torch.nn import functional

from pass_sampling.reference.lookahead.adapter import random_tensors
from pass_sampling.reference.lookahead.head import EPSILON, HeadWeights, tensor_shapes

from ..model.linear import Linear, choices, linear


@dataclass(frozen=True, eq=False)
class SamplerHead(HeadWeights):
    """A recurrent network on [look-ahead hidden state; embedding of the token before; its own state]."""

    first: Tensor  # [F, D]
    inner: Tensor  # [F, 2D+F]
    out: Tensor  # [D, F]

    def to(self, dtype: torch.dtype, device: torch.device | str = "cpu") -> SamplerHead:
        """Return the head in a dtype, on a device."""
        tensors = {name: tensor.to(device, dtype) for name, tensor in self.tensors().items()}
        return SamplerHead.of(tensors, self.uses_lookahead)

    @classmethod
    def random(cls, hidden_size: int, width: int, seed: int) -> SamplerHead:
        """Draw an untrained head that changes what it refines; the same in both packages."""
        arrays = random_tensors(tensor_shapes(hidden_size, width), seed)
        return cls.of({name: torch.from_numpy(array) for name, array in arrays.items()})

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
        (layouts,) = choices([list(self.tensors().values())])
        return {name: linear(tensor, None, layouts) for name, tensor in self.tensors().items()}
