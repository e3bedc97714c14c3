"""Windows of tokens in an order that follows from a seed and a step number alone, so that a run can be resumed.

Glossary of shapes: N tokens of the whole text, B windows of a batch, T tokens of a window.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

__all__ = ["Windows", "check_tokens", "evenly_spaced"]


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
