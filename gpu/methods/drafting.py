"""Drafting left to right: each draft from a law that may depend on those before it.

Glossary of shapes: B batch, K drafts, S capacity, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from ..asking import any_of, most_of
from ..batch_ending import num_leading
from ..config import SamplingConfig
from ..host import at_hand
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
    next_logits: Callable[[Tokens, Tensor, int], Tensor],
    sampling: SamplingConfig,
    wanted: Callable[[int, Tensor], Tensor] | None = None,
    bound: int | None = None,
) -> Drafts:
    """Draw drafts one by one: `next_logits(tokens, lengths, i)` gives the logits of draft i behind the text so far.

    Drafting stops at the limit, where the logits make no law, where the draft is not `wanted(i, logits)`, and behind
    one that ends the text: all known before the next is drawn. All rows run along until the last has stopped; what they
    draw beyond is ignored. On a CPU, and where a processor must not be asked about that, it is looked for at every
    draft whether any row goes on. No limit is above `bound`; by default that is the number of uniforms.
    """
    limit = limit.clamp(min=0) * ~state.ended
    most = most_of(state, limit, draws.room("draft") if bound is None else bound)
    step_by_step = wanted is not None or method.processor is not None
    looks = step_by_step or at_hand(limit)
    going, text = limit > 0, state.tokens.clone()
    nothing = text[:, :0, None].double().expand(-1, -1, method.model.vocab_size)
    tokens, laws, lawful = [text[:, :0]], [nothing], []
    while len(laws) <= most and (not looks or any_of(state, going)):
        depth, lengths = len(laws) - 1, state.lengths + (len(laws) - 1)
        logits = next_logits(text, lengths, depth).unsqueeze(1)
        if method.processor is not None:
            logits = method.process(state, logits, going.unsqueeze(1), torch.cat(tokens, dim=1), depth)
        lawful.append(largest_logits(logits).isfinite())
        if wanted is not None:
            lawful[-1] = lawful[-1] & wanted(depth, logits[:, 0]).unsqueeze(1)
        going = going & lawful[-1][:, 0]
        if looks and not any_of(state, going):
            break
        laws.append(probs_from_logits(logits, sampling))
        tokens.append(draws.tokens("draft", laws[-1], depth))
        text.scatter_(1, lengths.unsqueeze(1), tokens[-1])
        if step_by_step:
            ends = state.kept(torch.cat(tokens, dim=1), (depth + 1) * going)[1]
            going = going & ~ends
        going = going & (limit > depth + 1)
    block = torch.cat(tokens, dim=1)
    if not lawful:
        return Drafts(block, nothing, limit == 0, limit, limit)
    can = torch.minimum(limit, num_leading(torch.cat(lawful, dim=1)))
    num_draft, ended = state.kept(block, can)
    draws.restrict("draft", drafted(block, num_draft))
    num_asked = torch.where(ended, num_draft, torch.minimum(limit, can + 1))
    return Drafts(block, torch.cat(laws, dim=1), ~ended, num_asked, num_draft)
