"""The records of one step and of a whole generation: plain values that both packages share."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import numpy.typing as npt


@dataclass(frozen=True)
class Choice:
    """One random choice: the uniform, the edges it was compared with, and the outcome.

    The uniforms in [edges[i-1], edges[i]) give outcome i. A token draw has one cell per token; an acceptance has two,
    accepted (0) and rejected (1).
    """

    column: int  # column of the step's row of uniforms
    edges: npt.NDArray[np.float64]  # [outcomes] upper edges; the first cell begins at 0, the last edge is exactly 1
    outcome: int


@dataclass(frozen=True)
class Record:
    """One step of one sequence.

    `tokens` are the committed tokens in order, cut where the text ended. `sources` gives the origin of each: "exact"
    (from a row of the target, before any draft), "accepted", "correction" (after a rejection) or "bonus" (after none).

    The drafts of a tree are in breadth-first order. For drafts that verification did not reach, the target's
    probabilities and the acceptance probabilities are NaN.
    """

    tokens: tuple[int, ...]
    sources: tuple[str, ...]
    log_probs: tuple[float, ...]  # log of the target distribution at each committed token, nats
    draft_tokens: tuple[int, ...] = ()  # [K]
    draft_token_probs: tuple[float, ...] = ()  # [K] the draft distribution at each draft token
    target_token_probs: tuple[float, ...] = ()  # [K] the target distribution at each draft token
    accept_probs: tuple[float, ...] = ()  # [K] the acceptance probability of each draft token, once reached
    draft_parents: tuple[int, ...] = ()  # [K], or [0]: in a tree, the draft before each, -1 for none
    num_accepted: int = 0  # draft tokens that passed verification
    final_token: int | None = None  # the correction or bonus token, if it was committed
    num_forward_passes: int = 1
    num_positions: int = 1  # rows fed through the model
    num_draft_passes: int = 0  # passes of a draft model
    choices: tuple[Choice, ...] | None = field(default=None, compare=False)  # whole distributions, when traced

    @property
    def draft_depths(self) -> tuple[int, ...]:  # [K]
        """How many drafts lead to each, itself included."""
        depths: list[int] = []
        for parent in self.draft_parents or range(-1, len(self.draft_tokens) - 1):
            depths.append(depths[parent] + 1 if parent >= 0 else 1)
        return tuple(depths)

    @property
    def draft_depth(self) -> int:
        """The number of drafts on the longest path."""
        return max(self.draft_depths, default=0)

    def cut(self, count: int) -> Record:
        """Return the record with only the first `count` tokens committed; all drafts still count."""
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
    text: str | None = None  # new text up to a stop string, if there was a decoder

    @property
    def log_probs(self) -> tuple[float, ...]:
        """Log of the target distribution at each new token, nats."""
        return tuple(value for record in self.records for value in record.log_probs)

    @property
    def sources(self) -> tuple[str, ...]:
        """The origin of each new token; see `Record`."""
        return tuple(source for record in self.records for source in record.sources)

    @property
    def num_forward_passes(self) -> int:
        """Passes of the model, the prompt's included."""
        return sum(record.num_forward_passes for record in self.records)

    @property
    def num_positions(self) -> int:
        """Rows fed through the model, the prompt's included."""
        return sum(record.num_positions for record in self.records)

    @property
    def num_draft_passes(self) -> int:
        """Passes of a draft model, the prompt's included."""
        return sum(record.num_draft_passes for record in self.records)

    @property
    def num_drafts(self) -> int:
        """Steps in which at least one token was drafted and verified."""
        return sum(bool(record.draft_tokens) for record in self.records)

    @property
    def num_draft_tokens(self) -> int:
        """Draft tokens verified."""
        return sum(len(record.draft_tokens) for record in self.records)

    @property
    def num_accepted_tokens(self) -> int:
        """Draft tokens accepted, including those that an end of text then cut off."""
        return sum(record.num_accepted for record in self.records)

    @property
    def accepted_per_position(self) -> tuple[int, ...]:
        """How often the draft token at each depth was accepted."""
        depth = max((record.draft_depth for record in self.records), default=0)
        return tuple(sum(record.num_accepted > i for record in self.records) for i in range(depth))

    @property
    def draft_acceptance_rate(self) -> float:
        """Accepted over drafted tokens; NaN without drafts."""
        return _ratio(self.num_accepted_tokens, self.num_draft_tokens)

    @property
    def mean_acceptance_length(self) -> float:
        """Tokens per verification, the correction or bonus token included; NaN without drafts."""
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
    """The model's logits are not finite; after a batch, `generations` holds each text, or None if it failed."""

    def __init__(self, message: str, generations: Sequence[Generation | None] = ()):
        """Keep the message and the texts of the batch."""
        super().__init__(message)
        self.generations = tuple(generations)
