"""A step on tensors that have shapes alone: whatever asks the host, brings numbers or mixes devices raises.

And a step on tensors that the code takes to be on a device: how often it asks the host is counted.

On the device `meta` whatever asks for a number raises, and so does `nonzero`. What it would let pass is refused here: a
tensor of the host in any operation, and tensors made of Python numbers, which on a GPU are copies that a capture
forbids. Indices out of range are not seen: steps that are replayed on a CPU find those.
"""

import copy
import sys
from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

BRINGS = (torch.tensor, torch.as_tensor, torch.asarray, torch.from_numpy, Tensor.new_tensor)
ASKS = (Tensor.tolist, Tensor.item, Tensor.cpu, Tensor.numpy, Tensor.nonzero, torch.nonzero)
ASKS += (Tensor.__bool__, Tensor.__int__, Tensor.__float__, Tensor.__index__)
INDEXED = (Tensor.__getitem__, Tensor.__setitem__)
VIEWS = frozenset(
    "view _unsafe_view unsqueeze squeeze slice select expand transpose permute t unbind split split_with_sizes "
    "as_strided alias detach _reshape_alias unfold diagonal lift_fresh".split()
)


def on_meta(value: Any) -> Any:
    """Return copies of objects, all of whose tensors have shapes alone."""
    with pytest.MonkeyPatch.context() as patch:
        rules: Any = copy._deepcopy_dispatch  # type: ignore[attr-defined]
        patch.setitem(rules, Tensor, lambda tensor, memo: tensor.to("meta"))
        patch.setitem(rules, torch.device, lambda device, memo: torch.device("meta"))
        return copy.deepcopy(value)


FUSED = (torch.ops.aten.scaled_dot_product_attention.default, torch.ops.aten.rms_norm.default)


class OneDevice(TorchDispatchMode):
    """Refuses tensors of another device, and counts the operations that compute something.

    Operations that PyTorch composes of others, such as `isfinite`, count as these, but for those with a kernel on a
    GPU.
    """

    def __init__(self) -> None:
        super().__init__()
        self.counts: Counter[str] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func not in FUSED:
            with self:
                found = func.decompose(*args, **(kwargs or {}))
            if found is not NotImplemented:
                return found
        found = func(*args, **(kwargs or {}))
        for each in tree_leaves((args, kwargs, found)):
            assert not isinstance(each, Tensor) or each.is_meta, f"{func}: a tensor on {each.device}"
        name = func._overloadpacket.__name__
        if name not in VIEWS:
            self.counts[name] += 1
        return found


class NothingNew(TorchFunctionMode):
    """Refuses tensors that are made of Python numbers."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        new = func in BRINGS and not isinstance(args[func is Tensor.new_tensor], Tensor)
        assert not new, f"{func.__name__}: brings numbers to the device"
        index = args[1] if func in INDEXED and isinstance(args[1], tuple) else args[1:2]
        listed = func in INDEXED and any(isinstance(each, list) for each in index)
        assert not listed, f"{func.__name__}: an index of Python numbers"
        return func(*args, **(kwargs or {}))


def asking_nothing(run: Callable[[], Any]) -> Counter[str]:
    """Run something, raise where it touches the host, and return how often each operation computed something."""
    with torch.inference_mode(), NothingNew(), OneDevice() as counted:
        run()
    return counted.counts


class RoundTrips(TorchFunctionMode):
    """Counts the operations for which a host waits for its device, by their names."""

    def __init__(self) -> None:
        super().__init__()
        self.counts: Counter[str] = Counter()

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func in ASKS or (func in BRINGS and not isinstance(args[func is Tensor.new_tensor], Tensor)):
            self.counts[func.__name__] += 1
        return func(*args, **(kwargs or {}))


def round_trips(run: Callable[[], Any]) -> Counter[str]:
    """Run something as on a device, with the numbers of the CPU, and return how often it waits for the device."""
    with pytest.MonkeyPatch.context() as patch, torch.inference_mode(), RoundTrips() as counted:
        for name, module in list(sys.modules.items()):
            if name.startswith("pass_sampling.gpu.") and hasattr(module, "is_on_cpu"):
                patch.setattr(module, "is_on_cpu", lambda tensor: False)
        run()
    return counted.counts
