"""The interface of drafters, which propose the tokens that the target verifies.

Glossary of shapes: B batch, S capacity, V vocabulary.
"""

from __future__ import annotations

from typing import Protocol, runtime_checkable

from torch import Tensor

from ..model.cache import KVCache
from ..sampling import likeliest


class Drafter(Protocol):
    """Gives the logits of the next token after each row's text, one token after another.

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

    def new_cache(self, capacity: int, batch_size: int = 1) -> KVCache | None:
        """Return an empty cache for texts of so many tokens, if it needs one."""

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


@runtime_checkable
class FindsBest(Protocol):
    """A drafter that finds its likeliest token in less than V operations."""

    def best(
        self,
        tokens: Tensor,  # [B, S]
        lengths: Tensor,  # [B]
    ) -> tuple[Tensor, Tensor]:  # [B], [B]
        """Return what `likeliest` makes of its logits."""


def best_of(
    drafter: Drafter,
    tokens: Tensor,  # [B, S]
    cache: KVCache | None,
    lengths: Tensor,  # [B]
    max_pending: int,
) -> tuple[Tensor, Tensor]:  # [B], [B]
    """Return a drafter's likeliest token and its logit: all that a greedy draft needs."""
    if isinstance(drafter, FindsBest):
        return drafter.best(tokens, lengths)
    return likeliest(drafter.logits(tokens, cache, lengths, max_pending))
