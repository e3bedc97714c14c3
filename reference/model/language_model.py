"""The interface of a model, as methods use it.

Glossary of shapes: T rows of a pass, D input vector, D' hidden state (for a table, V), V vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Protocol

import numpy as np
import numpy.typing as npt

if TYPE_CHECKING:
    from .cache import KVCache
    from .layers import Array, Mask


class ModelFacts(Protocol):
    """The facts about a model that are not arrays, for both packages."""

    @property
    def vocab_size(self) -> int:
        """V."""

    @property
    def hidden_size(self) -> int:
        """D, the length of an input vector."""

    @property
    def max_position_embeddings(self) -> int:
        """The longest sequence that the model can read."""

    @property
    def eos_token_ids(self) -> tuple[int, ...]:
        """Tokens that end a text by default."""

    @property
    def stop_strings(self) -> tuple[str, ...]:
        """Strings that end a text by default, if there is a decoder."""

    @property
    def fingerprint(self) -> str | None:
        """Which checkpoint the weights came from, if any."""

    @property
    def name(self) -> str:
        """The name of the checkpoint."""


class LanguageModel(ModelFacts, Protocol):
    """The interface of `Transformer` and `TableModel`."""

    def new_cache(self, capacity: int = 16) -> KVCache:
        """Return an empty cache."""

    def embed(
        self,
        tokens: npt.NDArray[np.integer] | Sequence[int],  # [T]
    ) -> Array:  # [T, D]
        """Return the input vectors of tokens."""

    def hidden(
        self,
        inputs: Array,  # [T, D]
        cache: KVCache,
        positions: npt.NDArray[np.integer] | None = None,  # [T]
        visible: Mask | None = None,  # [T, T]
    ) -> Array:  # [T, D']
        """Run one pass after the cache."""

    def logits(
        self,
        hidden: Array,  # [..., D']
    ) -> Array:  # [..., V]
        """Project hidden states to logits."""

    def logits_of(
        self,
        hidden: Array,  # [..., D']
        tokens: npt.NDArray[np.integer],  # [N]
    ) -> Array:  # [..., N]
        """Project hidden states to the logits of some tokens."""
