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
from ..state import State, bound_or_max, count_leading_true, may_any
from ..uniforms import UniformRow
from ..verify import Tokens, drafted
from .base import Method
from .records import draw_exact, verify_drafts


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
        drafts = self._draft(state, exact_token, logits[:, 1:], num_draft, active, draws)

        # Call 2: the exact token and the drafts; row i holds the target's distribution after i drafts.
        block = torch.cat([exact_token, drafts[0]], dim=1)
        logits = self.model.logits(self.model.hidden(self.model.embed(block), state.cache))
        state, record, verification = verify_drafts(
            self, self.rule, state, record, draws, logits, *drafts, active, exact_token
        )
        return state.commit(record, state.lengths + (1 + verification.num_accepted) * active)

    def _draft(
        self, state: State, block: Tokens, logits: Tensor, num_draft: Tensor, active: Tensor, draws: UniformRow
    ) -> tuple[Tokens, Probs, Tensor, Tensor]:
        """Draw the drafts; return them, their distributions and number, and whether the text continues after them.

        The `block` is the exact token, [B, 1], and the logits of the drafts are [B, K, V]. Drafting stops at a row
        without a distribution, and after a draft that ends the text. All drafts are drawn at once, or one by one if a
        processor makes a draft's distribution depend on the drafts before it.
        """
        depth = logits.shape[1]
        at_once = 1 if depth == 0 or self.processor is not None else depth
        has_bonus_row = torch.ones_like(active)
        distributions = [logits.new_zeros((len(logits), 0, logits.shape[2]), dtype=torch.float64)]
        for start in range(0, depth, at_once):
            rows = logits[:, start : start + at_once]
            wanted = drafted(logits[:, :, 0], num_draft)[:, start : start + at_once] & active.unsqueeze(1)
            probs, largest = self.chain_probs(state, rows, wanted, block, 1 + start, self.draft_sampling)
            has_distribution = count_leading_true(largest.isfinite())
            num_draft = torch.where(
                has_distribution < rows.shape[1], torch.minimum(num_draft, start + has_distribution), num_draft
            )
            tokens = draws.tokens("draft", probs, start)
            block = torch.cat([block, tokens], dim=1)
            kept, ended = state.num_kept(block, (num_draft + 1).clamp(max=block.shape[1]) * active)
            num_draft = torch.where(ended, torch.minimum(num_draft, kept - 1), num_draft)
            has_bonus_row = ~(ended & (num_draft == kept - 1))
            distributions.append(probs)
        draws.restrict("draft", drafted(block[:, 1:], num_draft) & active.unsqueeze(1))
        return block[:, 1:], torch.cat(distributions, dim=1), num_draft, has_bonus_row
