"""PaSS in one call per step: the pass that verifies the drafts also holds the next ones, whatever prefix survives.

Behind the last token, and behind every draft, hangs a group of look-ahead rows that sees the text up to there and
nothing of the others. When verification has kept some drafts, the group behind the last of them is where the next
drafts come from: no call is spent on drafting.

Source: Monea et al. 2023 (arXiv 2311.13581) for the look-ahead rows; Stern et al. 2018 (arXiv 1811.03115), Sec. 4, for
the merged pass; Lin et al. 2024 (arXiv 2401.12522) for groups behind every draft.

Glossary of shapes: L look-ahead vectors, D input vector, T rows of the pass.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import numpy as np
import numpy.typing as npt

from ..adapter import Adapter
from ..config import SamplingConfig
from ..layers import Array, Mask
from ..lookahead import LookAhead
from ..record import Record
from ..refine import Refinement, refinement_of
from ..sampling import Processor
from ..state import State
from ..tape import Draws, Slots
from ..verify import RULES
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
    vectors: Array = field(init=False, repr=False)  # [L, D]
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
            object.__setattr__(self, "refinement", refinement_of(self.lookahead, self.vectors.dtype))
        adapter = self.lookahead.adapter
        object.__setattr__(self, "adapter", adapter and adapter.to(self.vectors.dtype))

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

        # The one call: what the model has not seen, the drafts, and groups of look-ahead vectors behind each of them.
        text = [*pending, *draft_tokens.tolist()]
        depth = max(0, min(len(self.vectors), state.remaining - 2))  # of a group: this step and the next end in a token
        groups = [g for g in range(num_draft + 1) if depth and self._hangs(g)]
        inputs = np.concatenate([self.model.embed(text), *[self.vectors[:depth]] * len(groups)])
        positions, visible = layout(len(prefix) - len(pending), len(text), num_draft, groups, depth)
        adapted = {} if self.adapter is None else {"adapter": self.adapter, "num_adapted": len(groups) * depth}
        hidden = self.model.hidden(inputs, state.cache, positions, visible, **adapted)

        # Row i holds the target's law after i drafts.
        real = hidden[len(pending) - 1 : len(text)]
        logits = self.model.logits(real[: num_draft + goes_on])
        target_probs = self.laws(prefix, draft_tokens, logits)
        verdict = RULES[self.rule](target_probs, draft_probs, draft_tokens, draws)
        self.check_reached(prefix, draft_tokens, logits, target_probs[: verdict.num_reached])
        record = drafting_record(len(pending) - 1 + len(groups) * depth, 0)
        record = verified_record(record, target_probs, draft_probs, draft_tokens, verdict, draws)
        sound = len(prefix) + verdict.num_accepted  # rejected drafts and look-ahead rows leave no trace
        state, record = state.commit(record, sound)

        # What the next step drafts from: the group behind the last draft that survived, as far as a draft may go.
        carried, useful, last = None, min(depth, state.remaining - 1), real[verdict.num_accepted, None]
        if useful > 0 and verdict.num_accepted in groups:
            start = len(text) + groups.index(verdict.num_accepted) * depth
            carried = np.concatenate([last, hidden[start : start + useful]])
        elif useful > 0 and self.refinement.alone:
            carried = np.repeat(last, 1 + useful, axis=0)
        return replace(state, carried=carried), record

    def _hangs(self, num_accepted: int) -> bool:
        """Say whether a group hangs behind so many drafts."""
        return not self.refinement.alone and (self.groups is None or num_accepted in self.groups)

    def _draft(self, state: State, draws: Draws) -> Drafts:
        """Draft from the rows that the step before has left."""
        rows = np.zeros((1, 0)) if state.carried is None else state.carried
        memory = self.refinement.start(rows[0]) if len(rows) > 1 else None

        def next_logits(tokens: tuple[int, ...], depth: int) -> Array:
            nonlocal memory
            logits, memory = self.refinement.logits(self.model, rows[1 + depth], tokens, memory)
            return logits

        return draft_left_to_right(self, state, len(rows) - 1, draws, next_logits, self.draft_sampling or self.sampling)


def layout(
    cached: int, num_tokens: int, num_draft: int, groups: list[int], depth: int
) -> tuple[npt.NDArray[np.int64], Mask]:  # [T], [T, T]
    """Return where the rows of the one call stand and which they see: T = tokens, then groups of `depth` rows.

    Tokens see those before them. A group behind g drafts stands where the next tokens would, and sees the text up to
    there and its own rows up to itself; no row of the text sees it.
    """
    num_rows = num_tokens + len(groups) * depth
    positions = np.arange(cached, cached + num_rows)
    visible = np.tri(num_rows, dtype=np.bool_)
    for place, g in enumerate(groups):
        rows = slice(num_tokens + place * depth, num_tokens + (place + 1) * depth)
        behind = num_tokens - num_draft + g  # how many of the tokens the group stands behind
        positions[rows] = cached + behind + np.arange(depth)
        visible[rows, behind : rows.start] = False
    return positions, visible
