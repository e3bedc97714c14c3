"""Drafting left to right: each draft from a law that may depend on those before it.

Glossary of shapes: B batch, K drafts, S capacity, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from ..config import SamplingConfig
from ..sampling import Probs, largest_logits, probs_from_logits
from ..state import State
from ..tape import Draws
from ..verify import Tokens, drafted
from .base import Method


class Drafts(NamedTuple):
    """What the rows of a batch drafted in a cycle; what stands behind a row's drafts means nothing."""

    tokens: Tokens  # [B, K]
    probs: Probs  # [B, K, V], the very laws that the tokens were drawn from
    goes_on: Tensor  # [B], whether the text goes on behind the last
    num_asked: Tensor  # [B], laws that were asked for
    num_draft: Tensor  # [B]


def draft_left_to_right(
    method: Method,
    state: State,
    limit: Tensor,  # [B]
    draws: Draws,
    next_logits: Callable[[Tokens, int], Tensor],
    sampling: SamplingConfig,
    wanted: Callable[[int, Tensor], Tensor] | None = None,
) -> Drafts:
    """Draw drafts one by one: `next_logits(tokens, i)` gives the logits of draft i behind the text and its drafts.

    Drafting stops at the limit, where the logits make no law, where the draft is not `wanted(i, logits)`, and behind
    one that ends the text: all known before the next is drawn. All rows run along until the last has stopped; what they
    draw beyond is ignored. A processor must not be asked about that: then it is found out step by step.
    """
    limit = limit.clamp(min=0) * ~state.ended
    most, step_by_step = int(limit.max()), wanted is not None or method.processor is not None
    going, text = limit > 0, state.tokens.clone()
    tokens, lawful = text[:, :0], limit[:, None][:, :0] > 0
    probs = [torch.zeros((len(text), 0, method.model.vocab_size), dtype=torch.float64, device=text.device)]
    while tokens.shape[1] < most and (not step_by_step or bool(going.any())):
        depth, place = tokens.shape[1], (state.lengths + tokens.shape[1]).unsqueeze(1)
        logits = next_logits(text, depth).unsqueeze(1)
        logits = method.process(state, logits, going.unsqueeze(1), tokens, depth)
        possible = largest_logits(logits).isfinite()
        if wanted is not None:
            possible = possible & wanted(depth, logits[:, 0]).unsqueeze(1)
        probs.append(probs_from_logits(logits, sampling))
        token = draws.tokens("draft", probs[-1], depth)
        tokens, lawful = torch.cat([tokens, token], dim=1), torch.cat([lawful, possible], dim=1)
        text.scatter_(1, place, token)
        if step_by_step:
            going = going & possible[:, 0] & (limit > depth + 1) & ~state.kept(tokens, (depth + 1) * going)[1]
    can = torch.minimum(limit, lawful.long().cumprod(dim=1).sum(dim=1))
    num_draft, ended = state.kept(tokens, can) if most else (can, can < 0)
    draws.restrict("draft", drafted(tokens, num_draft))
    num_asked = torch.where(ended, num_draft, torch.minimum(limit, can + 1))
    return Drafts(tokens, torch.cat(probs, dim=1), ~ended, num_asked, num_draft)
