"""Plain decoding: one token per pass. The baseline, and the definition of the target distribution."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from ..config import SamplingConfig
from ..record import Record
from ..sampling import Processor
from ..uniforms import NamedUniforms, UniformRow
from .base import Method, State, exact_record

if TYPE_CHECKING:
    from ..model.language_model import LanguageModel


@dataclass(frozen=True, eq=False)
class Autoregressive(Method):
    """Draw each token from the model's own distribution after the prefix."""

    model: LanguageModel
    sampling: SamplingConfig = field(default_factory=SamplingConfig)
    processor: Processor | None = None

    def __post_init__(self) -> None:
        """Check the settings against the model."""
        self.sampling.check(self.model.vocab_size)

    @property
    def named_uniforms(self) -> NamedUniforms:
        """One draw per step."""
        return {"exact": 1}

    def step(self, state: State, uniforms: npt.NDArray[np.float64], trace: bool = False) -> tuple[State, Record]:
        """Feed the tokens that no pass has read yet, and draw the next one."""
        draws = UniformRow(uniforms, self.named_uniforms, trace)
        pending = state.pending
        hidden = self.model.hidden(self.model.embed(pending), state.cache)
        probs = self.probs(state.tokens, self.model.logits(hidden[-1]))
        token = draws.token("exact", probs)
        return state.commit(exact_record(probs, token, len(pending), draws))
