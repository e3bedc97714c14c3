"""A Hugging Face folder, read by transformers.

Which models of transformers are refused, before any pass.

A few short passes over a model of transformers, once per model: does it do what methods rely on?

The numbers are compared with those of the model's plain forward over the same tokens. They may differ by rounding, so
half of the digits of the dtype are asked to agree, and of float64 half of those of float32, in which transformers
computes norms and some softmaxes. A cache that is not rolled back or a mask that is not heeded changes logits by as
much as they differ from each other.

A body that computes nothing, before which a model's own head can be run alone.
"""

from __future__ import annotations

import inspect
import os
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor
from transformers import PreTrainedModel
from transformers.utils.generic import ModelOutput

from pass_sampling.reference.checkpoint.folder import CONFIG, check_weights, file_in, open_folder

from ..model.precision import check_device, check_dtype

if TYPE_CHECKING:
    from .model import TransformersModel

__all__ = ["IdentityBody", "load_with_transformers"]


def load_with_transformers(
    folder: str | os.PathLike[str],
    dtype: Any = None,
    device: torch.device | str = "cpu",
) -> Any:
    """Return the model in a folder as transformers has it, in eval mode; default dtype: the checkpoint's.

    Raises:
        FileNotFoundError: there is no such folder, or no config.json or no weights in it.
        ValueError: transformers cannot read it, the weights are no safetensors, or the device is not there.
    """
    from transformers import AutoModelForCausalLM
    from transformers.utils import logging

    device, dtype = check_device(device), "auto" if dtype is None else check_dtype(dtype)
    root = open_folder(folder)
    file_in(root, CONFIG)
    check_weights(root)
    logging.set_verbosity_error()  # type: ignore[no-untyped-call]
    logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    try:
        model: Any = AutoModelForCausalLM.from_pretrained(
            str(folder), dtype=dtype, local_files_only=True, trust_remote_code=False, use_safetensors=True
        )
    except Exception as error:  # transformers raises anything here
        reason = " ".join(str(error).split())[:200]
        raise ValueError(
            f"{folder} holds nothing for transformers ({reason}), expected a model that it reads"
        ) from None
    return model.eval().to(device)


ATTENTION = ("eager", "sdpa")  # those that take a mask of numbers
KINDS = {"full_attention", "sliding_attention"}
NO_LIMIT = 2**31


def check_model(model: Any) -> None:
    """Refuse a model whose passes could not be undone, or whose distribution is none.

    Raises:
        ValueError: it is no causal model of transformers, keeps a recurrent state, adds embeddings per layer, has
            quantised layers without a matrix of numbers, has different vocabularies for input and output, or is in
            training mode.
    """
    name = type(model).__name__
    if not isinstance(model, PreTrainedModel) or not model.can_generate():
        raise ValueError(f"model: found a {name}, expected a causal language model of transformers")
    if model.config.is_encoder_decoder:
        raise ValueError(f"model: found {name}, an encoder and a decoder, expected a decoder alone")
    if getattr(model, "_is_stateful", False):
        raise ValueError(f"model: found {name}, whose recurrent state cannot be rolled back, expected attention alone")
    config = model.config.get_text_config(decoder=True)
    if getattr(config, "hidden_size_per_layer_input", 0):
        raise ValueError(
            f"model: found {name}, which adds embeddings of tokens in every layer, expected a model that reads "
            "inputs_embeds alone"
        )
    if model.training:
        raise ValueError(f"model: found {name} in training mode, expected model.eval()")
    body = getattr(model, body_name(model), None)
    accepted = {} if body is None else inspect.signature(body.forward).parameters
    missing = [each for each in ("inputs_embeds", "past_key_values") if each not in accepted]
    if missing:
        found = "is not apart from its head" if body is None else f"takes no {missing[0]}"
        raise ValueError(
            f"model: found {name}, whose body {found}, expected one that takes inputs_embeds and past_key_values"
        )
    head: Any = model.get_output_embeddings()  # type: ignore[no-untyped-call]
    read: Any = model.get_input_embeddings()
    _check_weights(model, (read, head))
    inputs = read.weight.shape[0]
    if head is None or head.weight.shape[0] != inputs:
        found = "no output embeddings" if head is None else f"logits of {head.weight.shape[0]} tokens"
        raise ValueError(f"model: found {name} with {found}, expected those of the {inputs} tokens it reads")


