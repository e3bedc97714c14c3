"""Block heads: each drafts one of the next tokens from the last text row's hidden state, apart from the other drafts.

Blockwise parallel decoding drafts with them. Head i looks i tokens further than the model's own output layer does.

Glossary of shapes: K heads, D hidden state, F width of a head.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Self

import numpy as np
import numpy.typing as npt

from ..model.layers import Array
from .adapter import random_tensors


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


def block_shapes(hidden_size: int, width: int, num_heads: int) -> dict[str, tuple[int, int]]:
    """Return the shape of every tensor of some heads, by its name."""
    shapes = {"first": (width, hidden_size), "out": (hidden_size, width)}
    return {f"{i}.{name}": shape for i in range(num_heads) for name, shape in shapes.items()}
