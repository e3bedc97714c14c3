"""Speculative sampling with several candidates per position: a tree of drafts, verified in one pass.

A chain of drafts ends at the first rejection. Here every draft has siblings, and where one is rejected another may be
accepted. The target sees the whole tree at once, each draft only the drafts that it stands behind.

Source: Yang et al. 2024, "Multi-Candidate Speculative Decoding" (arXiv 2401.06706); Jeon et al. 2024, "Recursive
Speculative Decoding" (arXiv 2402.14160); Sun et al. 2023, "SpecTr" (arXiv 2310.15141); for the pass over a tree Miao et
al. 2024, "SpecInfer" (arXiv 2305.09781).

Glossary of shapes: N drafts of a tree, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import numpy.typing as npt

from ..candidates import RULES, draw_candidates
from ..config import SamplingConfig
from ..draft_tree import DraftTree, TreeDrafts, Walk
from ..drafters.base import Drafter
from ..ending import Ending
from ..layers import Array
from ..record import Record
from ..sampling import Probs, Processor, has_law
from ..state import State
from ..tape import Draws, Slots
from .base import Method
from .checks import check_drafter, check_drafter_context, check_settings, check_tree
from .language_model import LanguageModel
from .records import drafting_record, tree_record


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
    num_candidates: tuple[int, ...] = (2, 2, 1)
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
        return {"draft": self.tree.num_drafts, "accept": sum(self.num_candidates), "final": 1}

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
        places = np.flatnonzero(drafts.used)
        logits = self._pass(state, drafts, places)
        walk = self._walk(state, drafts, dict(zip(places.tolist(), logits, strict=True)), draws)
        rows = len(prefix) - 1 + np.searchsorted(places, walk.path)
        state.cache.keep(rows, len(prefix))  # drafts off the path leave no trace
        return state.commit(tree_record(record, drafts, walk, draws))

    def _draft(self, state: State, draws: Draws) -> tuple[TreeDrafts, int]:
        """Draw the tree; return it with the very laws that drafts were drawn from, and how many were asked for."""
        tree, rule, vocab_size = self.tree, RULES[self.rule], self.model.vocab_size
        used, num_asked = np.arange(tree.num_drafts + 1) == 0, 0
        tokens, probs = np.zeros(used.size, dtype=np.int64), np.zeros((used.size, vocab_size))
        for place in range(used.size):
            path, children = tokens[tree.path(place)].tolist(), tree.children[place]
            if not used[place] or not children or state.ends_with(path) or len(path) >= state.remaining - 1:
                continue  # a final token comes as well
            prefix = (*state.tokens, *path)
            logits = self.process(prefix, self.drafter.logits(prefix, state.draft_cache))
            num_asked += 1
            state.keep(len(state.tokens))  # the drafter has seen one path, and the next is another
            if has_law(logits):
                settings, index = self.draft_sampling or self.sampling, children[0] - 1
                found, laws = draw_candidates(logits, settings, len(children), draws, index, rule.replacement)
                here = slice(children[0], children[0] + len(found))
                used[here], tokens[here], probs[here] = True, found, laws
        return TreeDrafts(tree, used, tokens, probs), num_asked

    def _pass(
        self,
        state: State,
        drafts: TreeDrafts,
        places: npt.NDArray[np.integer],  # [R]
    ) -> Array:  # [R, V]
        """Feed the pending tokens and the drafts in use, and return the logits behind place 0 and each of them."""
        pending, count = state.pending, len(places) - 1
        visible = np.tri(len(pending) + count, dtype=np.bool_)
        visible[len(pending) :, len(pending) :] = drafts.tree.visible[np.ix_(places[1:], places[1:])]
        depths = drafts.tree.depths[places[1:]]
        positions = np.concatenate([np.arange(state.cached, len(state.tokens)), len(state.tokens) - 1 + depths])
        inputs = self.model.embed([*pending, *drafts.tokens[places[1:]].tolist()])
        hidden = self.model.hidden(inputs, state.cache, positions, visible)
        return self.model.logits(hidden[len(pending) - 1 :])

    def _walk(self, state: State, drafts: TreeDrafts, logits: dict[int, Array], draws: Draws) -> Walk:
        """Verify from place to place: the candidates behind it, then those behind the one that was accepted."""
        tree, tokens, rule = drafts.tree, drafts.tokens, RULES[self.rule]
        accept, chances = np.full((2, tokens.size), np.nan)
        path: list[int] = []
        laws: list[Probs] = []
        while True:
            place = path[-1] if path else 0
            laws.append(self.law((*state.tokens, *tokens[path].tolist()), logits[place]))
            candidates = [child for child in tree.children[place] if drafts.used[child]]
            if not candidates:
                final_probs: Probs | None = laws[-1]
                break
            index = tree.first_uniform(len(path))
            found = rule.verify(laws[-1], drafts.probs[candidates], tokens[candidates], draws, index)
            accept[candidates], chances[candidates] = found.accept_probs, laws[-1][tokens[candidates]]
            if found.accepted is None:
                final_probs = found.final_probs
                break
            path.append(candidates[found.accepted])
            if state.ends_with(tokens[path].tolist()):
                final_probs = None
                break
        final_token = None if final_probs is None else draws.token("final", final_probs)
        emitted = [*tokens[path].tolist(), *([] if final_token is None else [final_token])]
        log_probs = [float(np.log(law[token])) for law, token in zip(laws, emitted, strict=False)]
        return Walk(path, log_probs, final_token, not candidates, accept, chances)