def _check_weights(model: Any, ends: tuple[Any, Any]) -> None:
    """Raise ValueError for layers of PyTorch's own quantisation, which may scale all rows of a pass together.

    The embeddings need a matrix of numbers besides: its shape says how many tokens there are.
    """
    found = [layer for layer in model.modules() if callable(getattr(layer, "weight", None))]
    for layer in ends:
        weight = getattr(layer, "weight", None)
        if layer is not None and not (isinstance(weight, Tensor) and weight.is_floating_point()):
            found.append(layer)
    if found:
        kind = f"{type(found[0]).__module__}.{type(found[0]).__qualname__}"
        raise ValueError(
            f"model: found {type(model).__name__} with weights that are not floating-point numbers ({kind}), expected "
            "a model that is not quantised"
        )


def body_name(model: Any) -> str:
    """Return under which name a model keeps what computes hidden states."""
    return model.base_model_prefix if model.base_model_prefix in model._modules else "model"


def check_masks(model: Any, config: Any) -> None:
    """Raise ValueError where a mask that says who sees whom would be ignored or misread, or positions would be."""
    takes_positions = "position_ids" in inspect.signature(getattr(model, body_name(model)).forward).parameters
    if not takes_positions or getattr(config, "alibi", False):
        why = "attention counts distances in the cache, alibi" if takes_positions else "body takes no position_ids"
        raise ValueError(
            f"model: found {type(model).__name__}, whose {why}, expected positions that can be told to it: drafts of "
            "one depth share theirs"
        )
    kind = getattr(config, "_attn_implementation", None)
    if kind not in ATTENTION:
        raise ValueError(
            f"attn_implementation: found {kind!r}, expected 'eager' or 'sdpa', which take masks of numbers"
        )
    kinds = set(getattr(config, "layer_types", None) or KINDS)
    local = set(getattr(config, "attention_layers", None) or ()) - {"global"}
    if local or not kinds <= KINDS:
        raise ValueError(
            f"model: found {type(model).__name__} with layers of the kinds {sorted(local or kinds)}, expected full "
            "attention and sliding windows, for which masks of numbers are enough"
        )


def longest_text(config: Any) -> int:
    """Return the longest sequence that a model can read; some have no limit."""
    found = getattr(config, "max_position_embeddings", None)
    return found if isinstance(found, int) and found > 0 else NO_LIMIT


def check_rope(config: Any, prompt_length: int, max_new_tokens: int, num_beyond: int = 0) -> None:
    """Raise ValueError where rotary frequencies would change within the text: then a pass is not what it was.

    They follow from the last position of a pass, which may be `num_beyond` after the end of the text.
    """
    parameters = getattr(config, "rope_parameters", None) or {}
    tables = [each for each in parameters.values() if isinstance(each, dict)] or [parameters]
    for table in tables:
        original = table.get("original_max_position_embeddings") or NO_LIMIT
        if table.get("rope_type") != "longrope" or prompt_length > original:
            continue
        if prompt_length + max_new_tokens + num_beyond > original:
            raise ValueError(
                f"max_new_tokens: found a prompt of {prompt_length} tokens and {max_new_tokens} new ones, expected at "
                f"most {original - num_beyond} together or a longer prompt: there the model's rotary frequencies change"
            )


SEEN = [  # which row sees which: a token, a draft, a group after each
    [1, 0, 0, 0, 0, 0],
    [1, 1, 0, 0, 0, 0],
    [1, 0, 1, 0, 0, 0],
    [1, 0, 1, 1, 0, 0],
    [1, 1, 0, 0, 1, 0],
    [1, 1, 0, 0, 1, 1],
]
_PROBED: WeakKeyDictionary[Any, set[tuple[Any, ...]]] = WeakKeyDictionary()


def probe(model: TransformersModel) -> None:
    """Raise ValueError unless passes over input vectors, after a cache that was rolled back, are those over tokens."""
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


@dataclass
class _BodyOutput(ModelOutput):
    """What a head finds in the output of any body; only the hidden states are there."""

    last_hidden_state: Tensor | None = None
    past_key_values: Any = None
    hidden_states: Any = None
    attentions: Any = None
    cross_attentions: Any = None
    router_logits: Any = None


class IdentityBody(torch.nn.Module):
    """A body that returns its input vectors as its hidden states."""

    @property
    def decoder(self) -> IdentityBody:
        """The same, for models whose body has a decoder inside."""
        return self

    def forward(
        self,
        *arguments: Any,
        inputs_embeds: Tensor,  # [1, T, D]
        **named: Any,
    ) -> _BodyOutput:
        """Return the vectors in the form that a head expects."""
        return _BodyOutput(last_hidden_state=inputs_embeds)
