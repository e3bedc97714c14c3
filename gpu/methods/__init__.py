"""One file per published algorithm, each a step that reads like its paper."""

from .autoregressive import Autoregressive
from .base import Method
from .draft_model import SpeculativeSampling
from .language_model import LanguageModel
from .lookahead import PaSS

__all__ = ["Autoregressive", "LanguageModel", "Method", "PaSS", "SpeculativeSampling"]
