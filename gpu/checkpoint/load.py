"""Load a model from a folder in Hugging Face's format, as `reference.checkpoint.load`.

Glossary of shapes: R rows of a chunk.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

import torch

from pass_sampling.reference.checkpoint import tensors as disk
from pass_sampling.reference.checkpoint.folder import StoredTensor, name_of, open_folder, stored_tensors
from pass_sampling.reference.checkpoint.generation_settings import read_generation_config
from pass_sampling.reference.checkpoint.model_settings import read_config
from pass_sampling.reference.model.config import ModelConfig

from ..model.memory import check_memory, weight_bytes
from ..model.precision import asked_dtype, automatic_dtype, check_device, check_dtype
from ..model.weights import Weights, allocate, destination, weight_table
from .hub import local_folder

if TYPE_CHECKING:
    from ..model.transformer import Transformer

__all__ = ["load_model", "read_config", "read_generation_config", "read_weights"]

EMBEDDING = "model.embed_tokens.weight"


def load_model(folder: str | os.PathLike[str], dtype: Any = None, device: torch.device | str = "cpu") -> Transformer:
    """Read a model from a folder in Hugging Face's format, or from the Hub.

    Args:
        folder: config.json, model.safetensors or its shards, and perhaps generation_config.json; or as a string
            `org/name` or `org/name@revision`, which is fetched if there is no folder of that name.
        dtype: as a torch dtype or by name; default: the dtype in which the embedding is stored, but float32 on a CPU
            that is slow in 16 bits, see `automatic_dtype`.
        device: cpu, or cuda with or without a number.

    Raise FileNotFoundError if a file is missing or cannot be fetched, ValueError if one is damaged, absurd or
    unsupported, or does not match the others, or if the device is not there.
    """
    from ..model.transformer import Transformer

    device, dtype = check_device(device), asked_dtype(dtype)
    folder = local_folder(folder)
    config = read_config(folder)
    settings = read_generation_config(folder)
    tensors, fingerprint = read_weights(folder, config, dtype, device)
    name = name_of(open_folder(folder))
    return Transformer(config, tensors, settings.eos_token_ids, fingerprint, name, settings.stop_strings)


def read_weights(
    folder: str | os.PathLike[str], config: ModelConfig, dtype: Any = None, device: torch.device | str = "cpu"
) -> tuple[Weights, str]:
    """Return the weights in a folder, and their fingerprint, which is the reference's.

    Raise ValueError as the reference does, and if the weights do not fit into the memory that is free.
    """
    device, dtype = check_device(device), asked_dtype(dtype)
    root = open_folder(folder)
    stored = stored_tensors(root)
    shapes = {entry.name: entry.shape for entry in weight_table(config)}
    disk.check_tensors(root, stored, shapes, config)
    if dtype is None:
        dtype = automatic_dtype(check_dtype(disk.DTYPES[stored[EMBEDDING].dtype]), device)
    check_memory(device, weights=weight_bytes(config, dtype))
    weights = allocate(config, dtype, device)
    for entry in weight_table(config):
        filled = destination(weights, entry)
        for first, rows in disk.chunks(entry.name, stored[entry.name], "pt"):
            chunk = slice(first, first + len(rows))
            place = filled[chunk] if filled.ndim == rows.ndim else filled[:, chunk]  # a norm, for every head
            place.copy_(_converted(rows, dtype, entry.name, stored[entry.name]))
    if config.tie_word_embeddings and disk.TIED in stored:
        for first, rows in disk.chunks(disk.TIED, stored[disk.TIED], "pt"):
            if not torch.equal(rows.to(dtype), weights.output[first : first + len(rows)].cpu()):
                raise disk.not_tied(stored[disk.TIED])
    return weights, disk.fingerprint_of(stored, shapes)


def _converted(rows: torch.Tensor, dtype: torch.dtype, name: str, tensor: StoredTensor) -> torch.Tensor:  # [R, ...]
    """Return the rows in another dtype, all of them finite."""
    converted = rows.to(dtype)
    if not converted.isfinite().all():
        raise disk.not_finite(name, tensor, str(dtype).removeprefix("torch."), bool(rows.isfinite().all()))
    return converted
