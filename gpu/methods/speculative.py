"""Speculative sampling: a drafter proposes tokens one by one, and one pass of the target verifies them all.

The function `draft_left_to_right` draws a chain for other methods as well. Sources in `reference.methods.speculative`.

Glossary of shapes: B batch, K drafts, W tokens before them, S capacity, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import NamedTuple

import torch
from torch import Tensor

from pass_sampling.reference.config import SamplingConfig
from pass_sampling.reference.ending import Ending
from pass_sampling.reference.methods.settings import DrafterSettings, SpeculativeSettings

from ..batch_record import BatchRecord
from ..drafters.base import Drafter
from ..drafters.schedule import Schedule
from ..host import is_on_cpu
from ..model.language_model import LanguageModel
from ..sampling import Probs, largest_logits, likeliest, probs_from_logits
from ..state import State, bound_or_max, count_leading_true, may_any
from ..uniforms import UniformRow
from ..verify import Tokens
from .base import Method
from .records import drafting_record, joined, verify_drafts


class Drafts(NamedTuple):
    """The drafts of a step. The entries after a row's own drafts mean nothing."""

    tokens: Tokens  # [B, K]
    probs: Probs | None  # [B, K, V], the very distributions that the tokens were drawn from; None: one-hot
    has_bonus_row: Tensor  # [B], whether the text goes on after the last
    num_draft: Tensor  # [B]


def draft_left_to_right(
    method: Method,
    state: State,
    limit: Tensor,  # [B]
    draws: UniformRow,
    next_logits: Callable[[Tokens, Tensor, int], Tensor],
    sampling: SamplingConfig,
    wanted: Callable[[int, Tensor], Tensor] | None = None,
    before: Tokens | None = None,  # [B, W]
    bound: int | None = None,
    all_logits: Callable[[int], Tensor] | None = None,
    next_best: Callable[[Tokens, Tensor, int], tuple[Tensor, Tensor]] | None = None,
) -> Drafts:
    """Draw drafts one by one: `next_logits(tokens, lengths, i)` gives the logits of draft i after the text so far.

    The tokens `before` have been drawn in this step already, and the drafts follow them. Drafting stops at the limit,
    where the logits make no distribution, where the draft is not `wanted(i, logits)`, and after a draft that ends the
    text. All of that is known before the next draft is drawn.

    All rows run along until the last one has stopped, and the draws of the others are ignored. On a CPU, and where a
    schedule or a processor asks the host anyway, every draft first checks whether any row continues. No limit is above
    `bound`, by default the number of uniforms. Drafts whose logits do not depend on one another, `all_logits(K)` of
    shape `[B, K, V]`, are drawn side by side. Where all is greedy, a draft is its row's likeliest token, which
    `next_best` may know without a row.
    """
    limit = limit.clamp(min=0) * ~state.ended
    most = bound_or_max(state, limit, draws.room("draft") if bound is None else bound)
    step_by_step = wanted is not None or method.processor is not None
    looks, greedy = step_by_step or is_on_cpu(limit), method.sampling.temperature == sampling.temperature == 0
    going = has_room = limit > 0
    num_before = 0 if before is None else before.shape[1]
    text = state.tokens if before is None else state.followed_by(before)
    nothing = text[:, :0, None].view(torch.float64).expand(-1, -1, method.model.vocab_size)
    tokens, distributions, valid = [text[:, :0] if before is None else before], [nothing], []

    def add(logits: Tensor | None, best: Tokens | None, largest: Tensor, start: int) -> None:
        if logits is None or best is not None:
            assert best is not None
            draws.certain("draft", best, method.model.vocab_size, start)
        else:
            distributions.append(probs_from_logits(logits, sampling, largest))
            best = draws.tokens("draft", distributions[-1], start)
        tokens.append(best)

    logits: Tensor | None = None
    if all_logits is not None and most and not step_by_step:
        logits = all_logits(most)
        best, largest = likeliest(logits) if greedy else (None, largest_logits(logits))
        valid.append(largest.isfinite())
        add(logits, best, largest, 0)
        most = 0
    if most:
        text = text.clone()  # drafts are written to it
    while len(tokens) <= most and (not looks or may_any(state, going)):
        depth, logits = len(tokens) - 1, None
        lengths = state.lengths + (num_before + depth)
        if greedy and next_best is not None and not step_by_step:
            best, largest = (each.unsqueeze(1) for each in next_best(text, lengths, depth))
        else:
            logits = next_logits(text, lengths, depth).unsqueeze(1)
            if method.processor is not None:
                logits = method.process(state, logits, going.unsqueeze(1), joined(tokens), num_before + depth)
            best, largest = likeliest(logits) if greedy else (None, largest_logits(logits))
        valid.append(largest.isfinite())
        if wanted is not None and logits is not None:
            valid[-1] = valid[-1] & wanted(depth, logits[:, 0]).unsqueeze(1)
        going = going & valid[-1][:, 0]
        if looks and not may_any(state, going):
            break
        add(logits, best, largest, depth)
        text.scatter_(1, lengths.unsqueeze(1), tokens[-1])
        if step_by_step:
            ends = state.num_kept(joined(tokens), (num_before + depth + 1) * going)[1]
            going = going & ~ends
        going = going & (limit > depth + 1)
    block, probs = joined(tokens), None if greedy else joined(distributions)
    drafts = block if before is None else block[:, num_before:]
    if not valid:
        return Drafts(drafts, probs, limit == 0, limit)
    can = torch.minimum(limit, count_leading_true(joined(valid)))
    if before is None:
        num_draft, ended = state.num_kept(block, can)
    else:  # a row without room is not asked about
        num_kept, ended = state.num_kept(block, can + num_before * has_room)
        num_draft = num_kept - num_before * has_room
    draws.restrict("draft", num_draft)
    return Drafts(drafts, probs, ~ended, num_draft)


