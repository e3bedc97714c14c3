"""What every decoding method has in common: a model, the settings of the target law, a start and a step.

Glossary of shapes: V vocabulary, K drafts, N rows of logits, R of them that verification reached.

What a method needs of a model.

Glossary of shapes: T rows of a pass, D input vector, D' hidden state (for a table, V), V vocabulary.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Protocol

import numpy as np
import numpy.typing as npt

from ..config import SamplingConfig
from ..ending import Ending
from ..generation import State
from ..model.cache import KVCache
from ..model.layers import Array, Mask
from ..record import Record
from ..sampling import Probs, Processor, has_law, probs_from_logits
from ..uniforms import Slots
from ..verify import Tokens
from .checks import check_context, check_prompt


class Method(ABC):
    """A decoding method. Its `step` is one cycle: a pure function of a state, continued once, and a row of uniforms."""

    model: LanguageModel
    sampling: SamplingConfig
    processor: Processor | None

    @property
    @abstractmethod
    def slots(self) -> Slots:
        """The named uniforms of one cycle, in order."""

    @abstractmethod
    def step(
        self,
        state: State,
        uniforms: npt.NDArray[np.float64],  # [num_slots]
        trace: bool = False,
    ) -> tuple[State, Record]:
        """Run one cycle; with `trace`, the record keeps every law that a uniform was compared with."""

    @property
    def num_slots(self) -> int:
        """Uniforms that one cycle is given."""
        return sum(self.slots.values())

    def start(self, prompt: Sequence[int], ending: Ending) -> State:
        """Return the state before the first cycle. No pass has been run.

        Raises:
            ValueError: the prompt is empty, holds something that is no token of the model, or leaves no room for
                the new tokens in the model's context.
        """
        tokens = check_prompt(prompt, self.model.vocab_size)
        check_context(len(prompt), ending.max_new_tokens, self.model.max_position_embeddings)
        cache = self.model.new_cache(len(prompt) + ending.max_new_tokens)
        return State(tokens, len(tokens), cache, ending, ending.reading(tokens))

    def run(
        self,
        states: Sequence[State],
        uniforms: npt.NDArray[np.float64],  # [len(states), num_slots]
        trace: bool = True,
    ) -> list[tuple[State, Record]]:
        """Step copies of many states, each with its own row of uniforms: what the law is made from."""
        return [self.step(state.copy(), row, trace) for state, row in zip(states, uniforms, strict=True)]

    def process(
        self,
        prefix: Sequence[int],
        logits: Array,  # [V]
    ) -> Array:  # [V]
        """Return the logits behind `prefix` as the processor, which gets and returns float64, leaves them.

        Raises:
            ValueError: the processor returned something of another shape.
        """
        if self.processor is None:
            return logits
        processed = np.asarray(self.processor(tuple(prefix), logits.astype(np.float64)), dtype=np.float64)
        if processed.shape != logits.shape:
            raise ValueError(f"processor: found logits of shape {processed.shape}, expected {logits.shape}")
        return processed

    def law(
        self,
        prefix: Sequence[int],
        logits: Array,  # [V]
        sampling: SamplingConfig | None = None,
    ) -> Probs:  # [V]
        """Return the law of the token behind `prefix`: processor, then settings (default: the target's).

        Raises:
            ValueError: there is none, see `probs_from_logits`; the message gives the position of the prefix's end.
        """
        where = f"logits behind position {len(prefix) - 1}"
        return probs_from_logits(self.process(prefix, logits), sampling or self.sampling, where)

    def laws(
        self,
        prefix: Sequence[int],
        draft_tokens: Tokens,  # [K]
        logits: Array,  # [N, V]
    ) -> Probs:  # [N, V]
        """Return the target's laws behind a prefix and behind the first N-1 of the drafts that follow it.

        A row that has no law comes out as NaN. Plain decoding might never have come there, so it is no error before
        verification has reached it: that is asked by `check_reached`.
        """
        probs = np.full(logits.shape, np.nan)
        for i, row in enumerate(logits):
            processed = self.process((*prefix, *draft_tokens[:i].tolist()), row)
            if has_law(processed):
                probs[i] = probs_from_logits(processed, self.sampling)
        return probs

    def check_reached(
        self,
        prefix: Sequence[int],
        draft_tokens: Tokens,  # [K]
        logits: Array,  # [N, V]
        reached: Probs,  # [R, V]
    ) -> None:
        """Raise ValueError if one of the R rows that verification reached has no law: the target's text ends there."""
        for i in np.flatnonzero(np.isnan(reached[:, 0])):
            self.law((*prefix, *draft_tokens[:i].tolist()), logits[i])


class LanguageModel(Protocol):
    """What a method needs of a model: `Transformer` and `TableModel` both are one."""

    @property
    def vocab_size(self) -> int:
        """V."""

    @property
    def hidden_size(self) -> int:
        """D, the length of an input vector."""

    @property
    def max_position_embeddings(self) -> int:
        """The longest sequence the model can read."""

    @property
    def eos_token_ids(self) -> tuple[int, ...]:
        """Tokens that end a text by default."""

    @property
    def stop_strings(self) -> tuple[str, ...]:
        """Strings that end a text by default, where there is a decoder."""

    @property
    def fingerprint(self) -> str | None:
        """Which checkpoint the weights came from, if any."""

    @property
    def name(self) -> str:
        """What people call the checkpoint."""

    def new_cache(self, capacity: int = 16) -> KVCache:
        """Return an empty cache."""

    def embed(
        self,
        tokens: npt.NDArray[np.integer] | Sequence[int],  # [T]
    ) -> Array:  # [T, D]
        """Return the input vectors of tokens."""

    def hidden(
        self,
        inputs: Array,  # [T, D]
        cache: KVCache,
        positions: npt.NDArray[np.integer] | None = None,  # [T]
        visible: Mask | None = None,  # [T, T]
    ) -> Array:  # [T, D']
        """Run one pass behind the cache."""

    def logits(
        self,
        hidden: Array,  # [..., D']
    ) -> Array:  # [..., V]
        """Project hidden states to logits."""

    def logits_of(
        self,
        hidden: Array,  # [..., D']
        tokens: npt.NDArray[np.integer],  # [..., N]
    ) -> Array:  # [..., N]
        """Project hidden states to the logits of some tokens each."""
