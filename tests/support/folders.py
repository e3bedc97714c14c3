"""Write checkpoint folders for tests, with neither torch nor transformers."""

import dataclasses
import importlib
import json
from pathlib import Path
from types import ModuleType
from typing import Any

import ml_dtypes  # noqa: F401  (teaches NumPy the name bfloat16)
import numpy as np
import pytest
from safetensors.numpy import save_file

from pass_sampling.reference.model.config import ModelConfig, RopeScaling
from pass_sampling.reference.model.weights import Weights, destination, weight_table

FAMILIES = ("llama", "mistral", "qwen2", "qwen3")

# Runs a test on both packages; without torch the second run is skipped, and the report says why.
both_packages = pytest.mark.parametrize(
    "package", ["reference", pytest.param("gpu", marks=pytest.mark.torch)], ids=["reference", "gpu"]
)


def module(package: str, name: str) -> ModuleType:
    """Return a module of one of the packages; what the port does not have of its own, it takes from the reference."""
    try:
        return importlib.import_module(f"pass_sampling.{package}.{name}")
    except ModuleNotFoundError as error:
        if not f"pass_sampling.{package}.{name}.".startswith(f"{error.name}."):
            raise
        return importlib.import_module(f"pass_sampling.reference.{name}")


def as_numpy(array: Any) -> np.ndarray:
    """Return a NumPy array or a torch tensor as a NumPy array; bfloat16 becomes float32."""
    if isinstance(array, np.ndarray):
        return array
    array = array.detach().cpu()
    return (array.float() if str(array.dtype) == "torch.bfloat16" else array).numpy()


def tiny_config(model_type: str = "llama", **changes: Any) -> ModelConfig:
    """Return a small model of a family; its sizes are all different, so that a mix-up shows."""
    settings: dict[str, Any] = {
        "vocab_size": 23,
        "hidden_size": 24,
        "intermediate_size": 20,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 6 if model_type in ("llama", "qwen2") else 8,
        "max_position_embeddings": 64,
        "attention_bias": model_type == "qwen2",
        "query_key_norm": model_type == "qwen3",
        "sliding_window": 6 if model_type == "mistral" else None,
    }
    return ModelConfig(**settings | changes)


def config_json(config: ModelConfig, model_type: str = "llama") -> dict[str, Any]:
    """Return what config.json says of a model, in the manner of transformers 5."""
    fields = dataclasses.asdict(config)
    for name in ("rope_scaling", "attention_output_bias", "query_key_norm", "sliding_layers"):
        fields.pop(name)
    rope = {"rope_type": "default"} if config.rope_scaling is None else dataclasses.asdict(config.rope_scaling)
    if rope["rope_type"] == "linear":
        rope = {"rope_type": "linear", "factor": rope["factor"]}
    fields["rope_parameters"] = {**rope, "rope_theta": fields.pop("rope_theta")}
    if model_type not in ("llama", "qwen3"):
        fields.pop("attention_bias")
    if model_type == "llama":
        fields.pop("sliding_window")
    if model_type.startswith("qwen"):
        windows = [config.window(layer) for layer in range(config.num_hidden_layers)]
        fields["use_sliding_window"] = config.sliding_window is not None
        fields["layer_types"] = ["full_attention" if size is None else "sliding_attention" for size in windows]
    return {"model_type": model_type, "hidden_act": "silu", **fields}


def write_checkpoint(
    folder: Path,
    config: ModelConfig | None = None,
    weights: Weights | None = None,
    model_type: str = "llama",
    shards: int = 1,
    dtype: str = "float32",
    seed: int = 0,
    generation_config: dict[str, Any] | None = None,
    **settings: Any,
) -> Path:
    """Write a checkpoint in Hugging Face's format; random weights unless some of the reference are given.

    `dtype` is stored, also bfloat16; more than one of `shards` come with an index; `settings` are further keys of
    config.json, such as `eos_token_id`.
    """
    config = tiny_config(model_type) if config is None else config
    weights = Weights.random(config, seed) if weights is None else weights
    arrays = {entry.name: destination(weights, entry) for entry in weight_table(config)}
    tensors = {name: np.ascontiguousarray(array).astype(dtype) for name, array in arrays.items()}
    folder.mkdir(parents=True, exist_ok=True)
    write_json(folder / "config.json", config_json(config, model_type) | settings)
    if generation_config is not None:
        write_json(folder / "generation_config.json", generation_config)
    write_tensors(folder, tensors, shards)
    return folder


def write_tensors(folder: Path, tensors: dict[str, np.ndarray], shards: int = 1) -> None:
    """Write tensors to model.safetensors, or to several files and an index."""
    if shards == 1:
        save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
        return
    weight_map = {}
    for shard in range(shards):
        file = f"model-{shard + 1:05}-of-{shards:05}.safetensors"
        part = dict(list(tensors.items())[shard::shards])
        weight_map |= dict.fromkeys(part, file)
        save_file(part, folder / file, metadata={"format": "pt"})
    size = sum(tensor.nbytes for tensor in tensors.values())
    index = {"metadata": {"total_size": size}, "weight_map": weight_map}
    write_json(folder / "model.safetensors.index.json", index)


def write_json(path: Path, content: Any) -> None:
    """Write a JSON file."""
    path.write_text(json.dumps(content, indent=2), encoding="utf-8")


def edit_json(path: Path, **changes: Any) -> None:
    """Change keys of a JSON file; `None` is written as null, `...` removes the key."""
    content = json.loads(path.read_text(encoding="utf-8")) | changes
    write_json(path, {name: value for name, value in content.items() if value is not ...})


def contents(folder: Path) -> dict[str, tuple[str, bytes, int]]:
    """Return everything in a folder, links as links, with times of change: to see that nothing was touched."""
    found = {}
    for path in sorted(folder.rglob("*")):
        kind = "link" if path.is_symlink() else "folder" if path.is_dir() else "file"
        content = str(path.readlink()).encode() if kind == "link" else path.read_bytes() if kind == "file" else b""
        found[str(path.relative_to(folder))] = (kind, content, path.lstat().st_mtime_ns)
    return found


LLAMA3 = RopeScaling("llama3", 8.0, 1.0, 4.0, 32)
LINEAR = RopeScaling("linear", 2.0)
