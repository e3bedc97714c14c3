"""Records of a step, and the verification of a chain of drafts.

Glossary of shapes: B batch, K drafts, N tokens of a verification, W tokens recorded before it, V vocabulary.
"""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from ..batch_record import BatchRecord
from ..sampling import Probs, compared_logits, likeliest
from ..state import State, count_leading_true
from ..uniforms import UniformRow
from ..verify import RULES, Tokens, Verification, drafted
from .base import Method


def drafting_record(
    num_positions: Tensor,  # [B]
    num_draft_passes: Tensor | None,  # [B], or none
    active: Tensor,  # [B]
) -> BatchRecord:
    """Begin the record of a step that drafts before any pass of the target."""
    none, no_tokens = torch.zeros_like(num_positions), num_positions[:, None][:, :0]
    no_probs = no_tokens.view(torch.float64)
    return BatchRecord(
        tokens=no_tokens,
        log_probs=no_probs,
        count=none,
        draft_tokens=no_tokens,
        draft_token_probs=no_probs,
        target_token_probs=no_probs,
        accept_probs=no_probs,
        num_draft=none,
        num_accepted=none,
        final_place=none,
        is_bonus=none,
        num_forward_passes=none,
        num_positions=num_positions * active,
        num_draft_passes=none if num_draft_passes is None else num_draft_passes * active,
    )


