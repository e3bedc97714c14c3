"""The state of a batch of sequences between two steps, and where its texts end.

Glossary of shapes: B batch, W tokens that a step can commit, N rows of logits or of the batch, P numbers of a pace,
L look-ahead vectors, D' hidden state.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor
from torch.nn.functional import pad

from pass_sampling.reference.ending import Ending, Reading
from pass_sampling.reference.record import NotFiniteError

from .batch_record import BatchRecord
from .host import is_on_cpu
from .model.cache import KVCache, same


@dataclass(frozen=True)
class State:
    """A batch of sequences between two steps; see `reference.methods.base.State`.

    A step reads only tensors on the device. Sizes (see `bound_or_max`) and stop strings are read on the host.
    """

    tokens: Tensor  # [B, capacity] prompt, new tokens, then scratch
    lengths: Tensor  # [B] how many are committed
    prompt_lengths: Tensor  # [B]
    limits: Tensor  # [B] length at which a row ends
    eos: Tensor  # [num_eos]
    ended: Tensor  # [B]
    fault: Tensor  # [B] the first largest logit that was not finite, else 0
    fault_position: Tensor  # [B] the last position of the prefix before it
    cache: KVCache
    ending: Ending
    cached: Tensor  # [B] the very tensor `cache.lengths`
    pace: Tensor  # [B, P]
    lookahead_hidden: Tensor  # [B, L+1, D'] the last text row's hidden state, and those of a look-ahead group after it
    num_lookahead_hidden: Tensor  # [B] useful rows of the group
    max_pending: int  # most tokens of a row that no pass has read yet: the prompts at first, one token later
    draft_pending: int  # the same for the drafter, which does not read the last draft: then at most two
    draft_cache: KVCache | None = None
    readings: tuple[Reading, ...] = ()  # of each row's new tokens, if the ends of texts are checked on the host

    @property
    def new_tokens(self) -> tuple[int, ...]:
        """The committed tokens after the prompt, of a state of one row."""
        (row,), (start,), (end,) = self.tokens, self.prompt_lengths.tolist(), self.lengths.tolist()
        return tuple(row[start:end].tolist())

    @property
    def end(self) -> str | None:
        """Why the text has ended, of a state of one row; see `Ending.reason`."""
        return self.readings[0].reason if self.readings else self.ending.reason(self.new_tokens)

    @property
    def key(self) -> tuple[tuple[int, ...], tuple[float, ...], int]:
        """The values that determine the future of a state of one row, given its prompt."""
        return self.new_tokens, tuple(self.pace[0].tolist()), int(self.num_lookahead_hidden)

    @property
    def caches(self) -> tuple[KVCache, ...]:
        """The model's cache, and the drafter's if it has one."""
        return (self.cache,) if self.draft_cache is None else (self.cache, self.draft_cache)

    @property
    def pending(self) -> Tensor:  # [B]
        """How many committed tokens no pass has read yet; raise ValueError if a step has advanced the cache already."""
        if self.cache.lengths is not self.cached:  # every move makes a new tensor
            raise ValueError("state: found a cache that a step has moved on already, expected a copy to continue twice")
        return self.lengths - self.cache.lengths

    @property
    def remaining(self) -> Tensor:  # [B]
        """How many tokens may still be committed."""
        return self.limits - self.lengths

    def followed_by(
        self,
        tokens: Tensor,  # [B, W]
    ) -> Tensor:  # [B, capacity]
        """Return all rows' tokens with some more in the scratch after the committed ones."""
        places = self.lengths.unsqueeze(1) + self.cache.order(tokens.shape[1])
        return self.tokens.scatter(1, places, tokens)

    def ends_with(
        self,
        tokens: Tensor,  # [B, W]
    ) -> Tensor:  # [B]
        """Return the rows whose text would end within some more tokens, without those that have ended."""
        return self.num_kept(tokens, tokens.shape[1] * ~self.ended)[1]

    def keep(
        self,
        lengths: Tensor,  # [B]
    ) -> None:
        """Cut the caches to the first `lengths` tokens of each row: the rollback of a step that raised an error."""
        for cache in self.caches:
            cache.truncate(torch.minimum(cache.lengths, lengths))

    def commit(
        self,
        record: BatchRecord,
        valid_length: Tensor | None = None,  # [B]
    ) -> tuple[State, BatchRecord]:
        """Append a step's tokens one by one until one of them ends the text; drop the others.

        The record is cut to them. The caches are cut to `valid_length`, which is before rejected drafts and look-ahead
        rows, if there are any; it is within the committed prefix, since no draft follows one that ends the text.
        """
        count, ended = self.num_kept(record.tokens, record.count)
        tokens = self.followed_by(record.tokens)
        lengths = self.lengths + count
        blocks = _blocks(record.tokens, count) if self.readings else ()
        readings = tuple(reading.after(block) for reading, block in zip(self.readings, blocks, strict=True))
        if valid_length is not None:
            self.cache.truncate(valid_length)
            if self.draft_cache is not None:  # which may be shorter
                self.draft_cache.truncate(torch.minimum(self.draft_cache.lengths, valid_length))
        state = replace(
            self,
            readings=readings,
            tokens=tokens,
            lengths=lengths,
            ended=self.ended | ended,
            cached=self.cache.lengths,
            max_pending=1,
            draft_pending=2,
        )
        return state, replace(record, count=count)

    def agrees(self, other: State) -> bool:
        """Return whether two states of one row have the same future: equal tokens and, up to rounding, cached rows."""
        if (self.key, self.cached.tolist()) != (other.key, other.cached.tolist()):
            return False
        useful = slice(1 + int(self.num_lookahead_hidden)) if int(self.num_lookahead_hidden) else slice(0)
        pairs = zip(self.caches, other.caches, strict=True)
        return same(self.lookahead_hidden[0, useful], other.lookahead_hidden[0, useful]) and all(
            one.agrees(two) for one, two in pairs
        )

    def note_fault(
        self,
        largest: Tensor,  # [B, N]
        num_more: int,
        used: Tensor,  # [B, N]
    ) -> State:
        """Keep the first used row of logits that has no distribution.

        Row i follows the committed prefix and `num_more` + i more tokens. In fixed shapes it only makes
        `cache.doubt` not finite: such a row is run again, eagerly.
        """
        if _is_fixed(self):
            self.cache.doubt = self.cache.doubt + largest.masked_fill(~used, 0.0).sum(dim=1)
            return self
        if largest.numel() == 0 or (is_on_cpu(largest) and all(map(math.isfinite, largest.flatten().tolist()))):
            return self  # a list is quicker than a comparison of tensors
        faulty = used & ~largest.isfinite()
        if largest.shape[1] == 1:
            new, value, position = faulty[:, 0], largest[:, 0], self.lengths + (num_more - 1)
        else:
            first = faulty.long().argmax(dim=1, keepdim=True)
            new, value = faulty.any(dim=1), largest.gather(1, first).squeeze(1)
            position = self.lengths + (num_more - 1) + first.squeeze(1)
        new = new & (self.fault == 0)
        fault = torch.where(new, value.double(), self.fault)
        return replace(self, fault=fault, fault_position=torch.where(new, position, self.fault_position))

    def complaints(self) -> dict[int, str]:
        """Return the faults of the logits by the places of their rows. One transfer from the device per step."""
        faults = self.fault.tolist()
        return complaints_of(faults, self.fault_position.tolist() if any(faults) else [])

    def raise_fault(self) -> None:
        """Raise NotFiniteError if some row's logits had no distribution."""
        for said in self.complaints().values():
            raise NotFiniteError(said)

    def select(
        self,
        rows: Tensor,  # [N]
    ) -> State:
        """Return an independent state of the given rows."""
        caches = [cache.select(rows) for cache in self.caches]
        readings = tuple(self.readings[row] for row in rows.tolist()) if self.readings else ()
        return replace(self._with({name: getattr(self, name)[rows] for name in PER_ROW}, *caches), readings=readings)

    def copy(self) -> State:
        """Return a state that can be continued independently of this one."""
        return self._with({name: getattr(self, name).clone() for name in PER_ROW}, *(c.copy() for c in self.caches))

    @staticmethod
    def stack(states: Sequence[State]) -> State:
        """Return an independent state whose rows are those of states of one capacity and ending, in turn."""
        for state in states:
            if state.cache.capacity != states[0].cache.capacity or state.ending != states[0].ending:
                raise ValueError("states: found different capacities or endings, expected the same in all of them")
        tensors = {name: torch.cat([getattr(state, name) for state in states]) for name in PER_ROW}
        caches = [alike[0].stack(list(alike)) for alike in zip(*(state.caches for state in states), strict=True)]
        return replace(
            states[0]._with(tensors, *caches),
            readings=tuple(reading for state in states for reading in state.readings),
            max_pending=max(state.max_pending for state in states),
            draft_pending=max(state.draft_pending for state in states),
        )

    def _with(self, tensors: dict[str, Tensor], cache: KVCache, draft_cache: KVCache | None = None) -> State:
        return replace(self, cache=cache, cached=cache.lengths, draft_cache=draft_cache, **tensors)  # type: ignore[arg-type]  # all of them are tensor fields

    def num_kept(
        self,
        tokens: Tensor,  # [B, W]
        count: Tensor,  # [B]
    ) -> tuple[Tensor, Tensor]:  # [B], [B]
        """Return how many of each row's next tokens to keep, and whether the text ends there."""
        if self.readings:
            blocks = zip(self.readings, _blocks(tokens, count), strict=True)
            kept = [reading.first(block) for reading, block in blocks]
            counts = torch.tensor([number for number, _ in kept], device=count.device)
            return counts, torch.tensor([reason is not None for _, reason in kept], device=count.device)
        is_no_eos = tokens != self.eos if len(self.eos) == 1 else (tokens.unsqueeze(2) != self.eos).all(dim=2)
        goes_on = is_no_eos & (self.remaining.unsqueeze(1) > self.cache.order(tokens.shape[1] + 1)[1:])
        if tokens.shape[1] == 1:
            return count, goes_on[:, 0] < count
        first = count_leading_true(goes_on)
        return torch.minimum(count, first + 1), first < count


