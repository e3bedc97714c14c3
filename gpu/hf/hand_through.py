"""A body that computes nothing, before which a model's own head can be run alone."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers.utils.generic import ModelOutput

__all__ = ["HandThrough"]


@dataclass
class _BodyOutput(ModelOutput):
    """What a head finds in the output of any body; only the hidden states are there."""

    last_hidden_state: Tensor | None = None
    past_key_values: Any = None
    hidden_states: Any = None
    attentions: Any = None
    cross_attentions: Any = None
    router_logits: Any = None


class HandThrough(torch.nn.Module):
    """A body that returns its input vectors as its hidden states."""

    @property
    def decoder(self) -> HandThrough:
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
