"""The port: `pass_sampling.reference` in PyTorch, for batches, on a CPU or a GPU.

Names, leading parameters, fields and errors are those of the reference, where each is explained at more length. What
differs: arrays are tensors with a batch axis B in front, and `generate_batch` runs its prompts side by side. Names are
imported when first used, so importing this package costs nothing.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pass_sampling.reference.config import SamplingConfig
    from pass_sampling.reference.ending import Ending
    from pass_sampling.reference.model.config import ModelConfig, RopeScaling
    from pass_sampling.reference.record import Choice, Generation, NotFiniteError, Record

    from .checkpoint.load import load_model, read_config, read_generation_config, read_weights
    from .drafters import Drafter, FirstOf, ModelDrafter, NgramModel, PromptLookup
    from .drafters.schedule import EntropyBound, Heuristic, Schedule
    from .engine.engine import Engine
    from .engine.rows import Request
    from .generation import generate, generate_batch
    from .hf.generate import generate_with_pass, pass_generate, untrained_lookahead
    from .hf.model import TransformersModel
    from .hf.text_decoder import decoder_of
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
    from .model.table import TableModel
    from .model.transformer import Transformer
    from .model.weights import Weights
    from .sampling import probs_from_logits

_HOMES = {  # the public names by the modules that define them
    "gpu.checkpoint.load": "load_model read_config read_generation_config read_weights",
    "gpu.drafters": "Drafter FirstOf ModelDrafter NgramModel PromptLookup",
    "gpu.drafters.schedule": "EntropyBound Heuristic Schedule",
    "gpu.engine.engine": "Engine",
    "gpu.engine.rows": "Request",
    "gpu.generation": "generate generate_batch",
    "gpu.hf.generate": "generate_with_pass pass_generate untrained_lookahead",
    "gpu.hf.model": "TransformersModel",
    "gpu.hf.text_decoder": "decoder_of",
    "gpu.lookahead.adapter": "Adapter",
    "gpu.lookahead.head": "SamplerHead",
    "gpu.lookahead.vectors": "LookAhead",
    "gpu.methods": "Autoregressive LanguageModel Method PaSS PaSSOneCall PaSSOneCallTree SpeculativeSampling "
    "SpeculativeTree",
    "gpu.model.table": "TableModel",
    "gpu.model.transformer": "Transformer",
    "gpu.model.weights": "Weights",
    "gpu.sampling": "probs_from_logits",
    "reference.config": "SamplingConfig",
    "reference.ending": "Ending",
    "reference.model.config": "ModelConfig RopeScaling",
    "reference.record": "Choice Generation NotFiniteError Record",
}

__all__ = ["load_model", "read_config", "read_generation_config", "read_weights"]
__all__ += ["Drafter", "EntropyBound", "FirstOf", "Heuristic", "ModelDrafter", "NgramModel", "PromptLookup", "Schedule"]
__all__ += ["Engine", "Request", "generate", "generate_batch"]
__all__ += ["TransformersModel", "decoder_of", "generate_with_pass", "pass_generate", "untrained_lookahead"]
__all__ += ["Adapter", "LookAhead", "SamplerHead"]
__all__ += ["Autoregressive", "LanguageModel", "Method", "PaSS", "PaSSOneCall", "PaSSOneCallTree"]
__all__ += ["SpeculativeSampling", "SpeculativeTree"]
__all__ += ["ModelConfig", "RopeScaling", "TableModel", "Transformer", "Weights"]
__all__ += ["Choice", "Ending", "Generation", "NotFiniteError", "Record", "SamplingConfig", "probs_from_logits"]


def __getattr__(name: str) -> Any:
    """Import a public name from the module that defines it."""
    home = next((home for home, names in _HOMES.items() if name in names.split()), None)
    if home is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    try:
        return getattr(import_module(f"pass_sampling.{home}"), name)
    except ModuleNotFoundError as error:
        if error.name not in ("torch", "transformers"):
            raise
        said = f"found no {error.name}, expected it installed: pip install {error.name}, or '.[gpu]' here"
        raise ModuleNotFoundError(f"pass_sampling.gpu: {said}", name=error.name) from error


def __dir__() -> list[str]:
    return __all__
