"""The interface of a model, as methods use it.

Glossary of shapes: B batch, T rows of a pass, D input vector, D' hidden state (for a table, V), V vocabulary, N tokens
of it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import torch
from torch import Tensor

from pass_sampling.reference.model.language_model import ModelFacts

from ..model.cache import KVCache


class LanguageModel(ModelFacts, Protocol):
    """The interface of `Transformer`, `TableModel` and `TransformersModel`."""

    @property
    def device(self) -> torch.device:
        """Where the model runs."""

    @property
    def dtype(self) -> torch.dtype:
        """The dtype that the model computes in."""

    def new_cache(self, capacity: int = 16, batch_size: int = 1) -> KVCache:
        """Return an empty cache."""

    def embed(
        self,
        tokens: Tensor | Sequence[Sequence[int]],  # [B, T]
    ) -> Tensor:  # [B, T, D]
        """Return the input vectors of tokens."""

    def hidden(
        self,
        inputs: Tensor,  # [B, T, D]
        cache: KVCache,
        positions: Tensor | None = None,  # [B, T]
        visible: Tensor | None = None,  # [T, T], or [B, T, T]
    ) -> Tensor:  # [B, T, D']
        """Run one pass after the cache."""

    def logits(
        self,
        hidden: Tensor,  # [..., D']
    ) -> Tensor:  # [..., V]
        """Project hidden states to logits."""

    def logits_of(
        self,
        hidden: Tensor,  # [..., D']
        tokens: Tensor,  # [N]
    ) -> Tensor:  # [..., N]
        """Project hidden states to the logits of some tokens."""
