"""Records of a step, and the verification of a chain of drafts.

Glossary of shapes: B batch, K drafts, N tokens of a verification, W tokens recorded before it, V vocabulary.
"""

from __future__ import annotations

from dataclasses import replace

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
    return replace(
        drafting_record(num_positions, None, active),
        tokens=token.unsqueeze(1),
        sources=torch.full_like(token, EXACT).unsqueeze(1),
        log_probs=probs.gather(1, token.unsqueeze(1)).log(),
        count=(once := active.long()),
        num_forward_passes=once,
        choices=draws.choices,
    )


def drafting_record(
    num_positions: Tensor,  # [B]
    num_draft_passes: Tensor | None,  # [B], or none
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
        num_draft_passes=none if num_draft_passes is None else num_draft_passes * active,
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
    num_accepted, drafts = verification.num_accepted * active, draft_tokens.unsqueeze(-1)
    has_final = active & (has_bonus_row | (num_accepted < num_draft))
    block = with_final(draft_tokens, verification.final_token, num_accepted)
    log_probs = target_probs.gather(-1, block.unsqueeze(-1)).squeeze(-1).log()
    is_bonus = num_accepted == num_draft
    return replace(
        add_verification(
            record, block, log_probs, num_accepted, has_final, is_bonus, num_draft * active, draws, active
        ),
        draft_tokens=draft_tokens,
        draft_token_probs=draft_probs.gather(-1, drafts).squeeze(-1),
        target_token_probs=target_probs[:, : draft_tokens.shape[1]].gather(-1, drafts).squeeze(-1),
        accept_probs=verification.accept_probs,
    )


def with_final(
    draft_tokens: Tokens,  # [B, K]
    final_token: Tensor,  # [B]
    num_accepted: Tensor,  # [B]
) -> Tokens:  # [B, K+1]
    """Return the accepted drafts, the final token after them, and padding."""
    final = final_token.unsqueeze(1)
    return torch.cat([draft_tokens, final], dim=1).scatter(1, num_accepted.unsqueeze(1), final)


def add_verification(
    record: BatchRecord,
    block: Tokens,  # [B, N], see `with_final`
    log_probs: Probs,  # [B, N]
    num_accepted: Tensor,  # [B]
    has_final: Tensor,  # [B]
    is_bonus: Tensor,  # [B]
    num_draft: Tensor,  # [B]
    draws: UniformRow,
    active: Tensor,  # [B]
) -> BatchRecord:
    """Add the tokens and counters of one verification pass to the record of a step, not yet its drafts."""
    final = num_accepted.unsqueeze(1)
    final_source = torch.where(is_bonus, BONUS, CORRECTION).unsqueeze(1)
    return replace(
        record,
        tokens=_joined(record.tokens, block),
        sources=_joined(record.sources, torch.full_like(block, ACCEPTED).scatter(1, final, final_source)),
        log_probs=_joined(record.log_probs, log_probs),
        count=record.count + num_accepted + has_final,
        num_draft=num_draft,
        num_accepted=num_accepted,
        final_token=torch.where(has_final, block.gather(1, final).squeeze(1), -1),
        num_forward_passes=record.num_forward_passes + active,
        num_positions=record.num_positions + num_draft + active,
        choices=draws.choices,
    )


def _joined(
    before: Tensor,  # [B, W]
    more: Tensor,  # [B, N]
) -> Tensor:  # [B, W+N]
    """Append columns."""
    return torch.cat([before, more], dim=1) if before.shape[1] else more


def verify_drafts(
    method: Method,
    rule: str,
    state: State,
    record: BatchRecord,
    draws: UniformRow,
    logits: Tensor,  # [B, K+1, V], of the pass over the drafts; row i follows i of them
    draft_tokens: Tokens,  # [B, K]
    draft_probs: Probs,  # [B, K, V]
    num_draft: Tensor,  # [B]
    has_bonus_row: Tensor,  # [B]
    active: Tensor,  # [B]
    exact_token: Tokens | None = None,  # [B, 1], before the drafts
    lenience: float = 1.0,
) -> tuple[State, BatchRecord, Verification]:
    """Verify drafts by a rule; return the state with its faults, the whole record, and the verification."""
    block = draft_tokens if exact_token is None else torch.cat([exact_token, draft_tokens], dim=1)
    num_more = block.shape[1] - draft_tokens.shape[1]
    rows = torch.arange(logits.shape[1], device=logits.device)
    used = (rows < (num_draft + has_bonus_row).unsqueeze(1)) & active.unsqueeze(1)
    target_probs, largest = method.chain_probs(state, logits, used, block, num_more)
    lenient_probs = draft_probs if lenience == 1 else lenience * draft_probs
    verification = RULES[rule](target_probs, lenient_probs, draft_tokens, draws, num_draft, has_bonus_row, active)
    state = state.note_fault(largest, num_more, used & (rows <= verification.num_accepted.unsqueeze(1)))
    record = verified_record(
        record, target_probs, draft_probs, draft_tokens, verification, draws, num_draft, has_bonus_row, active
    )
    return state, record, verification
