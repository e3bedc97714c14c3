"""PaSS as published: a call that drafts from look-ahead vectors, and a call that verifies.

Source: Monea, Joulin and Grave 2023, "PaSS: Parallel Speculative Sampling" (arXiv 2311.13581), Sec. 3.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

from ..batch_record import BatchRecord
from ..config import SamplingConfig
from ..lookahead import LookAhead
from ..sampling import Probs, Processor
from ..state import State
from ..tape import Draws, Slots
from ..verify import RULES, Tokens, drafted
from .base import LanguageModel, Method
from .records import exact_record, verified_record


@dataclass(frozen=True)
class PaSS(Method):
    """Draft L tokens at once from L look-ahead vectors, then verify them with the same model.

    `lookahead=None` is the paper's baseline: the embedding of `fixed_token` stands in for every trained vector.
    `draft_sampling` gives the drafts settings of their own; the text's law does not depend on them.
    """

    model: LanguageModel
    lookahead: LookAhead | None
    sampling: SamplingConfig = field(default_factory=SamplingConfig)
    draft_sampling: SamplingConfig | None = None
    rule: str = "token"
    processor: Processor | None = None
    num_lookahead: int | None = None  # L; default: all vectors, or 4 fixed tokens
    fixed_token: int = 0
    vectors: Tensor = field(init=False, repr=False)  # [L, D]

    def __post_init__(self) -> None:
        """Check the settings and the vectors against the model.

        Raises:
            ValueError: an unknown rule, settings beyond the vocabulary, vectors of another model, a negative L or
                more of it than there are vectors.
        """
        self.sampling.check(self.model.vocab_size)
        if self.draft_sampling is not None:
            self.draft_sampling.check(self.model.vocab_size)
        if self.rule not in RULES:
            raise ValueError(f"rule: found {self.rule!r}, expected one of {', '.join(sorted(RULES))}")
        object.__setattr__(self, "vectors", self._input_vectors())

    @property
    def slots(self) -> Slots:
        """One exact draw, a draw and an acceptance per draft, and the final draw."""
        num_lookahead = len(self.vectors)
        return {"exact": 1, "draft": num_lookahead, "accept": num_lookahead, "final": 1}

    @property
    def scratch(self) -> int:
        """Cache slots that a pass may need beyond the longest text: those of the look-ahead vectors."""
        return len(self.vectors) + 1

    def step(
        self,
        state: State,
        uniforms: Tensor,  # [B, 2L+2]
        trace: bool = False,
    ) -> tuple[State, BatchRecord]:
        """Run one cycle: call 1 yields an exact token and K drafts, call 2 verifies them; 2 + accepted tokens."""
        draws = Draws(uniforms, self.slots, trace)
        active = ~state.ended
        num_draft = (state.remaining - 2).clamp(0, len(self.vectors))  # an exact and a final token come as well
        depth = int((num_draft * active).max())

        # Call 1: behind the last token, one exact token; behind each look-ahead vector, a law for one draft.
        num_positions = state.pending + num_draft
        logits = self.model.logits(self.feed_pending(state, self.vectors[:depth]))
        exact_probs, state = self.law(state, logits[:, :1], active)
        exact_token = draws.token("exact", exact_probs[:, 0], active=active)
        record = exact_record(exact_probs[:, 0], exact_token, num_positions, draws, active)
        active = active & ~state.ends_with(exact_token)
        if not bool(active.any()):
            return state.commit(record)
        prefix = exact_token.unsqueeze(1)
        draft_tokens, draft_probs, state = self._draft(state, prefix, logits[:, 1:], num_draft, active, draws)

        # Call 2: the exact token and the drafts; row i holds the target's law after i drafts.
        block = torch.cat([prefix, draft_tokens], dim=1)
        logits = self.model.logits(self.model.hidden(self.model.embed(block), state.cache))
        target_probs, state = self.law(state, logits, active, block, 1, num_draft + 1)
        verdict = RULES[self.rule](target_probs, draft_probs, draft_tokens, draws, num_draft, active)
        state.cache.truncate(state.lengths + (1 + verdict.num_accepted) * active)  # nor do the rejected drafts
        return state.commit(
            verified_record(record, target_probs, draft_probs, draft_tokens, verdict, draws, num_draft, active)
        )

    def _draft(
        self,
        state: State,
        prefix: Tokens,  # [B, 1]
        logits: Tensor,  # [B, K, V]
        num_draft: Tensor,  # [B]
        active: Tensor,  # [B]
        draws: Draws,
    ) -> tuple[Tokens, Probs, State]:  # [B, K], [B, K, V]
        """Draw the drafts, and return with them the very laws they were drawn from.

        All at once where nothing makes a draft's law depend on the drafts before it; one by one under a processor.
        """
        asked = drafted(logits[:, :, 0], num_draft) & active.unsqueeze(1)
        if self.processor is None:
            probs, state = self.law(state, logits, active, None, 1, num_draft, self.draft_sampling)
            return draws.tokens("draft", probs, active=asked), probs, state
        laws = [logits.new_zeros((len(logits), 0, logits.shape[2]), dtype=torch.float64)]
        for i in range(logits.shape[1]):
            num_used = (num_draft > i).long()
            row = logits[:, i : i + 1]
            probs, state = self.law(state, row, active, prefix, 1 + i, num_used, self.draft_sampling)
            prefix = torch.cat([prefix, draws.tokens("draft", probs, i, asked[:, i : i + 1])], dim=1)
            laws.append(probs)
        return prefix[:, 1:], torch.cat(laws, dim=1), state

    def _input_vectors(self) -> Tensor:  # [L, D]
        """Return the vectors to feed: trained ones, or the embedding of the fixed token over and over."""
        available = 4 if self.lookahead is None else self.lookahead.num_lookahead
        wanted = available if self.num_lookahead is None else self.num_lookahead
        if wanted < 0 or (self.lookahead is not None and wanted > available):
            expected = f"0 to {available}" if self.lookahead is not None else "0 or more"
            raise ValueError(f"num_lookahead: found {wanted}, expected {expected}")
        if self.lookahead is None:
            if not 0 <= self.fixed_token < self.model.vocab_size:
                raise ValueError(
                    f"fixed_token: found {self.fixed_token}, expected a token id from 0 to {self.model.vocab_size - 1}"
                )
            return self.model.embed([[self.fixed_token] * wanted])[0] if wanted else self.model.embed([[0]])[0, :0]
        self.lookahead.check(self.model)
        return self.lookahead.vectors[:wanted].to(self.model.device, self.model.dtype)
