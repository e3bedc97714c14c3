"""PaSS in one call per step: the pass that verifies the drafts also holds the next ones, whatever prefix survives.

The drafts are a chain; `fused` says what the call holds beside them.

Source: Monea et al. 2023 (arXiv 2311.13581) for the look-ahead rows; Stern et al. 2018 (arXiv 1811.03115), Sec. 4, for
the merged pass; Lin et al. 2024 (arXiv 2401.12522) for groups behind every draft.

Glossary of shapes: L look-ahead vectors.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from ..draft_tree import DraftTree
from ..layers import Array
from ..record import Record
from ..state import State
from ..tape import Draws, Slots
from ..verify import RULES
from .drafting import Drafts, draft_left_to_right
from .fused import Fused
from .records import drafting_record, verified_record


@dataclass(frozen=True, eq=False)
class FusedPaSS(Fused):
    """Verify the drafts of the step before and draft the next ones in the same pass; 1 + accepted tokens per call."""

    num_lookahead: int | None = None  # L; default: all vectors

    def __post_init__(self) -> None:
        """Check the settings and the vectors against the model; see `Fused.prepare`."""
        self.prepare(RULES, self.num_lookahead)
        object.__setattr__(self, "tree", DraftTree((1,) * len(self.vectors)))

    @property
    def slots(self) -> Slots:
        """A draw and an acceptance per draft, and the final draw."""
        return {"draft": len(self.vectors), "accept": len(self.vectors), "final": 1}

    def step(
        self,
        state: State,
        uniforms: npt.NDArray[np.float64],  # [2L+1]
        trace: bool = False,
    ) -> tuple[State, Record]:
        """Run one cycle: K drafts from rows of the pass before, one pass that verifies them and looks ahead."""
        draws = Draws(uniforms, self.slots, trace)
        pending, prefix = state.pending, state.tokens
        draft_tokens, draft_probs, goes_on, _ = self._draft(state, draws)
        num_draft = len(draft_tokens)
        real, ahead = self._one_call(state, list(range(num_draft + 1)), draft_tokens)

        # Row i holds the target's law after i drafts.
        logits = self.model.logits(real[: num_draft + goes_on])
        target_probs = self.laws(prefix, draft_tokens, logits)
        verdict = RULES[self.rule](target_probs, draft_probs, draft_tokens, draws)
        self.check_reached(prefix, draft_tokens, logits, target_probs[: verdict.num_reached])
        record = drafting_record(len(pending) - 1 + sum(map(len, ahead.values())), 0)
        record = verified_record(record, target_probs, draft_probs, draft_tokens, verdict, draws)
        sound = len(prefix) + verdict.num_accepted  # rejected drafts and look-ahead rows leave no trace
        state, record = state.commit(record, sound)
        last = verdict.num_accepted
        return replace(state, carried=self._carry(state, real[last], ahead.get(last))), record

    def _draft(self, state: State, draws: Draws) -> Drafts:
        """Draft from the rows that the step before has left."""
        rows = np.zeros((1, 0)) if state.carried is None else state.carried
        memory = self.refinement.start(self.model, rows) if len(rows) > 1 else ()

        def next_logits(tokens: tuple[int, ...], depth: int) -> Array:
            nonlocal memory
            logits, memory = self.refinement.logits(self.model, rows[1 + depth], tokens, memory)
            return logits

        return draft_left_to_right(self, state, len(rows) - 1, draws, next_logits, self.draft_sampling or self.sampling)
