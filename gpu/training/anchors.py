"""Look-ahead rows after many anchors of a sequence, in one masked pass that gradients can go through.

An anchor is a place in the text at which decoding might stand: after it hangs a group of L look-ahead rows, as in
PaSS's draft call. The text's own rows are those of the frozen model, computed once, without gradients. The rows of a
group see the text up to their anchor and one another, in order, and nothing else: so each group computes what a draft
call at its anchor would. A sampler head refines the rows of a group one after another, each given the text's token
before its own, as drafting does.

Glossary of shapes: B sequences, T tokens of a sequence, N anchors, L look-ahead vectors, D model, V vocabulary,
R rows of a pass, S cache positions that are read, G kv-heads, E head size.

Windows of tokens in an order that follows from a seed and a step number alone, so that a run can be resumed.

Glossary of shapes: N tokens of the whole text, B windows of a batch, T tokens of a window.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from ..lookahead.adapter import Adapter
from ..lookahead.head import SamplerHead
from ..model.cache import KVCache

if TYPE_CHECKING:
    from .train import Trainable

__all__ = ["AnchoredRows", "Windows", "anchored_rows", "check_tokens", "evenly_spaced"]


class AnchoredRows(NamedTuple):
    """The logits that training compares, row by row: draft row i of an anchor stands for target row i after it."""

    draft_logits: Tensor  # [B, N, L, V]
    target_logits: Tensor  # [B, N, L, V], the frozen model's own
    next_tokens: Tensor  # [B, N, L], the text's token that both predict


class FrozenCache:
    """Keys and values of the text, read only: a pass after them is not written to them, so gradients can flow."""

    def __init__(self, cache: KVCache):
        """Stand for the cached positions of a batch whose rows are equally long."""
        self.keys, self.values = cache.keys[..., : cache.max_length, :], cache.values[..., : cache.max_length, :]
        self.lengths = cache.lengths
        self.max_length = cache.max_length
        self.equal_lengths = True
        self.kv_length = None

    def num_positions(self, num_rows: int) -> int:
        """Return how many slots a pass over so many rows reads."""
        return self.max_length + num_rows

    def next_positions(self, num_rows: int) -> Tensor:  # [B, R]
        """Return the places after the text, which nothing is written to."""
        return self.lengths.unsqueeze(1) + torch.arange(num_rows, device=self.lengths.device)

    def write(
        self,
        layer: int,
        keys: Tensor,  # [B, G, R, E]
        values: Tensor,  # [B, G, R, E]
        cache_positions: Tensor,  # [B, R]
    ) -> tuple[Tensor, Tensor]:  # [B, G, S, E], [B, G, S, E]
        """Return the text's keys and values with those of the pass after them."""
        return torch.cat([self.keys[layer], keys], dim=2), torch.cat([self.values[layer], values], dim=2)

    def advance(self, num_rows: int) -> None:
        """Keep nothing of the pass."""


def anchored_rows(
    model: Trainable,
    vectors: Tensor,  # [L, D]
    tokens: Tensor,  # [B, T]
    anchors: Tensor,  # [N]
    adapter: Adapter | None = None,
    head: SamplerHead | None = None,
) -> AnchoredRows:
    """Run the frozen model over sequences, and the look-ahead vectors after each anchor.

    An anchor a means that tokens 0 to a have been fed, as a draft call's last token: look-ahead vector i (from 1 to L)
    stands at position a + i and drafts the token at a + i + 1. So a + L + 1 must be less than T.

    Source: Monea et al. 2023 (arXiv 2311.13581), Sec. 3, for one group; the mask for many is ours.
    """
    depth = torch.arange(1, len(vectors) + 1, device=model.device)  # [L]
    standing = anchors.unsqueeze(1) + depth  # [N, L]
    with torch.no_grad():
        cache = model.new_cache(tokens.shape[1], len(tokens))
        text = model.hidden(model.embed(tokens), cache)
        target_logits = model.logits(text[:, standing])
    if head is not None and not head.uses_lookahead:
        hidden = text[:, anchors].unsqueeze(2).expand(-1, -1, len(vectors), -1)
    else:
        groups = vectors.to(model.dtype).repeat(len(anchors), 1).expand(len(tokens), -1, -1)
        if type(cache) is KVCache:  # a pass writes into its arrays; what transformers keeps is joined anew
            cache = FrozenCache(cache)  # type: ignore[assignment]  # all that a pass asks of a cache
        positions = standing.flatten().expand(len(tokens), -1)
        visible = _visible(anchors, depth, tokens.shape[1])
        adapter = adapter and adapter.to(model.dtype, model.device)
        hidden = model.hidden(groups, cache, positions, visible, adapter, groups.shape[1]).unflatten(1, standing.shape)
    if head is not None:
        hidden = _refined(model, head.to(model.dtype, model.device), hidden, text[:, anchors], tokens[:, standing])
    return AnchoredRows(model.logits(hidden), target_logits, tokens[:, standing + 1])


