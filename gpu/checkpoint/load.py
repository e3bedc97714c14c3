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

import torch

from pass_sampling.reference.checkpoint.folder import StoredTensor, name_of, open_folder, stored_tensors
from pass_sampling.reference.checkpoint.generation_settings import read_generation_config
from pass_sampling.reference.checkpoint.model_settings import read_config
from pass_sampling.reference.model.config import ModelConfig

from ..model.memory import Memory, check_memory, weight_bytes
from ..model.precision import check_device, check_dtype
from ..model.weights import Weights, allocate, destination, weight_table
from .hub import local_folder

if TYPE_CHECKING:
    from ..model.transformer import Transformer

__all__ = ["load_model", "read_config", "read_generation_config", "read_weights"]

ITEM_BYTES = {"F64": 8, "F32": 4, "BF16": 2, "F16": 2}
DTYPES = {"F64": "float64", "F32": "float32", "BF16": "bfloat16", "F16": "float16"}
CHUNK_BYTES = 2**20
EMBEDDING, TIED = "model.embed_tokens.weight", "lm_head.weight"


def load_model(
    folder: str | os.PathLike[str],
    dtype: Any = None,
    device: torch.device | str = "cpu",
    revision: str | None = None,
) -> Transformer:
    """Read a model from a folder in Hugging Face's format, or from the Hub.

    Args:
        folder: config.json, model.safetensors or its shards, and perhaps generation_config.json; or as a string
            `org/name`, which is fetched if there is no folder of that name.
        dtype: float64, float32, bfloat16 or float16, as a torch dtype or by name; None means the dtype in
            which the embedding is stored.
        device: cpu, or cuda with or without a number.
        revision: branch, tag or commit of a name on the Hub; default: main.

    Raises:
        FileNotFoundError: the folder or one of its files is missing, or cannot be fetched.
        ValueError: a file is damaged, absurd or unsupported, or does not match the others; or the device is
            not there.
    """
    from ..model.transformer import Transformer

    device, dtype = check_device(device), None if dtype is None else check_dtype(dtype)
    folder = local_folder(folder, revision)
    config = read_config(folder)
    settings = read_generation_config(folder)
    weights, fingerprint = read_weights(folder, config, dtype, device)
    name = name_of(open_folder(folder))
    return Transformer(config, weights, settings.eos_token_ids, fingerprint, name, settings.stop_strings)


def read_weights(
    folder: str | os.PathLike[str],
    config: ModelConfig,
    dtype: Any = None,
    device: torch.device | str = "cpu",
) -> tuple[Weights, str]:
    """Return the weights in a folder, and their fingerprint.

    The fingerprint tells checkpoints apart at no cost: SHA-256 over the names, the shapes and the first 16
    values of every tensor. It does not depend on shards, on `dtype` or on the package that reads.

    Raises:
        FileNotFoundError: the folder or one of its files is missing.
        ValueError: the files do not hold exactly the finite tensors that `config` calls for, or these do not fit into
            the memory that is free.
    """
    device, dtype = check_device(device), None if dtype is None else check_dtype(dtype)
    root = open_folder(folder)
    stored = stored_tensors(root)
    _check_tensors(root, stored, config)
    dtype = check_dtype(DTYPES[stored[EMBEDDING].dtype]) if dtype is None else dtype
    check_memory(Memory(weights=weight_bytes(config, dtype)), device)
    weights = allocate(config, dtype, device)
    beginnings: dict[str, bytes] = {}
    for entry in weight_table(config):
        filled = destination(weights, entry)
        for first, rows in _chunks(entry.name, stored[entry.name]):
            chunk = slice(first, first + len(rows))
            place = filled[chunk] if filled.ndim == rows.ndim else filled[:, chunk]  # a norm, for every head
            place.copy_(_converted(rows, dtype, entry.name, stored[entry.name]))
            if first == 0:
                beginnings[entry.name] = f"{entry.name} {list(entry.shape)}\n".encode() + _beginning(rows)
    if config.tie_word_embeddings and TIED in stored:
        for first, rows in _chunks(TIED, stored[TIED]):
            if not torch.equal(rows.to(dtype), weights.output[first : first + len(rows)].cpu()):
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


def _chunks(name: str, tensor: StoredTensor) -> Iterator[tuple[int, torch.Tensor]]:  # [R, ...]
    """Yield a tensor some rows at a time, each with the number of its first row.

    The file is opened anew for every chunk: it is mapped into memory, and pages once read would stay.
    """
    from safetensors import safe_open

    num_rows, row_bytes = tensor.shape[0], ITEM_BYTES[tensor.dtype]
    for size in tensor.shape[1:]:
        row_bytes *= size
    step = max(1, CHUNK_BYTES // row_bytes)
    for first in range(0, num_rows, step):
        with safe_open(tensor.path, framework="pt") as file:
            rows = file.get_slice(name)[first : min(first + step, num_rows)]
        yield first, rows


def _beginning(
    rows: torch.Tensor,  # [R, ...]
) -> bytes:
    """Return the first 16 values in float32, the part of a tensor that its fingerprint is made of."""
    return rows.reshape(-1)[:16].float().numpy().astype("<f4").tobytes()


def _converted(
    rows: torch.Tensor,  # [R, ...]
    dtype: torch.dtype,
    name: str,
    tensor: StoredTensor,
) -> torch.Tensor:  # [R, ...]
    """Return the rows in another dtype, all of them finite."""
    converted = rows.to(dtype)
    if not converted.isfinite().all():
        if rows.isfinite().all():
            kind = str(dtype).removeprefix("torch.")
            raise ValueError(f"{tensor.path}: tensor {name} holds values too large for {kind}, expected a wider dtype")
        raise ValueError(f"{tensor.path}: tensor {name} holds NaN or infinity, expected finite weights")
    return converted