def verified_record(
    record: BatchRecord,
    verified: Tokens,  # [B, K+1], see `with_final`
    log_probs: Probs,  # [B, K+1], of these tokens
    draft_tokens: Tokens,  # [B, K]
    draft_token_probs: Probs,  # [B, K]
    target_token_probs: Probs,  # [B, K]
    verification: Verification,
    draws: UniformRow,
    num_draft: Tensor,  # [B]
    has_bonus_row: Tensor,  # [B]
    active: Tensor,  # [B]
) -> BatchRecord:
    """Add one verification pass to the record of a step, in the active rows."""
    num_accepted = verification.num_accepted
    is_bonus = num_accepted == num_draft
    has_final = active & (has_bonus_row | ~is_bonus)
    return replace(
        add_verification(
            record, verified, log_probs, num_accepted, has_final, is_bonus, num_draft * active, draws, active
        ),
        draft_tokens=draft_tokens,
        draft_token_probs=draft_token_probs,
        target_token_probs=target_token_probs,
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
    """Add the tokens and counters of one verification pass to the record of a step, without its drafts."""
    return replace(
        record,
        tokens=joined([record.tokens, block]),
        log_probs=joined([record.log_probs, log_probs]),
        count=record.count + num_accepted + has_final,
        num_draft=num_draft,
        num_accepted=num_accepted,
        final_place=num_accepted,
        is_bonus=is_bonus.long(),
        num_forward_passes=record.num_forward_passes + active,
        num_positions=record.num_positions + num_draft + active,
        choices=draws.choices,
    )


def joined(
    parts: list[Tensor],  # [B, N, ...]
) -> Tensor:  # [B, W, ...]
    """Concatenate along the second axis; a part that is the only one with columns is not copied."""
    filled = [part for part in parts if part.shape[1]] or parts[:1]
    return filled[0] if len(filled) == 1 else torch.cat(filled, dim=1)


def draw_exact(
    method: Method,
    state: State,
    draws: UniformRow,
    logits: Tensor,  # [B, 1, V]
    num_positions: Tensor,  # [B]
    active: Tensor,  # [B]
) -> tuple[State, BatchRecord, Tensor]:  # [B]
    """Draw the token after the committed prefix; return the state with its faults, the record, and largest logits."""
    wanted = active.unsqueeze(1)
    if method.sampling.temperature == 0:
        token, largest = likeliest(method.process(state, logits, wanted))
        draws.certain("exact", token, logits.shape[-1], active=wanted)
        log_probs = torch.zeros_like(token, dtype=torch.float64)
    else:
        probs, largest = method.chain_probs(state, logits, wanted)
        token = draws.token("exact", probs[:, 0], active=active).unsqueeze(1)
        log_probs = probs[:, 0].gather(1, token).log()
    record = replace(
        drafting_record(num_positions, None, active),
        tokens=token,
        log_probs=log_probs,
        count=(once := active.long()),
        num_forward_passes=once,
        num_exact=1,
        choices=draws.choices,
    )
    return state.note_fault(largest, 0, wanted), record, largest[:, 0]


def verify_drafts(
    method: Method,
    rule: str,
    state: State,
    record: BatchRecord,
    draws: UniformRow,
    logits: Tensor,  # [B, K+1, V], of the pass over the drafts; row i follows i of them
    draft_tokens: Tokens,  # [B, K]
    draft_probs: Probs | None,  # [B, K, V]; None: one-hot, as the target's must be too
    num_draft: Tensor,  # [B]
    has_bonus_row: Tensor,  # [B]
    active: Tensor,  # [B]
    exact_token: Tokens | None = None,  # [B, 1], before the drafts
    lenience: float = 1.0,
    accept_top_k: int = 1,
) -> tuple[State, BatchRecord, Verification]:
    """Verify drafts by a rule; return the state with its faults, the whole record, and the verification."""
    block = draft_tokens if exact_token is None else torch.cat([exact_token, draft_tokens], dim=1)
    num_tokens, drafts = draft_tokens.shape[1], draft_tokens.unsqueeze(-1)
    num_more = block.shape[1] - num_tokens
    rows = state.cache.order(logits.shape[1])
    used = (rows < (num_draft + has_bonus_row).unsqueeze(1)) & active.unsqueeze(1)
    if draft_probs is None:
        draft_token_probs = torch.ones_like(draft_tokens, dtype=torch.float64)
    else:
        draft_token_probs = draft_probs.gather(-1, drafts).squeeze(-1)
    target_probs = None
    if method.sampling.temperature == 0:
        processed = method.process(state, logits, used, block, num_more)
        target, largest = likeliest(processed)
        if accept_top_k > 1:
            target = _relaxed(target, processed, draft_tokens, accept_top_k)
        rest = draws, num_draft, has_bonus_row, active, logits.shape[-1]
        verification = verify_greedily(target, draft_tokens, rule, *rest)
        target_token_probs = (target[:, :num_tokens] == draft_tokens).double()
    else:
        assert draft_probs is not None
        target_probs, largest = method.chain_probs(state, logits, used, block, num_more)
        lenient_probs = draft_probs if lenience == 1 else lenience * draft_probs
        verification = RULES[rule](target_probs, lenient_probs, draft_tokens, draws, num_draft, has_bonus_row, active)
        target_token_probs = target_probs[:, :num_tokens].gather(-1, drafts).squeeze(-1)
    state = state.note_fault(largest, num_more, used & (rows <= verification.num_accepted.unsqueeze(1)))

    verified = with_final(draft_tokens, verification.final_token, verification.num_accepted)
    if target_probs is None:
        log_probs = torch.zeros_like(verified, dtype=torch.float64)
    else:
        log_probs = target_probs.gather(-1, verified.unsqueeze(-1)).squeeze(-1).log()
    drafts_of = draft_tokens, draft_token_probs, target_token_probs
    record = verified_record(
        record, verified, log_probs, *drafts_of, verification, draws, num_draft, has_bonus_row, active
    )
    return state, record, verification


def _relaxed(
    target: Tokens,  # [B, K+1], the likeliest tokens of the target
    logits: Tensor,  # [B, K+1, V]
    draft_tokens: Tokens,  # [B, K]
    count: int,
) -> Tokens:  # [B, K+1]
    """Put each draft among the `count` likeliest tokens in the place of the likeliest."""
    (_, num_tokens), drafts = draft_tokens.shape, draft_tokens.unsqueeze(-1)
    compared = compared_logits(logits[:, :num_tokens])
    own = compared.gather(-1, drafts)
    is_before = (compared > own) | ((compared == own) & (torch.arange(logits.shape[-1], device=own.device) < drafts))
    is_near = (own.squeeze(-1) > float("-inf")) & (is_before.sum(dim=-1) < count)
    return torch.cat([torch.where(is_near, draft_tokens, target[:, :num_tokens]), target[:, num_tokens:]], dim=1)


def verify_greedily(
    target: Tokens,  # [B, K+1], the likeliest tokens of the target
    draft_tokens: Tokens,  # [B, K]
    rule: str,
    draws: UniformRow,
    num_draft: Tensor,  # [B]
    has_bonus_row: Tensor,  # [B]
    active: Tensor,  # [B]
    vocab_size: int,
) -> Verification:
    """Verify by any rule if the target's distributions are one-hot: accept drafts while they match.

    Acceptance probabilities are 0 or 1 and every token is certain, so only a trace needs rows of V numbers.
    """
    num_tokens, is_draft = draft_tokens.shape[1], drafted(draft_tokens, num_draft)
    reached = is_draft & active.unsqueeze(1)
    matched = (target[:, :num_tokens] == draft_tokens) & reached
    num_accepted = count_leading_true(matched)
    accept = matched.double()
    if rule == "match":
        asked = torch.arange(num_tokens, device=target.device) <= num_accepted.unsqueeze(1)
        draws.certain("accept", target[:, :num_tokens], vocab_size, active=reached & asked)
        is_final = has_bonus_row & (num_accepted == num_draft)
    else:
        accept = accept.cumprod(dim=1) if rule == "block" else accept
        draws.accept("accept", accept.masked_fill(~reached, float("nan")), from_last=rule == "block")
        is_final = has_bonus_row | (num_accepted < num_draft)
    final_token = target.gather(1, num_accepted.unsqueeze(1))
    draws.certain("final", final_token, vocab_size, active=(active & is_final).unsqueeze(1))
    return Verification(num_accepted, final_token.squeeze(1), accept)
