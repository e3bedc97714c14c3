"""One file per published algorithm, each a step that reads like its paper."""

from .autoregressive import Autoregressive
from .base import Method
from .language_model import LanguageModel
from .pass_one_call import FusedPaSS
from .pass_two_call import PaSS
from .speculative import SpeculativeSampling
from .tree import Candidates, FusedCandidates

__all__ = [
    "Autoregressive",
    "Candidates",
    "FusedCandidates",
    "FusedPaSS",
    "LanguageModel",
    "Method",
    "PaSS",
    "SpeculativeSampling",
]
