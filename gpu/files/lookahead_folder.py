"""The folder that keeps look-ahead vectors: config.json and model.safetensors, checked before use."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import torch

from ..config import SamplingConfig, check_integer
from .folder import read_header, read_json

__all__ = ["CONFIG", "FIXED", "TENSOR", "VECTORS", "may_replace", "read_details", "read_vectors"]

CONFIG, VECTORS, TENSOR = "config.json", "model.safetensors", "lookahead_embeddings"
# What this version can read; a folder that says anything else was made for a version with more features.
FIXED = {"format_version": 1, "embedding_space": "inputs_embeds", "adapter_rank": 0, "refine": None}
KEYS = (*FIXED, "num_lookahead", "hidden_size", "sampling", "base_model", "training")


def read_vectors(
    path: Path,
    shape: tuple[int, int],
) -> torch.Tensor:  # [L, D]
    """Return the vectors, which must be all that the file holds.

    Raises:
        ValueError: the file is damaged, or holds other tensors, shapes or dtypes.
    """
    from safetensors import safe_open

    header = {name: (tensor.dtype, tensor.shape) for name, tensor in read_header(path).items()}
    if header != {TENSOR: ("F32", shape)}:
        found = ", ".join(f"{name!r:.80} {dtype} {list(size)}" for name, (dtype, size) in header.items())
        raise ValueError(f"{path} holds {found or 'no tensor'}, expected {TENSOR!r} F32 {list(shape)} as in {CONFIG}")
    with safe_open(path, framework="pt") as file:
        vectors: torch.Tensor = file.get_tensor(TENSOR)
    return vectors


def read_details(settings: dict[str, Any]) -> dict[str, Any]:
    """Return the fields of LookAhead that config.json holds, all checked.

    Raises:
        ValueError: a key is missing, unknown, or has a value that this version cannot read.
    """
    for name, value in FIXED.items():
        if name not in settings:
            raise ValueError(f"{name} is missing, expected a look-ahead folder")
        if settings[name] != value or type(settings[name]) is not type(value):
            raise ValueError(f"{name}: found {settings[name]!r:.80}, expected {value!r}")
    for name in (*KEYS, *settings):
        if name not in settings or name not in KEYS:
            raise ValueError(f"the key {name!r:.80} is missing or unknown, expected exactly {', '.join(KEYS)}")
    check_integer("num_lookahead", settings["num_lookahead"], 0, 2**16)
    check_integer("hidden_size", settings["hidden_size"], 1, 2**20)
    base, sampling, training = (settings[name] for name in ("base_model", "sampling", "training"))
    if not isinstance(base, dict) or set(base) != {"name", "shapes", "fingerprint"}:
        raise ValueError(f"base_model: found {base!r:.80}, expected an object with name, shapes and fingerprint")
    fingerprint = base["fingerprint"]
    if fingerprint is not None and not (isinstance(fingerprint, str) and re.fullmatch("[0-9a-f]{64}", fingerprint)):
        raise ValueError(f"fingerprint: found {fingerprint!r:.80}, expected 64 hexadecimal digits or null")
    if not isinstance(base["name"], str):
        raise ValueError(f"base_model name: found {base['name']!r:.80}, expected text")
    if not isinstance(base["shapes"], dict) or not all(type(size) is int for size in base["shapes"].values()):
        raise ValueError(f"base_model shapes: found {base['shapes']!r:.80}, expected an object of integers")
    if sampling is not None and (not isinstance(sampling, dict) or set(sampling) != {"temperature", "top_k", "top_p"}):
        raise ValueError(
            f"sampling: found {sampling!r:.80}, expected an object with temperature, top_k and top_p, or null"
        )
    if not isinstance(training, dict):
        raise ValueError(f"training: found {training!r:.80}, expected an object")
    return {
        "base_model": base["name"],
        "base_shapes": base["shapes"],
        "fingerprint": fingerprint,
        "sampling": None if sampling is None else SamplingConfig(**sampling),
        "training": training,
    }


def may_replace(path: Path) -> bool:
    """Say whether a path holds a look-ahead folder, or an empty one, and nothing else."""
    if not path.is_dir():
        return False
    names = {entry.name for entry in path.iterdir()}
    try:
        return not names or (names <= {CONFIG, VECTORS} and set(FIXED) <= set(read_json(path / CONFIG)))
    except (OSError, ValueError):
        return False
