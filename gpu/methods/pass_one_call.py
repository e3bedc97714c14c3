"""PaSS in one call per step: the pass that verifies the drafts also computes the look-ahead rows for the next ones.

The method and its sources are those of `reference.methods.pass_one_call`, for a batch.

Glossary of shapes: B batch, L look-ahead vectors, D' hidden state, R places of the tree, N groups of G rows.
"""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass, replace
from functools import cached_property
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import pad

from pass_sampling.reference.methods.settings import ChainSettings, OneCallSettings

from ..batch_record import BatchRecord
from ..host import constant
from ..lookahead.adapter import Adapter
from ..lookahead.refinement import Memory, Refinement, refinement_of
from ..lookahead.vectors import LookAhead
from ..model.language_model import LanguageModel
from ..state import State, bound_or_max
from ..uniforms import UniformRow
from ..verify import Tokens, row
from .base import Method
from .records import drafting_record, verify_drafts
from .speculative import draft_left_to_right
from .tree_shape import DraftTree, rows_of_pass


class Ahead(NamedTuple):
    """The look-ahead groups of a pass."""

    hidden: Tensor  # [B, N, G, D']
    anchors: Tensor  # [N], the place before each group
    depths: Tensor  # [B], rows of a group that are useful

    def num_rows(
        self,
        used: Tensor,  # [B, R]
    ) -> Tensor:  # [B]
        """Return how many rows of groups follow places in use."""
        return used[:, self.anchors].sum(dim=1) * self.depths


class OneCall(OneCallSettings, Method):
    """The call of `PaSSOneCall`, which drafts a chain, and of `tree.PaSSOneCallTree`, which drafts a tree."""

    model: LanguageModel
    lookahead: LookAhead
    refinement: Refinement

    @property
    @abstractmethod
    def tree(self) -> DraftTree:
        """The shape of the drafts."""

    def _trained(self) -> Refinement:
        return refinement_of(self.lookahead, self.vectors.dtype, self.model.device)

    @cached_property
    def adapter(self) -> Adapter | None:
        """The adapter that was trained with the vectors, if any, in the model's dtype and on its device."""
        adapter = self.lookahead.adapter
        return adapter and adapter.to(self.vectors.dtype, self.model.device)

    @property
    def scratch(self) -> int:
        """Cache positions that may be written after the longest text: drafts, a group after each, a final token."""
        return (len(self.vectors) + 1) * (self.tree.num_drafts + 1) + 1

    def _one_call(self, state: State, tree: DraftTree, draft_tokens: Tokens) -> tuple[Tensor, Ahead]:
        """Run the one call, over the pending tokens, the drafts, and groups of look-ahead vectors after them.

        Returns the hidden states [B, R, D'] of the places, of which the first is the last token, and of the groups.
        """
        cache, active = state.cache, ~state.ended
        last = None if state.max_pending == 1 else state.pending.unsqueeze(1) - 1
        depths = (state.remaining - 2).clamp(0, len(self.vectors)) * active  # this step and the next end in a token
        depth = bound_or_max(state, depths, len(self.vectors))
        num_tokens = state.max_pending + tree.num_drafts
        levels = [level for number, level in enumerate(tree.levels) if depth and self.has_group(number)]
        anchors = tuple(place for level in levels for place in level)
        places = constant(anchors, depths.device)
        if not anchors and tree.num_drafts < len(tree.levels):  # a chain of drafts, and nothing else
            real = self.feed_drafts(state, state.followed_by(draft_tokens), tree.num_drafts)
            return real, Ahead(real[:, :0, None], places, depths)
        cache_positions = cache.next_positions(num_tokens + len(anchors) * depth)
        inputs = self.model.embed(state.followed_by(draft_tokens).gather(1, cache_positions[:, :num_tokens]))
        ahead = self.vectors[:depth].repeat(len(anchors), 1).expand(len(inputs), -1, -1)
        adapted = {} if self.adapter is None else {"adapter": self.adapter, "num_adapted": ahead.shape[1]}
        positions, visible = rows_of_pass(state, tree, anchors, depth)
        hidden = self.model.hidden(torch.cat([inputs, ahead], dim=1), cache, positions, visible, **adapted)
        real = hidden[:, :num_tokens]
        if last is not None:
            rows = torch.arange(len(inputs), device=inputs.device).unsqueeze(1)
            real = hidden[rows, last + tree.order]
        groups = hidden[:, num_tokens:].unflatten(1, (len(anchors), depth)) if anchors else hidden[:, :0, None]
        return real, Ahead(groups, places, depths)

    def _carry(self, state: State, place: Tensor, real: Tensor, ahead: Ahead) -> State:
        """Keep what the next step drafts from: the useful rows of the group after the last accepted draft."""
        useful, last = torch.minimum(ahead.depths, state.remaining - 1).clamp(min=0), row(real, place).unsqueeze(1)
        if not self.refinement.uses_lookahead:
            rows = last.expand(-1, len(self.vectors) + 1, -1)
            return replace(state, lookahead_hidden=rows, num_lookahead_hidden=useful)
        if not len(ahead.anchors):
            return replace(state, num_lookahead_hidden=torch.zeros_like(useful))
        if len(ahead.anchors) < real.shape[1]:  # else a group follows every place
            survived = place.unsqueeze(1) == ahead.anchors  # [B, N]
            place, useful = survived.long().argmax(dim=1), useful * survived.any(dim=1)
        group = row(ahead.hidden.flatten(2), place).view(-1, *ahead.hidden.shape[2:])
        rows = torch.cat([last, group], dim=1)
        if missing := len(self.vectors) - group.shape[1]:
            rows = pad(rows, (0, 0, 0, missing))
        return replace(state, lookahead_hidden=rows, num_lookahead_hidden=useful)

    def _memory(self, state: State) -> Memory:
        """Return the refinement's memory before the first draft."""
        rows = state.lookahead_hidden
        return self.refinement.start(self.model, rows) if rows.shape[1] > 1 else ()


