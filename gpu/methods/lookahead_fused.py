"""PaSS in one call per step: the pass that verifies the drafts also holds the next ones, whatever prefix survives.

Behind the last token, and behind every draft, hangs a group of look-ahead rows that sees the text up to there and
nothing of the others. When verification has kept some drafts, the group behind the last of them is where the next
drafts come from: no call is spent on drafting.

Source: Monea et al. 2023 (arXiv 2311.13581) for the look-ahead rows; Stern et al. 2018 (arXiv 1811.03115), Sec. 4, for
the merged pass; Lin et al. 2024 (arXiv 2401.12522) for groups behind every draft.

Glossary of shapes: N groups, T rows of the pass, D' hidden state.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import torch
from torch import Tensor
from torch.nn import functional

from ..adapter import Adapter
from ..batch_record import BatchRecord
from ..config import SamplingConfig
from ..lookahead import LookAhead
from ..refine import Refinement, refinement_of
from ..sampling import Processor
from ..state import State
from ..tape import Draws, Slots
from ..verify import RULES, Tokens, row
from .base import Method
from .checks import check_groups, check_settings
from .drafting import Drafts, draft_left_to_right
from .language_model import LanguageModel
from .records import drafting_record, verified_record


@dataclass(frozen=True, eq=False)
class FusedPaSS(Method):
    """Verify the drafts of the step before and draft the next ones in the same pass; 1 + accepted tokens per call.

    `refinement` says how drafts follow from look-ahead rows and one another (default: by the head that was trained with
    the vectors, if there is one). `groups` says behind how many accepted drafts a group hangs (default: behind any
    number); where none does, the next step drafts nothing. A head that drafts alone needs no groups at all.
    """

    model: LanguageModel
    lookahead: LookAhead
    sampling: SamplingConfig = field(default_factory=SamplingConfig)
    draft_sampling: SamplingConfig | None = None
    rule: str = "token"
    processor: Processor | None = None
    num_lookahead: int | None = None  # L; default: all vectors
    refinement: Refinement = None  # type: ignore[assignment]  # that of the folder
    groups: tuple[int, ...] | None = None
    vectors: Tensor = field(init=False, repr=False)  # [L, D]
    adapter: Adapter | None = field(init=False, repr=False)

    def __post_init__(self) -> None:
        """Check the settings and the vectors against the model.

        Raises:
            ValueError: an unknown rule, settings beyond the vocabulary, vectors of another model, a negative L or
                more of it than there are vectors, or a group behind more drafts than there can be.
        """
        check_settings(self.model.vocab_size, self.sampling, self.draft_sampling, self.rule)
        object.__setattr__(self, "vectors", self.lookahead.inputs(self.model, self.num_lookahead))
        check_groups(self.groups, len(self.vectors))
        if self.refinement is None:
            refinement = refinement_of(self.lookahead, self.vectors.dtype, self.model.device)
            object.__setattr__(self, "refinement", refinement)
        adapter = self.lookahead.adapter
        object.__setattr__(self, "adapter", adapter and adapter.to(self.vectors.dtype, self.model.device))

    @property
    def slots(self) -> Slots:
        """A draw and an acceptance per draft, and the final draw."""
        return {"draft": len(self.vectors), "accept": len(self.vectors), "final": 1}

    @property
    def scratch(self) -> int:
        """Slots that may be written behind the longest text: L drafts, a group behind each, a final token."""
        return (len(self.vectors) + 1) ** 2 + 1

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
        depths = (state.remaining - 2).clamp(0, len(self.vectors)) * active  # this step and the next end in a token
        depth = int(depths.max())
        groups = [g for g in range(draft_tokens.shape[1] + 1) if depth and self._hangs(g)]

        # The one call: what the model has not seen, the drafts, and groups of look-ahead vectors behind each of them.
        real, ahead = self._feed_groups(state, draft_tokens, groups, depth)
        behind = torch.tensor(groups, device=pending.device)  # [N]
        num_groups = (behind <= num_draft.unsqueeze(1)).sum(dim=1)
        record = drafting_record(pending - 1 + num_groups * depths, torch.zeros_like(pending), active)

        # Row i holds the target's law after i drafts.
        logits = self.model.logits(real)
        rows = torch.arange(logits.shape[1], device=logits.device)
        used = (rows < (num_draft + goes_on).unsqueeze(1)) & active.unsqueeze(1)
        target_probs, largest = self.laws(state, logits, used, draft_tokens)
        verdict = RULES[self.rule](target_probs, draft_probs, draft_tokens, draws, num_draft, goes_on, active)
        state = state.note_fault(largest, 0, used & (rows < verdict.num_reached.unsqueeze(1)))
        record = verified_record(
            record, target_probs, draft_probs, draft_tokens, verdict, draws, num_draft, goes_on, active
        )
        sound = state.lengths + verdict.num_accepted * active  # rejected drafts and look-ahead rows leave no trace
        state, record = state.commit(record, sound)

        # What the next step drafts from: the group behind the last draft that survived, as far as a draft may go.
        num_carried = torch.minimum(depths, state.remaining - 1).clamp(min=0)
        last = row(real, verdict.num_accepted).unsqueeze(1)
        if self.refinement.alone:
            carried = last.expand(-1, len(self.vectors) + 1, -1)
            return replace(state, carried=carried, num_carried=num_carried), record
        if not groups:
            return replace(state, num_carried=torch.zeros_like(num_carried)), record
        survived = verdict.num_accepted.unsqueeze(1) == behind  # [B, N]
        group = ahead[torch.arange(len(ahead), device=pending.device), survived.long().argmax(dim=1)]
        carried = functional.pad(torch.cat([last, group], dim=1), (0, 0, 0, len(self.vectors) - depth))
        return replace(state, carried=carried, num_carried=num_carried * survived.any(dim=1)), record

    def _hangs(self, num_accepted: int) -> bool:
        """Say whether a group hangs behind so many drafts."""
        return not self.refinement.alone and (self.groups is None or num_accepted in self.groups)

    def _draft(self, state: State, draws: Draws) -> Drafts:
        """Draft from the rows that the step before has left."""
        memory = self.refinement.start(state.carried[:, 0]) if state.carried.shape[1] > 1 else None

        def next_logits(tokens: Tokens, depth: int) -> Tensor:
            nonlocal memory
            row, lengths = state.carried[:, 1 + depth], state.lengths + depth
            logits, memory = self.refinement.logits(self.model, row, tokens, memory, lengths)
            return logits

        return draft_left_to_right(
            self, state, state.num_carried, draws, next_logits, self.draft_sampling or self.sampling
        )

    def _feed_groups(
        self,
        state: State,
        draft_tokens: Tokens,  # [B, K]
        groups: list[int],
        depth: int,
    ) -> tuple[Tensor, Tensor]:  # [B, K+1, D'], [B, N, L, D']
        """Run the one call; return the hidden states of the last token and the drafts, and those of every group.

        Rows with less to feed than others are padded behind their drafts, where nothing looks.
        """
        cache, pending, num_draft = state.cache, state.pending.unsqueeze(1), draft_tokens.shape[1]
        num_tokens = state.max_pending + num_draft
        slots = cache.slots(num_tokens + len(groups) * depth)
        inputs = self.model.embed(state.followed_by(draft_tokens).gather(1, slots[:, :num_tokens]))
        ahead = self.vectors[:depth].repeat(len(groups), 1).expand(len(inputs), -1, -1)
        positions, visible = layout(cache.lengths, pending, num_tokens, groups, depth)
        adapted = {} if self.adapter is None else {"adapter": self.adapter, "num_adapted": ahead.shape[1]}
        hidden = self.model.hidden(torch.cat([inputs, ahead], dim=1), cache, positions, visible, **adapted)
        rows = torch.arange(len(inputs), device=inputs.device).unsqueeze(1)
        real = hidden[rows, pending - 1 + torch.arange(num_draft + 1, device=inputs.device)]
        return real, hidden[:, num_tokens:].unflatten(1, (len(groups), depth)) if groups else real[:, :0, None]


def layout(
    cached: Tensor,  # [B]
    pending: Tensor,  # [B, 1]
    num_tokens: int,
    groups: list[int],
    depth: int,
) -> tuple[Tensor, Tensor]:  # [B, T], [B, T, T]
    """Return where the rows of the one call stand and which they see: tokens, then groups of `depth` rows.

    Tokens see those before them. A group behind g drafts stands where the next tokens would, and sees the text up to
    there and its own rows up to itself; no row of the text sees it.
    """
    device, num_rows = cached.device, num_tokens + len(groups) * depth
    order = torch.arange(num_rows, device=device)
    place = (order - num_tokens).clamp(min=0)
    behind = torch.tensor([0, *groups], device=device)[torch.where(order < num_tokens, 0, place // max(depth, 1) + 1)]
    behind = pending + behind  # [B, T] how many of the tokens a row's group stands behind
    positions = cached.unsqueeze(1) + torch.where(order < num_tokens, order, behind + place % max(depth, 1))
    start = num_tokens + place // max(depth, 1) * depth  # [T] where a row's group begins
    own = (order >= start.unsqueeze(1)) & (order <= order.unsqueeze(1))
    text = order < behind.unsqueeze(2)
    causal = order <= order.unsqueeze(1)
    visible = torch.where((order < num_tokens).unsqueeze(1), causal & (order < num_tokens), text | own)
    return positions, visible
