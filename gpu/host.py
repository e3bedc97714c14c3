"""What the host may look at: tensors that it has, of a step that runs."""

from __future__ import annotations

from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor

__all__ = ["is_on_cpu", "is_traced"]


def is_traced(
    tensor: Tensor,  # [...]
) -> bool:
    """Say whether a tensor has no numbers, as its step is only traced."""
    return isinstance(tensor, FakeTensor)


def is_on_cpu(
    tensor: Tensor,  # [...]
) -> bool:
    """Say whether the host can read a tensor without waiting for a device."""
    return tensor.device.type == "cpu" and not is_traced(tensor)
