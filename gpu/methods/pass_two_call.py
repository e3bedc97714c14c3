"""PaSS as published: one call drafts from look-ahead vectors, a second call verifies the drafts.

The method and its source are those of `reference.methods.pass_two_call`, for a batch.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from pass_sampling.reference.methods.pass_two_call import PaSSSettings

from ..batch_record import BatchRecord
from ..lookahead.vectors import LookAhead
from ..model.language_model import LanguageModel
from ..sampling import Probs
from ..state import State, bound_or_max, may_any
from ..uniforms import UniformRow
from ..verify import Tokens
from .base import Method
from .records import draw_exact, verify_drafts
from .speculative import draft_left_to_right


@dataclass(frozen=True, eq=False)
class PaSS(PaSSSettings, Method):
    """Draft L tokens at once from L look-ahead vectors, then verify them with the same model."""

    model: LanguageModel
    lookahead: LookAhead | None

    def _fixed_vectors(self, tokens: list[int]) -> Tensor:
        return self.model.embed([[*tokens, 0]])[0, : len(tokens)]

    @property
    def scratch(self) -> int:
        """Positions that may be written after the longest text: an exact token, L drafts and a final token."""
        return len(self.vectors) + 2

    def step(self, state: State, uniforms: Tensor, trace: bool = False) -> tuple[State, BatchRecord]:
        """Run one step: call 1 yields an exact token and K drafts, call 2 verifies them; 2 + accepted tokens."""
        draws = UniformRow(uniforms, self.named_uniforms, trace)
        active = ~state.ended
        num_draft = (state.remaining - 2).clamp(0, len(self.vectors))  # an exact and a final token come as well
        depth = bound_or_max(state, num_draft * active, len(self.vectors))

        # Call 1: after the last token, one exact token; after each look-ahead vector, a distribution for one draft.
        num_positions = state.pending + num_draft
        logits = self.model.logits(self.feed_pending(state, self.vectors[:depth]))
        state, record, largest = draw_exact(self, state, draws, logits[:, :1], num_positions, active)
        exact_token = record.tokens
        active = active & ~state.ends_with(exact_token) & largest.isfinite()
        if not may_any(state, active):
            return state.commit(record)
        drafts = self._draft(state, exact_token, logits[:, 1:], num_draft * active, draws)

        # Call 2: the exact token and the drafts; row i holds the target's distribution after i drafts.
        block = torch.cat([exact_token, drafts[0]], dim=1)
        logits = self.model.logits(self.model.hidden(self.model.embed(block), state.cache))
        state, record, verification = verify_drafts(
            self, self.rule, state, record, draws, logits, *drafts, active, exact_token
        )
        return state.commit(record, state.lengths + (1 + verification.num_accepted) * active)

    def _draft(
        self, state: State, exact_token: Tokens, logits: Tensor, limit: Tensor, draws: UniformRow
    ) -> tuple[Tokens, Probs | None, Tensor, Tensor]:
        """Draw the drafts, all at once unless a processor reads those before; return what `verify_drafts` takes."""
        settings = self.draft_sampling or self.sampling
        tokens, probs, has_bonus_row, num_draft = draft_left_to_right(
            self,
            state,
            limit,
            draws,
            lambda tokens, lengths, i: logits[:, i],
            settings,
            before=exact_token,
            all_logits=lambda most: logits[:, :most],
        )
        return tokens, probs, num_draft, has_bonus_row
