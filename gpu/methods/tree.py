"""Speculative sampling with several candidates per position: a tree of drafts, verified in one pass.

The drafts come from a drafter (`SpeculativeTree`), or from look-ahead rows of the pass before (`PaSSOneCallTree`). See
`reference.methods.tree` for the sources.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property

import torch
from torch import Tensor

from pass_sampling.reference.methods.settings import TreeSettings
from pass_sampling.reference.methods.tree_shape import check_tree

from ..batch_record import BatchRecord
from ..drafters.base import Drafter
from ..host import constant
from ..state import State
from ..uniforms import UniformRow
from ..verify import Tokens
from .pass_one_call import OneCall
from .records import drafting_record
from .speculative import DrafterMethod
from .tree_shape import DraftTree, TreeDrafts, draw_tree, rows_of_pass, tree_record, walk_tree


@dataclass(frozen=True, eq=False)
class SpeculativeTree(TreeSettings, DrafterMethod):
    """Draft a tree with a drafter, then verify it; see the reference."""

    drafter: Drafter

    @cached_property
    def tree(self) -> DraftTree:
        """The shape of the drafts."""
        return DraftTree(check_tree(self.num_candidates), self.model.device)

    @property
    def scratch(self) -> int:
        """Cache positions that may be written after the longest text: drafts, a final token, and a row of padding."""
        return self.tree.num_drafts + 2

    @property
    def draft_pending(self) -> int:
        """The drafter has read one path of the tree, and none of it may be the accepted one."""
        return len(self.tree.num_candidates) + 1

    def step(self, state: State, uniforms: Tensor, trace: bool = False) -> tuple[State, BatchRecord]:
        """Run one step: a tree of drafts, one pass of the target, 1 + accepted tokens."""
        draws, pending, active = UniformRow(uniforms, self.named_uniforms, trace), state.pending, ~state.ended
        drafts, num_asked = self._draft(state, draws)
        record = drafting_record(pending - 1, num_asked * self.drafter.passes_per_draft, active)
        cache_positions = state.cache.next_positions(state.max_pending + drafts.tree.num_drafts)
        inputs = self.model.embed(state.followed_by(drafts.tokens[:, 1:]).gather(1, cache_positions))
        hidden = self.model.hidden(inputs, state.cache, *rows_of_pass(state, drafts.tree))
        rows = torch.arange(len(inputs), device=cache_positions.device).unsqueeze(1)
        real = hidden[rows, pending.unsqueeze(1) - 1 + drafts.tree.order]
        state, walk = walk_tree(self, state, drafts, self.model.logits(real), draws, self.rule)
        state.cache.keep(state.lengths.unsqueeze(1) + walk.path - 1, state.lengths, walk.num_accepted)
        state, record = state.commit(tree_record(record, drafts, walk, draws, active))
        return replace(state, draft_pending=walk.path.shape[1] + 1), record

    def _draft(self, state: State, draws: UniformRow) -> tuple[TreeDrafts, Tensor]:
        """Draw the tree; return it, and the number of distributions asked for."""

        def next_logits(paths: Tokens, places: range) -> Tensor:
            depth, cache = paths.shape[2], state.draft_cache
            text = state.followed_by(paths[:, 0])
            logits = self.drafter.logits(text, cache, state.lengths + depth, depth or state.draft_pending)
            if cache is not None:
                cache.truncate(state.lengths)  # the drafter has read one path, and the next is another
            return logits.unsqueeze(1)

        settings, limit = self.draft_sampling or self.sampling, state.remaining - 1  # a final token comes as well
        return draw_tree(self, state, self.tree, limit, draws, next_logits, settings, self.rule)


@dataclass(frozen=True, eq=False)
class PaSSOneCallTree(TreeSettings, OneCall):
    """Draft a tree from rows of the step before, verify it and look ahead in one pass; see the reference."""

    @cached_property
    def tree(self) -> DraftTree:
        """The shape of the drafts; see `check_tree`."""
        return DraftTree(check_tree(self.num_candidates, self.lookahead.num_lookahead), self.model.device)

    @property
    def num_vectors(self) -> int:
        """One for each depth of the tree."""
        return len(self.tree.num_candidates)

    def step(self, state: State, uniforms: Tensor, trace: bool = False) -> tuple[State, BatchRecord]:
        """Run one step: a tree of drafts from rows of the pass before, one pass that verifies it and looks ahead."""
        draws, pending, active = UniformRow(uniforms, self.named_uniforms, trace), state.pending, ~state.ended
        limit, settings = state.num_lookahead_hidden, self.draft_sampling or self.sampling
        tree = self.tree if state.lookahead_hidden.shape[1] > 1 else self.tree.cut(0)  # no rows before the first pass
        next_logits = self._next_logits(state)
        drafts, _ = draw_tree(self, state, tree, limit, draws, next_logits, settings, self.rule, side_by_side=True)
        real, ahead = self._one_call(state, drafts.tree, drafts.tokens[:, 1:])
        record = drafting_record(pending - 1 + ahead.num_rows(drafts.used), None, active)
        state, walk = walk_tree(self, state, drafts, self.model.logits(real), draws, self.rule)
        state.cache.keep(state.lengths.unsqueeze(1) + walk.path - 1, state.lengths, walk.num_accepted)
        state, record = state.commit(tree_record(record, drafts, walk, draws, active))
        return self._carry(state, walk.place, real, ahead), record

    def _next_logits(self, state: State) -> Callable[[Tokens, range], Tensor]:
        """Return the function that gives the logits after paths; what a refinement remembers follows each path."""
        memory = tuple(each.unsqueeze(1) for each in self._memory(state))
        parents = self.tree.parents

        def next_logits(paths: Tokens, places: range) -> Tensor:
            nonlocal memory
            batch_size, num_places, depth = paths.shape
            if depth:
                before = self.tree.levels[depth - 1].start
                chosen = constant(tuple(parents[place] - before for place in places), paths.device)
                memory = tuple(each[:, chosen] for each in memory)
            row = state.lookahead_hidden[:, 1 + depth].unsqueeze(1).expand(-1, num_places, -1).flatten(0, 1)
            lengths = (state.lengths + depth).repeat_interleave(num_places)
            text = state.tokens.repeat_interleave(num_places, dim=0)
            order = lengths.unsqueeze(1) - depth + torch.arange(depth, device=text.device)
            text = text.scatter(1, order, paths.flatten(0, 1))
            flat = tuple(each.flatten(0, 1) for each in memory)
            logits, flat = self.refinement.logits(self.model, row, text, flat, lengths)
            memory = tuple(each.unflatten(0, (batch_size, num_places)) for each in flat)
            found: Tensor = logits.unflatten(0, (batch_size, num_places))
            return found

        return next_logits
