"""Linear layers of a frozen model: a CPU lays out bfloat16 weights for its matrix units once, not in every pass.

In bfloat16 the layout takes a third of a pass over few rows. For contiguous rows, as here, the numbers are the same to
the last bit. A weight that is changed afterwards has no effect: the model is frozen.

Glossary of shapes: I inputs and O outputs of a layer.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from .weights import LayerWeights, Weights

LAID_OUT_AT_MOST = 2**31  # bytes: the layout is a second copy, so large models do without


@dataclass(frozen=True, eq=False)
class Linear:
    """y = x weight^T + bias."""

    weight: Tensor  # [O, I]
    bias: Tensor | None = None  # [O]
    laid_out: Any = None  # the weight in a form that only `mkldnn` reads, or None

    def __call__(
        self,
        x: Tensor,  # [..., I]
    ) -> Tensor:  # [..., O]
        """Apply the layer; gradients go through the plain weight."""
        if self.laid_out is None or x.requires_grad:
            return functional.linear(x, self.weight, self.bias)
        found: Tensor = torch.ops.mkldnn._linear_pointwise.default(x, self.laid_out, self.bias, "none", [], "")
        return found


@dataclass(frozen=True, eq=False)
class LayerLinears:
    """The linear layers of one layer of a model."""

    query_key_value: Linear
    output: Linear
    gate_up: Linear
    down: Linear


def linears_of(weights: Weights) -> tuple[tuple[LayerLinears, ...], Linear]:
    """Return the linear layers of every layer, and the output projection."""
    matrices = [weights.output]
    for layer in weights.layers:
        matrices += [layer.query_key_value, layer.output, layer.gate_up, layer.down]
    lays_out = sum(matrix.nbytes for matrix in matrices) <= LAID_OUT_AT_MOST

    def linear(weight: Tensor, bias: Tensor | None = None) -> Linear:
        return Linear(weight, bias, laid_out(weight) if lays_out else None)

    def layer_of(layer: LayerWeights) -> LayerLinears:
        return LayerLinears(
            linear(layer.query_key_value, layer.query_key_value_bias),
            linear(layer.output, layer.output_bias),
            linear(layer.gate_up),
            linear(layer.down),
        )

    return tuple(map(layer_of, weights.layers)), linear(weights.output)


def laid_out(
    weight: Tensor,  # [O, I]
) -> Any:
    """Return a weight in the layout of the CPU's own kernels, or None if that gains nothing or it is trained."""
    if weight.device.type != "cpu" or weight.dtype != torch.bfloat16 or weight.requires_grad:
        return None
    if not torch.backends.mkldnn.is_available():
        return None
    try:
        with torch.no_grad():
            found = torch.ops.mkldnn._reorder_linear_weight(weight)
            torch.ops.mkldnn._linear_pointwise.default(weight[:1], found, None, "none", [], "")
    except (AttributeError, RuntimeError):  # another version of PyTorch, or a CPU without such units
        return None
    return found
