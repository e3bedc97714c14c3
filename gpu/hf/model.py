"""A causal model of transformers as the language model of a method: embeddings in, logits out, a cache per row.

The library's own forward is run in two halves: first the body, then a copy of the whole model with an `IdentityBody`,
which does to the logits what the model does. Rows of a batch have a pass each: no padding, no mask.

Glossary of shapes: B batch, T rows of a pass, D input vector, D' hidden state, V vocabulary, N tokens of it.
"""

from __future__ import annotations

import copy
import hashlib
import inspect
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor
from torch.func import functional_call
from transformers import DynamicCache
from transformers.cache_utils import DynamicLayer, DynamicSlidingWindowLayer
from transformers.utils.generic import ModelOutput

from pass_sampling.reference.checkpoint.folder import name_of

from ..checkpoint.hub import REPOSITORY
from ..lookahead.adapter import Adapter
from ..model.cache import KVCache
from ..outside import reason_of
from .model_checks import NO_LIMIT, body_name, check_masks, check_model
from .rows import RowCache, RowCaches, row_caches, row_masks

SEEN = [  # which row attends to which: a token, a draft, a group after each
    [1, 0, 0, 0, 0, 0],
    [1, 1, 0, 0, 0, 0],
    [1, 0, 1, 0, 0, 0],
    [1, 0, 1, 1, 0, 0],
    [1, 1, 0, 0, 1, 0],
    [1, 1, 0, 0, 1, 1],
]
_PROBED: WeakKeyDictionary[Any, set[tuple[Any, ...]]] = WeakKeyDictionary()
_FINGERPRINTS: WeakKeyDictionary[Any, str] = WeakKeyDictionary()


@dataclass
class _BodyOutput(ModelOutput):
    """The fields that heads read of a body's output; only the hidden states are set."""

    last_hidden_state: Tensor | None = None
    past_key_values: Any = None
    hidden_states: Any = None
    attentions: Any = None
    cross_attentions: Any = None
    router_logits: Any = None


def _whole(parameter: Tensor) -> Tensor:
    """Return a parameter, also if other devices hold parts of it."""
    found: Tensor = getattr(parameter, "full_tensor", lambda: parameter)()
    return found.detach()


class IdentityBody(torch.nn.Module):
    """A body that returns its input vectors as its hidden states."""

    @property
    def decoder(self) -> IdentityBody:
        """The same, for models whose body has a decoder inside."""
        return self

    def forward(self, *arguments: Any, inputs_embeds: Any, **named: Any) -> _BodyOutput:
        """Return the vectors in the form that a head expects."""
        return _BodyOutput(last_hidden_state=inputs_embeds)