class DrafterMethod(DrafterSettings, Method):
    """A method whose drafts come from a drafter."""

    model: LanguageModel
    drafter: Drafter

    def start_batch(self, prompts: Sequence[Sequence[int]], ending: Ending) -> State:
        """Return the state before the first step; raise ValueError for a text beyond the drafter's context as well."""
        state = super().start_batch(prompts, ending)
        for prompt in prompts:
            self._check_context(len(prompt), ending.max_new_tokens)
        return replace(state, draft_cache=self.drafter.new_cache(state.cache.capacity, len(prompts)))


@dataclass(frozen=True, eq=False)
class SpeculativeSampling(DrafterMethod, SpeculativeSettings):
    """Draft at most K tokens, as many as a schedule wants, then verify them with the target; see the reference."""

    drafter: Drafter
    schedule: Schedule = field(default_factory=Schedule)

    @property
    def scratch(self) -> int:
        """Cache positions that may be written after the longest text: K drafts, a final token, and a row of padding."""
        return self.num_draft + 2

    def start_batch(self, prompts: Sequence[Sequence[int]], ending: Ending) -> State:
        """Return the state before the first step, with the first pace; see `DrafterMethod.start_batch`."""
        pace = torch.tensor(self.schedule.start(self.num_draft), dtype=torch.float64, device=self.model.device)
        return replace(super().start_batch(prompts, ending), pace=pace.repeat(len(prompts), 1))

    def step(
        self,
        state: State,
        uniforms: Tensor,  # [B, 2K+1]
        trace: bool = False,
    ) -> tuple[State, BatchRecord]:
        """Run one step: K drafts, one pass of the target, 1 + accepted tokens."""
        draws = UniformRow(uniforms, self.named_uniforms, trace)
        pending, active = state.pending, ~state.ended
        room = state.remaining - 1  # a final token comes as well
        limit = torch.minimum(self.schedule.limit(state.pace, self.num_draft), room)
        draft_tokens, draft_probs, has_bonus_row, num_draft = self._draft(state, draws, limit)
        num_asked = torch.minimum(limit, num_draft + has_bonus_row)  # one more than there are, unless nothing follows
        record = drafting_record(pending - 1, num_asked * self.drafter.passes_per_draft, active)

        # Row i holds the target's distribution after i drafts.
        hidden = self.feed_drafts(state, state.followed_by(draft_tokens), draft_tokens.shape[1])
        logits = self.model.logits(hidden)
        drafts = draft_tokens, draft_probs, num_draft, has_bonus_row
        state, record, verification = verify_drafts(
            self, self.rule, state, record, draws, logits, *drafts, active, lenience=self.lenience
        )
        if state.pace.shape[1]:
            pace = self.schedule.follow(state.pace, self.num_draft, num_draft, verification.num_accepted)
            state = replace(state, pace=torch.where(active.unsqueeze(1), pace, state.pace))
        return state.commit(record, state.lengths + verification.num_accepted)

    def _draft(self, state: State, draws: UniformRow, limit: Tensor) -> Drafts:
        """Draft as many tokens as the schedule wants, at most `limit`."""

        def next_logits(tokens: Tokens, lengths: Tensor, depth: int) -> Tensor:
            return self.drafter.logits(tokens, state.draft_cache, lengths, 1 if depth else state.draft_pending)

        def next_best(tokens: Tokens, lengths: Tensor, depth: int) -> tuple[Tensor, Tensor]:
            pending = 1 if depth else state.draft_pending
            return self.drafter.best(tokens, state.draft_cache, lengths, pending)

        def wanted(depth: int, logits: Tensor) -> Tensor:
            return self.schedule.continues(state.pace, depth, logits)

        settings, asked = self.draft_sampling or self.sampling, wanted if self.schedule.adapts else None
        return draft_left_to_right(self, state, limit, draws, next_logits, settings, asked, next_best=next_best)
