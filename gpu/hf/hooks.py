"""The hooks that `generate` hands over, in the form that methods and endings ask for.

Rows are as long as they are, so one is asked about at a time, with the padding in front of it, as in the library's own
loop. Some hooks know rows by their place in the batch; so they are shown a batch full of that row.

Glossary of shapes: B rows, T tokens of a row, padding included, T' tokens with the new ones, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import EosTokenCriteria, LogitsProcessorList, MaxLengthCriteria, StoppingCriteriaList

from ..ending import Criterion, Ending
from ..sampling import Processor

STATEFUL = (  # they remember what they were asked, or run a model of their own beside
    "SynthIDTextWatermarkLogitsProcessor",
    "UnbatchedClassifierFreeGuidanceLogitsProcessor",
    "ClassifierFreeGuidanceLogitsProcessor",
)


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

    They see float32 logits, as in `generate`; those of a float64 model stay what they are.
    """
    if not processors:
        return None
    every: Any = LogitsProcessorList(processors)
    wanted = torch.float64 if dtype == torch.float64 else torch.float32
    num_prompt = input_ids.shape[1] - num_padding

    def process(prefix: tuple[int, ...], logits: Tensor) -> Tensor:
        rows = _behind(input_ids, place, prefix[num_prompt:])
        processed: Tensor = every(rows, logits.to(rows.device, wanted).repeat(len(rows), 1))[place]
        return processed.to(logits.device)

    return process


def ending_of(
    criteria: Sequence[Any],
    input_ids: Tensor,  # [B, T]
    place: int,
    max_length: int,
) -> Ending:
    """Return where the text of a row ends: at a length, at tokens, or where a criterion says so of a prefix.

    Lengths and end-of-sequence tokens are looked for without asking the host.
    """
    eos: set[int] = set()
    others = []
    for criterion in criteria:
        if type(criterion) is MaxLengthCriteria:
            max_length = min(max_length, criterion.max_length)
        elif type(criterion) is EosTokenCriteria:
            eos |= set(criterion.eos_token_id.flatten().tolist())
        else:
            others.append(criterion)
    return Ending(max_length - input_ids.shape[1], sorted(eos), criterion=_criterion(others, input_ids, place))


def _criterion(
    criteria: Sequence[Any],
    input_ids: Tensor,  # [B, T]
    place: int,
) -> Criterion | None:
    if not criteria:
        return None
    every: Any = StoppingCriteriaList(criteria)
    return lambda new_tokens: bool(every(_behind(input_ids, place, new_tokens), None)[place])


def _behind(
    input_ids: Tensor,  # [B, T]
    place: int,
    new_tokens: Sequence[int],
) -> Tensor:  # [B, T']
    """Return a row of the batch with new tokens behind it, as often as there are rows."""
    new = torch.tensor(new_tokens, dtype=input_ids.dtype, device=input_ids.device)
    return torch.cat([input_ids[place], new]).repeat(len(input_ids), 1)
