"""The port: `pass_sampling.reference` in PyTorch, for batches, on a CPU or a GPU.

Names, leading parameters, fields and errors are those of the reference, where each is explained at more length. What
differs: arrays are tensors with a batch axis B in front, and `generate_batch` runs its prompts side by side. Names are
imported when first used, so importing this package costs nothing.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .adapter import Adapter
    from .checkpoint import load_model, read_config, read_generation_config, read_weights
    from .config import ModelConfig, RopeScaling, SamplingConfig
    from .drafters import Drafter, ModelDrafter, NgramModel, PromptLookup
    from .ending import Ending
    from .engine import Engine, Request
    from .generation import generate, generate_batch
    from .hf.model import TransformersModel
    from .hf.sharing import write_custom_generate
    from .huggingface import generate_with_pass, pass_generate, untrained_lookahead
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

_HOMES = {
    "adapter": ["Adapter"],
    "checkpoint": ["load_model", "read_config", "read_generation_config", "read_weights"],
    "config": ["ModelConfig", "RopeScaling", "SamplingConfig"],
    "drafters": ["Drafter", "ModelDrafter", "NgramModel", "PromptLookup"],
    "ending": ["Ending"],
    "engine": ["Engine", "Request"],
    "generation": ["generate", "generate_batch"],
    "hf.model": ["TransformersModel"],
    "hf.sharing": ["write_custom_generate"],
    "huggingface": ["generate_with_pass", "pass_generate", "untrained_lookahead"],
    "lookahead": ["LookAhead"],
    "methods": [
        "Autoregressive",
        "Candidates",
        "FusedCandidates",
        "FusedPaSS",
        "LanguageModel",
        "Method",
        "PaSS",
        "SpeculativeSampling",
    ],
    "record": ["Choice", "Generation", "Record"],
    "sampler_head": ["SamplerHead"],
    "sampling": ["probs_from_logits"],
    "schedule": ["EntropyBound", "Heuristic", "Schedule"],
    "table": ["TableModel"],
    "transformer": ["Transformer"],
    "weights": ["Weights"],
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
                return getattr(import_module(f"{__name__}.{module}"), name)
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
