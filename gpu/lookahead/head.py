"""Heads: small networks that draft from hidden states; `reference.lookahead.head` has the equations and the sources.

Glossary of shapes: D hidden state, F width of a head, K block heads.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor
from torch.nn import functional

from pass_sampling.reference.lookahead.adapter import random_tensors
from pass_sampling.reference.lookahead.head import EPSILON, BlockWeights, HeadWeights, block_shapes, tensor_shapes

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


@dataclass(frozen=True, eq=False)
class BlockHeads(BlockWeights):
    """A feed-forward network with a residual for each draft, under the model's own output layer."""

    def to(self, dtype: torch.dtype, device: torch.device | str = "cpu") -> BlockHeads:
        """Return the heads in a dtype, on a device."""
        return BlockHeads.of({name: tensor.to(device, dtype) for name, tensor in self.tensors().items()})

    @classmethod
    def random(cls, hidden_size: int, width: int, num_heads: int, seed: int) -> BlockHeads:
        """Draw untrained heads that change what they refine; the same in both packages."""
        arrays = random_tensors(block_shapes(hidden_size, width, num_heads), seed)
        return cls.of({name: torch.from_numpy(array) for name, array in arrays.items()})

    def start(
        self,
        real_hidden: Tensor,  # [..., D]
    ) -> Tensor:  # [..., K, D]
        """Return the refined hidden states of all drafts."""
        inner = [functional.silu(functional.linear(real_hidden, first)) for first in self.first]
        pairs = zip(self.out, inner, strict=True)
        return torch.stack([real_hidden + functional.linear(each, out) for out, each in pairs], dim=-2)

    def step(
        self,
        hidden: Tensor,  # [..., D]
        embedding: Tensor,  # [..., D]
        state: Tensor,  # [..., K, D]
    ) -> tuple[Tensor, Tensor]:  # [..., D], [..., K, D]
        """Return the next draft's refined hidden state and those after it, whatever the token before it is."""
        return state[..., 0, :], state[..., 1:, :]
