"""The tensors of a checkpoint: compared with the shapes that config.json calls for, then read a few rows at a time.

Glossary of shapes: R rows of a chunk.
"""

from __future__ import annotations

import hashlib
import math
import os
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from ..model.config import ModelConfig
from .folder import StoredTensor

DTYPES = {"F64": "float64", "F32": "float32", "BF16": "bfloat16", "F16": "float16"}
ITEM_BYTES = {"F64": 8, "F32": 4, "BF16": 2, "F16": 2}
CHUNK_BYTES = 2**20
TIED = "lm_head.weight"


def check_tensors(
    root: os.PathLike[str],
    stored: Mapping[str, StoredTensor],
    shapes: Mapping[str, tuple[int, ...]],
    config: ModelConfig,
) -> None:
    """Raise ValueError for stored names, shapes and dtypes other than those of the model, by name in `shapes`.

    A checkpoint may hold a tied output projection as well.
    """
    missing = [name for name in shapes if name not in stored]
    if missing:
        raise ValueError(f"{root} lacks the tensor {missing[0]}, expected all {len(shapes)} tensors of config.json")
    expected = dict(shapes)
    if config.tie_word_embeddings:
        expected[TIED] = (config.vocab_size, config.hidden_size)
    for name, tensor in sorted(stored.items()):
        if name.endswith("rotary_emb.inv_freq"):  # written by old versions, computed from config.json
            continue
        if name not in expected:
            raise ValueError(f"{tensor.path} holds the tensor {name!r:.80}, expected only those of config.json")
        if tensor.shape != expected[name]:
            raise ValueError(
                f"{tensor.path}: tensor {name} has shape {list(tensor.shape)}, "
                f"expected {list(expected[name])} as in config.json"
            )
        if tensor.dtype not in ITEM_BYTES:
            raise ValueError(
                f"{tensor.path}: tensor {name} is stored as {tensor.dtype}, expected F64, F32, BF16 or F16"
            )


def chunks(name: str, tensor: StoredTensor, framework: str) -> Iterator[tuple[int, Any]]:  # [R, ...]
    """Yield a tensor some rows at a time, in "numpy" or "pt", each chunk with the number of its first row.

    The file is opened again for every chunk: it is mapped into memory, and pages once read would stay.
    """
    import ml_dtypes  # noqa: F401  (NumPy knows bfloat16 once it is imported)
    from safetensors import safe_open

    num_rows, row_bytes = tensor.shape[0], ITEM_BYTES[tensor.dtype] * math.prod(tensor.shape[1:])
    step = max(1, CHUNK_BYTES // row_bytes)
    for first in range(0, num_rows, step):
        with safe_open(tensor.path, framework=framework) as file:
            rows = file.get_slice(name)[first : min(first + step, num_rows)]
        yield first, rows


def fingerprint_of(stored: Mapping[str, StoredTensor], shapes: Mapping[str, tuple[int, ...]]) -> str:
    """Return SHA-256 over the names, the shapes and the first 16 values of every tensor, in float32.

    It tells checkpoints apart at no cost, and does not depend on shards or on the package that reads.
    """
    digest = hashlib.sha256()
    for name, shape in sorted(shapes.items()):
        _, rows = next(chunks(name, stored[name], "numpy"))
        with np.errstate(over="ignore"):
            digest.update(f"{name} {list(shape)}\n".encode() + rows.reshape(-1)[:16].astype("<f4").tobytes())
    return digest.hexdigest()


def not_finite(name: str, tensor: StoredTensor, dtype: str, was_finite: bool) -> ValueError:
    """Return the error for a tensor that is not finite in the dtype of the model."""
    if was_finite:
        return ValueError(f"{tensor.path}: tensor {name} holds values too large for {dtype}, expected a wider dtype")
    return ValueError(f"{tensor.path}: tensor {name} holds NaN or infinity, expected finite weights")


def not_tied(tensor: StoredTensor) -> ValueError:
    """Return the error for a stored output projection that differs from the embedding."""
    return ValueError(
        f"{tensor.path}: tensor {TIED} differs from the embedding, expected the same where tie_word_embeddings is true"
    )
