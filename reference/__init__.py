"""The specification: exact parallel speculative sampling in NumPy, for one sequence.

Read in this order: `sampling` and `uniforms` (a distribution, a uniform, a token), `verify` (the theorem),
`methods.base`, `methods.autoregressive` and `methods.pass_two_call` (PaSS), `generation` (the loop),
`exactness.distribution` (the proof by enumeration). Then `model` (the transformer), `checkpoint` and `lookahead` (its
files). `pass_sampling.gpu` mirrors it for batches.
"""

from .checkpoint.load import load_model, read_config, read_generation_config, read_weights
from .config import SamplingConfig
from .drafters import Drafter, FirstOf, ModelDrafter, NgramModel, PromptLookup
from .drafters.schedule import EntropyBound, Heuristic, Schedule
from .ending import Ending
from .generation import generate, generate_batch
from .lookahead.adapter import Adapter
from .lookahead.head import SamplerHead
from .lookahead.vectors import LookAhead
from .methods import (
    Autoregressive,
    LanguageModel,
    Method,
    PaSS,
    PaSSOneCall,
    PaSSOneCallTree,
    SpeculativeSampling,
    SpeculativeTree,
)
from .model.config import ModelConfig, RopeScaling
from .model.table import TableModel
from .model.transformer import Transformer
from .model.weights import Weights
from .record import Choice, Generation, NotFiniteError, Record
from .sampling import probs_from_logits

__all__ = ["load_model", "read_config", "read_generation_config", "read_weights"]
__all__ += ["Drafter", "EntropyBound", "FirstOf", "Heuristic", "ModelDrafter", "NgramModel", "PromptLookup", "Schedule"]
__all__ += ["Adapter", "LookAhead", "SamplerHead", "generate", "generate_batch"]
__all__ += ["Autoregressive", "LanguageModel", "Method", "PaSS", "PaSSOneCall", "PaSSOneCallTree"]
__all__ += ["SpeculativeSampling", "SpeculativeTree"]
__all__ += ["ModelConfig", "RopeScaling", "TableModel", "Transformer", "Weights"]
__all__ += ["Choice", "Ending", "Generation", "NotFiniteError", "Record", "SamplingConfig", "probs_from_logits"]
