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
    from .generation import generate, generate_batch
    from .lookahead import LookAhead
    from .methods import Autoregressive, Candidates, FusedPaSS, LanguageModel, Method, PaSS, SpeculativeSampling
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
    "generation": ["generate", "generate_batch"],
    "lookahead": ["LookAhead"],
    "methods": ["Autoregressive", "Candidates", "FusedPaSS", "LanguageModel", "Method", "PaSS", "SpeculativeSampling"],
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
    "EntropyBound",
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


def __getattr__(name: str) -> Any:
    """Import a public name from the module that defines it."""
    for module, names in _HOMES.items():
        if name in names:
            try:
                return getattr(import_module(f"{__name__}.{module}"), name)
            except ModuleNotFoundError as error:
                if error.name != "torch":
                    raise
                raise ModuleNotFoundError(
                    "pass_sampling.gpu: found no torch, expected it installed: pip install torch, or '.[gpu]' here",
                    name="torch",
                ) from error
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    """List the public names."""
    return __all__
