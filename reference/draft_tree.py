"""A tree of drafts: its shape, what was drafted in it, and the path that verification took through it.

Places are numbered breadth first: place 0 is the last committed token, the drafts follow.

Glossary of shapes: N drafts of the tree, V vocabulary.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
import numpy.typing as npt

from .layers import Mask
from .sampling import Probs
from .verify import Tokens

NumCandidates = tuple[int | tuple[int, ...], ...]
"""How many candidates stand behind the places of each depth: one number for all of them, or one for each in turn."""


@dataclass(frozen=True)
class DraftTree:
    """The shape of a tree in which `num_candidates[d]` drafts stand behind everything at depth d.

    Candidates of different ranks may have different numbers behind them: `(3, (2, 1, 0))` has two behind the first
    draft, one behind the second and none behind the third.
    """

    num_candidates: NumCandidates

    @cached_property
    def children(self) -> tuple[range, ...]:
        """The places that stand behind each place."""
        children: list[range] = []
        level = range(1)
        for counts in (*self.num_candidates, 0):
            start = level.stop
            for count in counts if isinstance(counts, tuple) else (counts,) * len(level):
                children.append(range(start, start + count))
                start += count
            level = range(level.stop, start)
        return tuple(children)

    @cached_property
    def parents(self) -> tuple[int, ...]:
        """Behind which place each place stands; -1 for place 0."""
        return (-1, *(place for place, children in enumerate(self.children) for _ in children))

    @property
    def num_drafts(self) -> int:
        """N, the places but the first."""
        return len(self.children) - 1

    def path(self, place: int) -> list[int]:
        """Return the drafts from the first to the one at a place."""
        return [*self.path(self.parents[place]), place] if place else []

    def first_uniform(self, depth: int) -> int:
        """Return the first of the uniforms that decide about candidates behind a path of so many drafts."""
        return sum(self.widths[:depth])

    @property
    def widths(self) -> tuple[int, ...]:
        """The most candidates behind a place of each depth."""
        return tuple(max(counts) if isinstance(counts, tuple) else counts for counts in self.num_candidates)

    @cached_property
    def depths(self) -> npt.NDArray[np.integer]:  # [N+1]
        """How many drafts stand on the path to each place."""
        return np.asarray(self.visible.sum(axis=1) - 1)

    @cached_property
    def visible(self) -> Mask:  # [N+1, N+1]
        """Which places each place sees: those on its path, itself included, and place 0."""
        seen = np.eye(len(self.children), dtype=np.bool_)
        for place, parent in enumerate(self.parents[1:], start=1):
            seen[place] |= seen[parent]
        return seen


@dataclass(frozen=True)
class TreeDrafts:
    """What was drafted at each place; places that are not used hold nothing."""

    tree: DraftTree
    used: Mask  # [N+1], place 0 always
    tokens: Tokens  # [N+1]
    probs: Probs  # [N+1, V], the law that each draft was drawn from


@dataclass(frozen=True)
class Walk:
    """How verification went: from place 0 to drafts that were accepted, and the token that follows them."""

    path: list[int]  # the accepted drafts
    log_probs: list[float]  # of the accepted tokens and the one that follows them, by the target
    final_token: int | None
    is_bonus: bool
    accept_probs: Probs  # [N+1], the chance of each draft, once reached; NaN where verification did not come
    target_token_probs: Probs  # [N+1], the same
