"""Heads: small networks that draft from hidden states, under the model's own output layer.

A look-ahead row's hidden state depends on the text only. Left to right, the sampler head adds to it what follows from
the tokens between. Block heads, with which blockwise parallel decoding drafts, take no look-ahead rows: head i looks i
tokens further than the model's own output layer does, from the last text row, apart from the other drafts. The
resulting draft distributions are explicit, so the target's distribution is kept.

Glossary of shapes: D hidden state, F width of a head, K block heads.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Self

import numpy as np
import numpy.typing as npt

from ..model.layers import Array
from .adapter import random_tensors

TENSORS = ("first", "inner", "out")
EPSILON = 1e-6  # of the norm that brings embeddings to the size of hidden states


@dataclass(frozen=True, eq=False)
class HeadWeights:
    """The matrices of a sampler head, of either package."""

    first: Any  # [F, D]
    inner: Any  # [F, 2D+F]
    out: Any  # [D, F]
    uses_lookahead: bool = True  # if not, every draft starts from the last text row's hidden state
    kind: ClassVar[str] = "head"
    reads_drafts: ClassVar[bool] = True

    @property
    def width(self) -> int:
        """F."""
        return int(self.first.shape[0])

    @property
    def hidden_size(self) -> int:
        """D."""
        return int(self.first.shape[1])

    @classmethod
    def of(cls, tensors: Mapping[str, Any], uses_lookahead: bool = True) -> Self:
        """Return the head with these tensors."""
        return cls(**{name: tensors[name] for name in TENSORS}, uses_lookahead=uses_lookahead)

    def tensors(self) -> dict[str, Any]:
        """Return every tensor by its name."""
        return {name: getattr(self, name) for name in TENSORS}


@dataclass(frozen=True, eq=False)
class SamplerHead(HeadWeights):
    """A recurrent network on [look-ahead hidden state; embedding of the token before; its own state].

    state_0 = first real_hidden, of the last text row

    state_i = silu(inner [hidden_i; norm(embedding(x_{i-1})); state_{i-1}]), refined_i = hidden_i + out state_i

    Source: Samragh et al. 2025 (arXiv 2507.11851), for a sampler on hidden state and token; the recurrence is ours.
    """

    first: Array  # [F, D]
    inner: Array  # [F, 2D+F]
    out: Array  # [D, F]

    def to(self, dtype: npt.DTypeLike) -> SamplerHead:
        """Return the head in a dtype."""
        tensors = {name: tensor.astype(dtype) for name, tensor in self.tensors().items()}
        return SamplerHead.of(tensors, self.uses_lookahead)

    @classmethod
    def random(cls, hidden_size: int, width: int, seed: int) -> SamplerHead:
        """Draw an untrained head that changes what it refines; the same in both packages."""
        return cls.of(random_tensors(tensor_shapes(hidden_size, width), seed))

    def start(
        self,
        real_hidden: Array,  # [D]
    ) -> Array:  # [F]
        """Return the state before the first draft, from the hidden state of the last text row."""
        return self.first @ real_hidden

    def step(
        self,
        hidden: Array,  # [D]
        embedding: Array,  # [D]
        state: Array,  # [F]
    ) -> tuple[Array, Array]:  # [D], [F]
        """Return a look-ahead row's refined hidden state and the next state, given the token before its own."""
        token = embedding / np.sqrt(np.mean(np.square(embedding)) + EPSILON)
        inner = self.inner @ np.concatenate([hidden, token, state])
        state = inner / (1.0 + np.exp(-inner))
        return hidden + self.out @ state, state


@dataclass(frozen=True, eq=False)
class BlockWeights:
    """The matrices of block heads, of either package: those of head i are number i."""

    first: tuple[Any, ...]  # K of [F, D]
    out: tuple[Any, ...]  # K of [D, F]
    kind: ClassVar[str] = "block"
    uses_lookahead: ClassVar[bool] = False
    reads_drafts: ClassVar[bool] = False

    @property
    def width(self) -> int:
        """F."""
        return int(self.first[0].shape[0])

    @property
    def hidden_size(self) -> int:
        """D."""
        return int(self.first[0].shape[1])

    @classmethod
    def of(cls, tensors: Mapping[str, Any], uses_lookahead: bool = False) -> Self:
        """Return the heads with these tensors; they never use look-ahead rows."""
        numbers = range(len(tensors) // 2)
        return cls(*(tuple(tensors[f"{i}.{name}"] for i in numbers) for name in ("first", "out")))

    def tensors(self) -> dict[str, Any]:
        """Return every tensor by its name."""
        pairs = enumerate(zip(self.first, self.out, strict=True))
        return {f"{i}.{name}": each for i, pair in pairs for name, each in zip(("first", "out"), pair, strict=True)}


@dataclass(frozen=True, eq=False)
class BlockHeads(BlockWeights):
    """A feed-forward network with a residual for each draft, under the model's own output layer.

    refined_i = real_hidden + out_i silu(first_i real_hidden)

    Source: Stern et al. 2018 (arXiv 1811.03115), Sec. 6, with SiLU for ReLU, on a frozen model.
    """

    def to(self, dtype: npt.DTypeLike) -> BlockHeads:
        """Return the heads in a dtype."""
        return BlockHeads.of({name: tensor.astype(dtype) for name, tensor in self.tensors().items()})

    @classmethod
    def random(cls, hidden_size: int, width: int, num_heads: int, seed: int) -> BlockHeads:
        """Draw untrained heads that change what they refine; the same in both packages."""
        return cls.of(random_tensors(block_shapes(hidden_size, width, num_heads), seed))

    def start(
        self,
        real_hidden: Array,  # [D]
    ) -> Array:  # [K, D]
        """Return the refined hidden states of all drafts."""
        inner = [first @ real_hidden for first in self.first]
        pairs = zip(self.out, inner, strict=True)
        return np.stack([real_hidden + out @ (each / (1.0 + np.exp(-each))) for out, each in pairs])

    def step(
        self,
        hidden: Array,  # [D]
        embedding: Array,  # [D]
        state: Array,  # [K, D]
    ) -> tuple[Array, Array]:  # [D], [K, D]
        """Return the next draft's refined hidden state and those after it, whatever the token before it is."""
        return state[0], state[1:]


def tensor_shapes(hidden_size: int, width: int) -> dict[str, tuple[int, int]]:
    """Return the shape of every tensor of a head, by its name."""
    return {"first": (width, hidden_size), "inner": (width, 2 * hidden_size + width), "out": (hidden_size, width)}


def block_shapes(hidden_size: int, width: int, num_heads: int) -> dict[str, tuple[int, int]]:
    """Return the shape of every tensor of some heads, by its name."""
    shapes = {"first": (width, hidden_size), "out": (hidden_size, width)}
    return {f"{i}.{name}": shape for i in range(num_heads) for name, shape in shapes.items()}
