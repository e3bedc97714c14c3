"""A second, smaller model as the drafter.

Source: Chen et al. 2023 (arXiv 2302.01318), Algorithm 2; Leviathan et al. 2023 (arXiv 2211.17192), Algorithm 1.

Glossary of shapes: V vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from ..model.cache import KVCache
from ..model.layers import Array

if TYPE_CHECKING:
    from ..model.language_model import LanguageModel


@dataclass(frozen=True, eq=False)
class ModelDrafter:
    """Drafts from a language model over the target's vocabulary, one pass per token."""

    model: LanguageModel
    passes_per_draft = 1

    @property
    def vocab_size(self) -> int:
        """V."""
        return self.model.vocab_size

    @property
    def name(self) -> str:
        """The draft model's name."""
        return self.model.name

    @property
    def max_position_embeddings(self) -> int | None:
        """The draft model's context."""
        return self.model.max_position_embeddings

    def new_cache(self, capacity: int) -> KVCache:
        """Return an empty cache of the draft model."""
        return self.model.new_cache(capacity)

    def logits(
        self,
        tokens: Sequence[int],
        cache: KVCache | None,
    ) -> Array:  # [V]
        """Feed what the draft model has not seen of the text, and return the logits after it."""
        assert cache is not None
        hidden = self.model.hidden(self.model.embed(tokens[cache.length :]), cache)
        return self.model.logits(hidden[-1])
