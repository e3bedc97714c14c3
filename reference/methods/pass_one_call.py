"""PaSS in one call per step: the pass that verifies the drafts also computes the look-ahead rows for the next ones.

A group of look-ahead rows follows the last token and each draft, and no row outside of the group attends to it. The
next drafts come from the group after the last accepted draft.

Source: Monea et al. 2023 (arXiv 2311.13581) for the look-ahead rows; Stern et al. 2018 (arXiv 1811.03115), Sec. 4, for
the merged pass; Lin et al. 2024 (arXiv 2401.12522) for groups after every draft.

Glossary of shapes: L look-ahead vectors, D' hidden state, R places in use.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
import numpy.typing as npt

from ..lookahead.adapter import Adapter
from ..lookahead.refinement import Refinement, refinement_of
from ..lookahead.vectors import LookAhead
from ..model.language_model import LanguageModel
from ..model.layers import Array
from ..record import Record
from ..sampling import Probs, compared_logits, one_hot
from ..uniforms import UniformRow
from ..verify import Tokens
from .base import Method, State, draft_left_to_right, drafting_record, verify_drafts
from .settings import ChainSettings, OneCallSettings
from .tree_shape import DraftTree, layout


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
        return refinement_of(self.lookahead, self.vectors.dtype)

    @cached_property
    def adapter(self) -> Adapter | None:
        """The adapter that was trained with the vectors, if any, in the model's dtype."""
        adapter = self.lookahead.adapter
        return adapter and adapter.to(self.vectors.dtype)

    def _one_call(self, state: State, places: list[int], draft_tokens: Tokens) -> tuple[Array, dict[int, Array]]:
        """Run the one call, over the pending tokens, the drafts, and groups of look-ahead vectors after them.

        Returns the hidden states [R, D'] of the `places`, of which the first is the last token. Also returns those of
        the group after each place that has one.
        """
        pending = state.pending
        text = [*pending, *draft_tokens.tolist()]
        depth = max(0, min(len(self.vectors), state.remaining - 2))  # of a group: this step and the next end in a token
        anchors = [place for place in places if depth and self.has_group(int(self.tree.depths[place]))]
        inputs = np.concatenate([self.model.embed(text), *[self.vectors[:depth]] * len(anchors)])
        positions, visible = layout(state.cached, len(pending), self.tree, places, anchors, depth)
        adapted = {} if self.adapter is None else {"adapter": self.adapter, "num_adapted": len(anchors) * depth}
        hidden = self.model.hidden(inputs, state.cache, positions, visible, **adapted)
        starts = range(len(text), len(hidden), depth or 1)
        ahead = {place: hidden[start : start + depth] for place, start in zip(anchors, starts, strict=True)}
        return hidden[len(pending) - 1 : len(text)], ahead

    def _carry(self, state: State, last: Array, group: Array | None) -> State:
        """Keep what the next step drafts from: the useful rows of the group after the last accepted draft."""
        useful = min(len(self.vectors), state.remaining - 1)
        if not self.refinement.uses_lookahead:
            group = np.repeat(last[None], max(0, useful), axis=0)
        rows = None if group is None or useful <= 0 else np.concatenate([last[None], group[:useful]])
        return replace(state, lookahead_hidden=rows)

    def _drafting(self, state: State) -> tuple[int, Callable[[tuple[int, ...], int], Array]]:
        """Return how many drafts the kept rows allow, and the function that gives the logits after text and path.

        The function takes the tokens of a path, and its place. Each path has its own memory of the refinement.
        """
        rows = np.zeros((1, 0)) if state.lookahead_hidden is None else state.lookahead_hidden
        memories = {-1: self.refinement.start(self.model, rows) if len(rows) > 1 else ()}

        def next_logits(tokens: tuple[int, ...], place: int) -> Array:
            row, memory = rows[1 + int(self.tree.depths[place])], memories[self.tree.parents[place]]
            logits, memories[place] = self.refinement.logits(self.model, row, tokens, memory)
            return logits

        return len(rows) - 1, next_logits


@dataclass(frozen=True, eq=False)
class PaSSOneCall(OneCall, ChainSettings):
    """Verify the drafts of the step before and draft the next ones in the same pass; 1 + accepted tokens per call.

    An `accept_top_k` above 1 is lossy and greedy: it accepts a draft among the k likeliest tokens of the model.

    Source: Stern et al. 2018 (arXiv 1811.03115), Sec. 5.1, for top-k acceptance.
    """

    @cached_property
    def tree(self) -> DraftTree:
        """A chain: one draft per vector."""
        return DraftTree((1,) * len(self.vectors))

    def chain_probs(self, prefix: Sequence[int], draft_tokens: Tokens, logits: Array) -> Probs:
        """Return the target's distributions; a draft among the `accept_top_k` likeliest tokens becomes certain."""
        probs = super().chain_probs(prefix, draft_tokens, logits)
        for i, token in enumerate(draft_tokens.tolist() if self.accept_top_k > 1 else ()):
            row = compared_logits(self.process((*prefix, *draft_tokens[:i].tolist()), logits[i]))
            is_before = (row > row[token]) | ((row == row[token]) & (np.arange(row.size) < token))
            if not np.isnan(probs[i, 0]) and row[token] > -np.inf and is_before.sum() < self.accept_top_k:
                probs[i] = one_hot(token, row.size)
        return probs

    def step(self, state: State, uniforms: npt.NDArray[np.float64], trace: bool = False) -> tuple[State, Record]:
        """Run one step: K drafts from rows of the pass before, one pass that verifies them and looks ahead."""
        draws = UniformRow(uniforms, self.named_uniforms, trace)
        num_pending, prefix = len(state.pending), state.tokens
        limit, next_logits = self._drafting(state)
        settings = self.draft_sampling or self.sampling
        draft_tokens, draft_probs, has_bonus_row, _ = draft_left_to_right(
            self, state, limit, draws, next_logits, settings
        )
        num_draft = len(draft_tokens)
        real, ahead = self._one_call(state, list(range(num_draft + 1)), draft_tokens)

        # Row i holds the target's distribution after i drafts.
        logits = self.model.logits(real[: num_draft + has_bonus_row])
        record = drafting_record(num_pending - 1 + sum(map(len, ahead.values())), 0)
        verified = verify_drafts(self, self.rule, prefix, record, draws, logits, draft_tokens, draft_probs)
        last = verified[0].num_accepted
        state, record = state.commit(*verified)  # drops rejected drafts and look-ahead rows
        return self._carry(state, real[last], ahead.get(last)), record
