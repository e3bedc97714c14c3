"""What every decoding method has in common: a start, a step, and the verification of a chain of drafts.

Glossary of shapes: V vocabulary, K drafts, N rows of logits, R of them that verification reached.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from ..config import SamplingConfig, check_context, check_prompt
from ..ending import Ending
from ..model.layers import Array
from ..record import Record
from ..sampling import Probs, Processor, has_distribution, probs_from_logits
from ..state import State
from ..uniforms import NamedUniforms, UniformRow
from ..verify import RULES, Tokens, Verification

if TYPE_CHECKING:
    from ..model.language_model import LanguageModel


class Method(ABC):
    """A decoding method. Its `step` is a pure function of a state, continued once, and a row of uniforms."""

    model: LanguageModel
    sampling: SamplingConfig
    processor: Processor | None

    @property
    @abstractmethod
    def named_uniforms(self) -> NamedUniforms:
        """The named uniforms of one step, in order."""

    @abstractmethod
    def step(
        self,
        state: State,
        uniforms: npt.NDArray[np.float64],  # [num_uniforms]
        trace: bool = False,
    ) -> tuple[State, Record]:
        """Run one step; with `trace`, the record keeps every distribution that a uniform was compared with."""

    @property
    def num_uniforms(self) -> int:
        """Uniforms that one step is given."""
        return sum(self.named_uniforms.values())

    def start(self, prompt: Sequence[int], ending: Ending) -> State:
        """Return the state before the first step; raise ValueError for a prompt that is empty, wrong or too long."""
        tokens = check_prompt(prompt, self.model.vocab_size)
        check_context(len(prompt), ending.max_new_tokens, self.model.max_position_embeddings)
        cache = self.model.new_cache(len(prompt) + ending.max_new_tokens)
        return State(tokens, len(tokens), cache, ending, ending.reading(tokens))

    def run(
        self,
        states: Sequence[State],
        uniforms: npt.NDArray[np.float64],  # [len(states), num_uniforms]
        trace: bool = True,
    ) -> list[tuple[State, Record]]:
        """Step copies of many states, each with its own row of uniforms; `exactness.output_distribution` uses it."""
        return [self.step(state.copy(), row, trace) for state, row in zip(states, uniforms, strict=True)]

    def process(
        self,
        prefix: Sequence[int],
        logits: Array,  # [V]
    ) -> Array:  # [V]
        """Return the logits after `prefix` as the processor, which gets and returns float64, leaves them."""
        if self.processor is None:
            return logits
        processed = np.asarray(self.processor(tuple(prefix), logits.astype(np.float64)), dtype=np.float64)
        if processed.shape != logits.shape:
            raise ValueError(f"processor: found logits of shape {processed.shape}, expected {logits.shape}")
        return processed

    def probs(
        self,
        prefix: Sequence[int],
        logits: Array,  # [V]
        sampling: SamplingConfig | None = None,
    ) -> Probs:  # [V]
        """Return the distribution of the token after `prefix`: processor, then settings (default: the target's).

        Raises:
            NotFiniteError: there is none; the message gives the position of the prefix's end.
        """
        where = f"logits after position {len(prefix) - 1}"
        return probs_from_logits(self.process(prefix, logits), sampling or self.sampling, where)

    def chain_probs(
        self,
        prefix: Sequence[int],
        draft_tokens: Tokens,  # [K]
        logits: Array,  # [N, V]
    ) -> Probs:  # [N, V]
        """Return the target's distributions after a prefix and after the first N-1 of the drafts that follow it.

        A row without a distribution is NaN. That is no error before verification has reached it, since plain decoding
        might never have come there; `check_reached` decides.
        """
        probs = np.full(logits.shape, np.nan)
        for i, row in enumerate(logits):
            processed = self.process((*prefix, *draft_tokens[:i].tolist()), row)
            if has_distribution(processed):
                probs[i] = probs_from_logits(processed, self.sampling)
        return probs

    def check_reached(
        self,
        prefix: Sequence[int],
        draft_tokens: Tokens,  # [K]
        logits: Array,  # [N, V]
        reached: Probs,  # [R, V]
    ) -> None:
        """Raise ValueError if one of the R rows that verification reached has no distribution."""
        for i in np.flatnonzero(np.isnan(reached[:, 0])):
            self.probs((*prefix, *draft_tokens[:i].tolist()), logits[i])


def verify_drafts(
    method: Method,
    rule: str,
    prefix: Sequence[int],
    record: Record,
    draws: UniformRow,
    logits: Array,  # [K+1, V], or [K, V] where the last draft ends the text
    draft_tokens: Tokens,  # [K]
    draft_probs: Probs,  # [K, V]
    lenience: float = 1.0,
) -> tuple[Record, int]:
    """Verify a chain of drafts by the target's logits after `prefix` and after each draft.

    Returned are the whole record of the step, and the length of what the cache may keep: the prefix and the accepted
    drafts.

    Raises:
        NotFiniteError: verification reached a row of logits that has no distribution.
    """
    target_probs = method.chain_probs(prefix, draft_tokens, logits)
    verification = RULES[rule](target_probs, lenience * draft_probs, draft_tokens, draws)
    method.check_reached(prefix, draft_tokens, logits, target_probs[: verification.num_accepted + 1])
    record = verified_record(record, target_probs, draft_probs, draft_tokens, verification, draws)
    return record, len(prefix) + verification.num_accepted


def exact_record(
    probs: Probs,  # [V]
    token: int,
    num_positions: int,
    draws: UniformRow,
) -> Record:
    """Record one token drawn from a row of the target, before any verification."""
    log_prob = float(np.log(probs[token]))
    return Record((token,), ("exact",), (log_prob,), num_positions=num_positions, choices=draws.choices)


def drafting_record(num_positions: int, num_draft_passes: int) -> Record:
    """Begin the record of a step that drafts before any pass of the target."""
    return Record((), (), (), num_forward_passes=0, num_positions=num_positions, num_draft_passes=num_draft_passes)


def verified_record(
    record: Record,
    target_probs: Probs,  # [K+1, V], or [K, V] where the last draft ends the text
    draft_probs: Probs,  # [K, V]
    draft_tokens: Tokens,  # [K]
    verification: Verification,
    draws: UniformRow,
) -> Record:
    """Add one verification pass to the record of a step."""
    depths = np.arange(len(draft_tokens))
    num_accepted, final_token = verification.num_accepted, verification.final_token
    final = () if final_token is None else (final_token,)
    final_source = "bonus" if num_accepted == len(draft_tokens) else "correction"
    emitted = (*draft_tokens[:num_accepted].tolist(), *final)
    log_probs = np.log(target_probs[np.arange(len(emitted)), emitted])
    return replace(
        record,
        tokens=(*record.tokens, *emitted),
        sources=(*record.sources, *["accepted"] * num_accepted, *[final_source] * len(final)),
        log_probs=(*record.log_probs, *log_probs.tolist()),
        draft_tokens=tuple(draft_tokens.tolist()),
        draft_token_probs=tuple(draft_probs[depths, draft_tokens].tolist()),
        target_token_probs=tuple(target_probs[depths, draft_tokens].tolist()),
        accept_probs=tuple(verification.accept_probs.tolist()),
        num_accepted=num_accepted,
        final_token=final_token,
        num_forward_passes=record.num_forward_passes + 1,
        num_positions=record.num_positions + len(draft_tokens) + 1,
        choices=draws.choices,
    )
