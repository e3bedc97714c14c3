"""The n-grams of one order, as a level of a tree.

Glossary of shapes: P contexts, N n-grams.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

__all__ = ["ONE", "NgramOrder"]

ONE = 65536  # a share is code^2 / 65536: fine where it is small, and a sum of shares is exact


@dataclass(frozen=True, eq=False)
class NgramOrder:
    """The n-grams of one order, sorted by their tokens, the first token first.

    Their contexts are the tokens of the vocabulary for order 2, and above it the n-grams one order below.

    Source: Germann, Joanis and Larkin 2009, "Tightly Packed Tries: How to Fit Large Models into Memory".
    """

    num_successors: Tensor  # [P], how many n-grams each context has
    tokens: Tensor  # [N], the last token of each n-gram
    codes: Tensor  # [N], code^2 / 65536 is its share of the context's probability

    def __post_init__(self) -> None:
        """Hold each array in one type, on the host."""
        for name, dtype in (("num_successors", torch.int64), ("tokens", torch.int32), ("codes", torch.uint8)):
            object.__setattr__(self, name, torch.as_tensor(getattr(self, name)).to("cpu", dtype))

    @cached_property
    def offsets(self) -> Tensor:  # [P+1]
        """Where the n-grams of each context begin, and where the last ones end."""
        return torch.nn.functional.pad(self.num_successors.cumsum(0), (1, 0))

    @cached_property
    def totals(self) -> Tensor:  # [P]
        """The shares of each context together, times 65536."""
        return self.sums(self.codes.long() ** 2)

    def sums(
        self,
        numbers: Tensor,  # [N]
    ) -> Tensor:  # [P]
        """Add up integers of the n-grams of each context."""
        running = torch.nn.functional.pad(numbers.cumsum(0), (1, 0))
        return running[self.offsets[1:]] - running[self.offsets[:-1]]

    def check(self, num_contexts: int, vocab_size: int) -> None:
        """Refuse arrays that are no level of a tree over a vocabulary.

        Raises:
            ValueError: lengths disagree, tokens are unknown or not sorted, or shares add up to 1 or more.
        """
        contexts, count = len(self.num_successors), len(self.tokens)
        total = int(self.num_successors.sum())
        if contexts != num_contexts or total != count or bool((self.num_successors < 0).any()):
            raise ValueError(
                f"num_successors: found {contexts} numbers with the sum {total}, expected {num_contexts} of at least 0 "
                f"with the sum {count}, the number of tokens"
            )
        if len(self.codes) != count:
            raise ValueError(f"codes: found {len(self.codes)}, expected {count}, the number of tokens")
        if count == 0:
            return
        for token in (int(self.tokens.min()), int(self.tokens.max())):
            if not 0 <= token < vocab_size:
                raise ValueError(f"tokens: found {token}, expected 0 to {vocab_size - 1}")
        first = torch.zeros(count + 1, dtype=torch.bool)  # of its context
        first[self.offsets] = True
        unsorted = torch.nonzero(~first[1:-1] & (self.tokens.diff() <= 0))
        if len(unsorted):
            before, after = self.tokens[int(unsorted[0]) :][:2].tolist()
            raise ValueError(f"tokens: found {after} after {before} in one context, expected them to grow")
        most = int(self.totals.max())
        if most >= ONE:
            raise ValueError(
                f"codes: found shares of one context that add up to {most / ONE:.4f}, expected less than 1"
            )
