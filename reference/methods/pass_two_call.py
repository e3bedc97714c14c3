"""PaSS as published: one call drafts from look-ahead vectors, a second call verifies the drafts.

A draft distribution depends on neither the exact token nor the other drafts. This lowers acceptance, but the output
stays exact, because each distribution is fixed before its draft is drawn.

Source: Monea, Joulin and Grave 2023, "PaSS: Parallel Speculative Sampling" (arXiv 2311.13581), Sec. 3.

Glossary of shapes: L look-ahead vectors, N of them fed in this step, K drafts, V vocabulary, D input vector.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Collection
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import numpy.typing as npt

from ..config import SamplingConfig, check_integer, check_settings, check_token
from ..model.layers import Array
from ..record import Record
from ..sampling import Probs
from ..uniforms import NamedUniforms, UniformRow
from ..verify import RULES, Tokens
from .base import Method, State, draft_left_to_right, exact_record, verify_drafts

if TYPE_CHECKING:
    from ..lookahead.vectors import LookAhead
    from ..model.language_model import LanguageModel


@dataclass(frozen=True, eq=False)
class PaSSSettings:
    """The settings of `PaSS`, of either package.

    `lookahead=None` is the paper's baseline: the embedding of `fixed_token` replaces every trained vector.
    `draft_sampling` replaces the settings for drafts; the output distribution does not depend on it.
    """

    model: Any
    lookahead: Any
    sampling: SamplingConfig = field(default_factory=SamplingConfig)
    draft_sampling: SamplingConfig | None = None
    rule: str = "token"
    processor: Any = None
    num_lookahead: int | None = None  # L; default: all vectors, or 4 fixed tokens
    fixed_token: int = 0
    vectors: Any = field(init=False, repr=False)  # [L, D]
    rules: ClassVar[Collection[str]] = RULES

    def __post_init__(self) -> None:
        """Raise ValueError unless the settings, the rule and the vectors fit the model."""
        check_settings(self.model.vocab_size, self.sampling, self.draft_sampling, self.rule, self.rules)
        if self.lookahead is None:
            wanted = check_integer("num_lookahead", 4 if self.num_lookahead is None else self.num_lookahead, 0, 2**16)
            check_token("fixed_token", self.fixed_token, self.model.vocab_size)
            vectors = self._fixed_vectors([self.fixed_token] * wanted)
        elif self.lookahead.adapter is not None or self.lookahead.head is not None:
            raise ValueError(
                "lookahead: found vectors trained with an adapter or a head, which this method does not use, expected "
                "PaSSOneCall (pass-one-call), or dataclasses.replace(lookahead, adapter=None, head=None)"
            )
        else:
            vectors = self.lookahead.inputs(self.model, self.num_lookahead)
        object.__setattr__(self, "vectors", vectors)

    @abstractmethod
    def _fixed_vectors(self, tokens: list[int]) -> Any:
        """Return the embeddings of L tokens, [L, D]."""

    @property
    def named_uniforms(self) -> NamedUniforms:
        """One exact draw, a draw and an acceptance per draft, and the final draw."""
        num_lookahead = len(self.vectors)
        return {"exact": 1, "draft": num_lookahead, "accept": num_lookahead, "final": 1}


@dataclass(frozen=True, eq=False)
class PaSS(PaSSSettings, Method):
    """Draft L tokens at once from L look-ahead vectors, then verify them with the same model."""

    model: LanguageModel
    lookahead: LookAhead | None

    def _fixed_vectors(self, tokens: list[int]) -> Array:
        return self.model.embed(tokens)

    def step(self, state: State, uniforms: npt.NDArray[np.float64], trace: bool = False) -> tuple[State, Record]:
        """Run one step: call 1 yields an exact token and K drafts, call 2 verifies them; 2 + accepted tokens."""
        draws = UniformRow(uniforms, self.named_uniforms, trace)
        num_draft = max(0, min(len(self.vectors), state.remaining - 2))  # an exact and a final token come as well

        # Call 1: after the last token, one exact token; after each look-ahead vector, a distribution for one draft.
        pending = self.model.embed(state.pending)
        hidden = self.model.hidden(np.concatenate([pending, self.vectors[:num_draft]]), state.cache)
        logits = self.model.logits(hidden[len(pending) - 1 :])
        state.cache.truncate(len(state.tokens))  # drop the look-ahead rows
        exact_probs = self.probs(state.tokens, logits[0])
        exact_token = draws.token("exact", exact_probs)
        record = exact_record(exact_probs, exact_token, len(hidden), draws)
        if state.ends_with([exact_token]):
            return state.commit(record)
        draft_tokens, draft_probs, has_bonus_row = self._draft(state, exact_token, logits[1:], draws)

        # Call 2: the exact token and the drafts; row i holds the target's distribution after i drafts.
        hidden = self.model.hidden(self.model.embed([exact_token, *draft_tokens]), state.cache)
        logits = self.model.logits(hidden[: len(draft_tokens) + has_bonus_row])
        prefix = (*state.tokens, exact_token)
        return state.commit(*verify_drafts(self, self.rule, prefix, record, draws, logits, draft_tokens, draft_probs))

    def _draft(self, state: State, exact_token: int, logits: Array, draws: UniformRow) -> tuple[Tokens, Probs, bool]:
        """Draw the drafts; return them, their distributions, and whether the text continues after them."""
        settings, limit = self.draft_sampling or self.sampling, len(logits)
        return draft_left_to_right(
            self, state, limit, draws, lambda tokens, i: logits[i], settings, before=(exact_token,)
        )[:3]
