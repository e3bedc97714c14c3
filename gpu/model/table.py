"""A language model that is a table, for tests: the same numbers as `reference.model.table`, over a batch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from ..lookahead.vectors import LookAhead
from .cache import KVCache

_GOLDEN = 0x9E3779B97F4A7C15 - 2**64


@dataclass(eq=False)
class TableModel:
    """Rows are hashed from the visible pairs (position, input vector), see `row`."""

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
    device = torch.device("cpu")
    dtype = torch.float64

    def __post_init__(self) -> None:
        """Give every token and every look-ahead vector a unit vector of its own."""
        self.hidden_size = self.vocab_size + self.num_lookahead

    def lookahead(self) -> LookAhead:
        """Return this table's look-ahead vectors: the unit vectors that no token uses."""
        return LookAhead(torch.eye(self.hidden_size)[self.vocab_size :])

    def new_cache(self, capacity: int = 16, batch_size: int = 1) -> KVCache:
        """Return an empty cache whose keys are the input vectors themselves."""
        return KVCache(1, 1, self.hidden_size, self.dtype, capacity, batch_size)

    def embed(
        self,
        tokens: Tensor | Sequence[Sequence[int]],  # [B, T]
    ) -> Tensor:  # [B, T, D]
        """Return the unit vector of each token."""
        return torch.eye(self.hidden_size, dtype=self.dtype)[torch.as_tensor(tokens)]

    def hidden(
        self,
        inputs: Tensor,  # [B, T, D]
        cache: KVCache,
        positions: Tensor | None = None,  # [B, T]
        visible: Tensor | None = None,  # [T, T], or [B, T, T]
    ) -> Tensor:  # [B, T, V]
        """Return each row's logits: for a table, the hidden states are the answer already."""
        num_rows = inputs.shape[1]
        cache_positions = cache.next_positions(num_rows)
        if positions is None:
            positions = cache_positions
        if visible is None:
            visible = torch.ones((num_rows, num_rows), dtype=torch.bool).tril()
        keys, _ = cache.write(0, inputs.unsqueeze(1), inputs.unsqueeze(1), cache_positions)
        places = torch.arange(keys.shape[2]).expand(len(inputs), -1)
        row = places - cache.lengths.unsqueeze(1)  # the row of the pass at each position
        column = row.clamp(0, num_rows - 1).unsqueeze(1).expand(-1, num_rows, -1)
        seen = visible.expand(len(inputs), -1, -1).gather(2, column)  # [B, T, S]
        in_sight = (row < 0).unsqueeze(1) | (((row >= 0) & (row < num_rows)).unsqueeze(1) & seen)
        codes = pair_codes(keys[:, 0], places.scatter(1, cache_positions, positions), in_sight.any(dim=1))
        cache.advance(num_rows)
        return self.row((codes.unsqueeze(1) * in_sight).sum(dim=-1))

    def logits(
        self,
        hidden: Tensor,  # [..., V]
    ) -> Tensor:  # [..., V]
        """Return the rows as they are."""
        return hidden

    def logits_of(
        self,
        hidden: Tensor,  # [..., V]
        tokens: Tensor,  # [N]
    ) -> Tensor:  # [..., N]
        """Return the logits of some tokens."""
        return hidden[..., tokens]

    def row(
        self,
        code: Tensor,  # [...]
    ) -> Tensor:  # [..., V]
        """Return the logits after everything that has this code; at least one is finite."""
        tokens = torch.arange(self.vocab_size)
        bits = _mix(code.unsqueeze(-1) + _mix(torch.tensor(self.seed)) + tokens * _GOLDEN)
        masked = _unit(_mix(bits)) < self.zeros
        masked = masked & (tokens != _unsigned_remainder(code, self.vocab_size).unsqueeze(-1))
        heights = _unit(bits)
        if self.levels:
            heights = (heights * self.levels).floor() / (self.levels - 1)
        logits = self.spread * (2.0 * heights - 1.0)
        logits[..., list(self.popular)] += 4.0 * self.spread
        return logits.masked_fill(masked, float("-inf"))


def pair_codes(
    keys: Tensor,  # [B, S, D]
    positions: Tensor,  # [B, S]
    in_sight: Tensor,  # [B, S]
) -> Tensor:  # [B, S]
    """Hash each finite input vector together with its position; the code of a sequence is the sum of these codes."""
    labels = keys @ torch.arange(1.0, keys.shape[2] + 1.0, dtype=torch.float64)
    if not bool(labels[in_sight].isfinite().all()):
        raise ValueError("keys: found a value that is not finite, expected cached input vectors")
    return _mix(_mix(labels.view(torch.int64)) + (positions + 1) * _GOLDEN)


def _mix(bits: Tensor) -> Tensor:
    """Scramble 64 bits, held as int64: the finaliser of splitmix64 (Steele, Lea and Flood 2014)."""
    bits = (bits ^ _shift(bits, 30)) * (0xBF58476D1CE4E5B9 - 2**64)
    bits = (bits ^ _shift(bits, 27)) * (0x94D049BB133111EB - 2**64)
    return bits ^ _shift(bits, 31)


def _shift(bits: Tensor, places: int) -> Tensor:
    """Shift right without the sign."""
    return (bits >> places) & ((1 << (64 - places)) - 1)


def _unit(bits: Tensor) -> Tensor:
    """Turn 64 bits into a number in [0, 1), by their upper 53."""
    return _shift(bits, 11).double() * 2.0**-53


def _unsigned_remainder(bits: Tensor, divisor: int) -> Tensor:
    """Return the remainder of 64 bits read as an unsigned number."""
    half = _shift(bits, 1)
    return ((half % divisor) * 2 + (bits & 1)) % divisor
