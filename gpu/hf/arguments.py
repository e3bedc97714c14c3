"""The arguments of `generate`: what is refused before any pass, prompts without padding, and hooks for each row.

Texts of a batch have different lengths, so hooks are asked about one row at a time, with the padding in front of it, as
in the library's own loop. Some hooks know rows by their place in the batch. So they are given a batch in which every
row is that one.

Glossary of shapes: B rows, T tokens of a row, padding included, T' tokens with the new ones, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import DynamicCache, EosTokenCriteria, LogitsProcessorList, MaxLengthCriteria, StoppingCriteriaList

from pass_sampling.reference.ending import Ending

from ..sampling import Processor

IGNORED = {"logits_to_keep", "use_cache", "attention_mask", "position_ids", "past_key_values", "cache_position"}
OUTPUTS = ("output_scores", "output_logits", "output_attentions", "output_hidden_states")
STATEFUL = (  # they remember what they were asked, or run another model
    "SynthIDTextWatermarkLogitsProcessor",
    "UnbatchedClassifierFreeGuidanceLogitsProcessor",
    "ClassifierFreeGuidanceLogitsProcessor",
)


def check_generation(config: Any) -> None:
    """Raise ValueError for settings of `generate` that would not be exact, or need outputs that drafts do not have."""
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
    """Raise ValueError for an argument that the model's forward would be given in addition to the tokens."""
    for name, value in named.items():
        if name == "token_type_ids" and isinstance(value, Tensor) and not bool(value.any()):
            continue  # of a tokenizer that marks one text with zeros
        if name not in IGNORED and value is not None and value is not False:
            raise ValueError(f"{name}: found a {type(value).__name__}, expected a prompt of tokens alone")


def check_cache(cache: Any, batch_size: int) -> int:
    """Return how many positions a given cache holds; raise ValueError for one of several rows or of another kind."""
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
    """Return how many tokens of padding are in front of each row; raise ValueError for padding anywhere else."""
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
        raise ValueError("attention_mask: found zeros after a token, expected padding in front of the text alone")
    return (~shown).sum(dim=1).tolist()


def check_positions(
    position_ids: Tensor | None,  # [B, T]
    num_padding: list[int],
    num_tokens: int,
) -> None:
    """Raise ValueError unless every row's tokens are at the positions 0, 1, 2, and so on."""
    if position_ids is None:
        return
    for row, padding in zip(position_ids, num_padding, strict=False):
        expected = torch.arange(num_tokens - padding, device=row.device)
        if row.ndim != 1 or not torch.equal(row[-len(expected) :], expected[-len(row) :]):
            raise ValueError("position_ids: found positions of another kind, expected those that count the tokens")


def check_processors(processors: Sequence[Any]) -> None:
    """Raise ValueError for a processor that is no function of the prefix and its logits."""
    for processor in processors:
        name = type(processor).__name__
        if name in STATEFUL:
            raise ValueError(f"logits_processor: found {name}, expected a function of the prefix and its logits alone")


def processor_hook(
    processors: Sequence[Any],
    input_ids: Tensor,  # [B, T]
    place: int,
    num_padding: int,
    dtype: torch.dtype,
) -> Processor | None:
    """Return the processors as one hook for a row of the batch, or None where there are none.

    They are given float32 logits, as in `generate`; those of a float64 model stay float64.
    """
    if not processors:
        return None
    every: Any = LogitsProcessorList(processors)
    wanted = torch.float64 if dtype == torch.float64 else torch.float32
    num_prompt = input_ids.shape[1] - num_padding

    def process(prefix: tuple[int, ...], logits: Tensor) -> Tensor:
        rows = _rows_of(input_ids, place, prefix[num_prompt:])
        processed: Tensor = every(rows, logits.to(rows.device, wanted).repeat(len(rows), 1))[place]
        return processed.to(logits.device)

    return process


def ending_of(
    criteria: Sequence[Any],
    input_ids: Tensor,  # [B, T]
    place: int,
    max_length: int,
) -> Ending:
    """Return where the text of a row ends: at a length, at tokens, or at a prefix that a criterion ends.

    Lengths and end-of-sequence tokens are checked without asking the host.
    """
    eos: set[int] = set()
    others: Any = StoppingCriteriaList()
    for criterion in criteria:
        if type(criterion) is MaxLengthCriteria:
            max_length = min(max_length, criterion.max_length)
        elif type(criterion) is EosTokenCriteria:
            eos |= set(criterion.eos_token_id.flatten().tolist())
        else:
            others.append(criterion)

    def ends(new_tokens: Sequence[int]) -> bool:
        return bool(others(_rows_of(input_ids, place, new_tokens), None)[place])

    return Ending(max_length - input_ids.shape[1], sorted(eos), criterion=ends if others else None)


def _rows_of(
    input_ids: Tensor,  # [B, T]
    place: int,
    new_tokens: Sequence[int],
) -> Tensor:  # [B, T']
    """Return a row of the batch with new tokens after it, as often as there are rows."""
    new = torch.tensor(new_tokens, dtype=input_ids.dtype, device=input_ids.device)
    return torch.cat([input_ids[place], new]).repeat(len(input_ids), 1)
