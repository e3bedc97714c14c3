"""How a method writes down what a step did: the exact token first, then what verification made of the drafts.

Glossary of shapes: K drafts, V vocabulary.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from ..record import Record
from ..sampling import Probs
from ..uniforms import Draws
from ..verify import Tokens, Verification
from .tree_shape import TreeDrafts, Walk


def exact_record(
    probs: Probs,  # [V]
    token: int,
    num_positions: int,
    draws: Draws,
) -> Record:
    """Record one token drawn from a row of the target, before any verification."""
    return Record(
        tokens=(token,),
        sources=("exact",),
        log_probs=(float(np.log(probs[token])),),
        num_positions=num_positions,
        choices=draws.choices,
    )


def drafting_record(num_positions: int, num_draft_passes: int) -> Record:
    """Begin the record of a cycle that drafts before any pass of the target."""
    return Record((), (), (), num_forward_passes=0, num_positions=num_positions, num_draft_passes=num_draft_passes)


def verified_record(
    record: Record,
    target_probs: Probs,  # [K+1, V], or [K, V] where the last draft ends the text
    draft_probs: Probs,  # [K, V]
    draft_tokens: Tokens,  # [K]
    verdict: Verification,
    draws: Draws,
) -> Record:
    """Add one verification pass to the record of a cycle."""
    depths = np.arange(len(draft_tokens))
    num_accepted, final_token = verdict.num_accepted, verdict.final_token
    final = () if final_token is None else (final_token,)
    final_source = "bonus" if num_accepted == len(draft_tokens) else "correction"
    emitted = (*draft_tokens[:num_accepted].tolist(), *final)
    log_probs = np.log(target_probs[np.arange(len(emitted)), emitted])
    return replace(
        record,
        tokens=(*record.tokens, *emitted),
        sources=(*record.sources, *(["accepted"] * num_accepted + [final_source])[: len(emitted)]),
        log_probs=(*record.log_probs, *log_probs.tolist()),
        draft_tokens=tuple(draft_tokens.tolist()),
        draft_token_probs=tuple(draft_probs[depths, draft_tokens].tolist()),
        target_token_probs=tuple(target_probs[depths, draft_tokens].tolist()),
        accept_probs=tuple(verdict.accept_probs.tolist()),
        num_accepted=num_accepted,
        final_token=final_token,
        num_forward_passes=record.num_forward_passes + 1,
        num_positions=record.num_positions + len(draft_tokens) + 1,
        choices=draws.choices,
    )


def tree_record(record: Record, drafts: TreeDrafts, walk: Walk, draws: Draws) -> Record:
    """Add the verification of a tree to the record of a cycle; its drafts stand there breadth first."""
    places = np.flatnonzero(drafts.used)[1:]
    numbers = dict(zip([0, *places.tolist()], range(-1, len(places)), strict=True))
    tokens, final = drafts.tokens[places], () if walk.final_token is None else (walk.final_token,)
    emitted = (*drafts.tokens[walk.path].tolist(), *final)
    sources = ["accepted"] * len(walk.path) + ["bonus" if walk.is_bonus else "correction"]
    return replace(
        record,
        tokens=(*record.tokens, *emitted),
        sources=(*record.sources, *sources[: len(emitted)]),
        log_probs=(*record.log_probs, *walk.log_probs),
        draft_tokens=tuple(tokens.tolist()),
        draft_token_probs=tuple(drafts.probs[places, tokens].tolist()),
        target_token_probs=tuple(walk.target_token_probs[places].tolist()),
        accept_probs=tuple(walk.accept_probs[places].tolist()),
        draft_parents=tuple(numbers[drafts.tree.parents[place]] for place in places.tolist()),
        num_accepted=len(walk.path),
        final_token=walk.final_token,
        num_forward_passes=record.num_forward_passes + 1,
        num_positions=record.num_positions + len(places) + 1,
        choices=draws.choices,
    )
