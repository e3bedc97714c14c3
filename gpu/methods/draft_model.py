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
from ..sampling import Probs, Processor, largest_logits, probs_from_logits
from ..schedule import Schedule
from ..state import State
from ..tape import Draws, Slots
from ..verify import RULES, Tokens
from .base import Method
from .checks import check_context, check_drafter, check_lenience, check_settings
from .language_model import LanguageModel
from .records import drafting_record, verified_record


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
        if self.drafter.max_position_embeddings is not None:
            for prompt in prompts:
                most = self.drafter.max_position_embeddings
                check_context(len(prompt), ending.max_new_tokens, most, f"the drafter {self.drafter.name!r}")
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
        draft_tokens, draft_probs, num_draft, goes_on, num_asked = self._draft(state, active, draws)
        record = drafting_record(pending - 1, num_asked * self.drafter.passes_per_draft, active)

        # One pass over what the target has not seen and the drafts; row i holds its law after i drafts.
        text = state.followed_by(draft_tokens)
        logits = self.model.logits(self.feed_drafts(state, text, draft_tokens.shape[1]))
        rows = torch.arange(logits.shape[1], device=logits.device)
        used = (rows < (num_draft + goes_on).unsqueeze(1)) & active.unsqueeze(1)
        target_probs, largest = self.laws(state, logits, used, draft_tokens)
        verdict = RULES[self.rule](
            target_probs, self.lenience * draft_probs, draft_tokens, draws, num_draft, goes_on, active
        )
        state = state.note_fault(largest, 0, used & (rows < verdict.num_reached.unsqueeze(1)))
        state.keep(state.lengths + verdict.num_accepted * active)  # rejected drafts leave no trace, in either cache
        pace = self.schedule.follow(state.pace, self.num_draft, num_draft, verdict.num_accepted)
        return replace(state, pace=torch.where(active.unsqueeze(1), pace, state.pace)).commit(
            verified_record(record, target_probs, draft_probs, draft_tokens, verdict, draws, num_draft, goes_on, active)
        )

    def _draft(
        self,
        state: State,
        active: Tensor,  # [B]
        draws: Draws,
    ) -> tuple[Tokens, Probs, Tensor, Tensor, Tensor]:  # [B, K], [B, K, V], [B], [B], [B]
        """Draw the drafts; return the very laws they were drawn from, how many, whether the text goes on, laws asked.

        Drafting stops where the drafter has no law, where the schedule says so, and behind a draft that ends the text:
        all known before the next is drawn. Rows that have stopped run along, and what they draw is ignored.
        """
        limit = torch.minimum(self.schedule.limit(state.pace, self.num_draft), state.remaining - 1)
        going, goes_on = active & (limit > 0), torch.ones_like(active)
        num_draft, num_asked = torch.zeros_like(limit), torch.zeros_like(limit)
        tokens, probs = state.tokens[:, :0], []
        while tokens.shape[1] < self.num_draft and bool(going.any()):
            depth = tokens.shape[1]
            logits = self.drafter.logits(
                state.followed_by(tokens), state.draft_cache, state.lengths + depth, 1 if depth else state.draft_pending
            )
            logits = self.process(state, logits.unsqueeze(1), going.unsqueeze(1), tokens, depth)
            num_asked = num_asked + going
            going = going & largest_logits(logits)[:, 0].isfinite()
            going = going & self.schedule.goes_on(state.pace, depth, logits[:, 0])
            law = probs_from_logits(logits, self.draft_sampling or self.sampling)
            tokens = torch.cat([tokens, draws.tokens("draft", law, depth, going.unsqueeze(1))], dim=1)
            probs.append(law)
            num_draft = num_draft + going
            ends = state.kept(tokens, tokens.shape[1] * going)[1]
            goes_on = goes_on & ~ends
            going = going & ~ends & (num_draft < limit)
        none = torch.zeros((len(tokens), 0, self.model.vocab_size), dtype=torch.float64, device=tokens.device)
        return tokens, torch.cat([none, *probs], dim=1), num_draft, goes_on, num_asked
