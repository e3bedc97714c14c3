"""A tree of drafts: its shape, what was drafted in it, and the path that verification took through it.

Places are numbered breadth first: place 0 is the last committed token, the drafts follow. The rows of a batch share the
shape; `used` says which of its places hold a draft.

Glossary of shapes: B batch, C candidates, N drafts of the tree, V vocabulary, R accepted drafts at most, or places of
a depth.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

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
    device: torch.device | str = "cpu"

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
    def depths(self) -> Tensor:  # [N+1]
        """How many drafts stand on the path to each place."""
        return self.visible.sum(dim=1) - 1

    @cached_property
    def visible(self) -> Tensor:  # [N+1, N+1]
        """Which places each place sees: those on its path, itself included, and place 0."""
        seen = torch.eye(len(self.children), dtype=torch.bool)
        for place, parent in enumerate(self.parents[1:], start=1):
            seen[place] |= seen[parent]
        return seen.to(self.device)

    def candidates(self, depth: int) -> Tensor:  # [N+1, C]
        """Return the places behind each place of a depth; 0 where there are none, or fewer than C."""
        return self._candidates[depth]

    @cached_property
    def _candidates(self) -> tuple[Tensor, ...]:
        tables = [torch.zeros((len(self.children), count), dtype=torch.int64) for count in self.widths]
        for place, children in enumerate(self.children):
            if children:
                tables[len(self.path(place))][place, : len(children)] = torch.tensor(list(children))
        return tuple(table.to(self.device) for table in tables)

    @cached_property
    def levels(self) -> tuple[range, ...]:
        """The places of each depth."""
        depths = [len(self.path(place)) for place in range(len(self.children))]
        found = [[place for place, each in enumerate(depths) if each == depth] for depth in range(depths[-1] + 1)]
        return tuple(range(level[0], level[-1] + 1) for level in found)

    def paths(self, depth: int) -> Tensor:  # [R, ...]
        """Return the drafts up to each place of a depth."""
        return self._paths[depth]

    @cached_property
    def _paths(self) -> tuple[Tensor, ...]:
        paths = [torch.tensor([self.path(place) for place in level], dtype=torch.int64) for level in self.levels]
        return tuple(path.to(self.device) for path in paths)

    @cached_property
    def order(self) -> Tensor:  # [N+1]
        """All places in turn."""
        return torch.arange(len(self.children), device=self.device)

    def cut(self, depth: int) -> DraftTree:
        """Return the tree without what stands behind so many drafts; always the same one."""
        return self if depth >= len(self.num_candidates) else self._shorter[depth]

    @cached_property
    def _shorter(self) -> tuple[DraftTree, ...]:
        return tuple(DraftTree(self.num_candidates[:depth], self.device) for depth in range(len(self.num_candidates)))

    @cached_property
    def layouts(self) -> dict[tuple[tuple[int, ...], int], tuple[Tensor, Tensor]]:
        """What `methods.trees.layout` has found where one token was pending: it does not change."""
        return {}


@dataclass(frozen=True)
class TreeDrafts:
    """What was drafted at each place; places that are not used hold nothing."""

    tree: DraftTree
    used: Tensor  # [B, N+1], place 0 where the text goes on
    tokens: Tokens  # [B, N+1]
    probs: Probs  # [B, N+1, V], the law that each draft was drawn from


@dataclass(frozen=True)
class Walk:
    """How verification went: from place 0 to drafts that were accepted, and the token that follows them."""

    path: Tensor  # [B, R], the accepted drafts, padded
    log_probs: Probs  # [B, R+1], of the accepted tokens and the one that follows them, by the target
    final_token: Tensor  # [B]
    is_bonus: Tensor  # [B]
    accept_probs: Probs  # [B, N+1], the chance of each draft, once reached; NaN where verification did not come
    target_token_probs: Probs  # [B, N+1], the same
    num_accepted: Tensor  # [B]
    has_final: Tensor  # [B], whether the text goes on behind the path
    place: Tensor  # [B], the last of the path
