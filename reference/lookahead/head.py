"""Heads: small networks that draft from hidden states, under the model's own output layer.

A look-ahead row's hidden state depends on the text only. Left to right, the sampler head adds to it what follows from
the tokens between. Block heads, with which blockwise parallel decoding drafts, take no look-ahead rows: head i looks i
tokens further than the model's own output layer does, from the last text row, apart from the other drafts. The
resulting draft distributions are explicit, so the target's distribution is kept.

Glossary of shapes: D hidden state, F width of a head, K block heads.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from ..model.layers import Array
from .adapter import ArrayPart, Part, random_tensors

EPSILON = 1e-6  # of the norm that brings embeddings to the size of hidden states


class HeadPart(Part):
    """The matrices of a sampler head, of either package: `first` [F, D], `inner` [F, 2D+F] and `out` [D, F]."""

    kind, reads_drafts, first = "head", True, "first"

    @property
    def width(self) -> int:
        """F."""
        return int(self.matrices[self.first].shape[0])

    @property
    def hidden_size(self) -> int:
        """D."""
        return int(self.matrices[self.first].shape[1])


class SamplerHead(HeadPart, ArrayPart):
    """A recurrent network on [look-ahead hidden state; embedding of the token before; its own state].

    state_0 = first real_hidden, of the last text row

    state_i = silu(inner [hidden_i; norm(embedding(x_{i-1})); state_{i-1}]), refined_i = hidden_i + out state_i

    Source: Samragh et al. 2025 (arXiv 2507.11851), for a sampler on hidden state and token; the recurrence is ours.
    """

    @classmethod
    def random(cls, hidden_size: int, width: int, seed: int) -> SamplerHead:
        """Draw an untrained head that changes what it refines; the same in both packages."""
        return cls(random_tensors(tensor_shapes(hidden_size, width), seed))

    def start(
        self,
        real_hidden: Array,  # [D]
    ) -> Array:  # [F]
        """Return the state before the first draft, from the hidden state of the last text row."""
        state: Array = self.matrices["first"] @ real_hidden
        return state

    def step(
        self,
        hidden: Array,  # [D]
        embedding: Array,  # [D]
        state: Array,  # [F]
    ) -> tuple[Array, Array]:  # [D], [F]
        """Return a look-ahead row's refined hidden state and the next state, given the token before its own."""
        token = embedding / np.sqrt(np.mean(np.square(embedding)) + EPSILON)
        inner = self.matrices["inner"] @ np.concatenate([hidden, token, state])
        state = inner / (1.0 + np.exp(-inner))
        return hidden + self.matrices["out"] @ state, state


class BlockPart(HeadPart):
    """The matrices of block heads, of either package: of head i, `i.first` [F, D] and `i.out` [D, F]."""

    kind, reads_drafts, first = "block", False, "0.first"

    @property
    def pairs(self) -> list[tuple[Any, Any]]:
        """The two matrices of each head."""
        return [(self.matrices[f"{i}.first"], self.matrices[f"{i}.out"]) for i in range(len(self.matrices) // 2)]


class BlockHeads(BlockPart, ArrayPart):
    """A feed-forward network with a residual for each draft, under the model's own output layer.

    refined_i = real_hidden + out_i silu(first_i real_hidden)

    Source: Stern et al. 2018 (arXiv 1811.03115), Sec. 6, with SiLU for ReLU, on a frozen model.
    """

    @classmethod
    def random(cls, hidden_size: int, width: int, num_heads: int, seed: int) -> BlockHeads:
        """Draw untrained heads that change what they refine; the same in both packages."""
        return cls(random_tensors(block_shapes(hidden_size, width, num_heads), seed), uses_lookahead=False)

    def start(
        self,
        real_hidden: Array,  # [D]
    ) -> Array:  # [K, D]
        """Return the refined hidden states of all drafts."""
        inner = [(first @ real_hidden, out) for first, out in self.pairs]
        return np.stack([real_hidden + out @ (each / (1.0 + np.exp(-each))) for each, out in inner])

    def step(
        self,
        hidden: Array,  # [D]
        embedding: Array,  # [D]
        state: Array,  # [K, D]
    ) -> tuple[Array, Array]:  # [D], [K-1, D]
        """Return the next draft's refined hidden state and those after it, whatever the token before it is."""
        return state[0], state[1:]


def tensor_shapes(hidden_size: int, width: int) -> dict[str, tuple[int, int]]:
    """Return the shape of every tensor of a head, by its name."""
    return {"first": (width, hidden_size), "inner": (width, 2 * hidden_size + width), "out": (hidden_size, width)}


def block_shapes(hidden_size: int, width: int, num_heads: int) -> dict[str, tuple[int, int]]:
    """Return the shape of every tensor of some heads, by its name."""
    shapes = {"first": (width, hidden_size), "out": (hidden_size, width)}
    return {f"{i}.{name}": shape for i in range(num_heads) for name, shape in shapes.items()}
