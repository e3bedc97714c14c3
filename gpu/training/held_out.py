"""How well a drafter without a cache does on text held out.

Glossary of shapes: B sequences, T tokens of a sequence.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import torch

from ..config import SamplingConfig
from ..drafters.base import Drafter
from ..sampling import largest_logits, probs_from_logits
from ..transformer import Transformer
from .acceptance import ANCHORS, SEQUENCES

__all__ = ["drafter_acceptance", "perplexity"]

ROWS = 64  # laws behind one sequence, side by side


@torch.inference_mode()
def drafter_acceptance(
    model: Transformer,
    drafter: Drafter,
    sequences: npt.NDArray[np.int64],  # [B, T]
    samplings: Sequence[SamplingConfig],
) -> list[float]:
    """Return the chance that verification accepts a first draft, for each sampling, of a drafter without a cache.

    acceptance = mean over places of sum_v min(target_probs[v], draft_probs[v])

    The places are as in `expected_acceptance`. Where the drafter proposes nothing, nothing is accepted.

    Raises:
        ValueError: there is no sequence, or no place in sequences so short.
    """
    length = sequences.shape[1]
    if length < 2 or not len(sequences):
        raise ValueError(f"sequences: found {len(sequences)} of {length} tokens, expected some of at least 2")
    anchors = torch.linspace(0, length - 2, min(ANCHORS, length - 1), device=model.device).long()
    total = torch.zeros(len(samplings), dtype=torch.float64, device=model.device)
    for first in range(0, len(sequences), SEQUENCES):
        tokens = torch.from_numpy(sequences[first : first + SEQUENCES]).to(model.device)
        hidden = model.hidden(model.embed(tokens), model.new_cache(length, len(tokens)))
        target_logits = model.logits(hidden[:, anchors]).flatten(0, 1)
        lengths = (anchors + 1).repeat(len(tokens))
        draft_logits = drafter.logits(tokens.repeat_interleave(len(anchors), dim=0), None, lengths, length)
        proposed = largest_logits(draft_logits).isfinite()
        for i, sampling in enumerate(samplings):
            pairs = (probs_from_logits(logits, sampling) for logits in (target_logits, draft_logits))
            total[i] += torch.minimum(*pairs).sum(dim=-1)[proposed].sum() / len(anchors)
    return (total / len(sequences)).tolist()


@torch.inference_mode()
def perplexity(
    drafter: Drafter,
    sequences: npt.NDArray[np.int64],  # [B, T]
    device: torch.device,
) -> float:
    """Return how well a drafter without a cache predicts text: as well as if so many tokens were equally likely.

    perplexity = exp of the mean of -log draft_probs(next token)
    """
    total, length = 0.0, sequences.shape[1]
    for tokens in torch.from_numpy(sequences).to(device):
        for lengths in torch.arange(1, length, device=device).split(ROWS):
            rows = drafter.logits(tokens.expand(len(lengths), -1), None, lengths, length).log_softmax(dim=-1)
            total -= float(rows.gather(1, tokens[lengths].unsqueeze(1)).sum())
    return math.exp(total / (len(sequences) * (length - 1)))
