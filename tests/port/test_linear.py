"""Linear layers whose weights are laid out for a CPU: the same numbers, and gradients where they are due."""

from __future__ import annotations

import pytest
import torch

import pass_sampling.gpu as port
from models import TINY
from pass_sampling.gpu.model import linear
from pass_sampling.gpu.model.linear import Linear, laid_out

where_laid_out = pytest.mark.skipif(
    laid_out(torch.ones((2, 2), dtype=torch.bfloat16)) is None,
    reason="this CPU, or this PyTorch, has no layout of its own for bfloat16 weights",
)


@where_laid_out
@pytest.mark.parametrize("num_rows", [1, 2, 5, 9, 49])
@pytest.mark.parametrize("shape", [(512, 128), (1792, 320), (7, 5), (320, 896)])
@pytest.mark.parametrize("biased", [False, True])
def test_the_products_are_the_same_to_the_last_bit(shape, num_rows, biased):
    generator = torch.Generator().manual_seed(num_rows)
    weight = torch.randn(shape, generator=generator).bfloat16()
    bias = torch.randn(shape[0], generator=generator).bfloat16() if biased else None
    x = torch.randn((2, num_rows, shape[1]), generator=generator).bfloat16()
    with torch.inference_mode():
        found = Linear(weight, bias, laid_out(weight))(x)
    assert torch.equal(found, torch.nn.functional.linear(x, weight, bias))


@where_laid_out
def test_gradients_go_through_the_plain_weight():
    weight = torch.randn((6, 4)).bfloat16()
    x = torch.randn((3, 4)).bfloat16().requires_grad_()
    Linear(weight, None, laid_out(weight))(x).sum().backward()
    assert torch.equal(x.grad, weight.sum(dim=0).expand(3, -1))


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16])
def test_what_gains_nothing_and_what_still_learns_stays_as_it_is(dtype):
    assert laid_out(torch.ones((4, 4), dtype=dtype)) is None
    assert laid_out(torch.ones((4, 4), dtype=torch.bfloat16, requires_grad=True)) is None


@where_laid_out
def test_large_models_keep_one_copy_of_their_weights_and_compute_the_same(monkeypatch):
    """A layout is a second copy; a model that is tied has its embedding once more as output."""
    config = port.ModelConfig(**TINY)
    weights, logits = port.Weights.random(config, 0, torch.bfloat16), []
    for most in (linear.LAID_OUT_AT_MOST, 100):
        monkeypatch.setattr(linear, "LAID_OUT_AT_MOST", most)
        layers, output = linear.linears_of(weights)
        found = [output.laid_out, *(layer.gate_up.laid_out for layer in layers)]
        assert all((each is None) == (most == 100) for each in found)
        logits.append(port.Transformer(config, weights).forward([[1, 2, 0, 1]]))
    assert torch.equal(*logits)
