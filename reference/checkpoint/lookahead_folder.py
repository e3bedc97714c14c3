"""The folder that keeps look-ahead vectors: config.json and model.safetensors, checked before use."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from ..config import SamplingConfig
from ..lookahead.adapter import SIZES
from ..lookahead.adapter import tensor_shapes as adapter_shapes
from ..lookahead.head import block_shapes
from ..lookahead.head import tensor_shapes as head_shapes
from . import folder

FOLDER, TENSOR = "a look-ahead folder", "lookahead_embeddings"
DRAFT_VOCAB = "draft_vocab"  # a tensor that need not be there
ADAPTER, HEAD = "adapter.", "head."  # the beginnings of the names of their tensors
# The format that this version reads; other values were written by a version with more features.
FIXED = {"format_version": 1, "embedding_space": "inputs_embeds"}


def _has_keys(value: Any, *keys: str) -> bool:
    return isinstance(value, dict) and set(value) == set(keys)


def _is_head(refine: Any) -> bool:
    return refine["kind"] == "head" or (refine["kind"] == "block" and refine["alone"] is True)


FIELDS = {
    "adapter_rank": folder.integer(0, 2**16),
    "refine": folder.Field(
        lambda value: value is None or (_has_keys(value, "kind", "width", "alone") and _is_head(value)),
        "null, or a head with its width and whether alone",
    ),
    "num_lookahead": folder.integer(0, 2**16),
    "hidden_size": folder.integer(1, 2**20),
    "sampling": folder.Field(
        lambda value: value is None or _has_keys(value, "temperature", "top_k", "top_p"),
        "an object with temperature, top_k and top_p, or null",
    ),
    "base_model": folder.Field(
        lambda value: _has_keys(value, "name", "shapes", "fingerprint"), "an object with name, shapes and fingerprint"
    ),
    "training": folder.OBJECT,
}
HEAD_FIELDS = {"width": folder.integer(1, 2**16), "alone": folder.FLAG}
BASE_FIELDS = {
    "name": folder.TEXT,
    "shapes": folder.Field(
        lambda value: isinstance(value, dict) and all(type(size) is int for size in value.values()),
        "an object of integers",
    ),
}
# The sizes that the shapes of an adapter follow from.
SIZE_FIELDS = {name: folder.integer(1, 2**12 if name == "num_hidden_layers" else 2**20) for name in SIZES}


def read_tensors(path: Path, settings: Mapping[str, Any]) -> dict[str, npt.NDArray[Any]]:
    """Return the vectors, the tensors of the adapter and the head, and the draft vocabulary: all that a file may hold.

    Other tensors, shapes and dtypes raise ValueError before anything is read.
    """
    import ml_dtypes  # noqa: F401  (NumPy knows bfloat16 once it is imported)
    from safetensors import safe_open

    header = {name: (tensor.dtype, tensor.shape) for name, tensor in folder.read_header(path).items()}
    folder.check_layout(path, header, _layout(header, settings))
    with safe_open(path, framework="numpy") as file:
        found = {name: file.get_tensor(name) for name in file.keys()}
    return {name: array.astype(np.int64 if name == DRAFT_VOCAB else np.float32) for name, array in found.items()}


def read_details(settings: dict[str, Any]) -> dict[str, Any]:
    """Return the fields of LookAhead that config.json holds; raise ValueError unless all of it is valid."""
    folder.check_format(settings, FIXED, FIELDS, FOLDER)
    base, sampling = settings["base_model"], settings["sampling"]
    folder.check_fields(settings["refine"] or {}, HEAD_FIELDS if settings["refine"] else {}, "refine ")
    folder.check_fields(base, {"fingerprint": folder.DIGEST})
    folder.check_fields(base, BASE_FIELDS, "base_model ")
    folder.check_fields(base["shapes"], SIZE_FIELDS if settings["adapter_rank"] else {}, "base_model shapes ")
    return {
        "base_model": base["name"],
        "base_shapes": base["shapes"],
        "fingerprint": base["fingerprint"],
        "sampling": None if sampling is None else SamplingConfig(**sampling),
        "training": settings["training"],
    }


def _layout(found: Mapping[str, folder.Layout], settings: Mapping[str, Any]) -> dict[str, folder.Layout]:
    """Return the tensors that config.json describes; a draft vocabulary has as many tokens as are found."""
    rank, refine, width = settings["adapter_rank"], settings["refine"], settings["hidden_size"]
    expected: dict[str, folder.Layout] = {TENSOR: ("F32", (settings["num_lookahead"], width))}
    if rank:
        named = adapter_shapes(settings["base_model"]["shapes"], rank).items()
        expected |= {ADAPTER + name: ("BF16", shape) for name, shape in named}
    if refine:
        shapes = head_shapes(width, refine["width"])
        if refine["kind"] == "block":
            shapes = block_shapes(width, refine["width"], settings["num_lookahead"])
        expected |= {HEAD + name: ("BF16", shape) for name, shape in shapes.items()}
    if DRAFT_VOCAB in found:
        expected[DRAFT_VOCAB] = ("I32", (*found[DRAFT_VOCAB][1][:1],) or (1,))
    return expected


def bfloat16() -> np.dtype[Any]:
    """Return the dtype that adapters and heads are stored in, which NumPy does not have of its own."""
    import ml_dtypes

    dtype: np.dtype[Any] = np.dtype(ml_dtypes.bfloat16)
    return dtype