class TransformersModel:
    """The interface of a model over any causal model of transformers whose passes can be undone."""

    def __init__(self, model: Any):
        """Take a model in eval mode; the first time, short passes find out whether its cache can be rolled back."""
        check_model(model)
        self.model = model
        self.text_config = model.config.get_text_config(decoder=True)
        self._body = getattr(model, body_name(model))
        self._head = copy.copy(model)
        self._head.__dict__.pop("forward", None)  # that of the model it was copied from, where a library has hooks
        self._head._modules = {**model._modules, body_name(model): IdentityBody()}
        self._embedding = model.get_input_embeddings()
        self._named = inspect.signature(self._body.forward).parameters.keys()
        self.vocab_size, self.hidden_size = map(int, self._embedding.weight.shape)
        longest = getattr(self.text_config, "max_position_embeddings", None)  # some models have no limit
        self.max_position_embeddings = longest if isinstance(longest, int) and longest > 0 else NO_LIMIT
        self.eos_token_ids: tuple[int, ...] = _several(model.generation_config, "eos_token_id")
        self.stop_strings: tuple[str, ...] = _several(model.generation_config, "stop_strings")
        self._takes_masks = False
        _probe(self, "a rolled-back cache", _rolled_back)

    @property
    def device(self) -> torch.device:
        """Where the embedding is."""
        return self._embedding.weight.device  # type: ignore[no-any-return]

    @property
    def dtype(self) -> torch.dtype:
        """The dtype of the input vectors."""
        return self._embedding.weight.dtype  # type: ignore[no-any-return]

    @property
    def name(self) -> str:
        """The last part of the path that the model was loaded from, or its class."""
        path = str(getattr(self.model.config, "_name_or_path", "") or "")
        if REPOSITORY.fullmatch(path) and not Path(path).exists():
            return path
        return name_of(Path(path)) if path else type(self.model).__name__

    @property
    def fingerprint(self) -> str:
        """SHA-256 over names, shapes and first values of the weights, that of its checkpoint."""
        if self.model not in _FINGERPRINTS:
            lines = [
                f"{name} {list(each.shape)}\n".encode()
                + _whole(each).reshape(-1)[:16].float().cpu().numpy().astype("<f4").tobytes()
                for name, each in sorted(self.model.named_parameters())
            ]
            _FINGERPRINTS[self.model] = hashlib.sha256(b"".join(lines)).hexdigest()
        return _FINGERPRINTS[self.model]

    def require_masks(self) -> None:
        """Raise ValueError unless the model obeys masks of its rows; the first time, short passes find out."""
        if not self._takes_masks:
            check_masks(self.model, self.text_config)
            self._takes_masks = True
            _probe(self, "a mask of its own", _masked)

    def new_cache(self, capacity: int = 16, batch_size: int = 1) -> RowCaches:
        """Return empty caches, which keep every position in every layer; `generate` brings smaller ones."""
        layers = DynamicCache(config=self.text_config).layers
        plain = all(type(layer) in (DynamicLayer, DynamicSlidingWindowLayer) for layer in layers)
        rows = [RowCache(DynamicCache() if plain else DynamicCache(config=self.text_config)) for _ in range(batch_size)]
        return RowCaches(rows, torch.zeros(batch_size, dtype=torch.int64, device=self.device), capacity)

    def embed(
        self,
        tokens: Tensor | Sequence[Sequence[int]],  # [B, T]
    ) -> Tensor:  # [B, T, D]
        """Return the input vectors of tokens, scaled where the model scales them: the space of `inputs_embeds`."""
        with torch.no_grad():
            return self._embedding(torch.as_tensor(tokens, device=self.device))  # type: ignore[no-any-return]

    def hidden(
        self,
        inputs: Tensor,  # [B, T, D]
        cache: KVCache,
        positions: Tensor | None = None,  # [B, T]
        visible: Tensor | None = None,  # [T, T], or [T, S], or [B, T, T]
        adapter: Adapter | None = None,
        num_adapted: int = 0,
    ) -> Tensor:  # [B, T, D']
        """Run one pass per row after its cached positions; see `Transformer.hidden`. An adapter raises ValueError.

        Rows after the model's last position are padding and get no pass.
        """
        if adapter is not None:
            raise ValueError(f"adapter: found one for {self.name!r}, expected none for a model of transformers")
        caches, num_rows = row_caches(cache), inputs.shape[1]
        found = []
        for b, (row, length) in enumerate(zip(caches.rows, caches.lengths.tolist(), strict=True)):
            row.settle(length)
            places = torch.arange(length, length + num_rows, device=self.device) if positions is None else positions[b]
            masks = None
            if positions is None and visible is None:
                places = places[: max(1, self.max_position_embeddings - length)]
            else:
                self.require_masks()
                places = places.clamp(max=self.max_position_embeddings - 1)
                seen = visible if visible is None or visible.ndim == 2 else visible[b]
                masks = row_masks(self.text_config, row.cache, length, places, seen, self.dtype)
            hidden = self._pass(inputs[b : b + 1, : len(places)], row.cache, places.unsqueeze(0), masks)
            row.grow(len(places))
            if len(places) < num_rows:
                hidden = torch.nn.functional.pad(hidden, (0, 0, 0, num_rows - len(places)))
            found.append(hidden)
        caches.advance(num_rows)
        return torch.cat(found)

    def logits(
        self,
        hidden: Tensor,  # [..., D']
    ) -> Tensor:  # [..., V]
        """Project hidden states to logits as the model itself does."""
        rows = hidden.reshape(1, -1, hidden.shape[-1])
        found = self._call(self._head, {"inputs_embeds": rows, "use_cache": False}).logits
        return found.to(self.device).view(*hidden.shape[:-1], found.shape[-1])  # type: ignore[no-any-return]

    def logits_of(
        self,
        hidden: Tensor,  # [..., D']
        tokens: Tensor,  # [N]
    ) -> Tensor:  # [..., N]
        """Return the logits of some tokens: taken from those of all, with whatever the model does to them."""
        return self.logits(hidden)[..., tokens]

    def _pass(self, inputs: Tensor, cache: Any, positions: Tensor, masks: Any) -> Tensor:  # [1, T, D']
        """Run the body over one row: inputs [1, T, D], positions [1, T]."""
        named = {"inputs_embeds": inputs, "past_key_values": cache, "use_cache": True, "position_ids": positions}
        named = {name: value for name, value in named.items() if name in self._named}
        if masks is not None:
            named["attention_mask"] = masks
        return self._call(self._body, named)[0].to(self.device)  # type: ignore[no-any-return]

    def _call(self, module: Any, named: dict[str, Any]) -> Any:
        """Call a module; gradients go through its weights to its inputs, if those ask for them, not to the weights."""
        if not (torch.is_grad_enabled() and named["inputs_embeds"].requires_grad):
            with torch.no_grad():
                return module(**named)
        frozen = {name: each.detach() for name, each in module.named_parameters()}
        return functional_call(module, frozen, (), named)


