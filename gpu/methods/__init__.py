"""One file per published algorithm, each a step that reads like its paper."""

from ..model.language_model import LanguageModel
from .autoregressive import Autoregressive
from .base import Method
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
