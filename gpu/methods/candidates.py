"""Speculative sampling with several candidates per position: a tree of drafts, verified in one pass.

A chain of drafts ends at the first rejection. Here every draft has siblings, and where one is rejected another may be
accepted. The target sees the whole tree at once, each draft only the drafts that it stands behind.

Source: Yang et al. 2024, "Multi-Candidate Speculative Decoding" (arXiv 2401.06706); Jeon et al. 2024, "Recursive
Speculative Decoding" (arXiv 2402.14160); Sun et al. 2023, "SpecTr" (arXiv 2310.15141); for the pass over a tree Miao et
al. 2024, "SpecInfer" (arXiv 2305.09781).

Glossary of shapes: B batch, N drafts of the tree, D' hidden state.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from ..batch_record import BatchRecord
from ..candidates import RULES
from ..config import SamplingConfig
from ..draft_tree import DraftTree, NumCandidates, TreeDrafts
from ..drafters.base import Drafter
from ..ending import Ending
from ..sampling import Processor
from ..state import State
from ..tape import Draws, Slots
from ..verify import Tokens
from .base import Method
from .checks import check_drafter, check_drafter_context, check_settings, check_tree
from .language_model import LanguageModel
from .records import drafting_record, tree_record
from .trees import draw_tree, rows_of_pass, walk_tree


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
        object.__setattr__(self, "tree", DraftTree(check_tree(self.num_candidates), self.model.device))

    @property
    def slots(self) -> Slots:
        """A draw per draft, an acceptance per candidate of each depth, and the final draw.

        Verification comes to one place of each depth, so its candidates share the uniforms of those beside it.
        """
        return {"draft": self.tree.num_drafts, "accept": sum(self.tree.widths), "final": 1}

    @property
    def scratch(self) -> int:
        """Slots that may be written behind the longest text: the drafts, a final token, and one row of padding."""
        return self.tree.num_drafts + 2

    def start_batch(self, prompts: Sequence[Sequence[int]], ending: Ending) -> State:
        """Return the state before the first cycle; see `Method.start_batch`.

        Raises:
            ValueError: a prompt and its new tokens do not fit into the drafter's context either.
        """
        state = super().start_batch(prompts, ending)
        for prompt in prompts:
            check_drafter_context(self.drafter, len(prompt), ending.max_new_tokens)
        return replace(state, draft_cache=self.drafter.new_cache(state.cache.capacity, len(prompts)))

    def step(
        self,
        state: State,
        uniforms: Tensor,  # [B, num_slots]
        trace: bool = False,
    ) -> tuple[State, BatchRecord]:
        """Run one cycle: a tree of drafts, one pass of the target, 1 + accepted tokens."""
        draws, active = Draws(uniforms, self.slots, trace), ~state.ended
        record, drafts, real = self.propose(state, draws)
        state, walk = walk_tree(self, state, drafts, self.model.logits(real), draws, self.rule)
        state.cache.keep(state.lengths.unsqueeze(1) + walk.path - 1, state.lengths, walk.num_accepted)
        state, record = state.commit(tree_record(record, drafts, walk, draws, active))
        return replace(state, draft_pending=walk.path.shape[1] + 1), record

    def propose(self, state: State, draws: Draws) -> tuple[BatchRecord, TreeDrafts, Tensor]:  # [B, N+1, D']
        """Draft a tree and run one pass over what the target has not seen and the drafts.

        Returned are the record so far, the drafts, and the hidden states behind each place of their tree.
        """
        pending, active = state.pending, ~state.ended
        drafts, num_asked = self._draft(state, draws)
        record = drafting_record(pending - 1, num_asked * self.drafter.passes_per_draft, active)
        slots = state.cache.slots(state.max_pending + drafts.tree.num_drafts)
        inputs = self.model.embed(state.followed_by(drafts.tokens[:, 1:]).gather(1, slots))
        hidden = self.model.hidden(inputs, state.cache, *rows_of_pass(state, drafts.tree))
        rows = torch.arange(len(inputs), device=slots.device).unsqueeze(1)
        return record, drafts, hidden[rows, pending.unsqueeze(1) - 1 + drafts.tree.order]

    def _draft(self, state: State, draws: Draws) -> tuple[TreeDrafts, Tensor]:
        """Draw the tree; return it, and how often the drafter was asked."""

        def next_logits(paths: Tokens, places: range) -> Tensor:
            depth, cache = paths.shape[2], state.draft_cache
            text = state.followed_by(paths[:, 0])
            logits = self.drafter.logits(text, cache, state.lengths + depth, depth or state.draft_pending)
            if cache is not None:
                cache.truncate(state.lengths)  # the drafter has seen one path, and the next is another
            return logits.unsqueeze(1)

        settings, limit = self.draft_sampling or self.sampling, state.remaining - 1  # a final token comes as well
        return draw_tree(self, state, self.tree, limit, draws, next_logits, settings, self.rule)
