"""A prompt read in a pass of its own, but for its last token: then the first cycle is like any other."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from ..drafters import ModelDrafter
from ..methods import SpeculativeSampling
from ..methods.base import Method
from ..methods.fused import Fused
from ..state import State
from ..transformer import Transformer

__all__ = ["read_prompts"]


@torch.inference_mode()
def read_prompts(method: Method, state: State) -> tuple[State, Tensor, int]:  # [B]
    """Feed all of every row but its last token; return the state, the rows fed, and whether a drafter was fed, too.

    What one call per step carries to the next gets its room, and nothing is of use in it yet.
    """
    read = state.lengths - 1
    longest = state.max_pending - 1
    drafter = method.drafter if isinstance(method, SpeculativeSampling) else None
    models = [method.model, drafter.model if isinstance(drafter, ModelDrafter) else None]
    for model, cache in zip(models, state.caches, strict=False):
        if longest and model is not None:
            model.hidden(model.embed(state.tokens[:, :longest]), cache)
            cache.truncate(read)  # shorter rows were padded
    carried = state.carried
    if isinstance(method, Fused) and isinstance(method.model, Transformer):
        carried = method.vectors.new_zeros((len(read), len(method.vectors) + 1, method.model.hidden_size))
    state = replace(state, cached=state.cache.lengths, carried=carried, max_pending=1, draft_pending=2)
    return state, read, int(longest > 0 and models[1] is not None)
