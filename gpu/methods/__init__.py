"""One file per published algorithm, each a step that reads like its paper."""

from .autoregressive import Autoregressive
from .base import Method
from .draft_model import SpeculativeSampling
from .language_model import LanguageModel
from .lookahead import PaSS
from .lookahead_fused import FusedPaSS

__all__ = ["Autoregressive", "FusedPaSS", "LanguageModel", "Method", "PaSS", "SpeculativeSampling"]
