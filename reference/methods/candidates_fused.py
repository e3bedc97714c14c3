"""Candidates in one call per step: the pass that verifies a tree of drafts looks ahead behind every place of it.

A chain of drafts ends at its first rejection, and the rows that looked ahead behind the others were in vain. Here every
draft has siblings, drafted from the same look-ahead row, each refined by the path that leads to it.

Source: `fused` for the call, `candidates` for the tree; Cai et al. 2024, "Medusa" (arXiv 2401.10774), for candidates of
several depths from one pass.

Glossary of shapes: L look-ahead vectors, N drafts of the tree.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from ..candidates import RULES
from ..draft_tree import DraftTree, NumCandidates, TreeDrafts
from ..layers import Array
from ..record import Record
from ..state import State
from ..tape import Draws, Slots
from .checks import check_tree
from .fused import Fused
from .records import drafting_record, tree_record
from .trees import draw_tree, walk_tree


@dataclass(frozen=True, eq=False)
class FusedCandidates(Fused):
    """Draft a tree from the rows of the step before, then verify it and look ahead in one pass; 1 + accepted tokens.

    `num_candidates[d]` tokens stand behind everything at depth d, see `DraftTree`: at most as many depths as there are
    vectors, of which no more are used.
    """

    rule: str = "without-replacement"
    num_candidates: NumCandidates = (2, 2, 1)

    def __post_init__(self) -> None:
        """Check the settings, the vectors and the tree; see `Fused.prepare`.

        Raises:
            ValueError: numbers of candidates that make no tree, or more depths than there are vectors.
        """
        object.__setattr__(self, "tree", DraftTree(check_tree(self.num_candidates)))
        depth, most = len(self.tree.num_candidates), self.lookahead.num_lookahead
        if depth > most:
            found = f"{self.num_candidates!r:.80}"
            raise ValueError(
                f"num_candidates: found {found}, expected at most {most} depths, one per look-ahead vector"
            )
        self.prepare(RULES, depth)

    @property
    def slots(self) -> Slots:
        """A draw per draft, an acceptance per candidate of each depth, and the final draw; see `Candidates`."""
        return {"draft": self.tree.num_drafts, "accept": sum(self.tree.widths), "final": 1}

    def step(
        self,
        state: State,
        uniforms: npt.NDArray[np.float64],  # [num_slots]
        trace: bool = False,
    ) -> tuple[State, Record]:
        """Run one cycle: a tree of drafts from rows of the pass before, one pass that verifies it and looks ahead."""
        draws = Draws(uniforms, self.slots, trace)
        pending, prefix = state.pending, state.tokens
        drafts = self._draft(state, draws)
        places = np.flatnonzero(drafts.used).tolist()
        real, ahead = self._one_call(state, places, drafts.tokens[places[1:]])
        record = drafting_record(len(pending) - 1 + sum(map(len, ahead.values())), 0)

        # Row i holds the target's law behind the i-th place in use.
        logits = dict(zip(places, self.model.logits(real), strict=True))
        walk = walk_tree(self, state, drafts, logits, draws, self.rule)
        rows = [places.index(place) for place in walk.path]
        state.cache.keep(len(prefix) - 1 + np.array(rows, dtype=np.int64), len(prefix))  # the rest leaves no trace
        state, record = state.commit(tree_record(record, drafts, walk, draws))
        last = walk.path[-1] if walk.path else 0
        return replace(state, carried=self._carry(state, real[places.index(last)], ahead.get(last))), record

    def _draft(self, state: State, draws: Draws) -> TreeDrafts:
        """Draw the tree from the rows that the step before has left; what a refinement remembers follows each path."""
        rows = np.zeros((1, 0)) if state.carried is None else state.carried
        memories = {-1: self.refinement.start(self.model, rows) if len(rows) > 1 else ()}

        def next_logits(tokens: tuple[int, ...], place: int) -> Array:
            row, memory = rows[1 + int(self.tree.depths[place])], memories[self.tree.parents[place]]
            logits, memories[place] = self.refinement.logits(self.model, row, tokens, memory)
            return logits

        settings = self.draft_sampling or self.sampling
        return draw_tree(self, state, self.tree, len(rows) - 1, draws, next_logits, settings, self.rule)[0]
