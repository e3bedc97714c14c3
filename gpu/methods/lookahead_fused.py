"""PaSS in one call per step: the pass that verifies the drafts also holds the next ones, whatever prefix survives.

The drafts are a chain; `fused` says what the call holds beside them.

Source: Monea et al. 2023 (arXiv 2311.13581) for the look-ahead rows; Stern et al. 2018 (arXiv 1811.03115), Sec. 4, for
the merged pass; Lin et al. 2024 (arXiv 2401.12522) for groups behind every draft.

Glossary of shapes: B batch, L look-ahead vectors.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ..batch_record import BatchRecord
from ..draft_tree import DraftTree
from ..state import State
from ..tape import Draws, Slots
from ..verify import RULES, Tokens
from .drafting import Drafts, draft_left_to_right
from .fused import Fused
from .judging import judge
from .records import drafting_record


@dataclass(frozen=True, eq=False)
class FusedPaSS(Fused):
    """Verify the drafts of the step before and draft the next ones in the same pass; 1 + accepted tokens per call."""

    num_lookahead: int | None = None  # L; default: all vectors

    def __post_init__(self) -> None:
        """Check the settings and the vectors against the model; see `Fused.prepare`."""
        self.prepare(RULES, self.num_lookahead)
        object.__setattr__(self, "tree", DraftTree((1,) * len(self.vectors), self.model.device))

    @property
    def slots(self) -> Slots:
        """A draw and an acceptance per draft, and the final draw."""
        return {"draft": len(self.vectors), "accept": len(self.vectors), "final": 1}

    def step(
        self,
        state: State,
        uniforms: Tensor,  # [B, 2L+1]
        trace: bool = False,
    ) -> tuple[State, BatchRecord]:
        """Run one cycle: K drafts from rows of the pass before, one pass that verifies them and looks ahead."""
        draws = Draws(uniforms, self.slots, trace)
        pending, active = state.pending, ~state.ended
        draft_tokens, draft_probs, goes_on, _, num_draft = self._draft(state, draws)
        real, ahead = self._one_call(state, self.tree.cut(draft_tokens.shape[1]), draft_tokens)

        num_ahead = ahead.num_rows(torch.arange(real.shape[1], device=real.device) <= num_draft.unsqueeze(1))
        record = drafting_record(pending - 1 + num_ahead, torch.zeros_like(pending), active)
        drafts = draft_tokens, draft_probs, num_draft, goes_on
        state, record, verdict = judge(self, self.rule, state, record, draws, self.model.logits(real), *drafts, active)
        sound = state.lengths + verdict.num_accepted * active  # rejected drafts and look-ahead rows leave no trace
        state, record = state.commit(record, sound)
        return self._carry(state, verdict.num_accepted, real, ahead), record

    def _draft(self, state: State, draws: Draws) -> Drafts:
        """Draft from the rows that the step before has left."""
        memory = self.refinement.start(self.model, state.carried) if state.carried.shape[1] > 1 else ()

        def next_logits(tokens: Tokens, lengths: Tensor, depth: int) -> Tensor:
            nonlocal memory
            logits, memory = self.refinement.logits(self.model, state.carried[:, 1 + depth], tokens, memory, lengths)
            return logits

        sampling, bound = self.draft_sampling or self.sampling, state.carried.shape[1] - 1  # none at first
        return draft_left_to_right(self, state, state.num_carried, draws, next_logits, sampling, bound=bound)
