"""Block heads: each drafts one of the next tokens from the last text row's hidden state, apart from the other drafts.

The equations and the source are in the reference.

Glossary of shapes: K heads, D hidden state, F width of a head.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from pass_sampling.reference.lookahead.adapter import random_tensors
from pass_sampling.reference.lookahead.block_heads import BlockWeights, block_shapes


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
