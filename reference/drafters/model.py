"""A second, smaller model as the drafter.

Source: Chen et al. 2023 (arXiv 2302.01318), Algorithm 2; Leviathan et al. 2023 (arXiv 2211.17192), Algorithm 1.

Glossary of shapes: V vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence

from ..model.cache import KVCache
from ..model.language_model import LanguageModel
from ..model.layers import Array


class ModelDrafter:
    """Drafts from a language model over the target's vocabulary, one pass per token."""

    passes_per_draft = 1

    def __init__(self, model: LanguageModel):
        self.model, self.name, self.vocab_size = model, model.name, model.vocab_size
        self.max_position_embeddings = model.max_position_embeddings

    def new_cache(self, capacity: int) -> KVCache:
        """Return an empty cache of the draft model."""
        return self.model.new_cache(capacity)

    def logits(
        self,
        tokens: Sequence[int],
        cache: KVCache | None,
    ) -> Array:  # [V]
        """Feed the tokens that are not in the cache yet, and return the logits after the text."""
        assert cache is not None
        hidden = self.model.hidden(self.model.embed(tokens[cache.length :]), cache)
        return self.model.logits(hidden[-1])
