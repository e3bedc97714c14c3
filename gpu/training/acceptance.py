"""How often drafts would be accepted, as an exact expectation at places of held-out text.

Glossary of shapes: B sequences, T tokens of a sequence, N anchors, L look-ahead vectors, D model, V vocabulary.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from ..config import SamplingConfig
from ..sampling import probs_from_logits
from ..transformer import Transformer
from .anchors import anchored_rows

__all__ = ["expected_acceptance", "fixed_token_vectors"]

ANCHORS = 32  # places looked at per sequence
SEQUENCES = 4  # side by side: what a batch needs in memory is its rows' laws, in float64


@torch.inference_mode()
def expected_acceptance(
    model: Transformer,
    vectors: Tensor,  # [L, D]
    sequences: npt.NDArray[np.int64],  # [B, T]
    sampling: SamplingConfig,
) -> Tensor:  # [L]
    """Return the chance that verification accepts the draft at each depth, once it is reached, on average.

    acceptance[i] = mean over places of sum_v min(target_probs[v], draft_probs[v])

    The places are spread evenly over text that the model did not write; the drafts before i are taken to be the
    text's. Deterministic: no draw is made.

    Raises:
        ValueError: no draft has a place in sequences so short.

    Source: Leviathan et al. 2023 (arXiv 2211.17192), Corollary 3.6.
    """
    depth, length = len(vectors), sequences.shape[1]
    if length < depth + 2 or not len(sequences):
        raise ValueError(f"sequences: found {len(sequences)} of {length} tokens, expected some of at least {depth + 2}")
    anchors = torch.linspace(0, length - depth - 2, min(ANCHORS, length - depth - 1), device=model.device).long()
    total = torch.zeros(depth, dtype=torch.float64, device=model.device)
    for first in range(0, len(sequences), SEQUENCES):
        tokens = torch.from_numpy(sequences[first : first + SEQUENCES]).to(model.device)
        rows = anchored_rows(model, vectors, tokens, anchors)
        target_probs = probs_from_logits(rows.target_logits, sampling)
        draft_probs = probs_from_logits(rows.draft_logits, sampling)
        total += torch.minimum(target_probs, draft_probs).sum(dim=-1).mean(dim=1).sum(dim=0)
    return (total / len(sequences)).cpu()


def fixed_token_vectors(
    model: Transformer,
    num_lookahead: int,
    token: int = 0,
) -> Tensor:  # [L, D]
    """Return the paper's untrained baseline: one token's embedding in the place of every look-ahead vector."""
    return model.embed([[token] * num_lookahead])[0]
