"""Speculative sampling with several candidates per position: a tree of drafts, verified in one pass.

A chain of drafts ends at its first rejection. In a tree every draft has siblings, and where one is rejected another may
be accepted. The target verifies the whole tree in one pass, in which each draft attends to the drafts on its path only.
The drafts come from a drafter (`SpeculativeTree`), or from look-ahead rows of the pass before (`PaSSOneCallTree`).

Source: Yang et al. 2024, "Multi-Candidate Speculative Decoding" (arXiv 2401.06706); Jeon et al. 2024, "Recursive
Speculative Decoding" (arXiv 2402.14160); Sun et al. 2023, "SpecTr" (arXiv 2310.15141); Miao et al. 2024, "SpecInfer"
(arXiv 2305.09781), for the pass over a tree; Cai et al. 2024, "Medusa" (arXiv 2401.10774), for candidates of several
depths from one pass.

Glossary of shapes: R places in use, D' hidden state.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
import numpy.typing as npt

from ..drafters.base import Drafter
from ..model.layers import Array
from ..record import Record
from ..uniforms import UniformRow
from .base import State, drafting_record
from .pass_one_call import OneCall
from .settings import TreeSettings
from .speculative import DrafterMethod
from .tree_shape import DraftTree, TreeDrafts, Walk, check_tree, draw_tree, layout, tree_record, walk_tree


@dataclass(frozen=True, eq=False)
class SpeculativeTree(TreeSettings, DrafterMethod):
    """Draft a tree with a drafter, then verify it.

    The tree is cut where the text may end soon. Nothing follows a draft that ends the text, or a place without a draft
    distribution.
    """

    drafter: Drafter

    @cached_property
    def tree(self) -> DraftTree:
        """The shape of the drafts."""
        return DraftTree(check_tree(self.num_candidates))

    def step(self, state: State, uniforms: npt.NDArray[np.float64], trace: bool = False) -> tuple[State, Record]:
        """Run one step: a tree of drafts, one pass of the target, 1 + accepted tokens."""
        draws, pending = UniformRow(uniforms, self.named_uniforms, trace), state.pending
        drafts, num_asked = self._draft(state, draws)
        record = drafting_record(len(pending) - 1, num_asked * self.drafter.passes_per_draft)
        places = np.flatnonzero(drafts.used).tolist()
        inputs = self.model.embed([*pending, *drafts.tokens[places[1:]].tolist()])
        hidden = self.model.hidden(inputs, state.cache, *layout(state.cached, len(pending), self.tree, places))
        return _verify(self, state, record, drafts, hidden[len(pending) - 1 :], draws)[:2]

    def _draft(self, state: State, draws: UniformRow) -> tuple[TreeDrafts, int]:
        """Draw the tree; return it, and the number of distributions asked for."""

        def next_logits(tokens: tuple[int, ...], place: int) -> Array:
            logits = self.drafter.logits(tokens, state.draft_cache)
            state.keep(len(state.tokens))  # the drafter has read one path, and the next is another
            return logits

        settings, limit = self.draft_sampling or self.sampling, state.remaining - 1  # a final token comes as well
        return draw_tree(self, state, self.tree, limit, draws, next_logits, settings, self.rule)


@dataclass(frozen=True, eq=False)
class PaSSOneCallTree(TreeSettings, OneCall):
    """Draft a tree from the rows of the step before, then verify it and look ahead in one pass; 1 + accepted tokens.

    The tree has at most as many depths as there are look-ahead vectors, and uses one vector per depth.
    """

    @cached_property
    def tree(self) -> DraftTree:
        """The shape of the drafts; see `check_tree`."""
        return DraftTree(check_tree(self.num_candidates, self.lookahead.num_lookahead))

    @property
    def num_vectors(self) -> int:
        """One for each depth of the tree."""
        return len(self.tree.num_candidates)

    def step(self, state: State, uniforms: npt.NDArray[np.float64], trace: bool = False) -> tuple[State, Record]:
        """Run one step: a tree of drafts from rows of the pass before, one pass that verifies it and looks ahead."""
        draws, num_pending = UniformRow(uniforms, self.named_uniforms, trace), len(state.pending)
        limit, next_logits = self._drafting(state)
        settings = self.draft_sampling or self.sampling
        drafts, _ = draw_tree(self, state, self.tree, limit, draws, next_logits, settings, self.rule)
        places = np.flatnonzero(drafts.used).tolist()
        real, ahead = self._one_call(state, places, drafts.tokens[places[1:]])
        record = drafting_record(num_pending - 1 + sum(map(len, ahead.values())), 0)
        state, record, walk = _verify(self, state, record, drafts, real, draws)
        last = walk.path[-1] if walk.path else 0
        return self._carry(state, real[places.index(last)], ahead.get(last)), record


def _verify(
    method: SpeculativeTree | PaSSOneCallTree,
    state: State,
    record: Record,
    drafts: TreeDrafts,
    hidden: Array,  # [R, D']
    draws: UniformRow,
) -> tuple[State, Record, Walk]:
    """Verify a tree by the hidden states after its places in use, cut the cache to the path, and commit the tokens."""
    places = np.flatnonzero(drafts.used).tolist()
    logits = dict(zip(places, method.model.logits(hidden), strict=True))
    walk = walk_tree(method, state, drafts, logits, draws, method.rule)
    rows = [places.index(place) for place in walk.path]
    state.cache.keep(len(state.tokens) - 1 + np.array(rows, dtype=np.int64), len(state.tokens))
    return (*state.commit(tree_record(record, drafts, walk, draws)), walk)
