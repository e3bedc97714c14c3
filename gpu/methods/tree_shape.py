"""A tree of drafts: its tables on a device, and how one step draws it, feeds it and verifies it.

Places are numbered breadth first. Place 0 is the last committed token, and the drafts follow it. A chain of drafts is a
tree with one candidate at every depth. The rows of a batch share the shape; `used` marks the places that hold a draft.

Glossary of shapes: B batch, C candidates, N drafts of the tree, V vocabulary, R accepted drafts at most, or places
asked side by side, M drafts after these, T rows of the pass.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import torch
from torch import Tensor
from torch.nn.functional import pad

from pass_sampling.reference.config import SamplingConfig
from pass_sampling.reference.methods.tree_shape import TreeShape

from ..batch_record import BatchRecord
from ..host import constant
from ..sampling import Probs
from ..state import State, may_any
from ..uniforms import UniformRow
from ..verify import Tokens, row
from .base import Method
from .records import add_verification, with_final
from .tree_rules import RULES, draw_candidates


@dataclass(frozen=True)
class DraftTree(TreeShape):
    """A shape, with tables on a device. Each is made once, as a captured step must not copy anything to its device."""

    device: torch.device | str = "cpu"

    @cached_property
    def depths(self) -> Tensor:  # [N+1]
        """The number of drafts on the path to each place."""
        return self.visible.sum(dim=1) - 1

    @cached_property
    def visible(self) -> Tensor:  # [N+1, N+1]
        """Which places each place attends to: those on its path, itself included, and place 0."""
        visible = torch.eye(len(self.children), dtype=torch.bool)
        for place, parent in enumerate(self.parents[1:], start=1):
            visible[place] |= visible[parent]
        return visible.to(self.device)

    @cached_property
    def order(self) -> Tensor:  # [N+1]
        """All places in turn."""
        return torch.arange(len(self.children), device=self.device)

    @cached_property
    def candidates(self) -> dict[int, Tensor]:
        """The places after each place of a depth, [N+1, C], padded with 0."""
        tables = {}
        for depth, width in enumerate(self.widths):
            table = torch.zeros((len(self.children), width), dtype=torch.int64)
            for place in self.levels[depth]:
                children = self.children[place]
                table[place, : len(children)] = torch.arange(children.start, children.stop)
            tables[depth] = table.to(self.device)
        return tables

    @cached_property
    def paths(self) -> dict[int, Tensor]:
        """The drafts up to each place of a depth, [R, depth]."""
        paths = [torch.tensor([self.path(place) for place in level], dtype=torch.int64) for level in self.levels]
        return {depth: path.to(self.device) for depth, path in enumerate(paths)}

    @cached_property
    def _shorter(self) -> tuple[DraftTree, ...]:
        return tuple(DraftTree(self.num_candidates[:depth], self.device) for depth in range(len(self.num_candidates)))

    def cut(self, depth: int) -> DraftTree:
        """Return the first `depth` depths of drafts; always the same tree."""
        return self if depth >= len(self.num_candidates) else self._shorter[depth]

    @cached_property
    def layouts(self) -> dict[tuple[tuple[int, ...], int], tuple[Tensor, Tensor]]:
        """The results of `layout` for one pending token, which do not change."""
        return {}


@dataclass(frozen=True)
class TreeDrafts:
    """The drafts of a step. The entries of places that are not used mean nothing."""

    tree: DraftTree
    used: Tensor  # [B, N+1], place 0 where the text goes on
    tokens: Tokens  # [B, N+1]
    probs: Probs  # [B, N+1, V], the distribution that each draft was drawn from


@dataclass(frozen=True)
class Walk:
    """The outcome of verification: a path of accepted drafts from place 0, and the token that follows it."""

    path: Tensor  # [B, R], the accepted drafts, padded
    log_probs: Probs  # [B, R+1], of the accepted tokens and the one that follows them, by the target
    final_token: Tensor  # [B]
    is_bonus: Tensor  # [B]
    accept_probs: Probs  # [B, N+1], the chance of each draft, once reached; NaN where verification did not come
    target_token_probs: Probs  # [B, N+1], the same
    num_accepted: Tensor  # [B]
    has_final: Tensor  # [B], whether the text goes on after the path
    place: Tensor  # [B], the last of the path


def draw_tree(
    method: Method,
    state: State,
    tree: DraftTree,
    limit: Tensor,  # [B]
    draws: UniformRow,
    next_logits: Callable[[Tokens, range], Tensor],
    sampling: SamplingConfig,
    rule: str,
    side_by_side: bool = False,
) -> tuple[TreeDrafts, Tensor]:  # [B]
    """Draw candidates after place after place: `next_logits(paths, places)` gives the logits after text and paths.

    Returns the drafts with the distributions that they were drawn from, and the number of logits asked for.
    Nothing follows a draft that ends the text, `limit` drafts, or logits that make no distribution. One place is asked
    for at a time or, `side_by_side`, all places of a depth. Paths are `[B, R, depth]`, and logits `[B, R, V]`.

    Rows that draft nothing somewhere run along, and their draws are ignored. The tree is as deep as the deepest row's.
    """
    active, size = ~state.ended, tree.num_drafts + 1
    tokens = torch.zeros((len(active), size), dtype=torch.int64, device=active.device)
    used, ends = torch.zeros_like(tokens, dtype=torch.bool), torch.zeros_like(tokens, dtype=torch.bool)
    probs = torch.zeros((*tokens.shape, method.model.vocab_size), dtype=torch.float64, device=active.device)
    num_asked, num_levels = torch.zeros_like(state.lengths), 0
    used[:, 0] = active
    for depth, level in enumerate(tree.levels):
        for places in (level,) if side_by_side else (level[place : place + 1] for place in range(len(level))):
            counts, those = [len(tree.children[place]) for place in places], slice(places.start, places.stop)
            asked = used[:, those] & ~ends[:, those] & (depth < limit).unsqueeze(1)
            asked = asked & constant(tuple(counts), active.device).bool()
            if not any(counts) or not may_any(state, asked):
                continue
            paths = tokens[:, tree.paths[depth][places.start - level.start : places.stop - level.start]]
            logits = next_logits(paths, places)
            if method.processor is not None:
                processed = [
                    method.process(state, logits[:, i : i + 1], asked[:, i : i + 1], paths[:, i], depth)
                    for i in range(len(places))
                ]
                logits = torch.cat(processed, dim=1)
            num_asked, num_levels = num_asked + asked.sum(dim=1), depth + 1
            start, replacement = tree.children[places.start].start, RULES[rule].replacement
            here = slice(start, start + sum(counts))
            found = draw_candidates(logits, sampling, counts, draws, start - 1, replacement, asked)
            tokens[:, here], probs[:, here], used[:, here] = found
            ends[:, here] = ends_text(state, paths, counts, found[0], found[2])
    tree = tree.cut(num_levels)
    size = tree.num_drafts + 1
    return TreeDrafts(tree, used[:, :size], tokens[:, :size], probs[:, :size]), num_asked


def ends_text(
    state: State,
    paths: Tokens,  # [B, R, ...]
    counts: Sequence[int],
    tokens: Tokens,  # [B, M]
    used: Tensor,  # [B, M]
) -> Tensor:  # [B, M]
    """Return which of the drafts after paths end the text; its length is not considered."""
    if not state.ending.asks_host:
        return used & (tokens.unsqueeze(2) == state.eos).any(dim=2)
    found, parents = [], [place for place, count in enumerate(counts) for _ in range(count)]
    for draft, place in enumerate(parents):
        text = torch.cat([paths[:, place], tokens[:, draft : draft + 1]], dim=1)
        found.append(state.num_kept(text, text.shape[1] * used[:, draft])[1])
    return torch.stack(found, dim=1)


def rows_of_pass(
    state: State, tree: DraftTree, anchors: tuple[int, ...] = (), depth: int = 0
) -> tuple[Tensor, Tensor]:  # [B, T], [..., T, T]
    """Return the positions of the rows of one pass, and which rows they attend to; see `layout`."""
    if state.max_pending > 1:
        offsets, visible = layout(state.pending.unsqueeze(1), state.max_pending, tree, anchors, depth)
    else:
        if (anchors, depth) not in tree.layouts:
            one = torch.ones((1, 1), dtype=torch.int64, device=state.lengths.device)
            tree.layouts[anchors, depth] = layout(one, 1, tree, anchors, depth)
        offsets, visible = tree.layouts[anchors, depth]
        visible = visible[0]
    return state.lengths.unsqueeze(1) - 1 + offsets, visible


def layout(
    pending: Tensor,  # [B, 1]
    max_pending: int,
    tree: DraftTree,
    anchors: tuple[int, ...] = (),
    depth: int = 0,
) -> tuple[Tensor, Tensor]:  # [B, T], [B, T, T]
    """Return how far after the last committed token the rows of one pass are, and which rows they attend to.

    The pending tokens come first, the last of which is place 0, then the drafts. Each attends to the pending tokens up
    to itself and to the drafts on its path. Rows with fewer pending tokens than others are padded after their drafts,
    and nothing attends to the padding. Then come groups of `depth` look-ahead rows, one after each of the places
    `anchors`. A group has the positions of the next tokens. It attends to what its anchor attends to, and to its own
    rows up to themselves. No other row attends to it.
    """
    num_text, num_ahead = max_pending + tree.num_drafts, len(anchors) * depth
    order = torch.arange(num_text, device=pending.device)
    after = order - pending + 1  # [B, ...], up to 0 the pending tokens, then the drafts
    place = after.clamp(0, tree.num_drafts)
    offsets = torch.where(after > 0, tree.depths[place], after)
    up_to_path = (after <= 0).unsqueeze(1) | tree.visible[place.unsqueeze(2), place.unsqueeze(1)]
    text = up_to_path & (order <= order.unsqueeze(1))
    if num_ahead == 0:
        return offsets, text
    before = pending - 1 + constant(anchors, pending.device)  # the row before each group
    ahead = offsets.gather(1, before).unsqueeze(2) + torch.arange(1, depth + 1, device=pending.device)
    context = text.gather(1, before.unsqueeze(2).expand(-1, -1, num_text)).repeat_interleave(depth, dim=1)
    causal = torch.ones((depth, depth), dtype=torch.bool, device=pending.device).tril()
    own = torch.block_diag(*[causal] * len(anchors)).expand(len(pending), -1, -1)
    text = pad(text, (0, num_ahead))
    return torch.cat([offsets, ahead.flatten(1)], dim=1), torch.cat([text, torch.cat([context, own], dim=2)], dim=1)


def walk_tree(
    method: Method,
    state: State,
    drafts: TreeDrafts,
    logits: Tensor,  # [B, N+1, V]
    draws: UniformRow,
    rule: str,
) -> tuple[State, Walk]:
    """Verify from place to place: the candidates after it, then those after the one that was accepted.

    `logits` are the target's, after place 0 and after each draft.
    """
    tree, going = drafts.tree, drafts.used[:, 0]
    place, text, path = torch.zeros_like(state.lengths), state.tokens[:, :0], state.tokens[:, :0]
    accept = torch.full(drafts.tokens.shape, float("nan"), dtype=torch.float64, device=place.device)
    chances, log_probs = accept, accept[:, :0]
    final_probs = last_probs = torch.zeros_like(drafts.probs[:, 0])
    has_final = is_bonus = torch.zeros_like(going)
    num_accepted = torch.zeros_like(place)
    for depth in range(len(tree.num_candidates) + 1):
        here, largest = method.chain_probs(state, row(logits, place).unsqueeze(1), going.unsqueeze(1), text, depth)
        state = state.note_fault(largest, depth, going.unsqueeze(1))
        target_probs = here.squeeze(1)
        last_probs = torch.where(going.unsqueeze(1), target_probs, last_probs)
        if depth == len(tree.num_candidates):
            final_probs = torch.where(going.unsqueeze(1), target_probs, final_probs)
            has_final, is_bonus = has_final | going, is_bonus | going
            break
        children = tree.candidates[depth][place]
        count = (drafts.used.gather(1, children) & (children > 0)).sum(dim=1)
        asked = going & (count > 0)
        tokens = drafts.tokens.gather(1, children)
        probs = drafts.probs.gather(1, children.unsqueeze(2).expand(-1, -1, target_probs.shape[1]))
        found = RULES[rule].verify(target_probs, probs, tokens, draws, tree.first_uniform(depth), count, asked)
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
        going = moved & ~state.num_kept(text, (depth + 1) * moved)[1]
    final_token = draws.token("final", final_probs, active=has_final)
    final_log = last_probs.gather(1, final_token.unsqueeze(1)).log()
    log_probs = torch.cat([log_probs, final_log], dim=1).scatter(1, num_accepted.unsqueeze(1), final_log)
    return state, Walk(path, log_probs, final_token, is_bonus, accept, chances, num_accepted, has_final, place)


def tree_record(
    record: BatchRecord,
    drafts: TreeDrafts,
    walk: Walk,
    draws: UniformRow,
    active: Tensor,  # [B]
) -> BatchRecord:
    """Add the verification of a tree to the record of a step, with the drafts in the order of their places."""
    used, tokens = drafts.used[:, 1:], drafts.tokens[:, 1:]
    order = used.long().argsort(dim=1, descending=True, stable=True)  # the places in use come first
    draft_probs = drafts.probs[:, 1:].gather(2, tokens.unsqueeze(2)).squeeze(2)
    numbers = pad(used.cumsum(dim=1) - 1, (1, 0), value=-1)
    parents = constant(tuple(drafts.tree.parents[1:]), used.device).expand_as(order)
    block = with_final(drafts.tokens.gather(1, walk.path), walk.final_token, walk.num_accepted)
    counts = walk.num_accepted, walk.has_final, walk.is_bonus, used.sum(dim=1) * active
    return replace(
        add_verification(record, block, walk.log_probs, *counts, draws, active),
        draft_tokens=tokens.gather(1, order),
        draft_token_probs=draft_probs.gather(1, order),
        target_token_probs=walk.target_token_probs[:, 1:].gather(1, order),
        accept_probs=walk.accept_probs[:, 1:].gather(1, order),
        draft_parents=numbers.gather(1, parents).gather(1, order),
    )
