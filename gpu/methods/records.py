"""How a method writes down what a step did: the exact token first, then what verification made of the drafts.

Glossary of shapes: B batch, K drafts, V vocabulary.

What verification makes of a step's drafts, for every method that drafts a chain.

Glossary of shapes: B batch, K drafts, W tokens after the committed prefix, V vocabulary.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ..batch_record import ACCEPTED, BONUS, CORRECTION, EXACT, BatchRecord
from ..sampling import Probs
from ..state import State
from ..uniforms import UniformRow
from ..verify import RULES, Tokens, Verification
from .base import Method


def exact_record(
    probs: Probs,  # [B, V]
    token: Tensor,  # [B]
    num_positions: Tensor,  # [B]
    draws: UniformRow,
    active: Tensor,  # [B]
) -> BatchRecord:
    """Record one token drawn from a row of the target, before any verification; inactive rows commit nothing."""
    none, no_tokens = torch.zeros_like(token), token[:, None][:, :0]
    no_probs = no_tokens.double()
    return BatchRecord(
        tokens=token.unsqueeze(1),
        sources=torch.full_like(token, EXACT).unsqueeze(1),
        log_probs=probs.gather(1, token.unsqueeze(1)).log(),
        count=active.long(),
        draft_tokens=no_tokens,
        draft_token_probs=no_probs,
        target_token_probs=no_probs,
        accept_probs=no_probs,
        num_draft=none,
        num_accepted=none,
        final_token=none - 1,
        num_forward_passes=active.long(),
        num_positions=num_positions * active,
        num_draft_passes=none,
        choices=draws.choices,
    )


def drafting_record(
    num_positions: Tensor,  # [B]
    num_draft_passes: Tensor,  # [B]
    active: Tensor,  # [B]
) -> BatchRecord:
    """Begin the record of a step that drafts before any pass of the target."""
    none, no_tokens = torch.zeros_like(num_positions), num_positions[:, None][:, :0]
    no_probs = no_tokens.double()
    return BatchRecord(
        tokens=no_tokens,
        sources=no_tokens,
        log_probs=no_probs,
        count=none,
        draft_tokens=no_tokens,
        draft_token_probs=no_probs,
        target_token_probs=no_probs,
        accept_probs=no_probs,
        num_draft=none,
        num_accepted=none,
        final_token=none - 1,
        num_forward_passes=none,
        num_positions=num_positions * active,
        num_draft_passes=num_draft_passes * active,
    )


def verified_record(
    record: BatchRecord,
    target_probs: Probs,  # [B, K+1, V]
    draft_probs: Probs,  # [B, K, V]
    draft_tokens: Tokens,  # [B, K]
    verification: Verification,
    draws: UniformRow,
    num_draft: Tensor,  # [B]
    has_bonus_row: Tensor,  # [B]
    active: Tensor,  # [B]
) -> BatchRecord:
    """Add one verification pass to the record of a step, in the active rows."""
    depth = draft_tokens.shape[1]
    num_accepted = verification.num_accepted * active
    final = num_accepted.unsqueeze(1)
    has_final = active & (has_bonus_row | (num_accepted < num_draft))
    final_token = verification.final_token.unsqueeze(1)
    block = torch.cat([draft_tokens, final_token], dim=1).scatter(1, final, final_token)
    final_source = torch.where(num_accepted == num_draft, BONUS, CORRECTION).unsqueeze(1)
    drafts = draft_tokens.unsqueeze(-1)
    log_probs = target_probs.gather(-1, block.unsqueeze(-1)).squeeze(-1).log()
    return BatchRecord(
        tokens=_joined(record.tokens, block),
        sources=_joined(record.sources, torch.full_like(block, ACCEPTED).scatter(1, final, final_source)),
        log_probs=_joined(record.log_probs, log_probs),
        count=record.count + num_accepted + has_final,
        draft_tokens=draft_tokens,
        draft_token_probs=draft_probs.gather(-1, drafts).squeeze(-1),
        target_token_probs=target_probs[:, :depth].gather(-1, drafts).squeeze(-1),
        accept_probs=verification.accept_probs,
        num_draft=num_draft * active,
        num_accepted=num_accepted,
        final_token=torch.where(has_final, verification.final_token, -1),
        num_forward_passes=record.num_forward_passes + active,
        num_positions=record.num_positions + (num_draft + 1) * active,
        num_draft_passes=record.num_draft_passes,
        choices=draws.choices,
    )


def _joined(
    before: torch.Tensor,  # [B, W]
    more: torch.Tensor,  # [B, N]
) -> torch.Tensor:  # [B, W+N]
    """Put columns after others."""
    return torch.cat([before, more], dim=1) if before.shape[1] else more


def verify_drafts(
    method: Method,
    rule: str,
    state: State,
    record: BatchRecord,
    draws: UniformRow,
    logits: Tensor,  # [B, K+1, V], of the pass over the drafts; row i stands after i of them
    draft_tokens: Tokens,  # [B, K]
    draft_probs: Probs,  # [B, K, V]
    num_draft: Tensor,  # [B]
    has_bonus_row: Tensor,  # [B]
    active: Tensor,  # [B]
    exact_token: Tokens | None = None,  # [B, 1], that stands before the drafts
    lenience: float = 1.0,
) -> tuple[State, BatchRecord, Verification]:
    """Verify drafts by a rule; return the state with its faults, the whole record, and the verification."""
    block = draft_tokens if exact_token is None else torch.cat([exact_token, draft_tokens], dim=1)
    num_more = block.shape[1] - draft_tokens.shape[1]
    rows = torch.arange(logits.shape[1], device=logits.device)
    used = (rows < (num_draft + has_bonus_row).unsqueeze(1)) & active.unsqueeze(1)
    target_probs, largest = method.chain_probs(state, logits, used, block, num_more)
    judged = draft_probs if lenience == 1 else lenience * draft_probs
    verification = RULES[rule](target_probs, judged, draft_tokens, draws, num_draft, has_bonus_row, active)
    state = state.note_fault(largest, num_more, used & (rows <= verification.num_accepted.unsqueeze(1)))
    record = verified_record(
        record, target_probs, draft_probs, draft_tokens, verification, draws, num_draft, has_bonus_row, active
    )
    return state, record, verification
