"""Which tensors the host can read without synchronising with a device."""

from __future__ import annotations

from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor


def is_on_cpu(
    tensor: Tensor,  # [...]
) -> bool:
    """Return whether the host can read a tensor without waiting: it is on the CPU, and not only traced."""
    return tensor.device.type == "cpu" and not isinstance(tensor, FakeTensor)
