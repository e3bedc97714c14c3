"""The specification: exact parallel speculative sampling in NumPy.

Read in this order: `sampling` and `tape` (a law, a uniform, a token), `verify` (the theorem), `methods.autoregressive`
and `methods.lookahead` (PaSS), `generation` (the loop), `law` (the proof by enumeration); then `layers`, `cache` and
`transformer` (the model), `checkpoint` and `lookahead` (its files).

Everything here handles one sequence; `pass_sampling.gpu` mirrors it for batches.
"""

from .adapter import Adapter
from .checkpoint import load_model, read_config, read_generation_config, read_weights
from .config import ModelConfig, RopeScaling, SamplingConfig
from .drafters import Drafter, ModelDrafter, NgramModel, PromptLookup
from .ending import Ending
from .generation import generate, generate_batch
from .lookahead import LookAhead
from .methods import (
    Autoregressive,
    Candidates,
    FusedCandidates,
    FusedPaSS,
    LanguageModel,
    Method,
    PaSS,
    SpeculativeSampling,
)
from .record import Choice, Generation, Record
from .sampler_head import SamplerHead
from .sampling import probs_from_logits
from .schedule import EntropyBound, Heuristic, Schedule
from .table import TableModel
from .transformer import Transformer
from .weights import Weights

__all__ = [
    "Adapter",
    "Autoregressive",
    "Candidates",
    "Choice",
    "Drafter",
    "Ending",
    "EntropyBound",
    "FusedCandidates",
    "FusedPaSS",
    "Generation",
    "Heuristic",
    "LanguageModel",
    "LookAhead",
    "Method",
    "ModelConfig",
    "ModelDrafter",
    "NgramModel",
    "PaSS",
    "PromptLookup",
    "Record",
    "RopeScaling",
    "SamplerHead",
    "SamplingConfig",
    "Schedule",
    "SpeculativeSampling",
    "TableModel",
    "Transformer",
    "Weights",
    "generate",
    "generate_batch",
    "load_model",
    "probs_from_logits",
    "read_config",
    "read_generation_config",
    "read_weights",
]
