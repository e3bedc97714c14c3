"""One file per published algorithm, each a step that reads like its paper."""

from .autoregressive import Autoregressive
from .base import LanguageModel, Method
from .lookahead import PaSS

__all__ = ["Autoregressive", "LanguageModel", "Method", "PaSS"]
