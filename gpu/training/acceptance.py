"""How often drafts would be accepted, as an exact expectation at places of held-out text.

Glossary of shapes: B sequences, T tokens of a sequence, L look-ahead vectors, D model.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from ..adapter import Adapter
from ..config import SamplingConfig
from ..lookahead import LookAhead
from ..sampler_head import SamplerHead
from ..sampling import probs_from_logits
from .anchors import anchored_rows

if TYPE_CHECKING:
    from ..train import Trainable

__all__ = ["acceptance_of", "compared", "expected_acceptance", "expected_tokens", "fixed_token_vectors"]

ANCHORS = 32  # places looked at per sequence
SAMPLINGS = {"greedy": SamplingConfig(temperature=0.0), "temperature_1": SamplingConfig()}  # beside that of training
SEQUENCES = 4  # side by side: what a batch needs in memory is its rows' laws, in float64


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
    drafts behind accepted ones to fare as those behind the text's own tokens.

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
