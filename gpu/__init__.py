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
    from .drafters import Drafter, ModelDrafter, NgramModel, PromptLookup
    from .drafters.schedule import EntropyBound, Heuristic, Schedule
    from .engine.engine import Engine, Request
    from .generation import generate, generate_batch
    from .hf.generate import generate_with_pass, pass_generate, untrained_lookahead, write_custom_generate
    from .hf.model import TransformersModel
    from .hf.text_decoder import decoder_of
    from .lookahead.adapter import Adapter
    from .lookahead.head import SamplerHead
    from .lookahead.vectors import LookAhead
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
    from .model.table import TableModel
    from .model.transformer import Transformer
    from .model.weights import Weights
    from .sampling import probs_from_logits

_HOMES = {
    "pass_sampling.gpu.checkpoint.load": ["load_model", "read_config", "read_generation_config", "read_weights"],
    "pass_sampling.gpu.drafters": ["Drafter", "ModelDrafter", "NgramModel", "PromptLookup"],
    "pass_sampling.gpu.drafters.schedule": ["EntropyBound", "Heuristic", "Schedule"],
    "pass_sampling.gpu.engine.engine": ["Engine", "Request"],
    "pass_sampling.gpu.generation": ["generate", "generate_batch"],
    "pass_sampling.gpu.hf.generate": [
        "write_custom_generate",
        "generate_with_pass",
        "pass_generate",
        "untrained_lookahead",
    ],
    "pass_sampling.gpu.hf.model": ["TransformersModel"],
    "pass_sampling.gpu.hf.text_decoder": ["decoder_of"],
    "pass_sampling.gpu.lookahead.adapter": ["Adapter"],
    "pass_sampling.gpu.lookahead.head": ["SamplerHead"],
    "pass_sampling.gpu.lookahead.vectors": ["LookAhead"],
    "pass_sampling.gpu.methods": [
        "Autoregressive",
        "Candidates",
        "FusedCandidates",
        "FusedPaSS",
        "LanguageModel",
        "Method",
        "PaSS",
        "SpeculativeSampling",
    ],
    "pass_sampling.gpu.model.table": ["TableModel"],
    "pass_sampling.gpu.model.transformer": ["Transformer"],
    "pass_sampling.gpu.model.weights": ["Weights"],
    "pass_sampling.gpu.sampling": ["probs_from_logits"],
    "pass_sampling.reference.config": ["SamplingConfig"],
    "pass_sampling.reference.ending": ["Ending"],
    "pass_sampling.reference.model.config": ["ModelConfig", "RopeScaling"],
    "pass_sampling.reference.record": ["Choice", "Generation", "NotFiniteError", "Record"],
}

__all__ = [
    "Adapter",
    "Autoregressive",
    "Candidates",
    "Choice",
    "Drafter",
    "Ending",
    "Engine",
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
    "NotFiniteError",
    "PaSS",
    "PromptLookup",
    "Record",
    "Request",
    "RopeScaling",
    "SamplerHead",
    "SamplingConfig",
    "Schedule",
    "SpeculativeSampling",
    "TableModel",
    "Transformer",
    "TransformersModel",
    "Weights",
    "decoder_of",
    "generate",
    "generate_batch",
    "generate_with_pass",
    "load_model",
    "pass_generate",
    "probs_from_logits",
    "read_config",
    "read_generation_config",
    "read_weights",
    "untrained_lookahead",
    "write_custom_generate",
]


def __getattr__(name: str) -> Any:
    """Import a public name from the module that defines it."""
    for module, names in _HOMES.items():
        if name in names:
            try:
                return getattr(import_module(module), name)
            except ModuleNotFoundError as error:
                if error.name not in ("torch", "transformers"):
                    raise
                raise ModuleNotFoundError(
                    f"pass_sampling.gpu: found no {error.name}, expected it installed: pip install {error.name}, or "
                    "'.[gpu]' here",
                    name=error.name,
                ) from error
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    """List the public names."""
    return __all__
