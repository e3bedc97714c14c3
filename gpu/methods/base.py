"""The base of every decoding method: a model, the settings of the target distribution, the start and the step.

Glossary of shapes: B batch, D input vector, D' hidden state, V vocabulary, K drafts, N rows of logits per sequence,
S capacity.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from pass_sampling.reference.config import SamplingConfig, check_context, check_prompt
from pass_sampling.reference.ending import Ending
from pass_sampling.reference.record import Record

from ..batch_record import BatchRecord
from ..model.language_model import LanguageModel
from ..sampling import Probs, Processor, largest_logits, probs_from_logits
from ..state import State, first_state
from ..uniforms import NamedUniforms
from ..verify import Tokens


class Method(ABC):
    """A decoding method. Its `step` is one step: a pure function of a state, continued once, and rows of uniforms."""

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
        uniforms: Tensor,  # [B, num_uniforms]
        trace: bool = False,
    ) -> tuple[State, BatchRecord]:
        """Run one step; with `trace`, the record keeps every distribution that a uniform was compared with."""

    @property
    def num_uniforms(self) -> int:
        """The number of uniforms of one step."""
        return sum(self.named_uniforms.values())

    @property
    def scratch(self) -> int:
        """Cache positions that a pass may need beyond the longest text."""
        return 1

    @property
    def draft_pending(self) -> int:
        """The most tokens that a drafter has not read after a step: the last draft and the final token."""
        return 2

    def start(self, prompt: Sequence[int], ending: Ending) -> State:
        """Return the state of one row before the first step; see `start_batch`."""
        return self.start_batch([prompt], ending)

    def start_batch(self, prompts: Sequence[Sequence[int]], ending: Ending) -> State:
        """Return the state before the first step; raise ValueError for a prompt that is empty, wrong or too long."""
        tokens = [check_prompt(prompt, self.model.vocab_size) for prompt in prompts]
        for prompt in tokens:
            check_context(len(prompt), ending.max_new_tokens, self.model.max_position_embeddings)
        capacity = max(map(len, tokens)) + ending.max_new_tokens + self.scratch
        return first_state(tokens, ending, self.model.new_cache(capacity, len(tokens)))

    def run(
        self,
        states: Sequence[State],
        uniforms: Any,  # [len(states), num_uniforms], also of NumPy
        trace: bool = True,
    ) -> list[tuple[State, Record]]:
        """Step copies of many states, of one row each, in one batch; `exactness.output_distribution` uses it."""
        rows = torch.as_tensor(uniforms, device=self.model.device)
        state, record = self.step(State.stack(states), rows, trace)
        state.raise_fault()
        places = torch.arange(len(states), device=self.model.device)
        return [(state.select(places[b : b + 1]), row) for b, row in enumerate(record.rows())]

    def chain_probs(
        self,
        state: State,
        logits: Tensor,  # [B, N, V]
        used: Tensor,  # [B, N]
        more: Tokens | None = None,  # [B, ...] tokens after the committed prefix
        num_more: int = 0,
        sampling: SamplingConfig | None = None,
    ) -> tuple[Probs, Tensor]:  # [B, N, V], [B, N]
        """Return the distributions after the committed prefix and its continuations: processor, then settings.

        Row i follows the prefix and `num_more` + i of the tokens `more`; rows that are not `used` are meaningless. The
        second tensor is `largest_logits`: where it is not finite, there is no distribution. The settings are the
        target's by default.
        """
        logits = self.process(state, logits, used, more, num_more)
        largest = largest_logits(logits)
        return probs_from_logits(logits, sampling or self.sampling, largest), largest

    def process(
        self,
        state: State,
        logits: Tensor,  # [B, N, V]
        used: Tensor,  # [B, N]
        more: Tokens | None = None,  # [B, ...]
        num_more: int = 0,
    ) -> Tensor:  # [B, N, V]
        """Return the logits after the committed prefix and its continuations, changed by the processor."""
        if self.processor is None:
            return logits
        continuations: list[list[int]] = [[]] * len(logits) if more is None else more.tolist()
        logits = logits.double()
        processed = logits.clone()
        for b, (tokens, length) in enumerate(zip(state.tokens.tolist(), state.lengths.tolist(), strict=True)):
            for i in used[b].nonzero().flatten().tolist():
                prefix = (*tokens[:length], *continuations[b][: num_more + i])
                row = torch.as_tensor(self.processor(prefix, logits[b, i].clone()))
                if row.shape != logits.shape[2:]:
                    raise ValueError(
                        f"processor: found logits of shape {tuple(row.shape)}, expected {tuple(logits.shape[2:])}"
                    )
                processed[b, i] = row
        return processed

    def feed_pending(
        self,
        state: State,
        vectors: Tensor | None = None,  # [K, D]
    ) -> Tensor:  # [B, K+1, D']
        """Run one pass over the pending tokens of each row, followed by the same vectors in every row.

        Returns the hidden states of each row's last token and of the vectors, which are then removed from the cache.
        """
        depth = 0 if vectors is None else len(vectors)
        hidden = self.feed_drafts(state, state.tokens, depth, vectors)
        state.cache.truncate(state.lengths)
        return hidden

    def feed_drafts(
        self,
        state: State,
        tokens: Tokens,  # [B, S]
        num_draft: int,
        vectors: Tensor | None = None,  # [K, D]
    ) -> Tensor:  # [B, K+1, D']
        """Run one pass over the pending tokens of each row, and the K drafts that follow them in `tokens`, or vectors.

        Returns the hidden states of each row's last token and of the drafts. All rows stay in the cache. Shorter rows
        are padded at the end, and no row attends to padding.
        """
        inputs = self.model.embed(tokens.gather(1, state.cache.next_positions(state.max_pending + num_draft)))
        if state.max_pending == 1:
            if vectors is not None:
                inputs[:, 1:] = vectors
            return self.model.hidden(inputs, state.cache)
        rows = torch.arange(len(tokens), device=tokens.device).unsqueeze(1)
        last = state.pending.unsqueeze(1) - 1 + torch.arange(num_draft + 1, device=tokens.device)
        if vectors is not None:
            inputs[rows, last[:, 1:]] = vectors
        return self.model.hidden(inputs, state.cache)[rows, last]
