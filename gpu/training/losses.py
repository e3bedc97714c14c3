"""What drafts learn from: how far their distributions are from the frozen model's own, or from the text.

Glossary of shapes: B sequences, N anchors, L look-ahead vectors, V vocabulary.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from .anchors import AnchoredRows

__all__ = ["LOSSES", "mean_loss"]


def kl_loss(rows: AnchoredRows, temperature: float) -> Tensor:  # [B, N, L]
    """Return the divergence of each draft distribution from the frozen model's own, in nats.

    sum_v target[v] (log target[v] - log draft[v]), both at the temperature
    """
    draft, target = _log_probs(rows.draft_logits, temperature), _log_probs(rows.target_logits, temperature)
    return functional.kl_div(draft, target, reduction="none", log_target=True).sum(dim=-1)


def total_variation_loss(rows: AnchoredRows, temperature: float) -> Tensor:  # [B, N, L]
    """Return how often each draft would be rejected, at the temperature.

    0.5 sum_v |target[v] - draft[v]| = 1 - sum_v min(target[v], draft[v])

    Source: Leviathan et al. 2023 (arXiv 2211.17192), Sec. 3.2; Zhou et al. 2024 (arXiv 2310.08461), as a loss.
    """
    draft, target = _log_probs(rows.draft_logits, temperature), _log_probs(rows.target_logits, temperature)
    return 0.5 * (target.exp() - draft.exp()).abs().sum(dim=-1)


def cross_entropy_loss(rows: AnchoredRows, temperature: float) -> Tensor:  # [B, N, L]
    """Return the loss of the drafts on the text's own tokens, in nats, as in the paper; always at temperature 1.

    Source: Monea et al. 2023 (arXiv 2311.13581), Sec. 3.
    """
    logits = rows.draft_logits.float().flatten(0, 2)
    return functional.cross_entropy(logits, rows.next_tokens.flatten(), reduction="none").view_as(rows.next_tokens)


LOSSES = {"kl": kl_loss, "total-variation": total_variation_loss, "cross-entropy": cross_entropy_loss}


def mean_loss(
    losses: Tensor,  # [B, N, L]
    depth_decay: float,
) -> Tensor:  # []
    """Return the mean over places; a deeper draft weighs less, as it is reached less often.

    sum_i depth_decay^i mean(losses[..., i]) / sum_i depth_decay^i
    """
    weights = depth_decay ** torch.arange(losses.shape[-1], device=losses.device)
    return (losses.mean(dim=(0, 1)) * (weights / weights.sum())).sum()


def _log_probs(
    logits: Tensor,  # [..., V]
    temperature: float,
) -> Tensor:  # [..., V]
    return (logits.float() / temperature).log_softmax(dim=-1)
