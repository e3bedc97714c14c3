"""Speculative sampling with several candidates per position: a tree of drafts, verified in one pass.

A chain of drafts ends at the first rejection. Here every draft has siblings, and where one is rejected another may be
accepted. The target sees the whole tree at once, each draft only the drafts that it stands behind.

Source: Yang et al. 2024, "Multi-Candidate Speculative Decoding" (arXiv 2401.06706); Jeon et al. 2024, "Recursive
Speculative Decoding" (arXiv 2402.14160); Sun et al. 2023, "SpecTr" (arXiv 2310.15141); for the pass over a tree Miao et
al. 2024, "SpecInfer" (arXiv 2305.09781).

"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import numpy.typing as npt

from ..candidates import RULES
from ..config import SamplingConfig
from ..draft_tree import DraftTree, NumCandidates, TreeDrafts
from ..drafters.base import Drafter
from ..ending import Ending
from ..layers import Array
from ..record import Record
from ..sampling import Processor
from ..state import State
from ..tape import Draws, Slots
from .base import Method
from .checks import check_drafter, check_drafter_context, check_settings, check_tree
from .language_model import LanguageModel
from .records import drafting_record, tree_record
from .trees import draw_tree, layout, walk_tree


@dataclass(frozen=True, eq=False)
class Candidates(Method):
    """Draft a tree, `num_candidates[d]` tokens behind everything at depth d, then verify it with the target.

    `draft_sampling` gives the drafts settings of their own; the text's law does not depend on them. Where the text may
    end soon the tree is cut, and behind a draft that ends it, or where the drafter has no law, nothing stands.
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
    def slots(self) -> Slots:
        """A draw per draft, an acceptance per candidate of each depth, and the final draw.

        Verification comes to one place of each depth, so its candidates share the uniforms of those beside it.
        """
        return {"draft": self.tree.num_drafts, "accept": sum(self.tree.widths), "final": 1}

    def start(self, prompt: Sequence[int], ending: Ending) -> State:
        """Return the state before the first cycle; see `Method.start`.

        Raises:
            ValueError: prompt and new tokens do not fit into the drafter's context either.
        """
        state = super().start(prompt, ending)
        check_drafter_context(self.drafter, len(prompt), ending.max_new_tokens)
        return replace(state, draft_cache=self.drafter.new_cache(state.cache.capacity))

    def step(
        self,
        state: State,
        uniforms: npt.NDArray[np.float64],  # [num_slots]
        trace: bool = False,
    ) -> tuple[State, Record]:
        """Run one cycle: a tree of drafts, one pass of the target, 1 + accepted tokens."""
        draws = Draws(uniforms, self.slots, trace)
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

    def _draft(self, state: State, draws: Draws) -> tuple[TreeDrafts, int]:
        """Draw the tree; return it, and how often the drafter was asked."""

        def next_logits(tokens: tuple[int, ...], place: int) -> Array:
            logits = self.drafter.logits(tokens, state.draft_cache)
            state.keep(len(state.tokens))  # the drafter has seen one path, and the next is another
            return logits

        settings, limit = self.draft_sampling or self.sampling, state.remaining - 1  # a final token comes as well
        return draw_tree(self, state, self.tree, limit, draws, next_logits, settings, self.rule)
