"""A tree of drafts: its shape, and how one step draws it, feeds it and verifies it.

Places are numbered breadth first. Place 0 is the last committed token, and the drafts follow it. A chain of drafts is a
tree with one candidate at every depth.

Glossary of shapes: N drafts of the tree, T rows of the pass, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import accumulate, pairwise

import numpy as np
import numpy.typing as npt

from ..config import SamplingConfig, check_integer
from ..model.layers import Array, Mask
from ..record import Record
from ..sampling import Probs, has_distribution
from ..uniforms import NamedUniforms, UniformRow
from ..verify import Tokens
from .base import Method, State
from .tree_rules import RULES, draw_candidates

NumCandidates = tuple[int | tuple[int, ...], ...]
"""How many candidates follow the places of each depth: one number for all of them, or one for each in turn."""


@dataclass(frozen=True)
class TreeShape:
    """The shape of a tree in which `num_candidates[d]` drafts follow each place of depth d.

    Candidates of different ranks may have different numbers: in `(3, (2, 1, 0))` two drafts follow the first draft,
    one follows the second, and none follows the third.
    """

    num_candidates: NumCandidates

    @cached_property
    def children(self) -> tuple[range, ...]:
        """The places that follow each place."""
        counts: list[int] = []
        size = 1  # of the depth
        for each in (*self.num_candidates, 0):
            level = each if isinstance(each, tuple) else (each,) * size
            counts.extend(level)
            size = sum(level)
        return tuple(range(start, stop) for start, stop in pairwise(accumulate(counts, initial=1)))

    @cached_property
    def levels(self) -> tuple[range, ...]:
        """The places of each depth."""
        levels = [range(1)]
        for _ in self.num_candidates:
            levels.append(range(levels[-1].stop, self.children[levels[-1][-1]].stop))
        return tuple(levels)

    @cached_property
    def parents(self) -> tuple[int, ...]:
        """The place before each place; -1 for place 0."""
        return (-1, *(place for place, children in enumerate(self.children) for _ in children))

    @property
    def num_drafts(self) -> int:
        """N, the places but the first."""
        return len(self.children) - 1

    def path(self, place: int) -> list[int]:
        """Return the drafts from the first to the one at a place."""
        return [*self.path(self.parents[place]), place] if place else []

    @property
    def widths(self) -> tuple[int, ...]:
        """The most candidates after a place of each depth."""
        return tuple(max(counts) if isinstance(counts, tuple) else counts for counts in self.num_candidates)

    def first_uniform(self, depth: int) -> int:
        """Return the first uniform that decides about the candidates after a path of `depth` drafts."""
        return sum(self.widths[:depth])

    @property
    def named_uniforms(self) -> NamedUniforms:
        """A draw per draft, an acceptance per candidate of each depth, and the final draw.

        Verification reaches one place of each depth, so the places of a depth share their uniforms.
        """
        return {"draft": self.num_drafts, "accept": sum(self.widths), "final": 1}


@dataclass(frozen=True)
class DraftTree(TreeShape):
    """A shape, with depths and visibility as arrays."""

    @cached_property
    def depths(self) -> npt.NDArray[np.integer]:  # [N+1]
        """The number of drafts on the path to each place."""
        return np.asarray(self.visible.sum(axis=1) - 1)

    @cached_property
    def visible(self) -> Mask:  # [N+1, N+1]
        """Which places each place attends to: those on its path, itself included, and place 0."""
        visible = np.eye(len(self.children), dtype=np.bool_)
        for place, parent in enumerate(self.parents[1:], start=1):
            visible[place] |= visible[parent]
        return visible


@dataclass(frozen=True)
class TreeDrafts:
    """The drafts of a step. The entries of places that are not used mean nothing."""

    tree: DraftTree
    used: Mask  # [N+1], place 0 always
    tokens: Tokens  # [N+1]
    probs: Probs  # [N+1, V], the distribution that each draft was drawn from


@dataclass(frozen=True)
class Walk:
    """The outcome of verification: a path of accepted drafts from place 0, and the token that follows it."""

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

    Returns the drafts with the distributions that they were drawn from, and the number of logits asked for.
    Nothing follows a draft that ends the text, `limit` drafts, or logits that make no distribution.
    """
    used, num_asked = np.arange(tree.num_drafts + 1) == 0, 0
    tokens, probs = np.zeros(used.size, dtype=np.int64), np.zeros((used.size, method.model.vocab_size))
    for place, children in enumerate(tree.children):
        path = tokens[tree.path(place)].tolist()
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
    cached: int, num_pending: int, tree: DraftTree, places: Sequence[int], anchors: Sequence[int] = (), depth: int = 0
) -> tuple[npt.NDArray[np.int64], Mask]:  # [T], [T, T]
    """Return the positions of the rows of one pass, and which rows they attend to.

    The pending tokens come first, the last of which is place 0, then the drafts at the other `places`. Each attends to
    the pending tokens up to itself and to the drafts on its path. Then come groups of `depth` look-ahead rows, one
    after each of the places `anchors`. A group has the positions of the next tokens. It attends to what its anchor
    attends to, and to its own rows up to themselves. No other row attends to it.
    """
    drafts, num_text = np.array(places[1:], dtype=np.int64), num_pending + len(places) - 1
    num_rows = num_text + len(anchors) * depth
    visible = np.zeros((num_rows, num_rows), dtype=np.bool_)
    visible[:num_text, :num_pending] = np.tri(num_text, num_pending)
    visible[num_pending:num_text, num_pending:num_text] = tree.visible[np.ix_(drafts, drafts)]
    positions = np.arange(cached, cached + num_rows)
    positions[num_pending:num_text] = cached + num_pending - 1 + tree.depths[drafts]
    for start, place in zip(range(num_text, num_rows, depth or 1), anchors, strict=False):
        group, row = slice(start, start + depth), num_pending - 1 + list(places).index(place)
        visible[group, :num_text] = visible[row, :num_text]
        visible[group, group] = np.tri(depth)
        positions[group] = positions[row] + np.arange(1, depth + 1)
    return positions, visible


