"""The interface of drafters, which propose the tokens that the target verifies, and a model as the drafter.

Glossary of shapes: B batch, S capacity, V vocabulary.
"""

from __future__ import annotations

from abc import ABC, abstractmethod

import torch
from torch import Tensor

from ..model.cache import KVCache
from ..model.language_model import LanguageModel
from ..sampling import likeliest


class Drafter(ABC):
    """Gives the logits of the next token after each row's text, one token after another; see the reference's."""

    vocab_size: int  # V, the target's
    name: str  # in messages
    passes_per_draft = 0  # passes of a model that one draft costs: 1, or 0 for a drafter that is free
    max_position_embeddings: int | None = None  # the longest text it can read; None: any

    def new_cache(self, capacity: int, batch_size: int = 1) -> KVCache | None:
        """Return an empty cache for texts of at most `capacity` tokens, if the drafter needs one."""
        return None

    @abstractmethod
    def logits(
        self,
        tokens: Tensor,  # [B, S]
        cache: KVCache | None,
        lengths: Tensor,  # [B]
        max_pending: int,
    ) -> Tensor:  # [B, V]
        """Return the logits after the first `lengths` tokens of each row; where none is finite, nothing is proposed.

        The cache holds the first `cache.lengths` tokens of a row, and all of them afterwards. The host knows that at
        most `max_pending` tokens of a row are not in it yet. Rows with nothing to feed return anything.
        """

    def best(
        self,
        tokens: Tensor,  # [B, S]
        cache: KVCache | None,
        lengths: Tensor,  # [B]
        max_pending: int,
    ) -> tuple[Tensor, Tensor]:  # [B], [B]
        """Return the likeliest token and its logit, as `logits` has them: all that a greedy draft needs."""
        return likeliest(self.logits(tokens, cache, lengths, max_pending))


class ModelDrafter(Drafter):
    """Drafts from a second, smaller language model over the target's vocabulary, one pass per token."""

    passes_per_draft = 1

    def __init__(self, model: LanguageModel):
        self.model, self.name, self.vocab_size = model, model.name, model.vocab_size
        self.max_position_embeddings = model.max_position_embeddings

    def new_cache(self, capacity: int, batch_size: int = 1) -> KVCache:
        """Return an empty cache of the draft model."""
        return self.model.new_cache(capacity, batch_size)

    def logits(self, tokens: Tensor, cache: KVCache | None, lengths: Tensor, max_pending: int) -> Tensor:
        """Feed the tokens of each row that are not in the cache yet, and return the logits after its text."""
        assert cache is not None
        before, positions = cache.lengths, cache.next_positions(max_pending)
        hidden = self.model.hidden(self.model.embed(tokens.gather(1, positions)), cache)
        cache.truncate(lengths)  # rows with less to feed were padded
        if max_pending == 1:
            return self.model.logits(hidden[:, -1])
        rows = torch.arange(len(tokens), device=tokens.device)
        return self.model.logits(hidden[rows, (lengths - before - 1).clamp(min=0)])
