"""A few short passes over a model of transformers, once per model: does it do what methods rely on?

The numbers are compared with those of the model's plain forward over the same tokens. They may differ by rounding, so
half of the digits of the dtype are asked to agree, and of float64 half of those of float32, in which transformers
computes norms and some softmaxes. A cache that is not rolled back or a mask that is not heeded changes logits by as
much as they differ from each other.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor

if TYPE_CHECKING:
    from .model import TransformersModel

SEEN = [  # which row sees which: a token, a draft, a group behind each
    [1, 0, 0, 0, 0, 0],
    [1, 1, 0, 0, 0, 0],
    [1, 0, 1, 0, 0, 0],
    [1, 0, 1, 1, 0, 0],
    [1, 1, 0, 0, 1, 0],
    [1, 1, 0, 0, 1, 1],
]
_PROBED: WeakKeyDictionary[Any, set[tuple[Any, ...]]] = WeakKeyDictionary()


def probe(model: TransformersModel) -> None:
    """Raise ValueError unless passes over input vectors, behind a cache that was rolled back, are those over tokens."""
    _once(model, "a rolled-back cache", _rolled_back)


def probe_masks(model: TransformersModel) -> None:
    """Raise ValueError unless rows see exactly what an additive mask says, and stand where they are told to."""
    _once(model, "a mask of its own", _masked)


def _once(model: TransformersModel, what: str, passes: Callable[[TransformersModel, Tensor], Any]) -> None:
    """Compare what passes find with what is expected, the first time that a model is seen as it is."""
    kind = (what, model.device, model.dtype, getattr(model.model.config, "_attn_implementation", None))
    if kind in _PROBED.setdefault(model.model, set()):
        return
    tokens = (7919 * torch.arange(1, 7, device=model.device) % model.vocab_size).unsqueeze(0)
    try:
        with torch.no_grad():
            found, expected = passes(model, tokens)
    except Exception as error:  # the model's own code may raise anything
        reason = " ".join(str(error).split())[:200]
        raise ValueError(
            f"model: found {model.name!r}, which takes no pass with {what} ({type(error).__name__}: {reason}), "
            "expected a causal model that does"
        ) from error
    expected = expected.double()
    epsilon = max(torch.finfo(model.dtype).eps, torch.finfo(torch.float32).eps)
    tolerance = epsilon**0.5 * float(expected.max() - expected.min())
    if found.shape != expected.shape or not float((found.double() - expected).abs().max()) <= tolerance:
        raise ValueError(
            f"model: found {model.name!r}, whose logits after a pass with {what} are not those of plain passes, "
            "expected a causal model for which they are"
        )
    _PROBED[model.model].add(kind)


def _plain(model: TransformersModel, tokens: Tensor) -> Tensor:
    return model.model(input_ids=tokens, use_cache=False).logits[0].to(model.device)  # type: ignore[no-any-return]


def _rolled_back(model: TransformersModel, tokens: Tensor) -> tuple[Tensor, Tensor]:
    """Feed three tokens and two more that are dropped, then the others behind the three."""
    cache = model.new_cache(tokens.shape[1])
    inputs = model.embed(tokens)
    first = model.hidden(inputs[:, [0, 1, 2, 5, 4]], cache)[:, :3]
    cache.truncate(torch.full_like(cache.lengths, 3))
    return model.logits(torch.cat([first, model.hidden(inputs[:, 3:], cache)], dim=1))[0], _plain(model, tokens)


def _masked(model: TransformersModel, tokens: Tensor) -> tuple[Tensor, Tensor]:
    """Feed three tokens, then one, a draft, and behind each of the two a group of two rows; compare the groups."""
    cache = model.new_cache(16)
    inputs = model.embed(tokens)
    model.hidden(inputs[:, :3], cache)
    positions = torch.tensor([[3, 4, 4, 5, 5, 6]], device=model.device)
    visible = torch.tensor(SEEN, device=model.device).bool()
    found = model.logits(model.hidden(inputs[:, [3, 4, 5, 0, 5, 0]], cache, positions, visible))[0]
    chains = [_plain(model, tokens[:, [0, 1, 2, 3, *draft, 5, 0]])[-2:] for draft in ([], [4])]
    return found, torch.cat([_plain(model, tokens[:, :5])[3:], *chains])
