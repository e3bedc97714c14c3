"""Models of transformers: reading one from a folder, and refusing, before any pass, those that are not supported."""

from __future__ import annotations

import inspect
import os
from typing import Any

import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, PreTrainedModel
from transformers.utils import logging

from pass_sampling.reference.checkpoint.folder import CONFIG, check_weights, file_in, open_folder

from ..model.precision import asked_dtype, automatic_dtype, check_device
from ..outside import reason_of

ATTENTION = ("eager", "sdpa")  # those that take a mask of numbers
KINDS = {"full_attention", "sliding_attention"}
NO_LIMIT = 2**31


def load_with_transformers(
    folder: str | os.PathLike[str], dtype: Any = None, device: torch.device | str = "cpu"
) -> Any:
    """Return the model in a folder as transformers has it, in eval mode; default dtype: see `automatic_dtype`.

    Raise FileNotFoundError or ValueError for a folder that is missing, has no weights, or cannot be read.
    """
    device, asked = check_device(device), asked_dtype(dtype)
    root = open_folder(folder)
    file_in(root, CONFIG)
    check_weights(root)
    logging.set_verbosity_error()  # type: ignore[no-untyped-call]
    logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    try:
        model: Any = AutoModelForCausalLM.from_pretrained(
            str(folder), dtype=asked or "auto", local_files_only=True, trust_remote_code=False, use_safetensors=True
        )
    except Exception as error:  # transformers raises anything here
        reason = reason_of(error)
        raise ValueError(
            f"{folder} holds nothing for transformers ({reason}), expected a model that it reads"
        ) from None
    return model.eval().to(device, asked or automatic_dtype(model.dtype, device))


def check_model(model: Any) -> None:
    """Raise ValueError for a model whose passes could not be undone, or whose distribution is none."""
    name = type(model).__name__
    if not isinstance(model, PreTrainedModel) or not model.can_generate():
        raise ValueError(f"model: found a {name}, expected a causal language model of transformers")
    if model.config.is_encoder_decoder:
        raise ValueError(f"model: found {name}, an encoder and a decoder, expected a decoder alone")
    if getattr(model, "_is_stateful", False):
        raise ValueError(f"model: found {name}, whose recurrent state cannot be rolled back, expected attention alone")
    config = model.config.get_text_config(decoder=True)
    if getattr(config, "hidden_size_per_layer_input", 0):
        raise ValueError(f"model: found {name} with embeddings of tokens in every layer, expected them in front alone")
    if model.training:
        raise ValueError(f"model: found {name} in training mode, expected model.eval()")
    body = getattr(model, body_name(model), None)
    accepted = {} if body is None else inspect.signature(body.forward).parameters
    for each in ("inputs_embeds", "past_key_values"):
        if each not in accepted:
            raise ValueError(f"model: found {name}, whose body takes no {each}, expected one that does")
    head: Any = model.get_output_embeddings()  # type: ignore[no-untyped-call]
    read: Any = model.get_input_embeddings()
    # PyTorch's own quantisation may scale all rows of a pass together.
    wrong = [layer for layer in model.modules() if callable(getattr(layer, "weight", None))]
    ends = [layer for layer in (read, head) if layer is not None]
    wrong += [each for each in ends if not isinstance(each.weight, Tensor) or not each.weight.is_floating_point()]
    if wrong:
        kind = f"{type(wrong[0]).__module__}.{type(wrong[0]).__qualname__}"
        what = f"weights that are not floating-point numbers ({kind})"
        raise ValueError(f"model: found {name} with {what}, expected a model that is not quantised")
    inputs = read.weight.shape[0]
    if head is None or head.weight.shape[0] != inputs:
        found = "no output embeddings" if head is None else f"logits of {head.weight.shape[0]} tokens"
        raise ValueError(f"model: found {name} with {found}, expected those of the {inputs} tokens it reads")


def body_name(model: Any) -> str:
    """Return under which name a model keeps what computes hidden states."""
    return model.base_model_prefix if model.base_model_prefix in model._modules else "model"


def check_masks(model: Any, config: Any) -> None:
    """Raise ValueError if the model would ignore or misread an additive mask, or positions."""
    takes_positions = "position_ids" in inspect.signature(getattr(model, body_name(model)).forward).parameters
    if not takes_positions or getattr(config, "alibi", False):
        why = "attention counts distances in the cache, alibi" if takes_positions else "body takes no position_ids"
        raise ValueError(f"model: found {type(model).__name__}, whose {why}, expected positions that can be told to it")
    kind = getattr(config, "_attn_implementation", None)
    if kind not in ATTENTION:
        raise ValueError(
            f"attn_implementation: found {kind!r}, expected 'eager' or 'sdpa', which take masks of numbers"
        )
    kinds = set(getattr(config, "layer_types", None) or KINDS)
    local = set(getattr(config, "attention_layers", None) or ()) - {"global"}
    if local or not kinds <= KINDS:
        found = f"{type(model).__name__} with layers of the kinds {sorted(local or kinds)}"
        raise ValueError(f"model: found {found}, expected full attention and sliding windows")


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
            found = f"a prompt of {prompt_length} tokens and {max_new_tokens} new ones"
            most = f"{original - num_beyond} together or a longer prompt: there the rotary frequencies change"
            raise ValueError(f"max_new_tokens: found {found}, expected at most {most}")
