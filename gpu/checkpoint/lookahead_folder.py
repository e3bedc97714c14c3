"""The folder that keeps look-ahead vectors: config.json and model.safetensors, checked before use."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from pass_sampling.reference.checkpoint.folder import read_header, read_json
from pass_sampling.reference.config import SamplingConfig, check_integer

from ..lookahead.adapter import SIZES
from ..lookahead.adapter import tensor_shapes as adapter_shapes
from ..lookahead.head import tensor_shapes as head_shapes

__all__ = [
    "ADAPTER",
    "CARD",
    "CONFIG",
    "FIXED",
    "HEAD",
    "TENSOR",
    "VECTORS",
    "may_replace",
    "read_details",
    "read_tensors",
]

CONFIG, VECTORS, TENSOR = "config.json", "model.safetensors", "lookahead_embeddings"
CARD = "README.md"  # which may lie beside them, and is the user's
ADAPTER, HEAD = "adapter.", "head."  # how the names of their tensors begin
# What this version can read; a folder that says anything else was made for a version with more features.
FIXED = {"format_version": 1, "embedding_space": "inputs_embeds"}
MOST_LAYERS = 2**12
KEYS = (*FIXED, "adapter_rank", "refine", "num_lookahead", "hidden_size", "sampling", "base_model", "training")


def read_tensors(path: Path, settings: Mapping[str, Any]) -> dict[str, torch.Tensor]:
    """Return the vectors, and the tensors of the adapter and the head, which must be all that the file holds.

    Raises:
        ValueError: the file is damaged, or holds other tensors, shapes or dtypes.
    """
    from safetensors import safe_open

    check_header(path, read_header(path), settings)
    with safe_open(path, framework="pt") as file:
        return {name: file.get_tensor(name).float() for name in file.keys()}


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
    check_integer("adapter_rank", settings["adapter_rank"], 0, 2**16)
    _check_refine(settings["refine"])
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
    for name in SIZES if settings["adapter_rank"] else ():  # what the shapes of an adapter follow from
        most = MOST_LAYERS if name == "num_hidden_layers" else 2**20
        check_integer(f"base_model shapes {name}", base["shapes"].get(name), 1, most)
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


def _check_refine(refine: Any) -> None:
    """Raise ValueError unless this is nothing, or a head as a look-ahead folder describes it."""
    if refine is None:
        return
    if not isinstance(refine, dict) or set(refine) != {"kind", "width", "alone"} or refine["kind"] != "head":
        raise ValueError(f"refine: found {refine!r:.80}, expected null, or a head with its width and whether alone")
    check_integer("refine width", refine["width"], 1, 2**16)
    if not isinstance(refine["alone"], bool):
        raise ValueError(f"refine alone: found {refine['alone']!r:.80}, expected true or false")


def check_header(path: Path, header: Mapping[str, Any], settings: Mapping[str, Any]) -> None:
    """Raise ValueError unless a file holds exactly the tensors that config.json speaks of."""
    rank, refine, width = settings["adapter_rank"], settings["refine"], settings["hidden_size"]
    expected = {TENSOR: ("F32", (settings["num_lookahead"], width))}
    if rank:
        named = adapter_shapes(settings["base_model"]["shapes"], rank).items()
        expected |= {ADAPTER + name: ("BF16", shape) for name, shape in named}
    if refine:
        expected |= {HEAD + name: ("BF16", shape) for name, shape in head_shapes(width, refine["width"]).items()}
    found = {name: (tensor.dtype, tensor.shape) for name, tensor in header.items()}
    for name in sorted({*expected, *found}, key=lambda name: (name != TENSOR, name)):
        if found.get(name) != expected.get(name):
            raise ValueError(
                f"{path} holds {_said(found.get(name))} as {name!r:.80}, expected {_said(expected.get(name))}"
            )


def _said(tensor: tuple[str, tuple[int, ...]] | None) -> str:
    return "nothing" if tensor is None else f"{tensor[0]} {list(tensor[1])}"


def may_replace(path: Path) -> bool:
    """Say whether a path holds a look-ahead folder, perhaps with a card, or an empty one, and nothing else."""
    if not path.is_dir():
        return False
    names = {entry.name for entry in path.iterdir()}
    try:
        return not names or (names <= {CONFIG, VECTORS, CARD} and set(FIXED) <= set(read_json(path / CONFIG)))
    except (OSError, ValueError):
        return False
