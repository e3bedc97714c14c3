"""A tree of drafts: its shape, what was drafted in it, and the path that verification took through it.

Places are numbered breadth first: place 0 is the last committed token, the drafts follow.

Glossary of shapes: N drafts of the tree, V vocabulary.

A tree of drafts in a step: how it is drawn, how the rows of the pass over it are laid out, how it is verified.

A chain of drafts is a tree with one candidate everywhere.

Glossary of shapes: N drafts of the tree, R its places in use, T rows of the pass, V vocabulary.


"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
import numpy.typing as npt

from ..config import SamplingConfig, check_integer
from ..model.layers import Array, Mask
from ..record import Record
from ..sampling import Probs, has_distribution
from ..uniforms import UniformRow
from ..verify import Tokens
from .base import Method, State
from .tree_rules import RULES, draw_candidates

NumCandidates = tuple[int | tuple[int, ...], ...]
"""How many candidates stand after the places of each depth: one number for all of them, or one for each in turn."""


@dataclass(frozen=True)
class DraftTree:
    """The shape of a tree in which `num_candidates[d]` drafts stand after everything at depth d.

    Candidates of different ranks may have different numbers after them: `(3, (2, 1, 0))` has two after the first
    draft, one after the second and none after the third.
    """

    num_candidates: NumCandidates

    @cached_property
    def children(self) -> tuple[range, ...]:
        """The places that stand after each place."""
        children: list[range] = []
        level = range(1)
        for counts in (*self.num_candidates, 0):
            start = level.stop
            for count in counts if isinstance(counts, tuple) else (counts,) * len(level):
                children.append(range(start, start + count))
                start += count
            level = range(level.stop, start)
        return tuple(children)

    @cached_property
    def parents(self) -> tuple[int, ...]:
        """After which place each place stands; -1 for place 0."""
        return (-1, *(place for place, children in enumerate(self.children) for _ in children))

    @property
    def num_drafts(self) -> int:
        """N, the places but the first."""
        return len(self.children) - 1

    def path(self, place: int) -> list[int]:
        """Return the drafts from the first to the one at a place."""
        return [*self.path(self.parents[place]), place] if place else []

    def first_uniform(self, depth: int) -> int:
        """Return the first of the uniforms that decide about candidates after a path of so many drafts."""
        return sum(self.widths[:depth])

    @property
    def widths(self) -> tuple[int, ...]:
        """The most candidates after a place of each depth."""
        return tuple(max(counts) if isinstance(counts, tuple) else counts for counts in self.num_candidates)

    @cached_property
    def depths(self) -> npt.NDArray[np.integer]:  # [N+1]
        """How many drafts stand on the path to each place."""
        return np.asarray(self.visible.sum(axis=1) - 1)

    @cached_property
    def visible(self) -> Mask:  # [N+1, N+1]
        """Which places each place sees: those on its path, itself included, and place 0."""
        seen = np.eye(len(self.children), dtype=np.bool_)
        for place, parent in enumerate(self.parents[1:], start=1):
            seen[place] |= seen[parent]
        return seen


@dataclass(frozen=True)
class TreeDrafts:
    """What was drafted at each place; places that are not used hold nothing."""

    tree: DraftTree
    used: Mask  # [N+1], place 0 always
    tokens: Tokens  # [N+1]
    probs: Probs  # [N+1, V], the distribution that each draft was drawn from


@dataclass(frozen=True)
class Walk:
    """How verification went: from place 0 to drafts that were accepted, and the token that follows them."""

    path: list[int]  # the accepted drafts
    log_probs: list[float]  # of the accepted tokens and the one that follows them, by the target
    final_token: int | None
    is_bonus: bool
    accept_probs: Probs  # [N+1], the chance of each draft, once reached; NaN where verification did not come
    target_token_probs: Probs  # [N+1], the same


def draw_tree(
    method: Method,
    state: State,
    tree: DraftTree,
    limit: int,
    draws: UniformRow,
    next_logits: Callable[[tuple[int, ...], int], Array],
    sampling: SamplingConfig,
    rule: str,
) -> tuple[TreeDrafts, int]:
    """Draw candidates after place after place: `next_logits(tokens, place)` gives the logits after text and path.

    Returned are the drafts with the very distributions that they were drawn from, and how many logits were asked
    for. Nothing stands after a draft that ends the text, after `limit` drafts, or where the logits make no
    distribution.
    """
    used, num_asked = np.arange(tree.num_drafts + 1) == 0, 0
    tokens, probs = np.zeros(used.size, dtype=np.int64), np.zeros((used.size, method.model.vocab_size))
    for place in range(used.size):
        path, children = tokens[tree.path(place)].tolist(), tree.children[place]
        if not used[place] or not children or len(path) >= limit or state.ends_with(path):
            continue
        prefix = (*state.tokens, *path)
        logits = method.process(prefix, next_logits(prefix, place))
        num_asked += 1
        if has_distribution(logits):
            replacement, index = RULES[rule].replacement, children[0] - 1
            found, distributions = draw_candidates(logits, sampling, len(children), draws, index, replacement)
            here = slice(children[0], children[0] + len(found))
            used[here], tokens[here], probs[here] = True, found, distributions
    return TreeDrafts(tree, used, tokens, probs), num_asked


def layout(
    cached: int,
    num_pending: int,
    tree: DraftTree,
    places: Sequence[int],
    behind: Sequence[int] = (),
    depth: int = 0,
) -> tuple[npt.NDArray[np.int64], Mask]:  # [T], [T, T]
    """Return where the rows of one pass stand and which they see.

    First come the pending tokens, the last of which is place 0, and the drafts at the other `places`. Each sees the
    pending tokens up to itself and the drafts on its path. Then come groups of `depth` look-ahead rows, one after each
    place of `behind`: a group stands where the next tokens would, and sees what the row before it sees and its own rows
    up to themselves. No other row sees it.
    """
    drafts, num_text = np.array(places[1:], dtype=np.int64), num_pending + len(places) - 1
    num_rows = num_text + len(behind) * depth
    visible = np.zeros((num_rows, num_rows), dtype=np.bool_)
    visible[:num_text, :num_pending] = np.tri(num_text, num_pending)
    visible[num_pending:num_text, num_pending:num_text] = tree.visible[np.ix_(drafts, drafts)]
    positions = np.arange(cached, cached + num_rows)
    positions[num_pending:num_text] = cached + num_pending - 1 + tree.depths[drafts]
    for start, place in zip(range(num_text, num_rows, depth or 1), behind, strict=False):
        group, row = slice(start, start + depth), num_pending - 1 + list(places).index(place)
        visible[group, :num_text] = visible[row, :num_text]
        visible[group, group] = np.tri(depth)
        positions[group] = positions[row] + np.arange(1, depth + 1)
    return positions, visible


def walk_tree(
    method: Method,
    state: State,
    drafts: TreeDrafts,
    logits: dict[int, Array],
    draws: UniformRow,
    rule: str,
) -> Walk:
    """Verify from place to place: the candidates after it, then those after the one that was accepted.

    `logits` are the target's, after place 0 and after each draft.
    """
    tree, tokens = drafts.tree, drafts.tokens
    accept, chances = np.full((2, tokens.size), np.nan)
    path: list[int] = []
    distributions: list[Probs] = []
    while True:
        place = path[-1] if path else 0
        distributions.append(method.probs((*state.tokens, *tokens[path].tolist()), logits[place]))
        candidates = [child for child in tree.children[place] if drafts.used[child]]
        if not candidates:
            final_probs: Probs | None = distributions[-1]
            break
        index = tree.first_uniform(len(path))
        found = RULES[rule].verify(distributions[-1], drafts.probs[candidates], tokens[candidates], draws, index)
        accept[candidates], chances[candidates] = found.accept_probs, distributions[-1][tokens[candidates]]
        if found.accepted is None:
            final_probs = found.final_probs
            break
        path.append(candidates[found.accepted])
        if state.ends_with(tokens[path].tolist()):
            final_probs = None
            break
    final_token = None if final_probs is None else draws.token("final", final_probs)
    emitted = [*tokens[path].tolist(), *([] if final_token is None else [final_token])]
    log_probs = [
        float(np.log(distribution[token])) for distribution, token in zip(distributions, emitted, strict=False)
    ]
    return Walk(path, log_probs, final_token, not candidates, accept, chances)


def check_tree(num_candidates: Sequence[int | Sequence[int]]) -> NumCandidates:
    """Return the numbers of candidates per depth; raise ValueError unless they make a tree of at most 2^16 drafts."""
    checked: list[int | tuple[int, ...]] = []
    level, num_drafts = 1, 0
    for counts in num_candidates:
        if not isinstance(counts, Sequence):
            checked.append(check_integer("num_candidates", counts, 1, 2**16))
            level *= int(counts)
        elif len(counts) != level or not any(counts):
            raise ValueError(
                f"num_candidates: found {tuple(counts)!r:.80} after {level} places, expected a number for each, and "
                "one above 0"
            )
        else:
            checked.append(tuple(check_integer("num_candidates", count, 0, 2**16) for count in counts))
            level = sum(counts)
        num_drafts += level
    if num_drafts > 2**16:
        raise ValueError(
            f"num_candidates: found {tuple(checked)!r:.80}, a tree of {num_drafts} drafts, expected at most {2**16}"
        )
    return tuple(checked)


def tree_record(record: Record, drafts: TreeDrafts, walk: Walk, draws: UniformRow) -> Record:
    """Add the verification of a tree to the record of a step; its drafts stand there breadth first."""
    places = np.flatnonzero(drafts.used)[1:]
    numbers = dict(zip([0, *places.tolist()], range(-1, len(places)), strict=True))
    tokens, final = drafts.tokens[places], () if walk.final_token is None else (walk.final_token,)
    emitted = (*drafts.tokens[walk.path].tolist(), *final)
    sources = ["accepted"] * len(walk.path) + ["bonus" if walk.is_bonus else "correction"]
    return replace(
        record,
        tokens=(*record.tokens, *emitted),
        sources=(*record.sources, *sources[: len(emitted)]),
        log_probs=(*record.log_probs, *walk.log_probs),
        draft_tokens=tuple(tokens.tolist()),
        draft_token_probs=tuple(drafts.probs[places, tokens].tolist()),
        target_token_probs=tuple(walk.target_token_probs[places].tolist()),
        accept_probs=tuple(walk.accept_probs[places].tolist()),
        draft_parents=tuple(numbers[drafts.tree.parents[place]] for place in places.tolist()),
        num_accepted=len(walk.path),
        final_token=walk.final_token,
        num_forward_passes=record.num_forward_passes + 1,
        num_positions=record.num_positions + len(places) + 1,
        choices=draws.choices,
    )
