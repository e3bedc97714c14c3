"""The dtypes and devices that the port runs on."""

from __future__ import annotations

from typing import Any

import torch


def check_dtype(dtype: Any) -> torch.dtype:
    """Return the torch dtype, given as one or by name; raise ValueError if no model can be loaded in it."""
    name = str(dtype).removeprefix("torch.")
    if name not in ("float64", "float32", "bfloat16", "float16"):
        raise ValueError(f"dtype: found {name:.80}, expected float64, float32, bfloat16 or float16")
    found: torch.dtype = getattr(torch, name)
    return found


def check_device(device: torch.device | str) -> torch.device:
    """Return the device; raise ValueError if it is unknown, absent, or has no float64, which exact sampling needs."""
    try:
        found = torch.device(device)
    except (RuntimeError, TypeError):
        raise ValueError(f"device: found {device!s:.80}, expected cpu or cuda") from None
    if found.type == "mps":
        raise ValueError(f"device: found {found}, which has no float64 to sample with, expected cpu or cuda")
    if found.type not in ("cpu", "cuda"):
        raise ValueError(f"device: found {found}, expected cpu or cuda")
    if found.type == "cuda":
        count = torch.cuda.device_count() if torch.cuda.is_available() else 0
        if (found.index or 0) >= count:
            raise ValueError(f"device: found {found} and PyTorch finds {count} CUDA devices, expected cpu")
    return found
