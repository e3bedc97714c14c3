"""Heads: small networks that draft from hidden states; `reference.lookahead.head` has the equations and the sources.

Glossary of shapes: D hidden state, F width of a head, K block heads.
"""

from __future__ import annotations

from functools import cached_property

import torch
from torch import Tensor
from torch.nn import functional

from pass_sampling.reference.lookahead.head import EPSILON, BlockPart, HeadPart, block_shapes, tensor_shapes

from ..model.linear import Linear, choices, linear
from .adapter import ArrayPart


class SamplerHead(HeadPart, ArrayPart):
    """A recurrent network on [look-ahead hidden state; embedding of the token before; its own state]."""

    @classmethod
    def random(cls, hidden_size: int, width: int, seed: int) -> SamplerHead:
        """Draw an untrained head that changes what it refines; the same in both packages."""
        return cls.drawn(tensor_shapes(hidden_size, width), seed)

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
        (layouts,) = choices([list(self.matrices.values())])
        return {name: linear(tensor, None, layouts) for name, tensor in self.matrices.items()}


class BlockHeads(BlockPart, ArrayPart):
    """A feed-forward network with a residual for each draft, under the model's own output layer."""

    @classmethod
    def random(cls, hidden_size: int, width: int, num_heads: int, seed: int) -> BlockHeads:
        """Draw untrained heads that change what they refine; the same in both packages."""
        return cls.drawn(block_shapes(hidden_size, width, num_heads), seed, uses_lookahead=False)

    def start(
        self,
        real_hidden: Tensor,  # [..., D]
    ) -> Tensor:  # [..., K, D]
        """Return the refined hidden states of all drafts."""
        inner = [(functional.silu(functional.linear(real_hidden, first)), out) for first, out in self.pairs]
        return torch.stack([real_hidden + functional.linear(each, out) for each, out in inner], dim=-2)

    def step(
        self,
        hidden: Tensor,  # [..., D]
        embedding: Tensor,  # [..., D]
        state: Tensor,  # [..., K, D]
    ) -> tuple[Tensor, Tensor]:  # [..., D], [..., K-1, D]
        """Return the next draft's refined hidden state and those after it, whatever the token before it is."""
        return state[..., 0, :], state[..., 1:, :]
