"""What a step asks the host about its tensors: nothing where its shapes are fixed, as a captured step needs it.

Where they are not, a step that knows does less: no row for a draft that no sequence makes.
"""

from __future__ import annotations

from torch import Tensor

from .state import State


def most_of(
    state: State,
    numbers: Tensor,  # [B]
    bound: int,
) -> int:
    """Return the largest of some numbers, or the bound that none of them exceeds."""
    return bound if is_fixed(state) else int(numbers.max())


def any_of(
    state: State,
    which: Tensor,  # [...]
) -> bool:
    """Say whether any is true, or that some may be."""
    return is_fixed(state) or bool(which.any())


def is_fixed(state: State) -> bool:
    """Say whether the shapes of a step may depend on nothing that is in its tensors."""
    return state.cache.sight is not None
