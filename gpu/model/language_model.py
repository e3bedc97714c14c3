"""What a method needs of a model.

Glossary of shapes: B batch, T rows of a pass, D input vector, D' hidden state (for a table, V), V vocabulary, N tokens
of it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import torch
from torch import Tensor

from ..model.cache import KVCache


class LanguageModel(Protocol):
    """What a method needs of a model: `Transformer`, `TableModel` and `TransformersModel` each are one."""

    @property
    def vocab_size(self) -> int:
        """V."""

    @property
    def hidden_size(self) -> int:
        """D, the length of an input vector."""

    @property
    def max_position_embeddings(self) -> int:
        """The longest sequence the model can read."""

    @property
    def eos_token_ids(self) -> tuple[int, ...]:
        """Tokens that end a text by default."""

    @property
    def stop_strings(self) -> tuple[str, ...]:
        """Strings that end a text by default, where there is a decoder."""

    @property
    def fingerprint(self) -> str | None:
        """Which checkpoint the weights came from, if any."""

    @property
    def name(self) -> str:
        """What people call the checkpoint."""

    @property
    def device(self) -> torch.device:
        """Where the model runs."""

    @property
    def dtype(self) -> torch.dtype:
        """What the model computes in."""

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
        tokens: Tensor,  # [..., N]
    ) -> Tensor:  # [..., N]
        """Project hidden states to the logits of some tokens each."""
