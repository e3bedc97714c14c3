"""The state of a batch of sequences between two cycles.

Glossary of shapes: B batch, W tokens that a cycle can commit, N rows of logits or of the batch.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from .batch_record import BatchRecord
from .cache import KVCache
from .ending import Ending


@dataclass(frozen=True)
class State:
    """A committed prefix per row, and the cache of all of it but its last tokens, which the next pass feeds.

    What a step needs is in tensors on the device; the host is asked only how wide a pass must be, and for stop strings.
    A step never changes a cached row below `cached`, so it is a pure function of state and uniforms. Its results and
    its scratch live in the one cache, though: to continue a state twice, `copy` it first. A state whose cache another
    step has moved on is refused.
    """

    tokens: Tensor  # [B, capacity] prompt, new tokens, then scratch
    lengths: Tensor  # [B] how many are committed
    prompt_lengths: Tensor  # [B]
    limits: Tensor  # [B] length at which a row ends
    eos: Tensor  # [num_eos]
    ended: Tensor  # [B]
    fault: Tensor  # [B] the first largest logit that was not finite, else 0
    fault_position: Tensor  # [B] the last position of the prefix it stands behind
    cache: KVCache
    ending: Ending
    cached: Tensor  # [B] the very tensor `cache.lengths`
    max_pending: int  # most tokens of a row that no pass has seen yet: the prompts at first, one token later

    @staticmethod
    def begin(prompts: Sequence[Sequence[int]], ending: Ending, cache: KVCache) -> State:
        """Return the state before the first cycle."""
        device = cache.keys.device
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
            cached=cache.lengths,
            max_pending=max(map(len, prompts)),
        )

    @property
    def new_tokens(self) -> tuple[int, ...]:
        """The committed tokens behind the prompt, of a state of one row."""
        (row,), (start,), (end,) = self.tokens, self.prompt_lengths.tolist(), self.lengths.tolist()
        return tuple(row[start:end].tolist())

    @property
    def end(self) -> str | None:
        """Why the text has ended, of a state of one row; see `Ending.reason`."""
        return self.ending.reason(self.new_tokens)

    @property
    def pending(self) -> Tensor:  # [B]
        """How many committed tokens no pass has seen yet.

        Raises:
            ValueError: a step has continued this state already, in the same cache.
        """
        if self.cache.lengths is not self.cached:  # every move makes a new tensor
            raise ValueError("state: found a cache that a step has moved on already, expected a copy to continue twice")
        return self.lengths - self.cache.lengths

    @property
    def remaining(self) -> Tensor:  # [B]
        """How many tokens may still be committed."""
        return self.limits - self.lengths

    def ends_with(
        self,
        tokens: Tensor,  # [B, W]
    ) -> Tensor:  # [B]
        """Say for which rows the text would end within some more tokens; not for those that have ended."""
        return self.kept(tokens, tokens.shape[1] * ~self.ended)[1]

    def commit(self, record: BatchRecord) -> tuple[State, BatchRecord]:
        """Append a cycle's tokens one by one until one of them ends the text; what follows it is dropped.

        The cache, which may hold rows of dropped tokens, is cut to the committed prefix, and the record with it.
        """
        count, ended = self.kept(record.tokens, record.count)
        places = self.lengths.unsqueeze(1) + torch.arange(record.tokens.shape[1], device=self.lengths.device)
        tokens = self.tokens.scatter(1, places, record.tokens)  # what lies behind the committed ones is scratch
        lengths = self.lengths + count
        self.cache.truncate(torch.minimum(self.cache.lengths, lengths))
        state = replace(
            self,
            tokens=tokens,
            lengths=lengths,
            ended=self.ended | ended,
            cached=self.cache.lengths,
            max_pending=1,
        )
        final_token = torch.where(count == record.count, record.final_token, -1)
        return state, replace(record, count=count, final_token=final_token)

    def agrees(self, other: State) -> bool:
        """Say whether two states of one row have the same future: the same tokens and, up to rounding, cached rows.

        Rounding is 4096 units in the last place of the largest cached number; in 16 bits that is no bound at all.
        """
        if (self.new_tokens, self.cached.tolist()) != (other.new_tokens, other.cached.tolist()):
            return False
        length = int(self.cached)
        for mine, yours in ((self.cache.keys, other.cache.keys), (self.cache.values, other.cache.values)):
            mine, yours = mine[:, :, :, :length], yours[:, :, :, :length]
            if mine.numel() and not bool(
                ((mine - yours).abs() <= 4096 * torch.finfo(mine.dtype).eps * mine.abs().max()).all()
            ):
                return False
        return True

    def note_fault(
        self,
        largest: Tensor,  # [B, N]
        num_more: int,
        used: Tensor,  # [B, N]
    ) -> State:
        """Remember the first row of logits that has no law, among those that are used.

        Row i stands behind the committed prefix and `num_more` + i tokens more.
        """
        if largest.shape[1] == 0:
            return self
        faulty = used & ~largest.isfinite()
        first = faulty.long().argmax(dim=1, keepdim=True)
        new = faulty.any(dim=1) & (self.fault == 0)
        return replace(
            self,
            fault=torch.where(new, largest.gather(1, first).squeeze(1).double(), self.fault),
            fault_position=torch.where(new, self.lengths + num_more + first.squeeze(1) - 1, self.fault_position),
        )

    def raise_fault(self) -> None:
        """Raise ValueError if some row's logits had no law: the host asks once per cycle."""
        for fault, position in zip(self.fault.tolist(), self.fault_position.tolist(), strict=True):
            if fault != 0:
                raise ValueError(
                    f"logits behind position {position}: the largest logit is {fault}, expected a finite number"
                )

    def select(
        self,
        rows: Tensor,  # [N]
    ) -> State:
        """Return an independent state of the given rows."""
        return self._with({name: getattr(self, name)[rows] for name in _PER_ROW}, self.cache.select(rows))

    def copy(self) -> State:
        """Return a state that can be continued independently of this one."""
        return self._with({name: getattr(self, name).clone() for name in _PER_ROW}, self.cache.copy())

    @staticmethod
    def stack(states: Sequence[State]) -> State:
        """Return an independent state whose rows are those of states of one capacity and ending, in turn.

        Raises:
            ValueError: the states have different capacities or endings.
        """
        for state in states:
            if state.cache.capacity != states[0].cache.capacity or state.ending != states[0].ending:
                raise ValueError("states: found different capacities or endings, expected the same in all of them")
        tensors = {name: torch.cat([getattr(state, name) for state in states]) for name in _PER_ROW}
        stacked = states[0]._with(tensors, KVCache.stack([state.cache for state in states]))
        return replace(stacked, max_pending=max(state.max_pending for state in states))

    def _with(self, tensors: dict[str, Tensor], cache: KVCache) -> State:
        return replace(self, cache=cache, cached=cache.lengths, **tensors)  # type: ignore[arg-type]  # all of them are tensor fields

    def kept(
        self,
        tokens: Tensor,  # [B, W]
        count: Tensor,  # [B]
    ) -> tuple[Tensor, Tensor]:  # [B], [B]
        """Return how many of each row's next tokens to keep, and whether the text ends there.

        Ends of sequence and lengths are found on the device. Stop strings need the decoded text: they are asked of
        `Ending`, on the host.
        """
        if self.ending.stop_strings:
            return self._kept_by_host(tokens, count)
        width = tokens.shape[1]
        order = torch.arange(width, device=tokens.device)
        is_end = (tokens.unsqueeze(2) == self.eos).any(dim=2) | (order + 1 >= self.remaining.unsqueeze(1))
        first = torch.where(is_end, order, width).amin(dim=1)
        return torch.minimum(count, first + 1), (first < count) & (count > 0)

    def _kept_by_host(
        self,
        tokens: Tensor,  # [B, W]
        count: Tensor,  # [B]
    ) -> tuple[Tensor, Tensor]:  # [B], [B]
        before = [row[start:end] for row, start, end in zip(*self._lists(), strict=True)]
        kept = [
            self.ending.first(old, new[:some])
            for old, new, some in zip(before, tokens.tolist(), count.tolist(), strict=True)
        ]
        counts = torch.tensor([number for number, _ in kept], device=count.device)
        return counts, torch.tensor([reason is not None for _, reason in kept], device=count.device)

    def _lists(self) -> tuple[list[list[int]], list[int], list[int]]:
        return self.tokens.tolist(), self.prompt_lengths.tolist(), self.lengths.tolist()


_PER_ROW = ("tokens", "lengths", "prompt_lengths", "limits", "ended", "fault", "fault_position")