_COUNTS = ("lengths", "prompt_lengths", "limits", "num_lookahead_hidden", "fault_position")
PER_ROW = ("tokens", *_COUNTS, "ended", "fault", "pace", "lookahead_hidden")


def complaints_of(faults: Sequence[float], positions: Sequence[int]) -> dict[int, str]:
    """Return the error messages for logits that are not finite, by the places of their rows."""
    said = "logits after position {}: the largest logit is {}, expected a finite number".format
    return {place: said(position, faults[place]) for place, position in enumerate(positions) if faults[place]}


def count_leading_true(
    flags: Tensor,  # [B, W]
) -> Tensor:  # [B]
    """Count the leading True values of each row."""
    return pad(flags, (0, 1)).view(torch.uint8).argmin(dim=1)  # of the first that is false


def _blocks(tokens: Tensor, count: Tensor) -> list[list[int]]:
    return [row[:some] for row, some in zip(tokens.tolist(), count.tolist(), strict=True)]


def first_state(prompts: Sequence[Sequence[int]], ending: Ending, cache: KVCache) -> State:
    """Return the state of prompts whose cache is still empty."""
    device = cache.lengths.device
    lengths = torch.tensor([len(prompt) for prompt in prompts], device=device)
    tokens = torch.zeros((len(prompts), cache.capacity), dtype=torch.int64, device=device)
    for row, prompt in zip(tokens, prompts, strict=True):
        row[: len(prompt)] = torch.tensor(prompt, device=device)
    return State(
        tokens=tokens,
        lengths=lengths,
        prompt_lengths=lengths,
        limits=lengths + ending.max_new_tokens,
        eos=torch.tensor(ending.eos_token_ids, dtype=torch.int64, device=device),
        ended=torch.zeros_like(lengths, dtype=torch.bool),
        fault=torch.zeros_like(lengths, dtype=torch.float64),
        fault_position=torch.zeros_like(lengths),
        cache=cache,
        ending=ending,
        readings=tuple(map(ending.reading, prompts)) if ending.asks_host else (),
        cached=cache.lengths,
        pace=torch.zeros((len(prompts), 0), dtype=torch.float64, device=device),
        lookahead_hidden=torch.zeros((len(prompts), 1, 0), device=device),
        num_lookahead_hidden=torch.zeros_like(lengths),
        max_pending=max(map(len, prompts)),
        draft_pending=max(map(len, prompts)),
    )


def bound_or_max(
    state: State,
    numbers: Tensor,  # [B]
    bound: int,
) -> int:
    """Return the largest of some numbers or, in fixed shapes, the bound that none of them exceeds."""
    return bound if _is_fixed(state) else int(numbers.max())


def may_any(
    state: State,
    which: Tensor,  # [...]
) -> bool:
    """Return whether any is true or, in fixed shapes, True."""
    return _is_fixed(state) or bool(which.any())


def _is_fixed(state: State) -> bool:
    """Return whether shapes must not depend on the values of tensors, as in a captured step."""
    return state.cache.kv_length is not None
