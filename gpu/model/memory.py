"""The memory that a model needs, and a check that it is free, made before anything is allocated."""

from __future__ import annotations

from pathlib import Path

import torch

from pass_sampling.reference.model.config import ModelConfig

from .weights import Weights, allocate

ALWAYS_FREE = 2**26  # bytes: for less the system is not asked


def weight_bytes(config: ModelConfig, dtype: torch.dtype) -> int:
    """Return the bytes of a model's weights."""
    return sum(tensor.nbytes for tensor in tensors_of(allocate(config, dtype, "meta")))


def cache_bytes(config: ModelConfig, dtype: torch.dtype, capacity: int, batch_size: int = 1) -> int:
    """Return the bytes of keys and values of `capacity` positions."""
    numbers = 2 * config.num_hidden_layers * config.num_key_value_heads * config.head_dim
    return dtype.itemsize * numbers * capacity * batch_size


def pass_bytes(config: ModelConfig, dtype: torch.dtype, num_rows: int) -> int:
    """Return the least memory of a pass over a long prompt: gate, up, and their products, of one layer."""
    return dtype.itemsize * 4 * config.intermediate_size * num_rows


def check_memory(device: torch.device, **needed: int) -> None:
    """Raise ValueError if less is free than the given number of bytes: of weights, of a cache, of workspace."""
    total = sum(needed.values())
    free = None if total < ALWAYS_FREE else free_memory(device)
    if free is not None and total > free:
        parts = ", ".join(f"{amount / 1e9:.1f} of {name}" for name, amount in needed.items() if amount)
        raise ValueError(f"memory: found {free / 1e9:.1f} GB free on {device}, expected {total / 1e9:.1f}: {parts}")


def tensors_of(weights: Weights) -> list[torch.Tensor]:
    """Return every tensor once."""
    layers = [tensor for layer in weights.layers for tensor in vars(layer).values() if tensor is not None]
    output = [] if weights.output is weights.embedding else [weights.output]
    return [weights.embedding, weights.norm, *output, *layers]


def free_memory(device: torch.device) -> int | None:
    """Return the free bytes, if the system reports them; on a GPU with what PyTorch has reserved and does not use."""
    if device.type == "cuda":
        unused = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return int(torch.cuda.mem_get_info(device)[0]) + unused
    try:
        lines = Path("/proc/meminfo").read_text(encoding="ascii").splitlines()
    except OSError:
        return None
    return next((1024 * int(line.split()[1]) for line in lines if line.startswith("MemAvailable:")), None)