@dataclass(frozen=True, eq=False)
class PaSSOneCall(OneCall, ChainSettings):
    """Verify the drafts of the step before and draft the next ones in the same pass; 1 + accepted tokens per call."""

    @cached_property
    def tree(self) -> DraftTree:
        """A chain: one draft per vector."""
        return DraftTree((1,) * len(self.vectors), self.model.device)

    def step(self, state: State, uniforms: Tensor, trace: bool = False) -> tuple[State, BatchRecord]:
        """Run one step: K drafts from rows of the pass before, one pass that verifies them and looks ahead."""
        draws, memory = UniformRow(uniforms, self.named_uniforms, trace), self._memory(state)
        pending, active, rows = state.pending, ~state.ended, state.lookahead_hidden
        refinement: Refinement = self.refinement

        def next_logits(tokens: Tokens, lengths: Tensor, depth: int) -> Tensor:
            nonlocal memory
            logits, memory = refinement.logits(self.model, rows[:, 1 + depth], tokens, memory, lengths)
            return logits

        def next_best(tokens: Tokens, lengths: Tensor, depth: int) -> tuple[Tensor, Tensor]:
            nonlocal memory
            token, logit, memory = self.refinement.best(self.model, rows[:, 1 + depth], tokens, memory, lengths)
            return token, logit

        def all_logits(most: int) -> Tensor:
            return refinement.projected(self.model, refinement.apart(rows)[:, :most])

        settings, bound = self.draft_sampling or self.sampling, rows.shape[1] - 1  # no rows before the first pass
        apart = None if refinement.reads_drafts else all_logits
        draft_tokens, draft_probs, has_bonus_row, num_draft = draft_left_to_right(
            self, state, state.num_lookahead_hidden, draws, next_logits, settings, None, None, bound, apart, next_best
        )
        real, ahead = self._one_call(state, self.tree.cut(draft_tokens.shape[1]), draft_tokens)
        num_ahead = (ahead.anchors <= num_draft.unsqueeze(1)).sum(dim=1) * ahead.depths
        record = drafting_record(pending - 1 + num_ahead, None, active)
        drafts = draft_tokens, draft_probs, num_draft, has_bonus_row, active
        state, record, verification = verify_drafts(
            self, self.rule, state, record, draws, self.model.logits(real), *drafts, accept_top_k=self.accept_top_k
        )
        valid_length = state.lengths + verification.num_accepted  # neither rejected drafts nor look-ahead rows
        state, record = state.commit(record, valid_length)
        return self._carry(state, verification.num_accepted, real, ahead), record
