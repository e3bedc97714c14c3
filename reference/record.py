"""What one step did, and what a whole generation did: plain values that both packages share field by field."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property

import numpy as np
import numpy.typing as npt


@dataclass(frozen=True)
class Choice:
    """One random choice: which uniform, what it was compared with, and what came of it.

    Outcome i is taken by the uniforms in [edges[i-1], edges[i]). A token draw has one cell per token; an acceptance
    has two, accepted (0) and rejected (1).
    """

    column: int  # column of the step's row of uniforms
    edges: npt.NDArray[np.float64]  # [outcomes] upper edges; the first cell begins at 0, the last edge is exactly 1
    outcome: int


@dataclass(frozen=True)
class Record:
    """One step of one sequence.

    `tokens` are those committed, in order, cut where the text ended; `sources` says how each came: "exact" (from a
    row of the target, before any draft), "accepted", "correction" (after a rejection) or "bonus" (after none).

    The drafts of a tree stand breadth first. Where verification did not come, the target's probabilities and the
    chances are NaN.
    """

    tokens: tuple[int, ...]
    sources: tuple[str, ...]
    log_probs: tuple[float, ...]  # log of the target distribution at each committed token, nats
    draft_tokens: tuple[int, ...] = ()  # [K]
    draft_token_probs: tuple[float, ...] = ()  # [K] the draft distribution at each draft token
    target_token_probs: tuple[float, ...] = ()  # [K] the target distribution at each draft token
    accept_probs: tuple[float, ...] = ()  # [K] the chance that each draft token had, once reached
    draft_parents: tuple[int, ...] = ()  # [K], or [0]: in a tree, which draft each stands after, -1 for none
    num_accepted: int = 0  # draft tokens that passed verification
    final_token: int | None = None  # the correction or bonus token, if it was committed
    num_forward_passes: int = 1
    num_positions: int = 1  # rows fed through the model
    num_draft_passes: int = 0  # passes of a draft model
    choices: tuple[Choice, ...] | None = field(default=None, compare=False)  # whole distributions, when traced

    @property
    def draft_depth(self) -> int:
        """The most drafts that stand after one another."""
        depths: list[int] = []
        for parent in self.draft_parents:
            depths.append(depths[parent] + 1 if parent >= 0 else 1)
        return max(depths, default=len(self.draft_tokens))

    def cut(self, count: int) -> Record:
        """Return the record with only the first `count` tokens committed; what was drafted still counts."""
        return replace(
            self,
            tokens=self.tokens[:count],
            sources=self.sources[:count],
            log_probs=self.log_probs[:count],
            final_token=self.final_token if count >= len(self.tokens) else None,
        )


@dataclass(frozen=True)
class Generation:
    """A generated sequence with its record. Counter names follow vLLM where it has them."""

    prompt: tuple[int, ...]
    tokens: tuple[int, ...]  # new tokens; the last is the one that ended the text
    end: str  # "eos", "stop_string", "criterion" or "length"
    records: tuple[Record, ...]
    text: str | None = None  # new text up to a stop string, where a decoder was given

    @property
    def log_probs(self) -> tuple[float, ...]:
        """Log of the target distribution at each new token, nats."""
        return tuple(value for record in self.records for value in record.log_probs)

    @property
    def sources(self) -> tuple[str, ...]:
        """How each new token came; see `Record`."""
        return tuple(source for record in self.records for source in record.sources)

    @cached_property
    def num_forward_passes(self) -> int:
        """Passes of the model, the prompt's included."""
        return sum(record.num_forward_passes for record in self.records)

    @cached_property
    def num_positions(self) -> int:
        """Rows fed through the model, the prompt's included."""
        return sum(record.num_positions for record in self.records)

    @cached_property
    def num_draft_passes(self) -> int:
        """Passes of a draft model, the prompt's included."""
        return sum(record.num_draft_passes for record in self.records)

    @property
    def num_drafts(self) -> int:
        """Steps in which at least one token was drafted and verified."""
        return sum(1 for record in self.records if record.draft_tokens)

    @property
    def num_draft_tokens(self) -> int:
        """Draft tokens verified."""
        return sum(len(record.draft_tokens) for record in self.records)

    @property
    def num_accepted_tokens(self) -> int:
        """Draft tokens accepted, those that an end of text then cut off included."""
        return sum(record.num_accepted for record in self.records)

    @property
    def accepted_per_position(self) -> tuple[int, ...]:
        """How often the draft token at each depth was accepted."""
        depth = max((record.draft_depth for record in self.records), default=0)
        return tuple(sum(record.num_accepted > i for record in self.records) for i in range(depth))

    @property
    def draft_acceptance_rate(self) -> float:
        """Accepted over drafted tokens; NaN where nothing was drafted."""
        return _ratio(self.num_accepted_tokens, self.num_draft_tokens)

    @property
    def mean_acceptance_length(self) -> float:
        """Tokens that a verification yields, the correction or bonus token included; NaN without drafts."""
        return 1.0 + _ratio(self.num_accepted_tokens, self.num_drafts)

    @property
    def tokens_per_forward(self) -> float:
        """New tokens over passes of the model."""
        return _ratio(len(self.tokens), self.num_forward_passes)

    @property
    def positions_per_forward(self) -> float:
        """Rows fed over passes of the model, the prompt's included."""
        return _ratio(self.num_positions, self.num_forward_passes)


def _ratio(numerator: int, denominator: int) -> float:
    return numerator / denominator if denominator else float("nan")


class NotFiniteError(ValueError):
    """The model's logits are not finite; after a batch, `generations` holds each text, and None where one failed."""

    def __init__(self, message: str, generations: Sequence[Generation | None] = ()):
        """Keep the message and the texts of the batch."""
        super().__init__(message)
        self.generations = tuple(generations)
