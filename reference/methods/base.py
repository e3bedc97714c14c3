"""What every decoding method has in common: a model, the settings of the target law, a start and a step.

Glossary of shapes: T rows of a pass, D input vector, D' hidden state (for a table, V), V vocabulary, K drafts.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Protocol

import numpy as np
import numpy.typing as npt

from ..cache import KVCache
from ..config import SamplingConfig
from ..ending import Ending
from ..layers import Array, Mask
from ..record import Record
from ..sampling import Probs, Processor, probs_from_logits
from ..state import State
from ..tape import Slots
from ..verify import Tokens


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


class Method(ABC):
    """A decoding method. Its `step` is one cycle: a pure function of a state and a row of uniforms."""

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
        check_prompt(prompt, self.model.vocab_size)
        check_context(len(prompt), ending.max_new_tokens, self.model.max_position_embeddings)
        cache = self.model.new_cache(len(prompt) + ending.max_new_tokens)
        return State(tuple(int(token) for token in prompt), len(prompt), cache, ending)

    def run(
        self,
        states: Sequence[State],
        uniforms: npt.NDArray[np.float64],  # [len(states), num_slots]
    ) -> list[tuple[State, Record]]:
        """Step copies of many states, each with its own row of uniforms, with trace: what the law is made from."""
        return [self.step(state.copy(), row, trace=True) for state, row in zip(states, uniforms, strict=True)]

    def law(
        self,
        prefix: Sequence[int],
        logits: Array,  # [V]
        sampling: SamplingConfig | None = None,
    ) -> Probs:  # [V]
        """Return the law of the token behind `prefix`: processor, then settings (default: the target's)."""
        if self.processor is not None:
            logits = np.asarray(self.processor(tuple(prefix), logits.copy()))
        return probs_from_logits(logits, sampling or self.sampling, f"logits behind position {len(prefix) - 1}")

    def laws(
        self,
        prefix: Sequence[int],
        draft_tokens: Tokens,  # [K]
        logits: Array,  # [K+1, V]
    ) -> Probs:  # [K+1, V]
        """Return the target's laws behind a prefix and behind each of the drafts that follow it."""
        drafts = draft_tokens.tolist()
        return np.stack([self.law((*prefix, *drafts[:i]), row) for i, row in enumerate(logits)])


def check_prompt(prompt: Sequence[int], vocab_size: int) -> None:
    """Raise ValueError unless the prompt is a non-empty sequence of the model's tokens."""
    if len(prompt) == 0:
        raise ValueError("prompt: found no tokens, expected at least one")
    for place, token in enumerate(prompt):
        if isinstance(token, bool) or not isinstance(token, int | np.integer) or not 0 <= token < vocab_size:
            raise ValueError(
                f"prompt: found {token!r} at place {place}, expected a token id from 0 to {vocab_size - 1}"
            )


def check_context(prompt_length: int, max_new_tokens: int, max_positions: int) -> None:
    """Raise ValueError unless prompt and new tokens fit into the model's context."""
    if prompt_length + max_new_tokens > max_positions:
        raise ValueError(
            f"max_new_tokens: found a prompt of {prompt_length} tokens and {max_new_tokens} new ones, expected at most "
            f"{max_positions} together, the model's max_position_embeddings"
        )
