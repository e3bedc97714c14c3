"""Plain decoding: one token per pass. The baseline, and the definition of the target distribution."""

from __future__ import annotations

from dataclasses import dataclass, field

from torch import Tensor

from pass_sampling.reference.config import SamplingConfig

from ..batch_record import BatchRecord
from ..model.language_model import LanguageModel
from ..sampling import Processor
from ..state import State
from ..uniforms import NamedUniforms, UniformRow
from .base import Method
from .records import draw_exact


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

    def step(
        self,
        state: State,
        uniforms: Tensor,  # [B, 1]
        trace: bool = False,
    ) -> tuple[State, BatchRecord]:
        """Feed the tokens that no pass has read yet, and draw the next one."""
        draws = UniformRow(uniforms, self.named_uniforms, trace)
        pending, active = state.pending, ~state.ended
        hidden = self.feed_pending(state)
        state, record, _ = draw_exact(self, state, draws, self.model.logits(hidden), pending, active)
        return state.commit(record)
