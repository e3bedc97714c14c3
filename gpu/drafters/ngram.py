"""An n-gram model with back-off as the drafter: what followed the last tokens in some text, and no pass of a model.

Glossary of shapes: B batch, S capacity, V vocabulary.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from pass_sampling.reference.checkpoint.folder import file_in, open_folder, read_json, replace_folder
from pass_sampling.reference.checkpoint.ngram_folder import (
    ARRAYS,
    CONFIG,
    FIXED,
    MAX_ORDER,
    may_replace,
    packed,
    read_arrays,
    read_details,
)

from ..model.cache import KVCache
from ..model.precision import check_device
from .ngram_index import NgramIndex, build_index
from .ngram_order import NgramOrder

if TYPE_CHECKING:
    from ..model.language_model import LanguageModel

__all__ = ["NgramModel", "NgramOrder"]


@dataclass(frozen=True, eq=False)
class NgramModel:
    """Drafts from tables of n-grams: the longest known context speaks first, and hands the rest to the next shorter.

    probs(v | a b c) = share(a b c v) + (1 - shares of a b c) probs(v | b c)

    and so on down to probs(v), which is positive for every token. A context that is not known has no shares. Only the
    last `order - 1` tokens of a text matter.

    Source: Ney, Essen and Kneser 1994, "On Structuring Probabilistic Dependences in Stochastic Language Modelling".
    """

    unigram: Tensor  # [V], in proportion to probs(v)
    orders: tuple[NgramOrder, ...] = ()  # of 2 tokens, of 3, of 4
    base_model: str = ""  # the name of the model with whose tokenizer they were counted
    tokenizer: str | None = None  # a digest of that tokenizer's vocabulary; None: not known, so not checked
    training: Mapping[str, Any] = field(default_factory=dict)  # how they were counted, free of form
    passes_per_draft = 0
    max_position_embeddings = None

    def __post_init__(self) -> None:
        """Check the tables.

        Raises:
            ValueError: they make no distribution, or no tree.
        """
        unigram = torch.as_tensor(self.unigram).detach().to(torch.float32, copy=True)
        if unigram.ndim != 1 or unigram.numel() == 0 or not bool((unigram.isfinite() & (unigram > 0)).all()):
            raise ValueError("unigram: found something else, expected a finite positive number for each token")
        object.__setattr__(self, "unigram", unigram)
        object.__setattr__(self, "orders", tuple(self.orders))
        if self.order > MAX_ORDER:
            raise ValueError(f"orders: found {len(self.orders)}, expected at most {MAX_ORDER - 1}")
        num_contexts = self.vocab_size
        for number, order in enumerate(self.orders, start=2):
            try:
                order.check(num_contexts, self.vocab_size)
            except ValueError as error:
                raise ValueError(f"order_{number}.{error}") from None
            num_contexts = len(order.tokens)

    @property
    def vocab_size(self) -> int:
        """V."""
        return self.unigram.numel()

    @property
    def order(self) -> int:
        """How long the longest n-grams are."""
        return len(self.orders) + 1

    @property
    def name(self) -> str:
        """What it is."""
        return f"{self.order}-gram"

    def new_cache(self, capacity: int, batch_size: int = 1) -> None:
        """Return None: nothing is computed twice."""

    def logits(
        self,
        tokens: Tensor,  # [B, S]
        cache: KVCache | None,
        lengths: Tensor,  # [B]
        max_pending: int,
    ) -> Tensor:  # [B, V]
        """Return the logarithm of the distribution after the first `lengths` tokens of each row."""
        return self._index.logits(tokens, lengths)

    @cached_property
    def _index(self) -> NgramIndex:
        """The same tables, laid out for rows side by side."""
        return build_index(self.unigram, self.orders)

    def to(self, device: torch.device | str) -> NgramModel:
        """Return the same model on another device."""
        return replace(self, unigram=self.unigram.to(check_device(device)))

    def check(self, model: LanguageModel, tokenizer: str | None = None) -> None:
        """Refuse a model whose tokens mean something else; `tokenizer` is the digest of its tokenizer's vocabulary.

        Raises:
            ValueError: the vocabularies have different sizes, or the digests differ.
        """
        if self.vocab_size != model.vocab_size:
            raise ValueError(
                f"the n-gram model has vocab_size {self.vocab_size}, "
                f"expected {model.vocab_size} as in the model {model.name!r}"
            )
        if self.tokenizer is not None and tokenizer not in (None, self.tokenizer):
            raise ValueError(
                f"the n-gram model was counted with the tokenizer of {self.base_model!r} ({self.tokenizer[:12]}), this "
                f"is that of {model.name!r} ({str(tokenizer)[:12]}), expected the same; wrong tokens keep the text "
                f"exact but make it slow, and dataclasses.replace(ngram, tokenizer=None) uses them all the same"
            )

    def save(self, folder: str | os.PathLike[str]) -> None:
        """Write the folder of an n-gram model, whole or not at all; one that is there already is replaced.

        Raises:
            ValueError: the path holds something else, or `training` is no plain JSON.
        """
        path = Path(folder)
        if path.exists() and not may_replace(path):
            raise ValueError(f"{path} holds something else, expected a new path or the folder of an n-gram model")
        settings = FIXED | {
            "vocab_size": self.vocab_size,
            "num_ngrams": [len(order.tokens) for order in self.orders],
            "base_model": self.base_model,
            "tokenizer": self.tokenizer,
            "training": dict(self.training),
        }
        try:
            text = json.dumps(settings, indent=2, allow_nan=False) + "\n"
        except (TypeError, ValueError) as error:
            raise ValueError(f"training is not plain JSON ({error}), expected text, finite numbers and such") from None
        orders = [(order.num_successors.numpy(), order.tokens.numpy(), order.codes.numpy()) for order in self.orders]
        arrays = packed(self.unigram.cpu().numpy(), orders)
        replace_folder(path, {ARRAYS: arrays, CONFIG: text.encode()})

    @classmethod
    def load(cls, folder: str | os.PathLike[str], device: torch.device | str = "cpu") -> NgramModel:
        """Read the folder of an n-gram model.

        Raises:
            FileNotFoundError: the folder or one of its files is missing.
            ValueError: a file is damaged, or was made for another version of this package.
        """
        device = check_device(device)
        root = open_folder(folder)
        path = file_in(root, CONFIG)
        settings = read_json(path)
        try:
            details = read_details(settings)
        except ValueError as error:
            raise ValueError(f"{path}: {error}") from None
        path = file_in(root, ARRAYS)
        unigram, orders = read_arrays(path, settings["vocab_size"], settings["num_ngrams"])
        try:
            tables = tuple(NgramOrder(*map(torch.from_numpy, arrays)) for arrays in orders)
            return cls(torch.from_numpy(unigram).to(device), tables, **details)
        except ValueError as error:
            raise ValueError(f"{path}: {error}") from None
