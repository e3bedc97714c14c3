"""The record of one step of a batch in tensors, and its conversion to a `Record` for each row.

Glossary of shapes: B batch, W tokens that a step can commit, K drafts, I integers and F floats of a whole record.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate

import torch
from torch import Tensor

from pass_sampling.reference.record import Choice, Record

COUNTERS = (
    *("count", "num_draft", "num_accepted", "final_place", "is_bonus"),
    *("num_forward_passes", "num_positions", "num_draft_passes"),
)


@dataclass(frozen=True)
class Choices:
    """One random choice in every row of a batch; `active` marks the rows that made it."""

    column: int
    edges: Tensor  # [B, outcomes]
    outcome: Tensor  # [B]
    active: Tensor  # [B]


@dataclass(frozen=True)
class BatchRecord:
    """One step of a batch: a `Record` per row, in tensors, padded to W tokens and K drafts.

    The first `count` tokens of a row are committed, and its first `num_draft` drafts were made.
    """

    tokens: Tensor  # [B, W]
    log_probs: Tensor  # [B, W]
    count: Tensor  # [B]
    draft_tokens: Tensor  # [B, K]
    draft_token_probs: Tensor  # [B, K]
    target_token_probs: Tensor  # [B, K]
    accept_probs: Tensor  # [B, K]
    num_draft: Tensor  # [B]
    num_accepted: Tensor  # [B]
    final_place: Tensor  # [B], how many drafts are committed before the final token: sources do not trust the counters
    is_bonus: Tensor  # [B], 1 where the token after the accepted drafts follows all of them, else 0
    num_forward_passes: Tensor  # [B]
    num_positions: Tensor  # [B]
    num_draft_passes: Tensor  # [B]
    num_exact: int = 0  # tokens before the drafts
    choices: tuple[Choices, ...] | None = None
    draft_parents: Tensor | None = None  # [B, K], of a tree

    def rows(self) -> list[Record]:
        """Read the record of every row, with one transfer of integers and one of floats."""
        return self.pack().rows()

    def pack(self, more: Sequence[Tensor] = (), more_floats: Sequence[Tensor] = ()) -> Packed:
        """Return all numbers, and more of each row, in two tensors, so that few transfers copy them to the host."""
        counters = [getattr(self, name).unsqueeze(1) for name in COUNTERS]
        parents = self.draft_tokens[:, :0] if self.draft_parents is None else self.draft_parents
        per_token = [self.tokens, self.draft_tokens, parents]
        integers = torch.cat([*counters, *per_token, *(each.unsqueeze(1) for each in more)], dim=1)
        per_draft = [self.draft_token_probs, self.target_token_probs, self.accept_probs]
        floats = torch.cat([self.log_probs, *per_draft, *(each.unsqueeze(1) for each in more_floats)], dim=1)
        widths = self.tokens.shape[1], self.draft_tokens.shape[1], parents.shape[1]
        return Packed(integers, floats, *widths, self.num_exact, self.choices)


@dataclass(frozen=True)
class Packed:
    """The numbers of a batch's records in two tensors, which may have more columns."""

    integers: Tensor  # [B, I]
    floats: Tensor  # [B, F]
    width: int  # W
    depth: int  # K
    num_parents: int  # K of a tree, else 0
    num_exact: int
    choices: tuple[Choices, ...] | None

    def rows(self) -> list[Record]:
        """Read the record of every row."""
        records, width, depth = [], self.width, self.depth
        integers = _columns(self.integers, (len(COUNTERS), width, depth, self.num_parents))
        floats = _columns(self.floats, (width, depth, depth, depth))
        for b, row in enumerate(zip(*integers, *floats, strict=True)):
            counters, tokens, drafts, parents, log_probs, draft_probs, target_probs, accept_probs = row
            count, num_draft, num_accepted, final_place, is_bonus, *passes = counters
            num_passes, num_positions, num_draft_passes = passes
            sources = ("exact",) * self.num_exact + ("accepted",) * final_place
            records.append(
                Record(
                    tokens=tuple(tokens[:count]),
                    sources=(*sources, "bonus" if is_bonus else "correction")[:count],
                    log_probs=tuple(log_probs[:count]),
                    draft_tokens=tuple(drafts[:num_draft]),
                    draft_token_probs=tuple(draft_probs[:num_draft]),
                    target_token_probs=tuple(target_probs[:num_draft]),
                    accept_probs=tuple(accept_probs[:num_draft]),
                    draft_parents=tuple(parents[:num_draft]),
                    num_accepted=num_accepted,
                    final_token=tokens[count - 1] if count > len(sources) else None,
                    num_forward_passes=num_passes,
                    num_positions=num_positions,
                    num_draft_passes=num_draft_passes,
                    choices=self._choices(b),
                )
            )
        return records

    def _choices(self, b: int) -> tuple[Choice, ...] | None:
        """Return the choices that one row made."""
        if self.choices is None:
            return None
        return tuple(
            Choice(choice.column, choice.edges[b].cpu().numpy(), int(choice.outcome[b]))
            for choice in self.choices
            if bool(choice.active[b])
        )


def _columns(numbers: Tensor, widths: Sequence[int]) -> list[list[list[int | float]]]:
    """Return the rows of some columns after others, by the widths of these groups."""
    ends = accumulate(widths)
    return [numbers[:, end - width : end].tolist() for end, width in zip(ends, widths, strict=True)]
