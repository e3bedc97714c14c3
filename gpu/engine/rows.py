"""Rows of a batch that come and go: a state with room for texts, and a text put into a row of it."""

from __future__ import annotations

from dataclasses import replace

import torch

from pass_sampling.reference.ending import Ending

from ..methods.base import Method
from ..methods.pass_one_call import Fused
from ..model.transformer import Transformer
from ..state import PER_ROW, State


def empty_rows(method: Method, ending: Ending, num_rows: int, longest_prompt: int) -> State:
    """Return a state whose rows have all ended, with room for prompts of so many tokens.

    Raises:
        ValueError: prompts and new tokens do not fit into the model's context.
    """
    state = method.start_batch([[0] * longest_prompt] * num_rows, ending)
    one = torch.ones_like(state.lengths)  # a row has a last token, even if nothing is made of it
    lookahead_hidden = state.lookahead_hidden
    if isinstance(method, Fused) and isinstance(method.model, Transformer):
        lookahead_hidden = method.vectors.new_zeros((num_rows, len(method.vectors) + 1, method.model.hidden_size))
    return replace(
        state,
        lookahead_hidden=lookahead_hidden,
        lengths=one,
        prompt_lengths=one.clone(),
        limits=one + ending.max_new_tokens,
        ended=torch.ones_like(state.ended),
        max_pending=1,
        draft_pending=2,  # as after every step but the first
    )


def put_row(state: State, place: int, first: State) -> State:
    """Put a text into a row, in place; return the state, whose other rows go on as they were.

    What is lookahead_hidden from step to step may have had no room yet: then all rows get some.
    """
    lookahead_hidden = state.lookahead_hidden.contiguous()
    if first.lookahead_hidden.shape[1] > lookahead_hidden.shape[1]:
        lookahead_hidden = first.lookahead_hidden.new_zeros((len(lookahead_hidden), *first.lookahead_hidden.shape[1:]))
    pending = max(state.draft_pending, first.draft_pending)
    readings = (*state.readings[:place], *first.readings, *state.readings[place + 1 :])
    state = replace(state, lookahead_hidden=lookahead_hidden, draft_pending=pending, readings=readings)
    for name in PER_ROW:
        mine, yours = getattr(state, name)[place], getattr(first, name)[0]
        if mine.shape[1:] == yours.shape[1:]:  # not where nothing is lookahead_hidden yet
            (mine if mine.ndim == 0 else mine[: len(yours)]).copy_(yours)
    for cache, other in zip(state.caches, first.caches, strict=True):
        cached = (torch.arange(other.capacity, device=other.lengths.device) < other.lengths).unsqueeze(1)
        for here, there in ((cache.keys, other.keys), (cache.values, other.values)):
            here[:, place] = 0.0
            here[:, place, :, : other.capacity] = torch.where(cached, there[:, 0], 0.0)
        cache.lengths[place] = other.lengths[0]
        cache.measure()
    return state


def free_row(state: State, place: int) -> State:
    """Empty a row, in place; return the state. The row runs along until the next text is put into it."""
    state = replace(state, lookahead_hidden=state.lookahead_hidden.contiguous())
    for name in PER_ROW:
        getattr(state, name)[place] = name in ("lengths", "prompt_lengths", "ended")  # one token, no more
    for cache in state.caches:
        cache.keys[:, place] = cache.values[:, place] = 0.0
        cache.lengths[place] = 0
        cache.measure()
    return state
