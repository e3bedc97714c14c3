"""Where the texts of a batch end, token by token.

Glossary of shapes: B batch, W next tokens of each row.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from .ending import Ending


def kept(
    tokens: Tensor,  # [B, W]
    count: Tensor,  # [B]
    eos: Tensor,  # [num_eos]
    remaining: Tensor,  # [B]
) -> tuple[Tensor, Tensor]:  # [B], [B]
    """Return how many of each row's first `count` tokens to keep, and whether the text ends there: on the device."""
    order = torch.arange(tokens.shape[1], device=tokens.device)
    is_eos = tokens == eos if len(eos) == 1 else (tokens.unsqueeze(2) == eos).any(dim=2)
    is_end = is_eos | (order + 1 >= remaining.unsqueeze(1))
    first = num_leading(~is_end)
    return torch.minimum(count, first + 1), first < count


def num_leading(
    flags: Tensor,  # [B, W]
) -> Tensor:  # [B]
    """Return how many of each row stand before the first that is false."""
    width = flags.shape[1]
    order = torch.arange(width, device=flags.device)
    return torch.where(flags, width, order).amin(dim=1) if width else flags.sum(dim=1)


def kept_by_host(
    ending: Ending,
    before: Sequence[Sequence[int]],
    tokens: Tensor,  # [B, W]
    count: Tensor,  # [B]
) -> tuple[Tensor, Tensor]:  # [B], [B]
    """Return the same where stop strings need the decoded text; `before` are the new tokens of each row."""
    kept = [
        ending.first(old, new[:some]) for old, new, some in zip(before, tokens.tolist(), count.tolist(), strict=True)
    ]
    counts = torch.tensor([number for number, _ in kept], device=count.device)
    return counts, torch.tensor([reason is not None for _, reason in kept], device=count.device)
