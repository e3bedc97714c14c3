"""A Hugging Face folder in, a model out.

Everything is checked against config.json before anything is allocated. Then the tensors are read a few rows
at a time into their places, so that loading needs little more memory than the weights themselves.

Glossary of shapes: R rows of a chunk.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from ..model.config import ModelConfig
from ..model.weights import Array, Weights, allocate, check_dtype, destination, weight_table
from .folder import StoredTensor, name_of, open_folder, stored_tensors
from .generation_settings import read_generation_config
from .model_settings import read_config

if TYPE_CHECKING:
    from ..model.transformer import Transformer

__all__ = ["load_model", "read_config", "read_generation_config", "read_weights"]

ITEM_BYTES = {"F64": 8, "F32": 4, "BF16": 2, "F16": 2}
CHUNK_BYTES = 2**20
TIED = "lm_head.weight"


def load_model(folder: str | os.PathLike[str], dtype: Any = None) -> Transformer:
    """Read a model from a folder in Hugging Face's format.

    Args:
        folder: config.json, model.safetensors or its shards, and perhaps generation_config.json.
        dtype: float64 or float32, as a NumPy dtype or by name; None means float64.

    Raises:
        FileNotFoundError: the folder or one of its files is missing.
        ValueError: a file is damaged, absurd or unsupported, or does not match the others.
    """
    from ..model.transformer import Transformer

    dtype = check_dtype("float64" if dtype is None else dtype)
    config = read_config(folder)
    settings = read_generation_config(folder)
    weights, fingerprint = read_weights(folder, config, dtype)
    name = name_of(open_folder(folder))
    return Transformer(config, weights, settings.eos_token_ids, fingerprint, name, settings.stop_strings)


def read_weights(folder: str | os.PathLike[str], config: ModelConfig, dtype: Any = None) -> tuple[Weights, str]:
    """Return the weights in a folder, and their fingerprint.

    The fingerprint tells checkpoints apart at no cost: SHA-256 over the names, the shapes and the first 16
    values of every tensor. It does not depend on shards, on `dtype` or on the package that reads.

    Raises:
        FileNotFoundError: the folder or one of its files is missing.
        ValueError: the files do not hold exactly the finite tensors that `config` calls for.
    """
    dtype = check_dtype("float64" if dtype is None else dtype)
    root = open_folder(folder)
    stored = stored_tensors(root)
    _check_tensors(root, stored, config)
    weights = allocate(config, dtype)
    beginnings: dict[str, bytes] = {}
    for entry in weight_table(config):
        filled = destination(weights, entry)
        for first, rows in _chunks(entry.name, stored[entry.name]):
            filled[first : first + len(rows)] = _converted(rows, dtype, entry.name, stored[entry.name])
            if first == 0:
                beginnings[entry.name] = f"{entry.name} {list(entry.shape)}\n".encode() + _beginning(rows)
    if config.tie_word_embeddings and TIED in stored:
        for first, rows in _chunks(TIED, stored[TIED]):
            if not np.array_equal(rows.astype(dtype), weights.output[first : first + len(rows)]):
                raise ValueError(
                    f"{stored[TIED].path}: tensor {TIED} differs from the embedding, "
                    f"expected the same where tie_word_embeddings is true"
                )
    return weights, hashlib.sha256(b"".join(beginnings[name] for name in sorted(beginnings))).hexdigest()


def _check_tensors(root: os.PathLike[str], stored: dict[str, StoredTensor], config: ModelConfig) -> None:
    """Refuse names, shapes and dtypes other than those that the model calls for."""
    expected = {entry.name: entry.shape for entry in weight_table(config)}
    missing = [name for name in expected if name not in stored]
    if missing:
        raise ValueError(f"{root} lacks the tensor {missing[0]}, expected all {len(expected)} tensors of config.json")
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
                f"expected {list(expected[name])} as config.json says"
            )
        if tensor.dtype not in ITEM_BYTES:
            raise ValueError(
                f"{tensor.path}: tensor {name} is stored as {tensor.dtype}, expected F64, F32, BF16 or F16"
            )


def _chunks(name: str, tensor: StoredTensor) -> Iterator[tuple[int, Array]]:  # [R, ...]
    """Yield a tensor some rows at a time, each with the number of its first row.

    The file is opened anew for every chunk: it is mapped into memory, and pages once read would stay.
    """
    import ml_dtypes  # noqa: F401  (teaches NumPy the name bfloat16)
    from safetensors import safe_open

    num_rows, row_bytes = tensor.shape[0], ITEM_BYTES[tensor.dtype]
    for size in tensor.shape[1:]:
        row_bytes *= size
    step = max(1, CHUNK_BYTES // row_bytes)
    for first in range(0, num_rows, step):
        with safe_open(tensor.path, framework="numpy") as file:
            rows = file.get_slice(name)[first : min(first + step, num_rows)]
        yield first, rows


def _beginning(
    rows: Array,  # [R, ...]
) -> bytes:
    """Return the first 16 values in float32, the part of a tensor that its fingerprint is made of."""
    with np.errstate(over="ignore"):
        return rows.reshape(-1)[:16].astype("<f4").tobytes()


def _converted(
    rows: Array,  # [R, ...]
    dtype: npt.DTypeLike,
    name: str,
    tensor: StoredTensor,
) -> Array:  # [R, ...]
    """Return the rows in another dtype, all of them finite."""
    with np.errstate(over="ignore"):
        converted = rows.astype(dtype, copy=False)
    if not np.isfinite(converted).all():
        if np.isfinite(rows).all():
            raise ValueError(f"{tensor.path}: tensor {name} holds values too large for {dtype}, expected a wider dtype")
        raise ValueError(f"{tensor.path}: tensor {name} holds NaN or infinity, expected finite weights")
    return converted
