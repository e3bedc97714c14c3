"""A second, smaller model as the drafter; sources in the reference.

Glossary of shapes: B batch, S capacity, V vocabulary.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ..model.cache import KVCache
from ..model.language_model import LanguageModel


class ModelDrafter:
    """Drafts from a language model over the target's vocabulary, one pass per token."""

    passes_per_draft = 1

    def __init__(self, model: LanguageModel):
        self.model, self.name, self.vocab_size = model, model.name, model.vocab_size
        self.max_position_embeddings = model.max_position_embeddings

    def new_cache(self, capacity: int, batch_size: int = 1) -> KVCache:
        """Return an empty cache of the draft model."""
        return self.model.new_cache(capacity, batch_size)

    def logits(
        self,
        tokens: Tensor,  # [B, S]
        cache: KVCache | None,
        lengths: Tensor,  # [B]
        max_pending: int,
    ) -> Tensor:  # [B, V]
        """Feed the tokens of each row that are not in the cache yet, and return the logits after its text."""
        assert cache is not None
        before, positions = cache.lengths, cache.next_positions(max_pending)
        hidden = self.model.hidden(self.model.embed(tokens.gather(1, positions)), cache)
        cache.truncate(lengths)  # rows with less to feed were padded
        if max_pending == 1:
            return self.model.logits(hidden[:, -1])
        rows = torch.arange(len(tokens), device=tokens.device)
        return self.model.logits(hidden[rows, (lengths - before - 1).clamp(min=0)])
