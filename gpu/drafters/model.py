"""A second, smaller model as the drafter.

Source: Chen et al. 2023 (arXiv 2302.01318), Algorithm 2; Leviathan et al. 2023 (arXiv 2211.17192), Algorithm 1.

Glossary of shapes: B batch, S capacity, V vocabulary.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ..model.cache import KVCache

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
        """Feed what the draft model has not seen of each row's text, and return the logits after it."""
        assert cache is not None
        before, named_uniforms = cache.lengths, cache.next_positions(max_pending)
        hidden = self.model.hidden(self.model.embed(tokens.gather(1, named_uniforms)), cache)
        cache.truncate(lengths)  # rows with less to feed were padded
        if max_pending == 1:
            return self.model.logits(hidden[:, -1])
        rows = torch.arange(len(tokens), device=tokens.device)
        return self.model.logits(hidden[rows, (lengths - before - 1).clamp(min=0)])