def _refined(
    model: Trainable,
    head: SamplerHead,
    hidden: Tensor,  # [B, N, L, D]
    real_hidden: Tensor,  # [B, N, D]
    tokens: Tensor,  # [B, N, L]
) -> Tensor:  # [B, N, L, D]
    """Run the head along every group, from left to right; `tokens` stand before those that are drafted."""
    embeddings = model.embed(tokens.flatten(1)).unflatten(1, tokens.shape[1:])
    memory, rows = head.start(real_hidden), []
    for i in range(hidden.shape[2]):
        row, memory = head.step(hidden[:, :, i], embeddings[:, :, i], memory)
        rows.append(row)
    return torch.stack(rows, dim=2)


def _visible(
    anchors: Tensor,  # [N]
    depth: Tensor,  # [L]
    length: int,  # T
) -> Tensor:  # [N*L, T+N*L]
    """Say what each look-ahead row sees: the text up to its anchor, and its own group up to itself."""
    owner = torch.arange(len(anchors), device=anchors.device).repeat_interleave(len(depth))
    order = depth.repeat(len(anchors))
    text = torch.arange(length, device=anchors.device) <= anchors[owner].unsqueeze(1)
    group = (owner.unsqueeze(1) == owner) & (order <= order.unsqueeze(1))
    return torch.cat([text, group], dim=1)


@dataclass(frozen=True, eq=False)
class Windows:
    """Batches of windows over a long text: each epoch visits every window once, in a new order, at a new offset."""

    tokens: npt.NDArray[np.int64]  # [N]
    length: int  # T
    batch_size: int  # B
    seed: int

    def __post_init__(self) -> None:
        """Refuse a text in which no batch of windows fits."""
        needed = self.length * (self.batch_size + 1)
        if len(self.tokens) < needed:
            raise ValueError(
                f"the text has {len(self.tokens)} tokens, expected at least {needed} "
                f"for batches of {self.batch_size} windows of {self.length}"
            )

    @property
    def batches_per_epoch(self) -> int:
        """Return how many batches visit the whole text once."""
        return (len(self.tokens) - self.length) // (self.length * self.batch_size)

    def batch(self, step: int) -> npt.NDArray[np.int64]:  # [B, T]
        """Return the batch of a step, counted from 0."""
        epoch, place = divmod(step, self.batches_per_epoch)
        generator = np.random.Generator(np.random.Philox(key=self.seed, counter=epoch))
        offset = int(generator.integers(self.length))
        order = generator.permutation(self.batches_per_epoch * self.batch_size)
        starts = offset + self.length * order[place * self.batch_size : (place + 1) * self.batch_size]
        return np.stack([self.tokens[start : start + self.length] for start in starts])


def evenly_spaced(
    tokens: npt.NDArray[np.int64],  # [N]
    length: int,
    most: int,
) -> npt.NDArray[np.int64]:  # [B, T]
    """Return at most `most` windows, none overlapping another, spread evenly over the text.

    Raises:
        ValueError: the text is shorter than one window.
    """
    count = min(most, len(tokens) // length)
    if count == 0:
        raise ValueError(f"the held-out text has {len(tokens)} tokens, expected at least {length}, one window")
    starts = np.linspace(0, len(tokens) - length, count).astype(int)
    return np.stack([tokens[start : start + length] for start in starts])


def check_tokens(
    name: str,
    tokens: npt.NDArray[np.int64],  # [N]
    vocab_size: int,
) -> None:
    """Refuse tokens that a model does not have: the text was encoded for another one.

    Raises:
        ValueError: the smallest token is negative or the largest too large.
    """
    for token in (int(tokens.min()), int(tokens.max())):
        if not 0 <= token < vocab_size:
            raise ValueError(f"{name}: found the token {token}, expected 0 to {vocab_size - 1}, the model's")
