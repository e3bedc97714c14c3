"""What verification makes of a cycle's drafts, for every method that drafts a chain.

Glossary of shapes: B batch, K drafts, W tokens behind the committed prefix, V vocabulary.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ..batch_record import BatchRecord
from ..sampling import Probs
from ..state import State
from ..tape import Draws
from ..verify import RULES, Tokens, Verification
from .base import Method
from .records import verified_record


def judge(
    method: Method,
    rule: str,
    state: State,
    record: BatchRecord,
    draws: Draws,
    logits: Tensor,  # [B, K+1, V], of the pass over the drafts; row i stands behind i of them
    draft_tokens: Tokens,  # [B, K]
    draft_probs: Probs,  # [B, K, V]
    num_draft: Tensor,  # [B]
    goes_on: Tensor,  # [B]
    active: Tensor,  # [B]
    exact_token: Tokens | None = None,  # [B, 1], that stands before the drafts
    lenience: float = 1.0,
) -> tuple[State, BatchRecord, Verification]:
    """Verify drafts by a rule; return the state with the faults that were met, the whole record, and the verdict."""
    block = draft_tokens if exact_token is None else torch.cat([exact_token, draft_tokens], dim=1)
    num_more = block.shape[1] - draft_tokens.shape[1]
    rows = torch.arange(logits.shape[1], device=logits.device)
    used = (rows < (num_draft + goes_on).unsqueeze(1)) & active.unsqueeze(1)
    target_probs, largest = method.laws(state, logits, used, block, num_more)
    judged = draft_probs if lenience == 1 else lenience * draft_probs
    verdict = RULES[rule](target_probs, judged, draft_tokens, draws, num_draft, goes_on, active)
    state = state.note_fault(largest, num_more, used & (rows < verdict.num_reached.unsqueeze(1)))
    record = verified_record(
        record, target_probs, draft_probs, draft_tokens, verdict, draws, num_draft, goes_on, active
    )
    return state, record, verdict
