"""Blockwise parallel decoding: heads on the last hidden state draft the next block, in the pass that verifies this one.

`reference.methods.blockwise` explains the methods and names their sources.

Glossary of shapes: B batch, P paths, K drafts of a path, N drafts of all paths, V vocabulary, D' hidden state, S any
number of scores.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor
from torch.nn.functional import pad

from pass_sampling.reference.methods.blockwise import STEP
from pass_sampling.reference.methods.settings import BlockSettings, PathSettings

from ..batch_record import BatchRecord
from ..lookahead.rescoring import log_probs
from ..state import State
from ..uniforms import UniformRow
from ..verify import row
from .pass_one_call import OneCall, PaSSOneCall
from .records import drafting_record
from .tree_shape import DraftTree, TreeDrafts, Walk, ends_text, tree_record

NEVER = float("-inf")


@dataclass(frozen=True, eq=False)
class Blockwise(BlockSettings, PaSSOneCall):
    """Verify a block of drafts and draft the next one by heads, in one pass without look-ahead rows."""


@dataclass(frozen=True, eq=False)
class BlockwisePaths(PathSettings, OneCall):
    """Draft the best paths through a block's lattice, and verify them side by side: the longest accepted one wins.

    See the reference for the scores, the search and the rule.
    """

    @cached_property
    def tree(self) -> DraftTree:
        """Chains beside one another, after the last token."""
        return DraftTree(self.chains, self.model.device)

    def step(self, state: State, uniforms: Tensor, trace: bool = False) -> tuple[State, BatchRecord]:
        """Run one step: the best paths from the row of the pass before, one pass that verifies them."""
        draws, pending, active = UniformRow(uniforms, self.named_uniforms, trace), state.pending, ~state.ended
        drafts = self._best_paths(state)
        real, ahead = self._one_call(state, drafts.tree, drafts.tokens[:, 1:])
        state, walk = self._walk(state, drafts, self.model.logits(real), draws)
        state.cache.keep(state.lengths.unsqueeze(1) + walk.path - 1, state.lengths, walk.num_accepted)
        record = drafting_record(pending - 1, None, active)
        state, record = state.commit(tree_record(record, drafts, walk, draws, active))
        return self._carry(state, walk.place, real, ahead), record

    def _best_paths(self, state: State) -> TreeDrafts:
        """Find the best paths; nothing follows a draft that ends the text."""
        rows, num_paths, active = state.lookahead_hidden, self.num_paths, ~state.ended
        tree = self.tree.cut(rows.shape[1] - 1)  # no rows before the first pass
        memory = tuple(each.repeat_interleave(num_paths, dim=0) for each in self._memory(state))
        paths = state.tokens[:, None, :0].expand(-1, num_paths, -1)  # [B, P, depth]
        used, first = paths.bool(), torch.arange(num_paths, device=active.device) == 0
        scores = torch.where(first, 0.0, NEVER).double().expand(len(active), -1)
        going = first & active.unsqueeze(1)
        for depth in range(len(tree.num_candidates)):
            lengths = (state.lengths + depth).repeat_interleave(num_paths)
            places = lengths.unsqueeze(1) - depth + torch.arange(depth, device=active.device)
            text = state.tokens.repeat_interleave(num_paths, dim=0).scatter(1, places, paths.flatten(0, 1))
            hidden = rows[:, 1 + depth].repeat_interleave(num_paths, dim=0)
            found, memory = self.refinement.logits(self.model, hidden, text, memory, lengths)
            found = found if self.refinement.are_scores else log_probs(found)
            found = (found.unflatten(0, (-1, num_paths)) / STEP).round() * STEP
            going = going & (depth < state.num_lookahead_hidden).unsqueeze(1)
            can = going.unsqueeze(2) & (found > NEVER)
            longer = torch.where(can, scores.unsqueeze(2) + found, NEVER)
            longer, tokens = first_largest(longer, min(num_paths, found.shape[2]))
            goes_on = longer[..., :1] > NEVER  # the other paths stay as they are
            stays = scores.unsqueeze(2).masked_fill(goes_on, NEVER)
            scores, chosen = first_largest(torch.cat([stays, longer], dim=2).flatten(1), num_paths)
            parents, slots = chosen // (longer.shape[2] + 1), chosen % (longer.shape[2] + 1)
            tokens = pad(tokens, (1, 0)).flatten(1).gather(1, chosen)
            parents = parents + torch.arange(len(active), device=active.device).unsqueeze(1) * num_paths
            memory = tuple(each[parents.flatten()] for each in memory)
            is_path = scores > NEVER
            before, used = paths.flatten(0, 1)[parents], used.flatten(0, 1)[parents] & is_path.unsqueeze(2)
            added = (slots > 0) & is_path
            going = added & ~ends_text(state, before, (1,) * num_paths, tokens, added)
            paths = torch.cat([before, tokens.unsqueeze(2)], dim=2)
            used = torch.cat([used, added.unsqueeze(2)], dim=2)
        tokens = pad(paths.transpose(1, 2).flatten(1), (1, 0))
        used = torch.cat([active.unsqueeze(1), used.transpose(1, 2).flatten(1)], dim=1)
        certain = torch.ones((1, 1, 1), dtype=torch.float64, device=active.device)  # as nothing was drawn
        return TreeDrafts(tree, used, tokens, certain.expand(*tokens.shape, self.model.vocab_size))

    def _walk(self, state: State, drafts: TreeDrafts, logits: Tensor, draws: UniformRow) -> tuple[State, Walk]:
        """Draw token after token from the model, while a path continues with the drawn token."""
        shape, going = (len(drafts.tree.num_candidates), self.num_paths), drafts.used[:, 0]
        tokens, used = (each[:, 1:].unflatten(1, shape) for each in (drafts.tokens, drafts.used))
        place, text, path = torch.zeros_like(state.lengths), state.tokens[:, :0], state.tokens[:, :0]
        alive = going.unsqueeze(1).expand(-1, self.num_paths)
        num_accepted = final_token = place
        corrected = is_bonus = torch.zeros_like(going)
        last_probs = torch.zeros_like(logits[:, 0], dtype=torch.float64)
        log_probs, chances = last_probs[:, :0], []
        for depth in range(shape[0] + 1):
            here, largest = self.chain_probs(state, row(logits, place).unsqueeze(1), going.unsqueeze(1), text, depth)
            state, probs = state.note_fault(largest, depth, going.unsqueeze(1)), here.squeeze(1)
            last_probs = torch.where(going.unsqueeze(1), probs, last_probs)
            if depth == shape[0]:
                is_bonus = is_bonus | going
                break
            candidates = alive & used[:, depth] & going.unsqueeze(1)
            asked, chance = candidates.any(dim=1), probs.gather(1, tokens[:, depth])
            chances.append(chance.masked_fill(~candidates, float("nan")))
            token = draws.token("accept", probs, depth, asked)
            alive = candidates & (tokens[:, depth] == token.unsqueeze(1))
            moved = alive.any(dim=1)
            is_bonus, corrected = is_bonus | (going & ~asked), corrected | (asked & ~moved)
            final_token = torch.where(asked & ~moved, token, final_token)
            place = torch.where(moved, 1 + depth * self.num_paths + alive.long().argmax(dim=1), place)
            path = torch.cat([path, place.unsqueeze(1)], dim=1)
            text = drafts.tokens.gather(1, path)
            log_probs = torch.cat([log_probs, probs.gather(1, text[:, -1:]).log()], dim=1)
            num_accepted = num_accepted + moved
            going = moved & ~state.num_kept(text, (depth + 1) * moved)[1]
        final_token = torch.where(corrected, final_token, draws.token("final", last_probs, active=is_bonus))
        final_log = last_probs.gather(1, final_token.unsqueeze(1)).log()
        log_probs = torch.cat([log_probs, final_log], dim=1).scatter(1, num_accepted.unsqueeze(1), final_log)
        accept = torch.cat([torch.full_like(log_probs[:, :1], float("nan")), *chances], dim=1)
        outcome = num_accepted, is_bonus | corrected, place
        return state, Walk(path, log_probs, final_token, is_bonus, accept, accept, *outcome)


def first_largest(
    scores: Tensor,  # [..., S]
    count: int,
) -> tuple[Tensor, Tensor]:  # [..., count], [..., count]
    """Return the largest scores, the largest first, and their places: the first places among equals."""
    least = scores.topk(count, dim=-1).values[..., -1:]
    above, equal = scores > least, scores == least
    room = count - above.sum(dim=-1, keepdim=True)
    kept = above | (equal & (equal.cumsum(dim=-1) <= room))
    places = kept.to(torch.uint8).topk(count, dim=-1).indices.sort(dim=-1).values
    values, order = scores.gather(-1, places).sort(dim=-1, descending=True, stable=True)
    return values, places.gather(-1, order)
