"""The state of a batch before its first cycle."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from .cache import KVCache
from .ending import Ending
from .state import State

__all__ = ["first_state"]


def first_state(prompts: Sequence[Sequence[int]], ending: Ending, cache: KVCache) -> State:
    """Return the state of prompts whose cache is still empty."""
    device = cache.lengths.device
    lengths = torch.tensor([len(prompt) for prompt in prompts], device=device)
    tokens = torch.zeros((len(prompts), cache.capacity), dtype=torch.int64, device=device)
    for row, prompt in zip(tokens, prompts, strict=True):
        row[: len(prompt)] = torch.tensor(prompt, device=device)
    return State(
        tokens=tokens,
        lengths=lengths,
        prompt_lengths=lengths,
        limits=lengths + ending.max_new_tokens,
        eos=torch.tensor(ending.eos_token_ids, dtype=torch.int64, device=device),
        ended=torch.zeros_like(lengths, dtype=torch.bool),
        fault=torch.zeros_like(lengths, dtype=torch.float64),
        fault_position=torch.zeros_like(lengths),
        cache=cache,
        ending=ending,
        cached=cache.lengths,
        pace=torch.zeros((len(prompts), 0), dtype=torch.float64, device=device),
        carried=torch.zeros((len(prompts), 1, 0), device=device),
        num_carried=torch.zeros_like(lengths),
        max_pending=max(map(len, prompts)),
        draft_pending=max(map(len, prompts)),
    )
