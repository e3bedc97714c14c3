"""Steps in fixed shapes, which can be captured on a GPU: which can be, and how far they see.

The shapes of such a step depend on nothing that is in its tensors, so attention reads a fixed number of slots: one of
few, since each makes a step of its own.
"""

from __future__ import annotations

from ..methods import Candidates, FusedCandidates, FusedPaSS
from ..methods.base import Method
from ..state import State

__all__ = ["LEAST_KV_LENGTH", "kv_length_for", "why_not_fixed"]

LEAST_KV_LENGTH = 256  # slots


def kv_length_for(needed: int, least: int, capacity: int) -> int:
    """Return how many slots to read: enough, of few different numbers."""
    kv_length = least
    while kv_length < needed:
        kv_length *= 2
    return min(kv_length, capacity)


def why_not_fixed(method: Method, state: State) -> str | None:
    """Return why a step of a state cannot have fixed shapes, if it cannot."""
    if isinstance(method, FusedPaSS) and state.lookahead_hidden.shape[1] == 1:
        return "texts are too short to look ahead"
    if isinstance(method, Candidates | FusedCandidates):
        return "a tree of drafts is as large as its rows need"
    if getattr(method, "processor", None) is not None:
        return "a logits processor runs on the host after every forward pass"
    if state.ending.asks_host:
        return "the ends of texts are checked on the host"
    return None
