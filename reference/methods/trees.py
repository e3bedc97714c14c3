"""A tree of drafts in a step: how it is drawn, how the rows of the pass over it are laid out, how it is verified.

A chain of drafts is a tree with one candidate everywhere.

Glossary of shapes: N drafts of the tree, R its places in use, T rows of the pass, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import numpy.typing as npt

from ..candidates import RULES, draw_candidates
from ..config import SamplingConfig
from ..draft_tree import DraftTree, TreeDrafts, Walk
from ..layers import Array, Mask
from ..sampling import Probs, has_law
from ..state import State
from ..tape import Draws
from .base import Method


def draw_tree(
    method: Method,
    state: State,
    tree: DraftTree,
    limit: int,
    draws: Draws,
    next_logits: Callable[[tuple[int, ...], int], Array],
    sampling: SamplingConfig,
    rule: str,
) -> tuple[TreeDrafts, int]:
    """Draw candidates behind place after place: `next_logits(tokens, place)` gives the logits behind text and path.

    Returned are the drafts with the very laws that they were drawn from, and how many logits were asked for. Nothing
    stands behind a draft that ends the text, behind `limit` drafts, or where the logits make no law.
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
        if has_law(logits):
            replacement, index = RULES[rule].replacement, children[0] - 1
            found, laws = draw_candidates(logits, sampling, len(children), draws, index, replacement)
            here = slice(children[0], children[0] + len(found))
            used[here], tokens[here], probs[here] = True, found, laws
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
    pending tokens up to itself and the drafts on its path. Then come groups of `depth` look-ahead rows, one behind each
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
    draws: Draws,
    rule: str,
) -> Walk:
    """Verify from place to place: the candidates behind it, then those behind the one that was accepted.

    `logits` are the target's, behind place 0 and behind each draft.
    """
    tree, tokens = drafts.tree, drafts.tokens
    accept, chances = np.full((2, tokens.size), np.nan)
    path: list[int] = []
    laws: list[Probs] = []
    while True:
        place = path[-1] if path else 0
        laws.append(method.law((*state.tokens, *tokens[path].tolist()), logits[place]))
        candidates = [child for child in tree.children[place] if drafts.used[child]]
        if not candidates:
            final_probs: Probs | None = laws[-1]
            break
        index = tree.first_uniform(len(path))
        found = RULES[rule].verify(laws[-1], drafts.probs[candidates], tokens[candidates], draws, index)
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
