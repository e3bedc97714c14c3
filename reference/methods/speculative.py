"""Speculative sampling: a drafter proposes tokens one by one, and one pass of the target verifies them all.

The drafter is a smaller model, as published, or anything else that gives a distribution after a text.

Source: Chen et al. 2023, "Accelerating Large Language Model Decoding with Speculative Sampling" (arXiv 2302.01318),
Algorithm 2; Leviathan, Kalman and Matias 2023, "Fast Inference from Transformers via Speculative Decoding" (arXiv
2211.17192), Algorithm 1.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import numpy.typing as npt

from ..drafters.base import Drafter
from ..drafters.schedule import Schedule
from ..ending import Ending
from ..model.language_model import LanguageModel
from ..model.layers import Array
from ..record import Record
from ..uniforms import UniformRow
from .base import Drafts, Method, State, draft_left_to_right, drafting_record, verify_drafts
from .settings import DrafterSettings, SpeculativeSettings


class DrafterMethod(DrafterSettings, Method):
    """A method whose drafts come from a drafter."""

    model: LanguageModel
    drafter: Drafter

    def start(self, prompt: Sequence[int], ending: Ending) -> State:
        """Return the state before the first step; raise ValueError for a text beyond the drafter's context as well."""
        state = super().start(prompt, ending)
        self._check_context(len(prompt), ending.max_new_tokens)
        return replace(state, draft_cache=self.drafter.new_cache(state.cache.capacity))


@dataclass(frozen=True, eq=False)
class SpeculativeSampling(DrafterMethod, SpeculativeSettings):
    """Draft at most K tokens, as many as a schedule wants, then verify them with the target.

    A `lenience` below 1 is lossy: it multiplies the draft probabilities in verification, so that a token's probability
    is at most 1 / lenience times the target's.
    """

    drafter: Drafter
    schedule: Schedule = field(default_factory=Schedule)

    def start(self, prompt: Sequence[int], ending: Ending) -> State:
        """Return the state before the first step, with the first pace; see `DrafterMethod.start`."""
        return replace(super().start(prompt, ending), pace=self.schedule.start(self.num_draft))

    def step(self, state: State, uniforms: npt.NDArray[np.float64], trace: bool = False) -> tuple[State, Record]:
        """Run one step: K drafts, one pass of the target, 1 + accepted tokens."""
        draws = UniformRow(uniforms, self.named_uniforms, trace)
        pending, prefix = state.pending, state.tokens
        draft_tokens, draft_probs, has_bonus_row, num_asked = self._draft(state, draws)
        record = drafting_record(len(pending) - 1, num_asked * self.drafter.passes_per_draft)

        # Row i holds the target's distribution after i drafts.
        hidden = self.model.hidden(self.model.embed([*pending, *draft_tokens]), state.cache)
        logits = self.model.logits(hidden[len(pending) - 1 :][: len(draft_tokens) + has_bonus_row])
        record, valid_length = verify_drafts(
            self, self.rule, prefix, record, draws, logits, draft_tokens, draft_probs, self.lenience
        )
        pace = self.schedule.follow(state.pace, self.num_draft, len(draft_tokens), record.num_accepted)
        return replace(state, pace=pace).commit(record, valid_length)

    def _draft(self, state: State, draws: UniformRow) -> Drafts:
        """Draft as many tokens as the schedule wants; a final token comes as well."""

        def next_logits(tokens: tuple[int, ...], depth: int) -> Array:
            return self.drafter.logits(tokens, state.draft_cache)

        def wanted(depth: int, logits: Array) -> bool:
            return self.schedule.continues(state.pace, depth, logits)

        limit = min(self.schedule.limit(state.pace, self.num_draft), state.remaining - 1)
        return draft_left_to_right(self, state, limit, draws, next_logits, self.draft_sampling or self.sampling, wanted)
