"""Drafting left to right: each draft from a law that may depend on those before it.

Glossary of shapes: K drafts, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from ..config import SamplingConfig
from ..layers import Array
from ..sampling import Probs, has_law, probs_from_logits
from ..state import State
from ..tape import Draws
from ..verify import Tokens
from .base import Method


class Drafts(NamedTuple):
    """What was drafted in a cycle."""

    tokens: Tokens  # [K]
    probs: Probs  # [K, V], the very laws that the tokens were drawn from
    goes_on: bool  # whether the text goes on behind the last
    num_asked: int  # laws that were asked for


def draft_left_to_right(
    method: Method,
    state: State,
    limit: int,
    draws: Draws,
    next_logits: Callable[[tuple[int, ...], int], Array],
    sampling: SamplingConfig,
    wanted: Callable[[int, Array], bool] | None = None,
) -> Drafts:
    """Draw drafts one by one: `next_logits(tokens, i)` gives the logits of draft i behind the text and its drafts.

    Drafting stops at the limit, where the logits make no law, where the draft is not `wanted(i, logits)`, and behind
    one that ends the text: all known before the next is drawn.
    """
    tokens: list[int] = []
    probs: list[Probs] = []
    num_asked, goes_on = 0, True
    while len(tokens) < limit and goes_on:
        prefix, depth = (*state.tokens, *tokens), len(tokens)
        logits = method.process(prefix, next_logits(prefix, depth))
        num_asked += 1
        if not has_law(logits) or not (wanted is None or wanted(depth, logits)):
            break
        probs.append(probs_from_logits(logits, sampling))
        tokens.append(draws.token("draft", probs[-1], depth))
        goes_on = not state.ends_with(tokens)
    rows = np.array(probs).reshape(len(tokens), method.model.vocab_size)
    return Drafts(np.array(tokens, dtype=np.int64), rows, goes_on, num_asked)
