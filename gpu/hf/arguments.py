"""What `generate` was called with: prompts without their padding, and what is refused before any pass.

Glossary of shapes: B rows, T tokens of a row, padding included.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from transformers import DynamicCache

IGNORED = {"logits_to_keep", "use_cache", "attention_mask", "position_ids", "past_key_values", "cache_position"}
OUTPUTS = ("output_scores", "output_logits", "output_attentions", "output_hidden_states")


def check_generation(config: Any) -> None:
    """Refuse settings of `generate` under which there is no text of the law that is promised.

    Raises:
        ValueError: beams, another way of decoding, a guide, a draft's end, outputs that passes over drafts do not have,
            or no cache.
    """
    if (config.num_beams or 1) > 1:
        raise ValueError(f"num_beams: found {config.num_beams}, expected 1")
    mode = config.get_generation_mode()
    if mode.value not in ("greedy_search", "sample"):
        raise ValueError(f"generation_config: found settings for {mode.value}, expected greedy decoding or sampling")
    if config.guidance_scale not in (None, 1, 1.0):
        raise ValueError(f"guidance_scale: found {config.guidance_scale}, expected None")
    if config.is_assistant:
        raise ValueError("is_assistant: found True, expected False: a draft's end depends on scores of its own passes")
    for name in OUTPUTS:
        if getattr(config, name, None):
            raise ValueError(f"{name}: found True, expected False: rows of drafts would be among them")
    if config.use_cache is False:
        raise ValueError("use_cache: found False, expected True: rejected drafts are rolled back in a cache")


def check_arguments(named: dict[str, Any]) -> None:
    """Raise ValueError for an argument that the model's forward would be given beside the tokens."""
    for name, value in named.items():
        if name == "token_type_ids" and isinstance(value, Tensor) and not bool(value.any()):
            continue  # of a tokenizer that marks one text with zeros
        if name not in IGNORED and value is not None and value is not False:
            raise ValueError(f"{name}: found a {type(value).__name__}, expected a prompt of tokens alone")


def check_cache(cache: Any, batch_size: int) -> int:
    """Return how many positions a given cache holds.

    Raises:
        ValueError: it is one that cannot be rolled back, or was filled for several rows.
    """
    if cache is None:
        return 0
    if type(cache) is not DynamicCache or cache.offloading:
        kind = "an offloaded one" if type(cache) is DynamicCache else f"a {type(cache).__name__}"
        raise ValueError(f"past_key_values: found {kind}, expected a DynamicCache, or none")
    held = int(cache.get_seq_length())
    if held and batch_size > 1:
        raise ValueError(f"past_key_values: found {held} positions of {batch_size} rows, expected those of one row")
    return held


def paddings(
    input_ids: Tensor,  # [B, T]
    attention_mask: Tensor | None,  # [B, T]
) -> list[int]:
    """Return how many tokens of padding stand in front of each row.

    Raises:
        ValueError: there is no token, or padding behind one.
    """
    if input_ids.ndim != 2 or input_ids.shape[1] == 0:
        raise ValueError(f"input_ids: found shape {list(input_ids.shape)}, expected rows of at least one token")
    if attention_mask is None:
        return [0] * len(input_ids)
    if attention_mask.shape != input_ids.shape:
        raise ValueError(
            f"attention_mask: found shape {list(attention_mask.shape)}, expected {list(input_ids.shape)}, that of the "
            "tokens"
        )
    shown = attention_mask.bool()
    if bool((shown[:, :-1] & ~shown[:, 1:]).any()) or not bool(shown[:, -1].all()):
        raise ValueError("attention_mask: found zeros behind a token, expected padding in front of the text alone")
    return (~shown).sum(dim=1).tolist()


def check_positions(
    position_ids: Tensor | None,  # [B, T]
    num_padding: list[int],
    num_tokens: int,
) -> None:
    """Raise ValueError unless every row's tokens stand at 0, 1, 2, and so on."""
    if position_ids is None:
        return
    for row, padding in zip(position_ids, num_padding, strict=False):
        expected = torch.arange(num_tokens - padding, device=row.device)
        if row.ndim != 1 or not torch.equal(row[-len(expected) :], expected[-len(row) :]):
            raise ValueError("position_ids: found positions of another kind, expected those that count the tokens")
