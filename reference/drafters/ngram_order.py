"""The n-grams of one order, as a level of a tree.

Glossary of shapes: P contexts, N n-grams.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
import numpy.typing as npt

__all__ = ["ONE", "NgramOrder"]

ONE = 65536  # a share is code^2 / 65536: fine where it is small, and a sum of shares is exact


@dataclass(frozen=True, eq=False)
class NgramOrder:
    """The n-grams of one order, sorted by their tokens, the first token first.

    Their contexts are the tokens of the vocabulary for order 2, and above it the n-grams one order below.

    Source: Germann, Joanis and Larkin 2009, "Tightly Packed Tries: How to Fit Large Models into Memory".
    """

    num_successors: npt.NDArray[np.int64]  # [P], how many n-grams each context has
    tokens: npt.NDArray[np.int32]  # [N], the last token of each n-gram
    codes: npt.NDArray[np.uint8]  # [N], code^2 / 65536 is its share of the context's probability

    def __post_init__(self) -> None:
        """Hold each array in one type."""
        for name, dtype in (("num_successors", np.int64), ("tokens", np.int32), ("codes", np.uint8)):
            object.__setattr__(self, name, np.asarray(getattr(self, name)).astype(dtype))

    @cached_property
    def offsets(self) -> npt.NDArray[np.int64]:  # [P+1]
        """Where the n-grams of each context begin, and where the last ones end."""
        return np.concatenate([[0], np.cumsum(self.num_successors)])

    @cached_property
    def totals(self) -> npt.NDArray[np.int64]:  # [P]
        """The shares of each context together, times 65536."""
        running = np.concatenate([[0], np.cumsum(self.codes.astype(np.int64) ** 2)])
        return np.asarray(running[self.offsets[1:]] - running[self.offsets[:-1]])

    def check(self, num_contexts: int, vocab_size: int) -> None:
        """Refuse arrays that are no level of a tree over a vocabulary.

        Raises:
            ValueError: lengths disagree, tokens are unknown or not sorted, or shares add up to 1 or more.
        """
        contexts, count = len(self.num_successors), len(self.tokens)
        total = int(self.num_successors.sum())
        if contexts != num_contexts or total != count or (self.num_successors < 0).any():
            raise ValueError(
                f"num_successors: found {contexts} numbers with the sum {total}, expected {num_contexts} of at least 0 "
                f"with the sum {count}, the number of tokens"
            )
        if len(self.codes) != count:
            raise ValueError(f"codes: found {len(self.codes)}, expected {count}, the number of tokens")
        for token in (int(self.tokens.min(initial=0)), int(self.tokens.max(initial=0))):
            if not 0 <= token < vocab_size:
                raise ValueError(f"tokens: found {token}, expected 0 to {vocab_size - 1}")
        first = np.zeros(count + 1, dtype=bool)  # of its context
        first[self.offsets] = True
        unsorted = np.flatnonzero(~first[1:-1] & (np.diff(self.tokens) <= 0))
        if len(unsorted):
            before, after = self.tokens[unsorted[0] :][:2]
            raise ValueError(f"tokens: found {after} behind {before} in one context, expected them to grow")
        most = int(self.totals.max(initial=0))
        if most >= ONE:
            raise ValueError(
                f"codes: found shares of one context that add up to {most / ONE:.4f}, expected less than 1"
            )
