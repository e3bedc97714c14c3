"""Candidates in one call per step: the pass that verifies a tree of drafts looks ahead behind every place of it.

A chain of drafts ends at its first rejection, and the rows that looked ahead behind the others were in vain. Here every
draft has siblings, drafted from the same look-ahead row, each refined by the path that leads to it.

Source: `fused` for the call, `candidates` for the tree; Cai et al. 2024, "Medusa" (arXiv 2401.10774), for candidates of
several depths from one pass.

Glossary of shapes: B batch, N drafts of the tree, D' hidden state.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ..batch_record import BatchRecord
from ..candidates import RULES
from ..draft_tree import DraftTree, NumCandidates, TreeDrafts
from ..state import State
from ..tape import Draws, Slots
from ..verify import Tokens
from .checks import check_tree
from .fused import Ahead, Fused
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
        object.__setattr__(self, "tree", DraftTree(check_tree(self.num_candidates), self.model.device))
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
        uniforms: Tensor,  # [B, num_slots]
        trace: bool = False,
    ) -> tuple[State, BatchRecord]:
        """Run one cycle: a tree of drafts from rows of the pass before, one pass that verifies it and looks ahead."""
        draws, active = Draws(uniforms, self.slots, trace), ~state.ended
        record, drafts, real, ahead = self.propose(state, draws)
        state, walk = walk_tree(self, state, drafts, self.model.logits(real), draws, self.rule)
        state.cache.keep(state.lengths.unsqueeze(1) + walk.path - 1, state.lengths, walk.num_accepted)
        state, record = state.commit(tree_record(record, drafts, walk, draws, active))
        return self._carry(state, walk.place, real, ahead), record

    def propose(self, state: State, draws: Draws) -> tuple[BatchRecord, TreeDrafts, Tensor, Ahead]:  # [B, N+1, D']
        """Draft a tree and run the one call.

        Returned are the record so far, the drafts, the hidden states behind each place of their tree, and the groups.
        """
        pending, active = state.pending, ~state.ended
        drafts = self._draft(state, draws)
        real, ahead = self._one_call(state, drafts.tree, drafts.tokens[:, 1:])
        num_positions = pending - 1 + ahead.num_rows(drafts.used)
        return drafting_record(num_positions, torch.zeros_like(pending), active), drafts, real, ahead

    def _draft(self, state: State, draws: Draws) -> TreeDrafts:
        """Draw the tree from the rows that the step before has left; what a refinement remembers follows each path."""
        memory = self.refinement.start(self.model, state.carried) if state.carried.shape[1] > 1 else ()
        memory = tuple(each.unsqueeze(1) for each in memory)
        parents = self.tree.parents

        def next_logits(paths: Tokens, places: range) -> Tensor:
            nonlocal memory
            batch_size, num_places, depth = paths.shape
            if depth:
                before = self.tree.levels[depth - 1].start
                memory = tuple(each[:, [parents[place] - before for place in places]] for each in memory)
            row = state.carried[:, 1 + depth].unsqueeze(1).expand(-1, num_places, -1).flatten(0, 1)
            lengths = (state.lengths + depth).repeat_interleave(num_places)
            text = state.tokens.repeat_interleave(num_places, dim=0)
            order = lengths.unsqueeze(1) - depth + torch.arange(depth, device=text.device)
            text = text.scatter(1, order, paths.flatten(0, 1))
            memory = tuple(each.flatten(0, 1) for each in memory)
            logits, memory = self.refinement.logits(self.model, row, text, memory, lengths)
            memory = tuple(each.unflatten(0, (batch_size, num_places)) for each in memory)
            found: Tensor = logits.unflatten(0, (batch_size, num_places))
            return found

        limit, settings = state.num_carried, self.draft_sampling or self.sampling
        return draw_tree(self, state, self.tree, limit, draws, next_logits, settings, self.rule, side_by_side=True)[0]
