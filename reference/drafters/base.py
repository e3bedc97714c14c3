"""The interface of drafters, which propose the tokens that the target verifies, and a model as the drafter.

Glossary of shapes: V vocabulary.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence

from ..model.cache import KVCache
from ..model.language_model import LanguageModel
from ..model.layers import Array


class Drafter(ABC):
    """Gives the logits of the next token after a text, one token after another.

    The text's distribution stays the target's with any logits; good ones make drafts that are accepted. The logits may
    depend on the tokens only. A cache saves work, and is cut to a prefix of the tokens before it is used.
    """

    vocab_size: int  # V, the target's
    name: str  # in messages
    passes_per_draft = 0  # passes of a model that one draft costs: 1, or 0 for a drafter that is free
    max_position_embeddings: int | None = None  # the longest text it can read; None: any

    def new_cache(self, capacity: int) -> KVCache | None:
        """Return an empty cache for a text of at most `capacity` tokens, if the drafter needs one."""
        return None

    @abstractmethod
    def logits(self, tokens: Sequence[int], cache: KVCache | None) -> Array:  # [V]
        """Return the logits after the tokens; where none is finite, there is nothing to propose.

        The cache holds the first `cache.length` tokens, at most all but one, and holds all of them afterwards.
        """


class ModelDrafter(Drafter):
    """Drafts from a second, smaller language model over the target's vocabulary, one pass per token.

    Source: Chen et al. 2023 (arXiv 2302.01318), Algorithm 2; Leviathan et al. 2023 (arXiv 2211.17192), Algorithm 1.
    """

    passes_per_draft = 1

    def __init__(self, model: LanguageModel):
        self.model, self.name, self.vocab_size = model, model.name, model.vocab_size
        self.max_position_embeddings = model.max_position_embeddings

    def new_cache(self, capacity: int) -> KVCache:
        """Return an empty cache of the draft model."""
        return self.model.new_cache(capacity)

    def logits(self, tokens: Sequence[int], cache: KVCache | None) -> Array:
        """Feed the tokens that are not in the cache yet, and return the logits after the text."""
        assert cache is not None
        hidden = self.model.hidden(self.model.embed(tokens[cache.length :]), cache)
        return self.model.logits(hidden[-1])
