"""Who sees whom in one row's pass, in the form that transformers takes: additive float masks, one per kind of layer.

Masks of truth values are taken for numbers by its eager attention, silently; so none are made.

Glossary of shapes: T rows of the pass, S slots (cached and of the pass).
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from transformers import DynamicCache


def layer_kinds(config: Any) -> dict[str, tuple[int, int | None]]:
    """Return each kind of layer that a model has, with its first layer and its sliding window, if it has one."""
    layers = DynamicCache(config=config).layers
    names = getattr(config, "layer_types", None) or ["attention"] * len(layers)
    kinds: dict[str, tuple[int, int | None]] = {}
    for place, (name, layer) in enumerate(zip(names, layers, strict=False)):
        kinds.setdefault(name, (place, getattr(layer, "sliding_window", None)))
    return kinds


def row_masks(
    config: Any,
    cache: Any,
    length: int,
    positions: Tensor,  # [T]
    visible: Tensor | None,  # [T, T], or [T, S]
    dtype: torch.dtype,
) -> Tensor | dict[str, Tensor]:  # [1, 1, T, S]
    """Return the mask of a pass behind `length` cached positions, or where kinds of layers differ, a mask for each.

    Every row sees what is cached, and of the pass the rows that `visible` says (default: a chain). Over S columns it
    says so of the cached ones as well. A layer with a window w hides keys w or more positions back, and its cache has
    dropped some of those already.
    """
    num_rows = len(positions)
    if visible is None:
        visible = torch.ones((num_rows, num_rows), dtype=torch.bool, device=positions.device).tril()
    if visible.shape[1] == num_rows:
        visible = torch.cat([visible.new_ones((num_rows, length)), visible], dim=1)
    standing = torch.cat([torch.arange(length, device=positions.device), positions])  # [S]
    masks = {}
    for name, (layer, window) in layer_kinds(config).items():
        seen = visible
        if window is not None:
            seen = seen & (positions.unsqueeze(1) - standing < window)
        if layer < len(cache.layers):
            size, first = cache.layers[layer].get_mask_sizes(num_rows)
            seen = seen[:, first : first + size]
        mask = torch.zeros(seen.shape, dtype=dtype, device=seen.device)
        masks[name] = mask.masked_fill(~seen, torch.finfo(dtype).min)[None, None]
    return masks if len(masks) > 1 else next(iter(masks.values()))
