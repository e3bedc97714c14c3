"""Speculative sampling: a drafter proposes tokens one by one, and one pass of the target verifies them all.

The drafter is a smaller model, as published, or whatever else gives a law behind a text.

Source: Chen et al. 2023, "Accelerating Large Language Model Decoding with Speculative Sampling" (arXiv 2302.01318),
Algorithm 2; Leviathan, Kalman and Matias 2023, "Fast Inference from Transformers via Speculative Decoding" (arXiv
2211.17192), Algorithm 1.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from ..batch_record import BatchRecord
from ..config import SamplingConfig
from ..drafters.base import Drafter
from ..ending import Ending
from ..sampling import Processor
from ..schedule import Schedule
from ..state import State
from ..tape import Draws, Slots
from ..verify import Tokens
from .base import Method
from .checks import check_drafter, check_drafter_context, check_lenience, check_settings
from .drafting import Drafts, draft_left_to_right
from .judging import judge
from .language_model import LanguageModel
from .records import drafting_record


@dataclass(frozen=True, eq=False)
class SpeculativeSampling(Method):
    """Draft at most K tokens, as many as a schedule wants, then verify them with the target.

    `draft_sampling` gives the drafts settings of their own; the text's law does not depend on them. A `lenience` below
    1 is lossy: drafts are judged as if they had been only so likely, and no token's probability grows beyond
    1 / lenience times the target's.
    """

    model: LanguageModel
    drafter: Drafter
    sampling: SamplingConfig = field(default_factory=SamplingConfig)
    draft_sampling: SamplingConfig | None = None
    rule: str = "token"
    processor: Processor | None = None
    num_draft: int = 4  # K
    schedule: Schedule = field(default_factory=Schedule)
    lenience: float = 1.0

    def __post_init__(self) -> None:
        """Check the settings and the drafter against the model.

        Raises:
            ValueError: an unknown rule, settings beyond the vocabulary, a drafter with another vocabulary, a number
                of drafts below 0, or a lenience outside (0, 1] or with another rule than token.
        """
        check_settings(self.model.vocab_size, self.sampling, self.draft_sampling, self.rule)
        check_drafter(self.model, self.drafter, self.num_draft)
        check_lenience(self.lenience, self.rule)

    @property
    def slots(self) -> Slots:
        """A draw and an acceptance per draft, and the final draw."""
        return {"draft": self.num_draft, "accept": self.num_draft, "final": 1}

    @property
    def scratch(self) -> int:
        """Slots that may be written behind the longest text: K drafts, a final token, and one row of padding."""
        return self.num_draft + 2

    def start_batch(self, prompts: Sequence[Sequence[int]], ending: Ending) -> State:
        """Return the state before the first cycle; see `Method.start_batch`.

        Raises:
            ValueError: a prompt and its new tokens do not fit into the drafter's context either.
        """
        state = super().start_batch(prompts, ending)
        for prompt in prompts:
            check_drafter_context(self.drafter, len(prompt), ending.max_new_tokens)
        draft_cache = self.drafter.new_cache(state.cache.capacity, len(prompts))
        pace = torch.tensor(self.schedule.start(self.num_draft), dtype=torch.float64, device=self.model.device)
        return replace(state, draft_cache=draft_cache, pace=pace.repeat(len(prompts), 1))

    def step(
        self,
        state: State,
        uniforms: Tensor,  # [B, 2K+1]
        trace: bool = False,
    ) -> tuple[State, BatchRecord]:
        """Run one cycle: K drafts, one pass of the target, 1 + accepted tokens."""
        draws = Draws(uniforms, self.slots, trace)
        pending, active = state.pending, ~state.ended
        draft_tokens, draft_probs, goes_on, num_asked, num_draft = self._draft(state, draws)
        record = drafting_record(pending - 1, num_asked * self.drafter.passes_per_draft, active)

        # One pass over what the target has not seen and the drafts; row i holds its law after i drafts.
        text = state.followed_by(draft_tokens)
        logits = self.model.logits(self.feed_drafts(state, text, draft_tokens.shape[1]))
        drafts = draft_tokens, draft_probs, num_draft, goes_on
        state, record, verdict = judge(
            self, self.rule, state, record, draws, logits, *drafts, active, lenience=self.lenience
        )
        if state.pace.shape[1]:
            pace = self.schedule.follow(state.pace, self.num_draft, num_draft, verdict.num_accepted)
            state = replace(state, pace=torch.where(active.unsqueeze(1), pace, state.pace))
        sound = state.lengths + verdict.num_accepted * active  # rejected drafts leave no trace, in either cache
        return state.commit(record, sound)

    def _draft(self, state: State, draws: Draws) -> Drafts:
        """Draft as many tokens as the schedule wants; a final token comes as well."""

        def next_logits(tokens: Tokens, lengths: Tensor, depth: int) -> Tensor:
            return self.drafter.logits(tokens, state.draft_cache, lengths, 1 if depth else state.draft_pending)

        def wanted(depth: int, logits: Tensor) -> Tensor:
            return self.schedule.goes_on(state.pace, depth, logits)

        limit = torch.minimum(self.schedule.limit(state.pace, self.num_draft), state.remaining - 1)
        return draft_left_to_right(
            self,
            state,
            limit,
            draws,
            next_logits,
            self.draft_sampling or self.sampling,
            wanted if self.schedule.adapts else None,
        )
