"""Prompt lookup: the drafter proposes what followed an earlier occurrence of the text's last tokens."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from ..config import check_integer
from ..model.cache import KVCache
from ..model.layers import Array
from .base import Drafter


@dataclass(frozen=True, eq=False)
class LookupSettings:
    """The settings of `PromptLookup`, of either package."""

    vocab_size: int
    max_ngram: int = 3
    min_ngram: int = 1
    name = "prompt lookup"

    def __post_init__(self) -> None:
        check_integer("vocab_size", self.vocab_size, 1, 2**31)
        check_integer("max_ngram", self.max_ngram, 1, 2**16)
        check_integer("min_ngram", self.min_ngram, 1, self.max_ngram)


class PromptLookup(LookupSettings, Drafter):
    """Drafts the token that followed the most recent earlier occurrence of the longest n-gram that ends the text.

    It looks again for each draft, after the drafts before it. transformers takes the first occurrence, and all tokens
    after it at once; the most recent one is nearer to the text's present subject.

    Source: Saxena 2023, "Prompt Lookup Decoding" (github.com/apoorvumang/prompt-lookup-decoding).
    """

    def logits(self, tokens: Sequence[int], cache: KVCache | None) -> Array:
        """Return 0 at the token found and -inf elsewhere; everywhere, if there is none."""
        text, row = tuple(tokens), np.full(self.vocab_size, -np.inf)
        for length in range(min(self.max_ngram, len(text) - 1), self.min_ngram - 1, -1):
            for start in range(len(text) - length - 1, -1, -1):
                if text[start : start + length] == text[-length:]:
                    row[text[start + length]] = 0.0
                    return row
        return row
