"""The dtypes and devices that the port runs on."""

from __future__ import annotations

import platform
from pathlib import Path
from typing import Any

import torch


def check_dtype(dtype: Any) -> torch.dtype:
    """Return the torch dtype, given as one or by name; raise ValueError if no model can be loaded in it."""
    name = str(dtype).removeprefix("torch.")
    if name not in ("float64", "float32", "bfloat16", "float16"):
        raise ValueError(f"dtype: found {name:.80}, expected float64, float32, bfloat16 or float16")
    found: torch.dtype = getattr(torch, name)
    return found


def asked_dtype(dtype: Any) -> torch.dtype | None:
    """Return the dtype that is asked for by name; None for `auto`, or where nothing is asked for."""
    return None if dtype is None or str(dtype) == "auto" else check_dtype(dtype)


def automatic_dtype(stored: torch.dtype, device: torch.device) -> torch.dtype:
    """Return the dtype to compute in where none is asked for: the stored one, if the device is fast in it.

    A CPU without units for bfloat16 computes in float32, but still reads in 16 bits the weights that were stored in
    bfloat16, see `linear`.
    """
    if device.type == "cuda" or stored in (torch.float64, torch.float32):
        return stored
    return torch.bfloat16 if stored == torch.bfloat16 and has_bfloat16_units() else torch.float32


def has_bfloat16_units() -> bool:
    """Return whether this CPU multiplies bfloat16 matrices by units of its own (AVX512-BF16 or AMX)."""
    wide = torch.backends.cpu.get_cpu_capability().startswith("AVX512")
    return wide and (torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported())


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


def processor_name() -> str:
    """Return the name of the CPU."""
    if (info := Path("/proc/cpuinfo")).is_file():
        for line in info.read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()