def walk_tree(
    method: Method, state: State, drafts: TreeDrafts, logits: dict[int, Array], draws: UniformRow, rule: str
) -> Walk:
    """Verify from place to place: the candidates after it, then those after the one that was accepted.

    `logits` are the target's, after place 0 and after each draft.
    """
    tree, tokens = drafts.tree, drafts.tokens
    accept, chances = np.full((2, tokens.size), np.nan)
    path: list[int] = []
    distributions: list[Probs] = []
    final_probs: Probs | None = None
    while not (path and state.ends_with(tokens[path].tolist())):
        place = path[-1] if path else 0
        final_probs = method.probs((*state.tokens, *tokens[path].tolist()), logits[place])
        distributions.append(final_probs)
        candidates = [child for child in tree.children[place] if drafts.used[child]]
        if not candidates:
            break
        index = tree.first_uniform(len(path))
        found = RULES[rule].verify(final_probs, drafts.probs[candidates], tokens[candidates], draws, index)
        accept[candidates], chances[candidates] = found.accept_probs, final_probs[tokens[candidates]]
        if found.accepted is None:
            final_probs = found.final_probs
            break
        path.append(candidates[found.accepted])
    else:
        final_probs = None
    final_token = None if final_probs is None else draws.token("final", final_probs)
    emitted = [*tokens[path].tolist(), *([] if final_token is None else [final_token])]
    log_probs = [float(np.log(probs[token])) for probs, token in zip(distributions, emitted, strict=True)]
    return Walk(path, log_probs, final_token, not candidates, accept, chances)


def check_tree(num_candidates: Sequence[int | Sequence[int]], num_lookahead: int | None = None) -> NumCandidates:
    """Return the numbers of candidates per depth.

    Raise ValueError if they make no tree of at most 2^16 drafts, or one with more depths than look-ahead vectors.
    """
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
    found = f"num_candidates: found {tuple(checked)!r:.80}"
    if num_drafts > 2**16:
        raise ValueError(f"{found}, a tree of {num_drafts} drafts, expected at most {2**16}")
    if num_lookahead is not None and len(checked) > num_lookahead:
        raise ValueError(f"{found}, expected at most {num_lookahead} depths, one per look-ahead vector")
    return tuple(checked)


def tree_record(record: Record, drafts: TreeDrafts, walk: Walk, draws: UniformRow) -> Record:
    """Add the verification of a tree to the record of a step, with the drafts in the order of their places."""
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
