"""What methods of one call per step share: the pass that verifies also looks ahead, after whatever may survive.

After the last token, and after every draft, hangs a group of look-ahead rows that sees the text up to there and
nothing of the others. When verification has kept some drafts, the group after the last of them is where the next
drafts come from: no call is spent on drafting.

Source: Monea et al. 2023 (arXiv 2311.13581) for the look-ahead rows; Stern et al. 2018 (arXiv 1811.03115), Sec. 4, for
the merged pass; Lin et al. 2024 (arXiv 2401.12522) for groups after every draft.

Glossary of shapes: L look-ahead vectors, D input vector, D' hidden state, R places in use, N rows of a group, K of them
that are of use.

PaSS in one call per step: the pass that verifies the drafts also holds the next ones, whatever prefix survives.

The drafts are a chain; `fused` says what the call holds beside them.

Source: Monea et al. 2023 (arXiv 2311.13581) for the look-ahead rows; Stern et al. 2018 (arXiv 1811.03115), Sec. 4, for
the merged pass; Lin et al. 2024 (arXiv 2401.12522) for groups after every draft.

Glossary of shapes: L look-ahead vectors.


"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from ..config import SamplingConfig, check_settings
from ..generation import State
from ..lookahead.adapter import Adapter
from ..lookahead.refinement import Refinement, refinement_of
from ..lookahead.vectors import LookAhead
from ..model.layers import Array
from ..record import Record
from ..sampling import Processor
from ..uniforms import NamedUniforms, UniformRow
from ..verify import RULES, Tokens
from .base import Method, drafting_record, verified_record
from .checks import check_groups
from .speculative import Drafts, draft_left_to_right
from .tree_shape import DraftTree, layout

if TYPE_CHECKING:
    from ..model.language_model import LanguageModel


@dataclass(frozen=True, eq=False)
class Fused(Method):
    """A method whose one call per step verifies the drafts of the step before and looks ahead for the next ones.

    `refinement` says how drafts follow from look-ahead rows and one another (default: by the head that was trained with
    the vectors, if there is one). `groups` says after how many accepted drafts a group hangs (default: after any
    number); where none does, the next step drafts nothing. A head without look-ahead rows needs no groups at all.
    """

    model: LanguageModel
    lookahead: LookAhead
    sampling: SamplingConfig = field(default_factory=SamplingConfig)
    draft_sampling: SamplingConfig | None = None
    rule: str = "token"
    processor: Processor | None = None
    refinement: Refinement = None  # type: ignore[assignment]  # that of the folder
    groups: tuple[int, ...] | None = None
    vectors: Array = field(init=False, repr=False)  # [L, D]
    adapter: Adapter | None = field(init=False, repr=False)
    tree: DraftTree = field(init=False, repr=False)

    def prepare(self, rules: Collection[str], num_lookahead: int | None) -> None:
        """Check the settings, and make what was trained ready for the model.

        Raises:
            ValueError: an unknown rule, settings beyond the vocabulary, vectors of another model, a negative number of
                them or more than there are, a group after more drafts than there can be, or a refinement for another
                model.
        """
        check_settings(self.model.vocab_size, self.sampling, self.draft_sampling, self.rule, rules)
        object.__setattr__(self, "vectors", self.lookahead.inputs(self.model, num_lookahead))
        check_groups(self.groups, len(self.vectors))
        if self.refinement is None:
            object.__setattr__(self, "refinement", refinement_of(self.lookahead, self.vectors.dtype))
        self.refinement.check(self.model)
        adapter = self.lookahead.adapter
        object.__setattr__(self, "adapter", adapter and adapter.to(self.vectors.dtype))

    def _one_call(
        self,
        state: State,
        places: list[int],
        draft_tokens: Tokens,
    ) -> tuple[Array, dict[int, Array]]:  # [R, D']
        """Run the one call: what the model has not seen, the drafts, and groups of look-ahead vectors after them.

        Returned are the hidden states after each of the `places`, the first of which is the last token, and of the
        group that hangs after a place, if one does.
        """
        pending = state.pending
        text = [*pending, *draft_tokens.tolist()]
        depth = max(0, min(len(self.vectors), state.remaining - 2))  # of a group: this step and the next end in a token
        behind = [place for place in places if depth and self._hangs(int(self.tree.depths[place]))]
        inputs = np.concatenate([self.model.embed(text), *[self.vectors[:depth]] * len(behind)])
        positions, visible = layout(state.cached, len(pending), self.tree, places, behind, depth)
        adapted = {} if self.adapter is None else {"adapter": self.adapter, "num_adapted": len(behind) * depth}
        hidden = self.model.hidden(inputs, state.cache, positions, visible, **adapted)
        starts = range(len(text), len(hidden), depth or 1)
        ahead = {place: hidden[start : start + depth] for place, start in zip(behind, starts, strict=True)}
        return hidden[len(pending) - 1 : len(text)], ahead

    def _carry(
        self,
        state: State,
        last: Array,  # [D']
        group: Array | None,  # [N, D']
    ) -> Array | None:  # [K+1, D']
        """Return what the next step drafts from: the group after the last draft that survived, as far as it may go."""
        useful = min(len(self.vectors), state.remaining - 1)
        if not self.refinement.uses_lookahead and useful > 0:
            return np.repeat(last[None], 1 + useful, axis=0)
        return None if group is None or useful <= 0 else np.concatenate([last[None], group[:useful]])

    def _hangs(self, num_accepted: int) -> bool:
        """Say whether a group hangs after so many drafts."""
        return self.refinement.uses_lookahead and (self.groups is None or num_accepted in self.groups)


@dataclass(frozen=True, eq=False)
class FusedPaSS(Fused):
    """Verify the drafts of the step before and draft the next ones in the same pass; 1 + accepted tokens per call."""

    num_lookahead: int | None = None  # L; default: all vectors

    def __post_init__(self) -> None:
        """Check the settings and the vectors against the model; see `Fused.prepare`."""
        self.prepare(RULES, self.num_lookahead)
        object.__setattr__(self, "tree", DraftTree((1,) * len(self.vectors)))

    @property
    def named_uniforms(self) -> NamedUniforms:
        """A draw and an acceptance per draft, and the final draw."""
        return {"draft": len(self.vectors), "accept": len(self.vectors), "final": 1}

    def step(
        self,
        state: State,
        uniforms: npt.NDArray[np.float64],  # [2L+1]
        trace: bool = False,
    ) -> tuple[State, Record]:
        """Run one step: K drafts from rows of the pass before, one pass that verifies them and looks ahead."""
        draws = UniformRow(uniforms, self.named_uniforms, trace)
        pending, prefix = state.pending, state.tokens
        draft_tokens, draft_probs, has_bonus_row, _ = self._draft(state, draws)
        num_draft = len(draft_tokens)
        real, ahead = self._one_call(state, list(range(num_draft + 1)), draft_tokens)

        # Row i holds the target's distribution after i drafts.
        logits = self.model.logits(real[: num_draft + has_bonus_row])
        target_probs = self.chain_probs(prefix, draft_tokens, logits)
        verification = RULES[self.rule](target_probs, draft_probs, draft_tokens, draws)
        self.check_reached(prefix, draft_tokens, logits, target_probs[: verification.num_accepted + 1])
        record = drafting_record(len(pending) - 1 + sum(map(len, ahead.values())), 0)
        record = verified_record(record, target_probs, draft_probs, draft_tokens, verification, draws)
        valid_length = len(prefix) + verification.num_accepted  # rejected drafts and look-ahead rows leave no trace
        state, record = state.commit(record, valid_length)
        last = verification.num_accepted
        return replace(state, lookahead_hidden=self._carry(state, real[last], ahead.get(last))), record

    def _draft(self, state: State, draws: UniformRow) -> Drafts:
        """Draft from the rows that the step before has left."""
        rows = np.zeros((1, 0)) if state.lookahead_hidden is None else state.lookahead_hidden
        memory = self.refinement.start(self.model, rows) if len(rows) > 1 else ()

        def next_logits(tokens: tuple[int, ...], depth: int) -> Array:
            nonlocal memory
            logits, memory = self.refinement.logits(self.model, rows[1 + depth], tokens, memory)
            return logits

        return draft_left_to_right(self, state, len(rows) - 1, draws, next_logits, self.draft_sampling or self.sampling)
