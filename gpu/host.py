"""What the host may look at: tensors that it has, of a step that runs."""

from __future__ import annotations

from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor

__all__ = ["at_hand", "is_written_down"]


def is_written_down(
    tensor: Tensor,  # [...]
) -> bool:
    """Say whether a tensor has no numbers, as its step is only traced."""
    return isinstance(tensor, FakeTensor)


def at_hand(
    tensor: Tensor,  # [...]
) -> bool:
    """Say whether the host can read a tensor without waiting for a device."""
    return tensor.device.type == "cpu" and not is_written_down(tensor)
