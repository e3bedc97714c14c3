"""Speculative sampling with several candidates per position: a tree of drafts, verified in one pass.

A chain of drafts ends at the first rejection. Here every draft has siblings, and where one is rejected another may be
accepted. The target sees the whole tree at once, each draft only the drafts that it stands after.

Source: Yang et al. 2024, "Multi-Candidate Speculative Decoding" (arXiv 2401.06706); Jeon et al. 2024, "Recursive
Speculative Decoding" (arXiv 2402.14160); Sun et al. 2023, "SpecTr" (arXiv 2310.15141); for the pass over a tree Miao et
al. 2024, "SpecInfer" (arXiv 2305.09781).

Candidates in one call per step: the pass that verifies a tree of drafts looks ahead after every place of it.

A chain of drafts ends at its first rejection, and the rows that looked ahead after the others were in vain. Here every
draft has siblings, drafted from the same look-ahead row, each refined by the path that leads to it.

Source: `fused` for the call, `candidates` for the tree; Cai et al. 2024, "Medusa" (arXiv 2401.10774), for candidates of
several depths from one pass.

Glossary of shapes: L look-ahead vectors, N drafts of the tree.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from ..config import SamplingConfig, check_settings
from ..drafters.base import Drafter
from ..ending import Ending
from ..model.layers import Array
from ..record import Record
from ..sampling import Processor
from ..uniforms import NamedUniforms, UniformRow
from .base import Method, State, drafting_record
from .checks import check_drafter, check_drafter_context
from .pass_one_call import Fused
from .tree_rules import RULES
from .tree_shape import DraftTree, NumCandidates, TreeDrafts, check_tree, draw_tree, layout, tree_record, walk_tree

if TYPE_CHECKING:
    from ..model.language_model import LanguageModel


@dataclass(frozen=True, eq=False)
class Candidates(Method):
    """Draft a tree, `num_candidates[d]` tokens after everything at depth d, then verify it with the target.

    `draft_sampling` gives the drafts settings of their own; the text's distribution does not depend on them. Where
    the text may end soon the tree is cut, and after a draft that ends it, or where the drafter has no distribution,
    nothing stands.
    """

    model: LanguageModel
    drafter: Drafter
    sampling: SamplingConfig = field(default_factory=SamplingConfig)
    draft_sampling: SamplingConfig | None = None
    rule: str = "without-replacement"
    processor: Processor | None = None
    num_candidates: NumCandidates = (2, 2, 1)
    tree: DraftTree = field(init=False, repr=False)

    def __post_init__(self) -> None:
        """Check the settings and the drafter against the model.

        Raises:
            ValueError: an unknown rule, settings beyond the vocabulary, a drafter with another vocabulary, or numbers
                of candidates that are not positive integers.
        """
        check_settings(self.model.vocab_size, self.sampling, self.draft_sampling, self.rule, RULES)
        check_drafter(self.model, self.drafter, 0)
        object.__setattr__(self, "tree", DraftTree(check_tree(self.num_candidates)))

    @property
    def named_uniforms(self) -> NamedUniforms:
        """A draw per draft, an acceptance per candidate of each depth, and the final draw.

        Verification comes to one place of each depth, so its candidates share the uniforms of those beside it.
        """
        return {"draft": self.tree.num_drafts, "accept": sum(self.tree.widths), "final": 1}

    def start(self, prompt: Sequence[int], ending: Ending) -> State:
        """Return the state before the first step; see `Method.start`.

        Raises:
            ValueError: prompt and new tokens do not fit into the drafter's context either.
        """
        state = super().start(prompt, ending)
        check_drafter_context(self.drafter, len(prompt), ending.max_new_tokens)
        return replace(state, draft_cache=self.drafter.new_cache(state.cache.capacity))

    def step(
        self,
        state: State,
        uniforms: npt.NDArray[np.float64],  # [num_uniforms]
        trace: bool = False,
    ) -> tuple[State, Record]:
        """Run one step: a tree of drafts, one pass of the target, 1 + accepted tokens."""
        draws = UniformRow(uniforms, self.named_uniforms, trace)
        pending, prefix = state.pending, state.tokens
        drafts, num_asked = self._draft(state, draws)
        record = drafting_record(len(pending) - 1, num_asked * self.drafter.passes_per_draft)

        # One pass over what the target has not seen and the drafts; of the tree, row i holds the i-th place in use.
        places = np.flatnonzero(drafts.used).tolist()
        inputs = self.model.embed([*pending, *drafts.tokens[places[1:]].tolist()])
        hidden = self.model.hidden(inputs, state.cache, *layout(state.cached, len(pending), self.tree, places))
        logits = dict(zip(places, self.model.logits(hidden[len(pending) - 1 :]), strict=True))
        walk = walk_tree(self, state, drafts, logits, draws, self.rule)
        rows = [places.index(place) for place in walk.path]
        state.cache.keep(len(prefix) - 1 + np.array(rows, dtype=np.int64), len(prefix))  # the rest leaves no trace
        return state.commit(tree_record(record, drafts, walk, draws))

    def _draft(self, state: State, draws: UniformRow) -> tuple[TreeDrafts, int]:
        """Draw the tree; return it, and how often the drafter was asked."""

        def next_logits(tokens: tuple[int, ...], place: int) -> Array:
            logits = self.drafter.logits(tokens, state.draft_cache)
            state.keep(len(state.tokens))  # the drafter has seen one path, and the next is another
            return logits

        settings, limit = self.draft_sampling or self.sampling, state.remaining - 1  # a final token comes as well
        return draw_tree(self, state, self.tree, limit, draws, next_logits, settings, self.rule)


@dataclass(frozen=True, eq=False)
class FusedCandidates(Fused):
    """Draft a tree from the rows of the step before, then verify it and look ahead in one pass; 1 + accepted tokens.

    `num_candidates[d]` tokens stand after everything at depth d, see `DraftTree`: at most as many depths as there are
    vectors, of which no more are used.
    """

    rule: str = "without-replacement"
    num_candidates: NumCandidates = (2, 2, 1)

    def __post_init__(self) -> None:
        """Check the settings, the vectors and the tree; see `Fused.prepare`.

        Raises:
            ValueError: numbers of candidates that make no tree, or more depths than there are vectors.
        """
        object.__setattr__(self, "tree", DraftTree(check_tree(self.num_candidates)))
        depth, most = len(self.tree.num_candidates), self.lookahead.num_lookahead
        if depth > most:
            found = f"{self.num_candidates!r:.80}"
            raise ValueError(
                f"num_candidates: found {found}, expected at most {most} depths, one per look-ahead vector"
            )
        self.prepare(RULES, depth)

    @property
    def named_uniforms(self) -> NamedUniforms:
        """A draw per draft, an acceptance per candidate of each depth, and the final draw; see `Candidates`."""
        return {"draft": self.tree.num_drafts, "accept": sum(self.tree.widths), "final": 1}

    def step(
        self,
        state: State,
        uniforms: npt.NDArray[np.float64],  # [num_uniforms]
        trace: bool = False,
    ) -> tuple[State, Record]:
        """Run one step: a tree of drafts from rows of the pass before, one pass that verifies it and looks ahead."""
        draws = UniformRow(uniforms, self.named_uniforms, trace)
        pending, prefix = state.pending, state.tokens
        drafts = self._draft(state, draws)
        places = np.flatnonzero(drafts.used).tolist()
        real, ahead = self._one_call(state, places, drafts.tokens[places[1:]])
        record = drafting_record(len(pending) - 1 + sum(map(len, ahead.values())), 0)

        # Row i holds the target's distribution after the i-th place in use.
        logits = dict(zip(places, self.model.logits(real), strict=True))
        walk = walk_tree(self, state, drafts, logits, draws, self.rule)
        rows = [places.index(place) for place in walk.path]
        state.cache.keep(len(prefix) - 1 + np.array(rows, dtype=np.int64), len(prefix))  # the rest leaves no trace
        state, record = state.commit(tree_record(record, drafts, walk, draws))
        last = walk.path[-1] if walk.path else 0
        return replace(state, lookahead_hidden=self._carry(state, real[places.index(last)], ahead.get(last))), record

    def _draft(self, state: State, draws: UniformRow) -> TreeDrafts:
        """Draw the tree from the rows that the step before has left; what a refinement remembers follows each path."""
        rows = np.zeros((1, 0)) if state.lookahead_hidden is None else state.lookahead_hidden
        memories = {-1: self.refinement.start(self.model, rows) if len(rows) > 1 else ()}

        def next_logits(tokens: tuple[int, ...], place: int) -> Array:
            row, memory = rows[1 + int(self.tree.depths[place])], memories[self.tree.parents[place]]
            logits, memories[place] = self.refinement.logits(self.model, row, tokens, memory)
            return logits

        settings = self.draft_sampling or self.sampling
        return draw_tree(self, state, self.tree, len(rows) - 1, draws, next_logits, settings, self.rule)[0]
