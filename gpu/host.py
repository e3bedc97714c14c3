"""Transfers between the host and a device: which tensors the host can read, and numbers that a device keeps."""

from __future__ import annotations

from functools import cache

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor


def is_on_cpu(
    tensor: Tensor,  # [...]
) -> bool:
    """Return whether the host can read a tensor without waiting: it is on the CPU, and not only traced."""
    return tensor.device.type == "cpu" and not isinstance(tensor, FakeTensor)


@cache
def constant(numbers: tuple[int, ...], device: torch.device) -> Tensor:  # [N]
    """Return numbers as a tensor, made once: a captured step must not copy anything to its device.

    None is ever freed, as a graph may read it; there are few, of the shapes of methods.
    """
    with torch.inference_mode(False):
        return torch.tensor(numbers, dtype=torch.int64, device=device)
