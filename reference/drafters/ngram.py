"""An n-gram model with back-off as the drafter: it proposes what followed the last tokens in counted text.

It needs no pass of a model. The n-grams of an order are a level of a tree, see `NgramOrder`.

Glossary of shapes: P contexts, N n-grams, V vocabulary.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Self

import numpy as np
import numpy.typing as npt

from ..checkpoint.folder import errors_of, read_folder, save_folder
from ..checkpoint.ngram_folder import FIXED, FOLDER, MAX_ORDER, packed, read_arrays, read_details
from ..model.cache import KVCache
from ..model.layers import Array
from ..sampling import Probs
from .base import Drafter

ONE = 65536  # a share is code^2 / 65536: fine where it is small, and a sum of shares is exact


@dataclass(frozen=True, eq=False)
class NgramOrder:
    """The n-grams of one order, sorted by their tokens, the first token first.

    Their contexts are the tokens of the vocabulary for order 2, and above it the n-grams one order below.

    Source: Germann, Joanis and Larkin 2009, "Tightly Packed Tries: How to Fit Large Models into Memory".
    """

    num_successors: npt.NDArray[np.integer]  # [P], how many n-grams each context has
    tokens: npt.NDArray[np.integer]  # [N], the last token of each n-gram
    codes: npt.NDArray[np.integer]  # [N], code^2 / 65536 is its share of the context's probability

    def __post_init__(self) -> None:
        for name, dtype in (("num_successors", np.int64), ("tokens", np.int32), ("codes", np.uint8)):
            object.__setattr__(self, name, np.asarray(getattr(self, name)).astype(dtype))

    @cached_property
    def offsets(self) -> npt.NDArray[np.int64]:  # [P+1]
        """The first n-gram of each context, and the number of n-grams."""
        return np.concatenate([[0], np.cumsum(self.num_successors)])

    @cached_property
    def totals(self) -> npt.NDArray[np.int64]:  # [P]
        """The shares of each context together, times 65536."""
        return self.sums(self.codes.astype(np.int64) ** 2)

    def sums(
        self,
        numbers: npt.NDArray[Any],  # [N]
    ) -> npt.NDArray[np.int64]:  # [P]
        """Add up integers of the n-grams of each context."""
        running = np.concatenate([[0], np.cumsum(numbers)])
        return np.asarray(running[self.offsets[1:]] - running[self.offsets[:-1]])

    def check(self, num_contexts: int, vocab_size: int) -> None:
        """Raise ValueError if lengths disagree, tokens are unknown or not sorted, or shares add up to 1 or more."""
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
            raise ValueError(f"tokens: found {after} after {before} in one context, expected them to grow")
        most = int(self.totals.max(initial=0))
        if most >= ONE:
            raise ValueError(
                f"codes: found shares of one context that add up to {most / ONE:.4f}, expected less than 1"
            )


@dataclass(frozen=True, eq=False)
class NgramTables:
    """The n-gram model of either package: its tables, their checks, and the folder that keeps them.

    probs(v | a b c) = share(a b c v) + (1 - shares of a b c) probs(v | b c)

    and so on down to probs(v), which is positive for every token. An unknown context has no shares. Only the last
    `order - 1` tokens of a text matter.

    Source: Ney, Essen and Kneser 1994, "On Structuring Probabilistic Dependences in Stochastic Language Modelling".
    """

    unigram: Any  # [V], in proportion to probs(v), kept in float32 on the host
    orders: tuple[NgramOrder, ...] = ()  # of 2 tokens, of 3, of 4
    base_model: str = ""  # the name of the model with whose tokenizer they were counted
    tokenizer: str | None = None  # a digest of that tokenizer's vocabulary; None: not known, so not checked
    training: Mapping[str, Any] = field(default_factory=dict)  # how they were counted, free of form
    vocab_size: int = field(init=False)  # V
    name: str = field(init=False)

    def __post_init__(self) -> None:
        with np.errstate(over="ignore"):
            unigram = np.array(self.unigram, dtype=np.float32)
        unigram.flags.writeable = False
        if unigram.ndim != 1 or unigram.size == 0 or not (np.isfinite(unigram) & (unigram > 0)).all():
            raise ValueError("unigram: found something else, expected a finite positive number for each token")
        orders = tuple(self.orders)
        own = {"unigram": unigram, "orders": orders, "vocab_size": len(unigram), "name": f"{len(orders) + 1}-gram"}
        for name, value in own.items():
            object.__setattr__(self, name, value)
        if self.order > MAX_ORDER:
            raise ValueError(f"orders: found {len(self.orders)}, expected at most {MAX_ORDER - 1}")
        num_contexts = self.vocab_size
        for number, order in enumerate(self.orders, start=2):
            with errors_of(f"order_{number}", "."):
                order.check(num_contexts, self.vocab_size)
            num_contexts = len(order.tokens)

    @cached_property
    def log_unigram(self) -> npt.NDArray[np.float64]:  # [V]
        """The logarithms of the unigram."""
        found: npt.NDArray[np.float64] = np.log(self.unigram.astype(np.float64))
        return found

    @property
    def order(self) -> int:
        """The length of the longest n-grams."""
        return len(self.orders) + 1

    def check(self, model: Any, tokenizer: str | None = None) -> None:
        """Raise ValueError for a vocabulary of another size, or another `tokenizer`, the digest of its vocabulary."""
        if self.vocab_size != model.vocab_size:
            raise ValueError(
                f"the n-gram model has vocab_size {self.vocab_size}, "
                f"expected {model.vocab_size} as in the model {model.name!r}"
            )
        if self.tokenizer is not None and tokenizer not in (None, self.tokenizer):
            raise ValueError(
                f"the n-gram model was counted with the tokenizer of {self.base_model!r} ({self.tokenizer[:12]}), this "
                f"is that of {model.name!r} ({str(tokenizer)[:12]}), expected the same; other tokens keep the text "
                f"exact but make it slow, and dataclasses.replace(ngram, tokenizer=None) skips this check"
            )

    def save(self, folder: str | os.PathLike[str]) -> None:
        """Write the folder of an n-gram model, whole or not at all; one that exists is replaced.

        Raise ValueError if the path holds something else, or `training` is not plain JSON.
        """
        settings = {
            "vocab_size": self.vocab_size,
            "num_ngrams": [len(order.tokens) for order in self.orders],
            "base_model": self.base_model,
            "tokenizer": self.tokenizer,
            "training": dict(self.training),
        }
        orders = [(order.num_successors, order.tokens, order.codes) for order in self.orders]
        save_folder(folder, FOLDER, FIXED, settings, packed(self.unigram, orders))

    @classmethod
    def _read(cls, folder: str | os.PathLike[str], **more: Any) -> Self:
        """Read the folder of an n-gram model; a package may have more fields."""
        settings, details, path = read_folder(folder, read_details)
        unigram, orders = read_arrays(path, settings["vocab_size"], settings["num_ngrams"])
        with errors_of(path):
            return cls(unigram, tuple(NgramOrder(*arrays) for arrays in orders), **details, **more)


@dataclass(frozen=True, eq=False)
class NgramModel(NgramTables, Drafter):
    """Drafts from tables of n-grams: the longest known context first, which leaves the rest to the next shorter."""

    def logits(self, tokens: Sequence[int], cache: KVCache | None) -> Array:
        """Return the logarithm of the distribution after the tokens."""
        probs = self._unigram_probs.copy()
        for order, length in zip(self.orders, range(1, len(tokens) + 1), strict=False):
            context = self._find(tokens[-length:])
            if context is not None:
                span = slice(*order.offsets[context : context + 2])
                probs *= 1.0 - order.totals[context] / ONE
                probs[order.tokens[span]] += order.codes[span].astype(np.float64) ** 2 / ONE
        return np.log(probs)

    @cached_property
    def _unigram_probs(self) -> Probs:  # [V]
        """The distribution of a token after an unknown context."""
        weights = self.unigram.astype(np.float64)
        return np.asarray(weights / weights.sum())

    def _find(self, context: Sequence[int]) -> int | None:
        """Return the place of a context in its order, walking down the tree."""
        place = context[0]
        for order, token in zip(self.orders, context[1:], strict=False):
            start, stop = order.offsets[place : place + 2]
            place = start + int(np.searchsorted(order.tokens[start:stop], token))
            if place == stop or order.tokens[place] != token:
                return None
        return int(place)

    @classmethod
    def load(cls, folder: str | os.PathLike[str]) -> NgramModel:
        """Read a folder; raise FileNotFoundError for a missing file, ValueError for a damaged or another version's."""
        return cls._read(folder)
