"""The interface of drafters, which propose the tokens that the target verifies.

Glossary of shapes: V vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from ..model.cache import KVCache
from ..model.layers import Array


class Drafter(Protocol):
    """Gives the logits of the next token after a text, one token after another.

    The text's distribution stays the target's with any logits; good ones make drafts that are accepted. The logits may
    depend on the tokens only. A cache saves work, and is cut to a prefix of the tokens before it is used.
    """

    @property
    def vocab_size(self) -> int:
        """V, the target's."""

    @property
    def name(self) -> str:
        """The name in messages."""

    @property
    def passes_per_draft(self) -> int:
        """Passes of a model that one draft costs: 1, or 0 for a drafter that is free."""

    @property
    def max_position_embeddings(self) -> int | None:
        """The longest text it can read; None: any."""

    def new_cache(self, capacity: int) -> KVCache | None:
        """Return an empty cache for a text of so many tokens, if it needs one."""

    def logits(
        self,
        tokens: Sequence[int],
        cache: KVCache | None,
    ) -> Array:  # [V]
        """Return the logits after the tokens; where none is finite, there is nothing to propose.

        The cache holds the first `cache.length` tokens, at most all but one, and holds all of them afterwards.
        """
