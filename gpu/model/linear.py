"""Linear layers of a frozen model, in the layout of their weights that is fastest on this CPU.

A CPU has several ways to multiply a few rows by a weight, and which is fastest depends on the CPU, the dtype, the
threads and the number of rows. When a model is loaded, PyTorch's own ways are timed on some of its weights; the choice
is kept on disk, so that later runs round as this one does. A weight that is changed afterwards has no effect: the model
is frozen. Gradients and CUDA go through the plain weight.

Glossary of shapes: I inputs and O outputs of a layer.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import json
import os
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

from pass_sampling.reference.checkpoint.folder import replace_file

from ..outside import cache_folder
from .memory import free_memory
from .precision import processor_name
from .weights import LayerWeights, Weights

BANDS = {1: 1, 8: 5, sys.maxsize: 33}  # the most rows of a band, and the rows that it is timed with
SMALL = 2**20  # bytes of weights below which nothing is chosen: the plain way costs next to nothing
SAMPLE = 2**26  # bytes of weights that are timed: more than caches hold, as in a whole pass
SHARE = 0.5  # of the free memory, which copies of the weights may take


class Layout(NamedTuple):
    """How a weight is copied, and how rows are multiplied by it."""

    apply: Callable[[Tensor, Any, Tensor | None], Tensor]
    make: Callable[[Tensor], Any] | None = None  # None: no copy; otherwise one that is at most as large


def _packed(weight: Tensor) -> Any:
    """Return a weight in the layout of oneDNN, or raise RuntimeError where it has none."""
    return torch.ops.mkldnn._reorder_linear_weight(weight)


def _times_packed(x: Tensor, weight: Any, bias: Tensor | None) -> Tensor:
    found: Tensor = torch.ops.mkldnn._linear_pointwise.default(x, weight, bias, "none", [], "")
    return found


def _times_without_onednn(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    torch._C._set_mkldnn_enabled(False)
    try:
        return functional.linear(x, weight, bias)
    finally:
        torch._C._set_mkldnn_enabled(True)


def _in_float16(weight: Tensor) -> Any:
    """Return a weight in the layout of FBGEMM: it is read in float16, and multiplied in float32."""
    return torch.ops.quantized.linear_prepack_fp16(weight.float(), None)


def _times_float16(x: Tensor, weight: Any, bias: Tensor | None) -> Tensor:
    found: Tensor = torch.ops.quantized.linear_dynamic_fp16(x.float(), weight)
    return (found if bias is None else found + bias).to(x.dtype)


def is_in_float16(
    weight: Tensor,  # [O, I]
) -> bool:
    """Return whether float16 holds a weight up to a rounding to 24 bits, relative to its largest number.

    It holds what was stored in bfloat16, also if that was widened to float32 since: it has more digits, and is less
    exact only below 2^-17.
    """
    wide, largest = weight.float(), functools.partial(torch.linalg.vector_norm, ord=torch.inf)
    return bool(largest(wide.half().float().sub_(wide)) <= 2.0**-24 * largest(wide))  # not where one overflows


LAYOUTS = {
    "plain": Layout(functional.linear),
    "packed": Layout(_times_packed, _packed),
    "without-onednn": Layout(_times_without_onednn),  # one row of bfloat16: it asks least of the memory
    "float16": Layout(_times_float16, _in_float16),  # if `is_in_float16`: it asks half of the memory that float32 does
}


@dataclass(frozen=True, eq=False)
class Linear:
    """y = x weight^T + bias."""

    weight: Tensor  # [O, I]
    bias: Tensor | None = None  # [O]
    layouts: tuple[tuple[int, str, Any], ...] = ()  # most rows, layout, the weight in it; the fewest rows first

    def __call__(
        self,
        x: Tensor,  # [..., I]
    ) -> Tensor:  # [..., O]
        """Apply the layer; gradients go through the plain weight."""
        if self.layouts and not x.requires_grad:
            num_rows = x.numel() // x.shape[-1]
            for most, layout, copy in self.layouts:
                if num_rows <= most:
                    return LAYOUTS[layout].apply(x, copy, self.bias)
        return functional.linear(x, self.weight, self.bias)


@dataclass(frozen=True)
class LayerLinears:
    """The linear layers of one layer of a model."""

    query_key_value: Linear
    output: Linear
    gate_up: Linear
    down: Linear


def linear(
    weight: Tensor,  # [O, I]
    bias: Tensor | None,  # [O]
    layouts: Sequence[str],
) -> Linear:
    """Return a linear layer with a layout for each band, or with none."""
    with torch.no_grad():
        copies = {name: _copy(name, weight) for name in dict.fromkeys(layouts)}
    return Linear(weight, bias, tuple((most, name, copies[name]) for most, name in zip(BANDS, layouts, strict=False)))


def _copy(name: str, weight: Tensor) -> Any:
    make = LAYOUTS[name].make
    return weight if make is None else make(weight)


def linears_of(weights: Weights) -> tuple[tuple[LayerLinears, ...], Linear]:
    """Return the linear layers of every layer, and the output projection."""
    inside, projection = choices([[each for layer in weights.layers for each in matrices(layer)], [weights.output]])

    def layer_of(layer: LayerWeights) -> LayerLinears:
        biases = layer.query_key_value_bias, layer.output_bias, None, None
        return LayerLinears(*(linear(*each, inside) for each in zip(matrices(layer), biases, strict=True)))

    return tuple(map(layer_of, weights.layers)), linear(weights.output, None, projection)


def rows_of(
    weight: Tensor,  # [O, I]
    places: Tensor,  # [N]
) -> Linear:
    """Return a linear layer to some of the outputs of a weight, which are copied."""
    some = weight[places].detach()
    (layouts,) = choices([[some]])
    return linear(some, None, layouts)


def matrices(layer: LayerWeights) -> tuple[Tensor, ...]:  # [O, I], each with sizes of its own
    """Return the weights of the linear layers of a layer."""
    return layer.query_key_value, layer.output, layer.gate_up, layer.down


def choices(groups: Sequence[Sequence[Tensor]]) -> list[tuple[str, ...]]:
    """Return a layout by band for each group of weights, or none: measured once for this machine, then kept."""
    every = [matrix for group in groups for matrix in group]
    can_gain = every[0].device.type == "cpu" and every[0].dtype in (torch.float32, torch.bfloat16)
    if not can_gain or any(matrix.requires_grad for matrix in every) or sum(each.nbytes for each in every) < SMALL:
        return [()] * len(groups)
    shapes = [sorted({tuple(matrix.shape) for matrix in group}) for group in groups]
    names = [name for name in LAYOUTS if name != "float16" or all(map(is_in_float16, every))]
    path = cache_folder("layouts") / f"{_machine(str(every[0].dtype), shapes, names)}.json"
    found = _kept(path, len(groups))
    if found is None:
        found = [measured(group, names) for group in groups]
        with contextlib.suppress(OSError):  # a choice that cannot be kept is made again
            path.parent.mkdir(parents=True, exist_ok=True)
            replace_file(path, json.dumps(found))
    free = free_memory(every[0].device)
    copies = sum(
        sum(LAYOUTS[name].make is not None for name in {*layouts}) * matrix.nbytes
        for group, layouts in zip(groups, found, strict=True)
        for matrix in group
    )
    return found if free is None or copies <= SHARE * free else [()] * len(groups)


def _machine(*what: Any) -> str:
    """Return a digest of all that the fastest layout depends on."""
    settings = [os.environ.get(name) for name in ("ONEDNN_MAX_CPU_ISA", "MKL_ENABLE_INSTRUCTIONS")]
    cpu = torch.backends.cpu.get_cpu_capability(), processor_name(), torch.get_num_threads()
    return hashlib.sha256(json.dumps([torch.__version__, *cpu, *settings, *what]).encode()).hexdigest()[:32]


def _kept(path: Path, num_groups: int) -> list[tuple[str, ...]] | None:
    """Return the choice that was kept in a file, or None if there is none."""
    try:
        found = [tuple(names) for names in json.loads(path.read_text(encoding="utf-8"))]
    except (OSError, ValueError, TypeError):
        return None
    whole = len(found) == num_groups and all(len(names) == len(BANDS) for names in found)
    return found if whole and all(name in LAYOUTS for names in found for name in names) else None


@torch.no_grad()
def measured(weights: Sequence[Tensor], names: Sequence[str]) -> tuple[str, ...]:
    """Return the fastest of some layouts for each band, timed on as many of the weights as caches do not hold."""
    sample: list[Tensor] = []
    for weight in weights:
        if sum(each.nbytes for each in sample) < SAMPLE:
            sample.append(weight)
    copies: dict[str, list[Any]] = {}
    for name in names:
        with contextlib.suppress(AttributeError, RuntimeError):  # another PyTorch, or a CPU without such units
            made = [_copy(name, weight) for weight in sample]
            LAYOUTS[name].apply(sample[0][:1], made[0], None)
            copies[name] = made
    found = []
    for num_rows in BANDS.values():
        inputs = [torch.ones((1, num_rows, weight.shape[1]), dtype=weight.dtype) for weight in sample]
        quickest = {name: [float("inf")] * len(sample) for name in copies}  # of each weight: other work delays few
        for _ in range(4):
            for name, made in copies.items():
                for i, (x, copy) in enumerate(zip(inputs, made, strict=True)):
                    started = time.perf_counter()
                    LAYOUTS[name].apply(x, copy, None)
                    quickest[name][i] = min(quickest[name][i], time.perf_counter() - started)
        times = {name: sum(each) for name, each in quickest.items()}
        best = min(times, key=lambda name: times[name])
        found.append(best if times[best] < 0.95 * times["plain"] else "plain")  # less is noise, and a copy
    return tuple(found)
