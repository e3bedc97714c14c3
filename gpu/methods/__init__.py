"""One file per published algorithm, each a step that reads like its paper."""

from .autoregressive import Autoregressive
from .base import Method
from .candidates import Candidates
from .candidates_fused import FusedCandidates
from .draft_model import SpeculativeSampling
from .language_model import LanguageModel
from .lookahead import PaSS
from .lookahead_fused import FusedPaSS

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
