"""The text of one row: a method's step, repeated until the text has ended, with transformers' cache and randomness."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import torch

from ..ending import Ending
from ..methods.base import Method
from ..record import Generation, Record
from .row_caches import RowCache, RowCaches


def write(
    method: Method,
    prompt: Sequence[int],
    ending: Ending,
    cache: Any,
    num_cached: int,
    show: Callable[[Record], None],
) -> tuple[Generation, Any]:
    """Continue a prompt behind what a cache holds of it; return the text, and the cache of all but its last token.

    The uniforms are drawn from PyTorch's default generator, in float64; greedy decoding draws none.
    """
    state = method.start(prompt, ending)
    lengths = torch.full_like(state.lengths, num_cached)
    caches = RowCaches([RowCache(cache, num_cached)], lengths, state.cache.capacity)
    state = replace(state, cache=caches, cached=caches.lengths, max_pending=len(prompt) - num_cached)
    records: list[Record] = []
    while not bool(state.ended):
        state, batch = method.step(state, _uniforms(method).to(method.model.device))
        state.raise_fault()
        records += batch.rows()
        show(records[-1])
    tokens = tuple(token for record in records for token in record.tokens)
    text = Generation(tuple(prompt), tokens, ending.reason(tokens) or "length", tuple(records))
    return text, caches.rows[0].release(min(int(caches.lengths), len(prompt) + len(tokens) - 1))


def _uniforms(method: Method) -> torch.Tensor:
    shape = (1, method.num_slots)
    if method.sampling.temperature == 0:
        return torch.full(shape, 0.5, dtype=torch.float64)
    return torch.rand(shape, dtype=torch.float64)
