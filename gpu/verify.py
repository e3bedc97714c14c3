"""The rules of verification: how many drafts are accepted, and which token follows them.

The rules, their proofs and their sources are those of `reference.verify`, for a batch. Each row has `num_draft` drafts,
and those after them are ignored.

Glossary of shapes: B batch, K drafts, N rows of distributions, V vocabulary. Row i of `target_probs` is the
distribution of the token after i drafts.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from .host import constant
from .sampling import Probs
from .state import count_leading_true
from .uniforms import UniformRow

Tokens = Tensor


@dataclass(frozen=True)
class Verification:
    """The outcome of one verification; `final_token` is a bonus if all drafts were accepted, else a correction.

    If the last draft ends the text and all were accepted, `has_bonus_row` is false, and `final_token` is meaningless.
    """

    num_accepted: Tensor  # [B]
    final_token: Tensor  # [B]
    accept_probs: Probs  # [B, K]


def accept_probs(
    target_probs: Probs,  # [B, K+1, V], or [B, K, V] without the distribution after the last draft
    draft_probs: Probs,  # [B, K, V]
    draft_tokens: Tokens,  # [B, K]
) -> Probs:  # [B, K]
    """Return the probability with which each draft token is accepted, once it is reached.

    accept_probs[i] = min(1, target_probs[i, x[i]] / draft_probs[i, x[i]])  (8)
    """
    return (_at(target_probs, draft_tokens) / _at(draft_probs, draft_tokens)).clamp(max=1.0)


def _at(probs: Probs, draft_tokens: Tokens) -> Probs:  # [B, K]
    """Return the probability of each draft token in its row."""
    return probs[:, : draft_tokens.shape[1]].gather(-1, draft_tokens.unsqueeze(-1)).squeeze(-1)


def residual_probs(
    target_probs: Probs,  # [..., V]
    draft_probs: Probs,  # [..., V]
    weight: Tensor | float = 1.0,  # [..., 1], or []
) -> Probs:  # [..., V]
    """Return the distribution of the token that replaces a rejected draft.

    residual_probs = max(0, target_probs - draft_probs) / sum(max(0, target_probs - draft_probs))  (9)

    The block rule multiplies `target_probs` by a `weight` (14).
    """
    weighted = target_probs if isinstance(weight, float) and weight == 1 else weight * target_probs
    residual = (weighted - draft_probs).clamp(min=0.0)
    total = residual.sum(dim=-1, keepdim=True)
    return torch.where(total > 0, residual / total, target_probs)


def verify_token(
    target_probs: Probs,  # [B, K+1, V]
    draft_probs: Probs,  # [B, K, V]
    draft_tokens: Tokens,  # [B, K]
    draws: UniformRow,
    num_draft: Tensor,  # [B]
    has_bonus_row: Tensor,  # [B]
    active: Tensor,  # [B]
) -> Verification:
    """Accept drafts one by one until the first rejection, and replace that one from the residual distribution.

    final_token ~ residual_probs if draft i is the first rejected one, ~ target_probs[K] if none is  (10)
    """
    accept = accept_probs(target_probs, draft_probs, draft_tokens)
    asked = drafted(draft_tokens, num_draft) & active.unsqueeze(1)
    accepted = draws.accept("accept", accept.masked_fill(~asked, float("nan")))
    num_accepted = count_leading_true(accepted)
    final_token = _final_token(target_probs, draft_probs, None, num_accepted, draws, num_draft, has_bonus_row, active)
    return Verification(num_accepted, final_token, accept)


def verify_block(
    target_probs: Probs,  # [B, K+1, V]
    draft_probs: Probs,  # [B, K, V]
    draft_tokens: Tokens,  # [B, K]
    draws: UniformRow,
    num_draft: Tensor,  # [B]
    has_bonus_row: Tensor,  # [B]
    active: Tensor,  # [B]
) -> Verification:
    """Keep the longest run of drafts that their joint ratio allows, tried from the longest down.

    final_token ~ max(0, weights[i] target_probs[i] - draft_probs[i]) / gained[i] after i < K drafts  (14)
    """
    weights, accept = block_probs(target_probs, draft_probs, draft_tokens, num_draft)
    asked = drafted(draft_tokens, num_draft) & active.unsqueeze(1)
    accepted = draws.accept("accept", accept.masked_fill(~asked, float("nan")), from_last=True)
    lengths = torch.arange(1, draft_tokens.shape[1] + 1, device=draft_tokens.device)
    num_accepted = (accepted * lengths).amax(dim=1) if draft_tokens.shape[1] else torch.zeros_like(num_draft)
    final_token = _final_token(
        target_probs, draft_probs, weights, num_accepted, draws, num_draft, has_bonus_row, active
    )
    return Verification(num_accepted, final_token, accept)


def block_probs(
    target_probs: Probs,  # [B, K+1, V]
    draft_probs: Probs,  # [B, K, V]
    draft_tokens: Tokens,  # [B, K]
    num_draft: Tensor,  # [B]
) -> tuple[Probs, Probs]:  # [B, K+1], [B, K]
    """Return the weight of every run of drafts, and the probability of keeping it once all longer ones are rejected.

    weights[0] = 1, weights[i+1] = min(1, weights[i] target_probs[i, x[i]] / draft_probs[i, x[i]])  (11)

    gained[i] = sum(max(0, weights[i] target_probs[i] - draft_probs[i]))  (12)

    keep[i] = gained[i] / (gained[i] + 1 - weights[i]) for 0 < i < K, and keep[K] = weights[K]  (13)
    """
    num_tokens = draft_tokens.shape[1]
    target, draft = _at(target_probs, draft_tokens), _at(draft_probs, draft_tokens)
    target = torch.where(target.isnan(), draft, target)
    weight = torch.ones_like(target_probs[:, 0, 0])
    weights = [weight]
    for i in range(num_tokens):
        possible = (weight > 0) & (i < num_draft)
        weight = torch.where(possible, (weight * target[:, i] / draft[:, i]).clamp(max=1.0), 0.0)
        weights.append(weight)
    found = torch.stack(weights, dim=1)
    inner = found[:, 1:num_tokens]
    gained = (inner.unsqueeze(-1) * target_probs[:, 1:num_tokens] - draft_probs[:, 1:]).clamp(min=0.0).sum(dim=-1)
    kept = torch.where(inner == 1, 1.0, gained / (gained + 1.0 - inner))
    kept = torch.where(inner > 0, kept, 0.0).nan_to_num(nan=0.0)  # a row without a distribution gains nothing
    longest = torch.arange(1, num_tokens + 1, device=draft_tokens.device) == num_draft.unsqueeze(1)
    return found, torch.where(longest, found[:, 1:], torch.cat([kept, found[:, num_tokens:]], dim=1)[:, :num_tokens])


def _final_token(
    target_probs: Probs,  # [B, K+1, V]
    draft_probs: Probs,  # [B, K, V]
    weights: Tensor | None,  # [B, K+1]
    num_accepted: Tensor,  # [B]
    draws: UniformRow,
    num_draft: Tensor,  # [B]
    has_bonus_row: Tensor,  # [B]
    active: Tensor,  # [B]
) -> Tensor:  # [B]
    """Draw the correction from the residual, weighted or not, or the bonus token where all drafts were accepted."""
    is_correction = num_accepted < num_draft
    final_probs = row(target_probs, num_accepted)
    if draft_probs.shape[1]:
        rejected_probs = row(draft_probs, num_accepted.clamp(max=draft_probs.shape[1] - 1))
        weight = () if weights is None else (weights.gather(1, num_accepted.unsqueeze(1)),)
        residual = residual_probs(final_probs, rejected_probs, *weight)
        final_probs = torch.where(is_correction.unsqueeze(1), residual, final_probs)
    return draws.token("final", final_probs, active=active & (is_correction | has_bonus_row))


def verify_match(
    target_probs: Probs,  # [B, K+1, V]
    draft_probs: Probs,  # [B, K, V]
    draft_tokens: Tokens,  # [B, K]
    draws: UniformRow,
    num_draft: Tensor,  # [B]
    has_bonus_row: Tensor,  # [B]
    active: Tensor,  # [B]
) -> Verification:
    """Draw each token from the target, and continue while the draw equals the draft.

    token ~ target_probs[i]; accepted if token = x[i], else the final token  (18)
    """
    num_tokens = draft_tokens.shape[1]
    accept = _at(target_probs, draft_tokens)
    going = active
    num_accepted = torch.zeros_like(num_draft)
    final_token = torch.zeros_like(num_draft)
    for i in range(num_tokens):
        asked = going & (i < num_draft)
        token = draws.token("accept", target_probs[:, i], i, active=asked)
        matched = token == draft_tokens[:, i]
        final_token = torch.where(asked & ~matched, token, final_token)
        num_accepted = num_accepted + (asked & matched)
        going = going & (matched | (i >= num_draft))
    bonus_token = draws.token("final", row(target_probs, num_draft.clamp(max=num_tokens)), active=going & has_bonus_row)
    final_token = torch.where(going, bonus_token, final_token)
    return Verification(num_accepted, final_token, accept)


def drafted(
    draft_tokens: Tokens,  # [B, K]
    num_draft: Tensor,  # [B]
) -> Tensor:  # [B, K]
    """Return which places of a padded block of drafts hold a draft."""
    return constant(tuple(range(draft_tokens.shape[1])), draft_tokens.device) < num_draft.unsqueeze(1)


def row(
    rows: Tensor,  # [B, N, V]
    index: Tensor,  # [B]
) -> Tensor:  # [B, V]
    """Return one row of each batch entry."""
    return rows.gather(1, index[:, None, None].expand(-1, 1, rows.shape[2])).squeeze(1)


VerifyRule = Callable[[Probs, Probs, Tokens, UniformRow, Tensor, Tensor, Tensor], Verification]
RULES: dict[str, VerifyRule] = {"token": verify_token, "block": verify_block, "match": verify_match}
