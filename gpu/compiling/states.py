"""A state in other tensors: those of a step that is written down.

Glossary of shapes: B rows.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from copy import copy
from dataclasses import replace
from typing import Any

from torch import Tensor

from ..cache import KVCache
from ..state import State

__all__ = ["in_tensors", "shapes_of"]


def shapes_of(state: State) -> tuple[Any, ...]:
    """Return what code for a state depends on, beside how far it sees."""
    return state.draft_pending, state.eos.shape, state.tokens.shape, state.carried.shape, state.pace.shape


def in_tensors(state: State, rows: Mapping[str, Tensor], cached: Sequence[Tensor], sight: int | None = None) -> State:
    """Return a state of the same kind in other tensors: those of rows by name, then three of each cache."""
    caches = [_cache_in(cache, sight, *cached[3 * i : 3 * i + 3]) for i, cache in enumerate(state.caches)]
    tensors: dict[str, Any] = dict(rows)
    draft_cache = caches[1] if len(caches) > 1 else None
    return replace(state, cache=caches[0], cached=caches[0].lengths, draft_cache=draft_cache, **tensors)


def _cache_in(
    cache: KVCache,
    sight: int | None,
    keys: Tensor,  # [layers, B, G, capacity, E]
    values: Tensor,  # [layers, B, G, capacity, E]
    lengths: Tensor,  # [B]
) -> KVCache:
    twin = copy(cache)
    twin.keys, twin.values, twin.lengths = keys, values, lengths
    twin.fix(sight)
    return twin
