"""A language model that is a table, for tests: every visible sequence has a row of its own.

It is small enough to enumerate, and strict: a wrong row, position, mask or cache position gives an unrelated
distribution. It reads its prefix from the KV cache, as a transformer does, so rollback is tested too.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from ..lookahead.vectors import LookAhead
from .cache import KVCache
from .layers import Array, Mask

Codes = npt.NDArray[np.uint64]

_GOLDEN = np.uint64(0x9E3779B97F4A7C15)


@dataclass(eq=False)
class TableRows:
    """The settings and the rows of a table, of either package."""

    vocab_size: int
    num_lookahead: int = 0
    seed: int = 0
    spread: float = 2.0  # logits are in [-spread, spread)
    zeros: float = 0.0  # about this share of them is masked with -inf
    max_position_embeddings: int = 64
    eos_token_ids: tuple[int, ...] = ()
    levels: int = 0  # how many different logits there are, so that tokens tie; 0 means any number
    popular: tuple[int, ...] = ()  # tokens whose logits are higher by 4 spread after every prefix
    stop_strings: tuple[str, ...] = field(default=(), init=False)
    fingerprint: str | None = field(default=None, init=False)
    name: str = field(default="table", init=False)
    hidden_size: int = field(init=False)

    def __post_init__(self) -> None:
        """Give every token and every look-ahead vector a unit vector of its own."""
        self.hidden_size = self.vocab_size + self.num_lookahead

    def logits(
        self,
        hidden: Any,  # [..., V]
    ) -> Any:  # [..., V]
        """Return the rows as they are."""
        return hidden

    def logits_of(
        self,
        hidden: Any,  # [..., V]
        tokens: Any,  # [N]
    ) -> Any:  # [..., N]
        """Return the logits of some tokens."""
        return hidden[..., tokens]

    def row(
        self,
        code: Codes,  # [...]
    ) -> Array:  # [..., V]
        """Return the logits after everything that has this code; at least one is finite."""
        tokens = np.arange(self.vocab_size, dtype=np.uint64)
        seed = _mix(np.array([self.seed], dtype=np.uint64))
        bits = _mix(code[..., None] + seed + tokens * _GOLDEN)
        masked = _unit(_mix(bits)) < self.zeros
        masked &= tokens != code[..., None] % np.uint64(self.vocab_size)
        heights = _unit(bits)
        if self.levels:
            heights = np.floor(heights * self.levels) / (self.levels - 1)
        logits = self.spread * (2.0 * heights - 1.0)
        logits[..., list(self.popular)] += 4.0 * self.spread
        return np.where(masked, -np.inf, logits)


class TableModel(TableRows):
    """Rows are hashed from the visible pairs (position, input vector), see `row`."""

    def lookahead(self) -> LookAhead:
        """Return this table's look-ahead vectors: the unit vectors that no token uses."""
        return LookAhead(np.eye(self.hidden_size, dtype=np.float32)[self.vocab_size :])

    def new_cache(self, capacity: int = 16) -> KVCache:
        """Return an empty cache whose keys are the input vectors themselves."""
        return KVCache(1, 1, self.hidden_size, np.float64, capacity)

    def embed(
        self,
        tokens: npt.NDArray[np.integer] | Sequence[int],  # [T]
    ) -> Array:  # [T, D]
        """Return the unit vector of each token."""
        return np.eye(self.hidden_size)[np.asarray(tokens, dtype=np.int64)]

    def hidden(
        self,
        inputs: Array,  # [T, D]
        cache: KVCache,
        positions: npt.NDArray[np.integer] | None = None,  # [T]
        visible: Mask | None = None,  # [T, T]
    ) -> Array:  # [T, V]
        """Return each row's logits: for a table, the hidden states are the answer already."""
        num_rows, start = inputs.shape[0], cache.length
        if positions is None:
            positions = np.arange(start, start + num_rows)
        if visible is None:
            visible = np.tri(num_rows, dtype=np.bool_)
        keys, _ = cache.write(0, inputs[None], inputs[None])
        cache.advance(num_rows)
        places = np.concatenate([np.arange(start), positions])
        in_sight = np.concatenate([np.ones((num_rows, start), dtype=np.bool_), visible], axis=1)
        codes = pair_codes(keys[0], places)
        return self.row((codes * in_sight).sum(axis=1, dtype=np.uint64))


def pair_codes(
    keys: Array,  # [..., S, D]
    positions: npt.NDArray[np.integer],  # [..., S]
) -> Codes:  # [..., S]
    """Hash each finite input vector together with its position; the code of a sequence is the sum of these codes."""
    labels = keys @ np.arange(1.0, keys.shape[-1] + 1.0)
    if not np.isfinite(labels).all():
        raise ValueError("keys: found a value that is not finite, expected cached input vectors")
    return _mix(_mix(labels.view(np.uint64)) + (positions.astype(np.uint64) + np.uint64(1)) * _GOLDEN)


def _mix(bits: Codes) -> Codes:
    """Scramble 64 bits: the finaliser of splitmix64 (Steele, Lea and Flood 2014)."""
    bits = (bits ^ (bits >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    bits = (bits ^ (bits >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return bits ^ (bits >> np.uint64(31))


def _unit(bits: Codes) -> npt.NDArray[np.float64]:
    """Turn 64 bits into a number in [0, 1), by their upper 53."""
    return (bits >> np.uint64(11)).astype(np.float64) * 2.0**-53