def _several(config: Any, name: str) -> tuple[Any, ...]:
    found = getattr(config, name, None)
    return () if found is None else (found,) if isinstance(found, int | str) else tuple(found)


def _probe(model: TransformersModel, what: str, passes: Callable[[TransformersModel, Tensor], Any]) -> None:
    """Raise ValueError unless passes find the logits of the model's plain forward over the same tokens.

    They are compared once for a model, its device, dtype and attention. Half of the digits of the dtype must agree, and
    of float64 half of those of float32, in which transformers computes norms and some softmaxes.
    """
    kind = (what, model.device, model.dtype, getattr(model.model.config, "_attn_implementation", None))
    if kind in _PROBED.setdefault(model.model, set()):
        return
    tokens = (7919 * torch.arange(1, 7, device=model.device) % model.vocab_size).unsqueeze(0)
    try:
        with torch.no_grad():
            found, expected = passes(model, tokens)
    except Exception as error:  # the model's own code may raise anything
        reason = f"{type(error).__name__}: {reason_of(error)}"
        raise ValueError(
            f"model: found {model.name!r}, which takes no pass with {what} ({reason}), expected a model that does"
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
    """Feed three tokens and two more that are dropped, then the others after the three."""
    cache = model.new_cache(tokens.shape[1])
    inputs = model.embed(tokens)
    first = model.hidden(inputs[:, [0, 1, 2, 5, 4]], cache)[:, :3]
    cache.truncate(torch.full_like(cache.lengths, 3))
    return model.logits(torch.cat([first, model.hidden(inputs[:, 3:], cache)], dim=1))[0], _plain(model, tokens)


def _masked(model: TransformersModel, tokens: Tensor) -> tuple[Tensor, Tensor]:
    """Feed three tokens, then one, a draft, and after each of the two a group of two rows; compare the groups."""
    cache = model.new_cache(16)
    inputs = model.embed(tokens)
    model.hidden(inputs[:, :3], cache)
    positions = torch.tensor([[3, 4, 4, 5, 5, 6]], device=model.device)
    visible = torch.tensor(SEEN, device=model.device).bool()
    found = model.logits(model.hidden(inputs[:, [3, 4, 5, 0, 5, 0]], cache, positions, visible))[0]
    chains = [_plain(model, tokens[:, [0, 1, 2, 3, *draft, 5, 0]])[-2:] for draft in ([], [4])]
    return found, torch.cat([_plain(model, tokens[:, :5])[3:], *chains])
