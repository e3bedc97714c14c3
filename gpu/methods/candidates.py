"""Speculative sampling with several candidates per position: a tree of drafts, verified in one pass.

A chain of drafts ends at the first rejection. Here every draft has siblings, and where one is rejected another may be
accepted. The target sees the whole tree at once, each draft only the drafts that it stands behind.

Source: Yang et al. 2024, "Multi-Candidate Speculative Decoding" (arXiv 2401.06706); Jeon et al. 2024, "Recursive
Speculative Decoding" (arXiv 2402.14160); Sun et al. 2023, "SpecTr" (arXiv 2310.15141); for the pass over a tree Miao et
al. 2024, "SpecInfer" (arXiv 2305.09781).

Glossary of shapes: B batch, N drafts of a tree, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from ..batch_record import BatchRecord
from ..candidates import RULES, draw_candidates
from ..config import SamplingConfig
from ..draft_tree import DraftTree, TreeDrafts, Walk
from ..drafters.base import Drafter
from ..ending import Ending
from ..sampling import Processor
from ..state import State
from ..tape import Draws, Slots
from ..verify import row
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
        object.__setattr__(self, "tree", DraftTree(check_tree(self.num_candidates), self.model.device))

    @property
    def slots(self) -> Slots:
        """A draw per draft, an acceptance per candidate of each depth, and the final draw.

        Verification comes to one place of each depth, so its candidates share the uniforms of those beside it.
        """
        return {"draft": self.tree.num_drafts, "accept": sum(self.num_candidates), "final": 1}

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
        draws = Draws(uniforms, self.slots, trace)
        pending, active = state.pending, ~state.ended
        drafts, num_asked = self._draft(state, active, draws)
        record = drafting_record(pending - 1, num_asked * self.drafter.passes_per_draft, active)

        # One pass over what the target has not seen and the drafts; of the tree, row i holds place i.
        logits = self._pass(state, drafts)
        state, walk = self._walk(state, drafts, logits, active, draws)
        state.cache.keep(state.lengths.unsqueeze(1) + walk.path - 1, state.lengths, walk.num_accepted)
        state, record = state.commit(tree_record(record, drafts, walk, draws, active))
        return replace(state, draft_pending=walk.path.shape[1] + 1), record

    def _draft(
        self,
        state: State,
        active: Tensor,  # [B]
        draws: Draws,
    ) -> tuple[TreeDrafts, Tensor]:  # [B]
        """Draw the tree; return it with the very laws that drafts were drawn from, and how many were asked for.

        Rows that draft nothing somewhere run along, and what they draw is ignored. The tree is as deep as some row's.
        """
        rule, settings, children = RULES[self.rule], self.draft_sampling or self.sampling, self.tree.children
        tokens = torch.zeros((len(active), len(children)), dtype=torch.int64, device=active.device)
        used, ends = torch.zeros_like(tokens, dtype=torch.bool), torch.zeros_like(tokens, dtype=torch.bool)
        probs = torch.zeros((*tokens.shape, self.model.vocab_size), dtype=torch.float64, device=active.device)
        num_asked, levels = torch.zeros_like(state.lengths), 0
        used[:, 0] = active
        for place, found in enumerate(children):
            path = tokens[:, self.tree.path(place)]
            depth = path.shape[1]
            asked = used[:, place] & ~ends[:, place] & (depth < state.remaining - 1)  # a final token comes as well
            if not found or not bool(asked.any()):
                continue
            text, cache = state.followed_by(path), state.draft_cache
            logits = self.drafter.logits(text, cache, state.lengths + depth, depth or state.draft_pending)
            logits = self.process(state, logits.unsqueeze(1), asked.unsqueeze(1), path, depth).squeeze(1)
            num_asked, levels = num_asked + asked, depth + 1
            if cache is not None:
                cache.truncate(state.lengths)  # the drafter has seen one path, and the next is another
            here, index = slice(found.start, found.stop), found.start - 1
            tokens[:, here], probs[:, here], count = draw_candidates(
                logits, settings, len(found), draws, index, rule.replacement, asked
            )
            used[:, here] = torch.arange(len(found), device=active.device) < count.unsqueeze(1)
            for child in found:
                block = torch.cat([path, tokens[:, child : child + 1]], dim=1)
                ends[:, child] = state.kept(block, (depth + 1) * used[:, child])[1]
        if levels == len(self.tree.num_candidates):
            return TreeDrafts(self.tree, used, tokens, probs), num_asked
        tree = DraftTree(self.tree.num_candidates[:levels], self.tree.device)
        size = tree.num_drafts + 1
        return TreeDrafts(tree, used[:, :size], tokens[:, :size], probs[:, :size]), num_asked

    def _pass(self, state: State, drafts: TreeDrafts) -> Tensor:  # [B, N+1, V]
        """Feed the pending tokens and the drafts, and return the logits behind place 0 and each of them.

        Rows with less to feed than others are padded behind their drafts, where nothing looks.
        """
        tree, cache, pending = drafts.tree, state.cache, state.pending.unsqueeze(1)
        slots = cache.slots(state.max_pending + tree.num_drafts)
        inputs = self.model.embed(state.followed_by(drafts.tokens[:, 1:]).gather(1, slots))
        order = torch.arange(slots.shape[1], device=slots.device)
        behind = order - pending + 1  # [B, T], up to 0 the pending tokens, then the drafts
        place = behind.clamp(0, tree.num_drafts)
        positions = state.lengths.unsqueeze(1) - 1 + torch.where(behind > 0, tree.depths[place], behind)
        visible = tree.visible
        if state.max_pending > 1:
            seen = (behind <= 0).unsqueeze(1) | visible[place.unsqueeze(2), place.unsqueeze(1)]
            visible = seen & (order <= order.unsqueeze(1))
        hidden = self.model.hidden(inputs, cache, positions, visible)
        if state.max_pending > 1:
            rows = torch.arange(len(inputs), device=slots.device).unsqueeze(1)
            hidden = hidden[rows, pending - 1 + torch.arange(tree.num_drafts + 1, device=slots.device)]
        return self.model.logits(hidden)

    def _walk(
        self,
        state: State,
        drafts: TreeDrafts,
        logits: Tensor,  # [B, N+1, V]
        active: Tensor,  # [B]
        draws: Draws,
    ) -> tuple[State, Walk]:
        """Verify from place to place: the candidates behind it, then those behind the one that was accepted."""
        tree, rule, going = drafts.tree, RULES[self.rule], active
        place, text, path = torch.zeros_like(state.lengths), state.tokens[:, :0], state.tokens[:, :0]
        accept = torch.full(drafts.tokens.shape, float("nan"), dtype=torch.float64, device=place.device)
        chances, log_probs = accept, accept[:, :0]
        final_probs = last_probs = torch.zeros_like(drafts.probs[:, 0])
        has_final = is_bonus = torch.zeros_like(active)
        num_accepted = torch.zeros_like(place)
        for depth in range(len(tree.num_candidates) + 1):
            here, largest = self.laws(state, row(logits, place).unsqueeze(1), going.unsqueeze(1), text, depth)
            state = state.note_fault(largest, depth, going.unsqueeze(1))
            target_probs = here.squeeze(1)
            last_probs = torch.where(going.unsqueeze(1), target_probs, last_probs)
            if depth == len(tree.num_candidates):
                final_probs = torch.where(going.unsqueeze(1), target_probs, final_probs)
                has_final, is_bonus = has_final | going, is_bonus | going
                break
            children = tree.candidates(depth)[place]
            count = drafts.used.gather(1, children).sum(dim=1)
            asked = going & (count > 0)
            tokens = drafts.tokens.gather(1, children)
            probs = drafts.probs.gather(1, children.unsqueeze(2).expand(-1, -1, target_probs.shape[1]))
            found = rule.verify(target_probs, probs, tokens, draws, tree.first_uniform(depth), count, asked)
            accept = torch.where(asked.unsqueeze(1), accept.scatter(1, children, found.accept_probs), accept)
            chance = chances.scatter(1, children, target_probs.gather(1, tokens))
            chances = torch.where(asked.unsqueeze(1), chance, chances)
            moved = asked & (found.accepted >= 0)
            stays = (going & ~moved).unsqueeze(1)
            final = torch.where(asked.unsqueeze(1), found.final_probs, target_probs)
            final_probs = torch.where(stays, final, final_probs)
            has_final, is_bonus = has_final | stays.squeeze(1), is_bonus | (going & ~asked)
            place = torch.where(moved, children.gather(1, found.accepted.clamp(min=0).unsqueeze(1)).squeeze(1), place)
            path = torch.cat([path, place.unsqueeze(1)], dim=1)
            text = drafts.tokens.gather(1, path)
            log_probs = torch.cat([log_probs, target_probs.gather(1, text[:, -1:]).log()], dim=1)
            num_accepted = num_accepted + moved
            going = moved & ~state.kept(text, (depth + 1) * moved)[1]
        final_token = draws.token("final", final_probs, active=has_final)
        final_log = last_probs.gather(1, final_token.unsqueeze(1)).log()
        log_probs = torch.cat([log_probs, final_log], dim=1).scatter(1, num_accepted.unsqueeze(1), final_log)
        return state, Walk(path, log_probs, final_token, is_bonus, accept, chances, num_accepted, has_final)
