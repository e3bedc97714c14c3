"""The sampler head: a small recurrent network that conditions each draft on the drafts before it.

A look-ahead row's hidden state depends on the text only. Left to right, the head adds to it what follows from the
tokens between, before the model's output projection. The resulting draft distribution is explicit, so the target's
distribution is kept.

Glossary of shapes: D hidden state, F width of the head.
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


def tensor_shapes(hidden_size: int, width: int) -> dict[str, tuple[int, int]]:
    """Return the shape of every tensor of a head, by its name."""
    return {"first": (width, hidden_size), "inner": (width, 2 * hidden_size + width), "out": (hidden_size, width)}
