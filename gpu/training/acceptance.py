"""How often drafts would be accepted, as an exact expectation at places of held-out text.

Of look-ahead vectors and what was trained beside them, and of a drafter without a cache.

Glossary of shapes: B sequences, T tokens of a sequence, L look-ahead vectors, D model.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from pass_sampling.reference.config import SamplingConfig

from ..drafters.base import Drafter
from ..lookahead.adapter import Adapter
from ..lookahead.head import SamplerHead
from ..lookahead.vectors import LookAhead
from ..model.transformer import Transformer
from ..sampling import largest_logits, probs_from_logits
from .anchors import anchored_rows

if TYPE_CHECKING:
    from .train import Trainable

__all__ = [
    "acceptance_of",
    "compared",
    "drafter_acceptance",
    "expected_acceptance",
    "expected_tokens",
    "fixed_token_vectors",
    "perplexity",
]


ANCHORS = 32  # places looked at per sequence
SAMPLINGS = {"greedy": SamplingConfig(temperature=0.0), "temperature_1": SamplingConfig()}  # beside that of training
SEQUENCES = 4  # side by side: what a batch needs in memory is its rows' distributions, in float64


def expected_acceptance(
    model: Trainable,
    vectors: Tensor,  # [L, D]
    sequences: npt.NDArray[np.int64],  # [B, T]
    sampling: SamplingConfig,
    adapter: Adapter | None = None,
    head: SamplerHead | None = None,
) -> Tensor:  # [L]
    """Return the chance that verification accepts the draft at each depth, once it is reached, on average.

    acceptance[i] = mean over places of sum_v min(target_probs[v], draft_probs[v])

    The places are spread evenly over text that the model did not write; the drafts before i are taken to be the
    text's, for the head as well. Deterministic: no draw is made.

    Raises:
        ValueError: no draft has a place in sequences so short.

    Source: Leviathan et al. 2023 (arXiv 2211.17192), Corollary 3.6.
    """
    return acceptance_of(model, vectors, sequences, [sampling], adapter, head)[0]


@torch.inference_mode()
def acceptance_of(
    model: Trainable,
    vectors: Tensor,  # [L, D]
    sequences: npt.NDArray[np.int64],  # [B, T]
    samplings: Sequence[SamplingConfig],
    adapter: Adapter | None = None,
    head: SamplerHead | None = None,
) -> Tensor:  # [len(samplings), L]
    """Return the expected acceptance for several samplings, from the same passes.

    Raises:
        ValueError: as `expected_acceptance`.
    """
    depth, length = len(vectors), sequences.shape[1]
    if length < depth + 2 or not len(sequences):
        raise ValueError(f"sequences: found {len(sequences)} of {length} tokens, expected some of at least {depth + 2}")
    anchors = torch.linspace(0, length - depth - 2, min(ANCHORS, length - depth - 1), device=model.device).long()
    total = torch.zeros((len(samplings), depth), dtype=torch.float64, device=model.device)
    for first in range(0, len(sequences), SEQUENCES):
        tokens = torch.from_numpy(sequences[first : first + SEQUENCES]).to(model.device)
        rows = anchored_rows(model, vectors, tokens, anchors, adapter, head)
        for i, sampling in enumerate(samplings):
            target_probs = probs_from_logits(rows.target_logits, sampling)
            draft_probs = probs_from_logits(rows.draft_logits, sampling)
            total[i] += torch.minimum(target_probs, draft_probs).sum(dim=-1).mean(dim=1).sum(dim=0)
    return (total / len(sequences)).cpu()


def expected_tokens(
    acceptance: Tensor,  # [L]
) -> float:
    """Return about how many tokens a pass yields that verifies L drafts, the correction or bonus token included.

    tokens = 1 + a_1 + a_1 a_2 + ... + a_1 ... a_L

    About, because these are means over all places: it takes acceptance at one depth to say nothing of the next, and
    drafts after accepted ones to fare as those after the text's own tokens.

    Source: Leviathan et al. 2023, Eq. 1, with a rate for each depth.
    """
    return 1.0 + float(acceptance.cumprod(dim=0).sum())


def compared(
    model: Trainable,
    lookahead: LookAhead,
    sequences: npt.NDArray[np.int64],  # [B, T]
    sampling: SamplingConfig,
    seed: int,
) -> dict[str, Any]:
    """Return expected acceptance and tokens of what was trained and of two controls, at three samplings, for a record.

    The controls are small random vectors and the paper's fixed token, both without adapter and head. That of a head
    is one that drafts alone, which has to be trained.
    """
    depth, named = lookahead.num_lookahead, {"": sampling} | SAMPLINGS
    samplings, vectors = list(named.values()), lookahead.vectors.to(model.device)
    small = LookAhead.random(depth, model.hidden_size, seed, model.device).vectors
    found = {
        "": acceptance_of(model, vectors, sequences, samplings, lookahead.adapter, lookahead.head),
        "random_": acceptance_of(model, small, sequences, samplings),
        "fixed_token_": acceptance_of(model, fixed_token_vectors(model, depth), sequences, samplings),
    }
    record: dict[str, Any] = {}
    for i, name in enumerate(named):
        place = record.setdefault(name, {}) if name else record
        for kind, rates in found.items():
            place[f"{kind}acceptance"] = [round(float(rate), 4) for rate in rates[i]]
            place[f"{kind}expected_tokens"] = round(expected_tokens(rates[i]), 4)
    return record


def fixed_token_vectors(
    model: Trainable,
    num_lookahead: int,
    token: int = 0,
) -> Tensor:  # [L, D]
    """Return the paper's untrained baseline: one token's embedding in the place of every look-ahead vector."""
    return model.embed([[token] * num_lookahead])[0]


ROWS = 64  # distributions after one sequence, side by side


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
