"""Load a model from a folder in Hugging Face's format.

Everything is checked against config.json before anything is allocated. Then the tensors are read a few rows at a time
into their places, so loading needs little more memory than the weights themselves.

Glossary of shapes: R rows of a chunk.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from ..model.config import ModelConfig
from ..model.weights import Array, Weights, allocate, check_dtype, destination, weight_table
from .folder import StoredTensor, name_of, open_folder, stored_tensors
from .generation_settings import read_generation_config
from .model_settings import read_config
from .tensors import TIED, check_tensors, chunks, fingerprint_of, not_finite, not_tied

if TYPE_CHECKING:
    from ..model.transformer import Transformer

__all__ = ["load_model", "read_config", "read_generation_config", "read_weights"]


def load_model(folder: str | os.PathLike[str], dtype: Any = None) -> Transformer:
    """Read a model from a folder in Hugging Face's format.

    Args:
        folder: config.json, model.safetensors or its shards, and perhaps generation_config.json.
        dtype: float64 or float32, as a NumPy dtype or by name; None means float64.

    Raise FileNotFoundError for a missing file, ValueError for one that is damaged, absurd or unsupported.
    """
    from ..model.transformer import Transformer

    dtype = check_dtype("float64" if dtype is None else dtype)
    config = read_config(folder)
    settings = read_generation_config(folder)
    weights, fingerprint = read_weights(folder, config, dtype)
    name = name_of(open_folder(folder))
    return Transformer(config, weights, settings.eos_token_ids, fingerprint, name, settings.stop_strings)


def read_weights(folder: str | os.PathLike[str], config: ModelConfig, dtype: Any = None) -> tuple[Weights, str]:
    """Return the weights in a folder, and their fingerprint, see `tensors.fingerprint_of`.

    Raise ValueError unless the files hold exactly the finite tensors that `config` calls for.
    """
    dtype = check_dtype("float64" if dtype is None else dtype)
    root = open_folder(folder)
    stored = stored_tensors(root)
    shapes = {entry.name: entry.shape for entry in weight_table(config)}
    check_tensors(root, stored, shapes, config)
    weights = allocate(config, dtype)
    for entry in weight_table(config):
        filled = destination(weights, entry)
        for first, rows in chunks(entry.name, stored[entry.name], "numpy"):
            filled[first : first + len(rows)] = _converted(rows, dtype, entry.name, stored[entry.name])
    if config.tie_word_embeddings and TIED in stored:
        for first, rows in chunks(TIED, stored[TIED], "numpy"):
            if not np.array_equal(rows.astype(dtype), weights.output[first : first + len(rows)]):
                raise not_tied(stored[TIED])
    return weights, fingerprint_of(stored, shapes)


def _converted(rows: Array, dtype: npt.DTypeLike, name: str, tensor: StoredTensor) -> Array:  # [R, ...]
    """Return the rows in another dtype, all of them finite."""
    with np.errstate(over="ignore"):
        converted = rows.astype(dtype, copy=False)
    if not np.isfinite(converted).all():
        raise not_finite(name, tensor, str(dtype), bool(np.isfinite(rows).all()))
    return converted
