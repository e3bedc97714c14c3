"""The base of every decoding method: the state of a sequence, the start, the step, and the verification of a chain.

Glossary of shapes: L look-ahead vectors, D' hidden state, V vocabulary, K drafts, N rows of logits, R of them that
verification reached.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import numpy.typing as npt

from ..config import SamplingConfig, check_context, check_prompt
from ..ending import Ending, Reading
from ..model.cache import KVCache, same
from ..model.layers import Array
from ..record import Record
from ..sampling import Probs, Processor, has_distribution, probs_from_logits
from ..uniforms import NamedUniforms, UniformRow
from ..verify import RULES, Tokens, Verification

if TYPE_CHECKING:
    from ..model.language_model import LanguageModel


@dataclass(frozen=True)
class State:
    """One sequence between two steps: the committed tokens, and the cache of all but the last of them.

    A step never changes a cached row below `cached`, so it is a pure function of state and uniforms. The new state
    shares the cache, so `copy` a state to continue it twice. A drafter's cache only saves work: it may hold any prefix.
    """

    tokens: tuple[int, ...]  # prompt and new tokens
    prompt_length: int
    cache: KVCache
    ending: Ending
    reading: Reading  # of the new tokens
    cached: int = 0  # length of the cache
    end: str | None = None  # why the text has ended, see `Ending.reason`
    draft_cache: KVCache | None = None
    pace: tuple[float, ...] = ()  # the memory of the schedule of draft lengths
    lookahead_hidden: Array | None = None  # [L+1, D'] the last text row's hidden state, and its look-ahead group's

    @property
    def new_tokens(self) -> tuple[int, ...]:
        """The committed tokens after the prompt."""
        return self.tokens[self.prompt_length :]

    @property
    def key(self) -> tuple[tuple[int, ...], tuple[float, ...], bool]:
        """The values that determine the future of a state, given its prompt."""
        return self.new_tokens, self.pace, self.lookahead_hidden is not None

    @property
    def pending(self) -> tuple[int, ...]:
        """The committed tokens that no pass has read yet; raise ValueError if a step has advanced the cache already."""
        if self.cache.length != self.cached:
            raise ValueError("state: found a cache that a step has moved on already, expected a copy to continue twice")
        return self.tokens[self.cached :]

    @property
    def remaining(self) -> int:
        """How many tokens may still be committed."""
        return self.ending.max_new_tokens - (len(self.tokens) - self.prompt_length)

    @property
    def caches(self) -> tuple[KVCache, ...]:
        """The model's cache, and the drafter's if it has one."""
        return (self.cache,) if self.draft_cache is None else (self.cache, self.draft_cache)

    def ends_with(self, tokens: Sequence[int]) -> bool:
        """Return whether the text would end within some more tokens."""
        return self.reading.first(tokens)[1] is not None

    def keep(self, length: int) -> None:
        """Cut the caches to the first `length` tokens: the rollback of rejected drafts."""
        for cache in self.caches:
            cache.truncate(min(cache.length, length))

    def commit(self, record: Record, valid_length: int | None = None) -> tuple[State, Record]:
        """Append a step's tokens one by one until one of them ends the text; drop the others.

        The record and the caches are cut to the committed prefix. `valid_length` is the length of the caches before
        rejected drafts and look-ahead rows, if there are any.
        """
        count, end = self.reading.first(record.tokens)
        tokens, reading = self.tokens + record.tokens[:count], self.reading.after(record.tokens[:count])
        self.keep(len(tokens) if valid_length is None else min(len(tokens), valid_length))
        return replace(self, tokens=tokens, reading=reading, cached=self.cache.length, end=end), record.cut(count)

    def agrees(self, other: State) -> bool:
        """Return whether two states have the same future: the same tokens and, up to rounding, the same cached rows."""
        if (self.key, self.tokens, self.cached, self.end) != (other.key, other.tokens, other.cached, other.end):
            return False
        mine, yours = self.lookahead_hidden, other.lookahead_hidden
        if mine is not None and yours is not None and not same(mine, yours):
            return False
        return all(cache.agrees(others) for cache, others in zip(self.caches, other.caches, strict=True))

    def copy(self) -> State:
        """Return a state that can be continued independently of this one."""
        draft_cache = None if self.draft_cache is None else self.draft_cache.copy()
        return replace(self, cache=self.cache.copy(), draft_cache=draft_cache)


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
        """The number of uniforms of one step."""
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
        """Return the logits after `prefix`, changed by the processor, which takes and returns float64."""
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
            NotFiniteError: the logits make no distribution; the message gives the position of the last token.
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

        A row without a distribution is NaN. It is an error only if verification reaches it, which `verify_drafts`
        checks: plain decoding might never have reached that prefix.
        """
        probs = np.full(logits.shape, np.nan)
        for i, row in enumerate(logits):
            processed = self.process((*prefix, *draft_tokens[:i].tolist()), row)
            if has_distribution(processed):
                probs[i] = probs_from_logits(processed, self.sampling)
        return probs


class Drafts(NamedTuple):
    """The drafts of a step."""

    tokens: Tokens  # [K]
    probs: Probs  # [K, V], the very distributions that the tokens were drawn from
    has_bonus_row: bool  # whether the text continues after the last
    num_asked: int  # distributions asked for


def draft_left_to_right(
    method: Method,
    state: State,
    limit: int,
    draws: UniformRow,
    next_logits: Callable[[tuple[int, ...], int], Array],
    sampling: SamplingConfig,
    wanted: Callable[[int, Array], bool] | None = None,
    before: tuple[int, ...] = (),
) -> Drafts:
    """Draw drafts one by one: `next_logits(tokens, i)` gives the logits of draft i after the text and its drafts.

    The tokens `before` have been drawn in this step already, and the drafts follow them. Drafting stops at the limit,
    where the logits make no distribution, where the draft is not `wanted(i, logits)`, and after a draft that ends the
    text. All of that is known before the next draft is drawn.
    """
    tokens: list[int] = []
    probs: list[Probs] = []
    num_asked, has_bonus_row = 0, True
    while len(tokens) < limit and has_bonus_row:
        prefix, depth = (*state.tokens, *before, *tokens), len(tokens)
        logits = method.process(prefix, next_logits(prefix, depth))
        num_asked += 1
        if not has_distribution(logits) or not (wanted is None or wanted(depth, logits)):
            break
        probs.append(probs_from_logits(logits, sampling))
        tokens.append(draws.token("draft", probs[-1], depth))
        has_bonus_row = not state.ends_with([*before, *tokens])
    rows = np.array(probs).reshape(len(tokens), method.model.vocab_size)
    return Drafts(np.array(tokens, dtype=np.int64), rows, has_bonus_row, num_asked)


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

    Returns the whole record of the step, and the length that the cache may keep: the prefix and the accepted drafts.

    Raises:
        NotFiniteError: verification reached a row of logits that has no distribution.
    """
    target_probs = method.chain_probs(prefix, draft_tokens, logits)
    verification = RULES[rule](target_probs, lenience * draft_probs, draft_tokens, draws)
    for i in np.flatnonzero(np.isnan(target_probs[: verification.num_accepted + 1, 0])):
        method.probs((*prefix, *draft_tokens[:i].tolist()), logits[i])  # raises
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
