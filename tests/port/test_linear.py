"""Linear layers whose weights are laid out for a CPU: the same numbers but for rounding, and gradients where due."""

import pytest
import torch

import pass_sampling.gpu as port
from models import TINY
from pass_sampling.gpu.model import linear as module
from pass_sampling.gpu.model import precision
from pass_sampling.gpu.model.linear import BANDS, LAYOUTS, choices, linear, linears_of
from pass_sampling.gpu.outside import cache_folder

EPS = {torch.float32: 2.0**-24, torch.bfloat16: 2.0**-8}


def can(layout: str, dtype: torch.dtype) -> bool:
    """Whether this CPU, and this PyTorch, has a layout for a dtype."""
    weight = torch.ones((2, 2), dtype=dtype)
    try:
        linear(weight, None, [layout] * len(BANDS))(weight)
    except (AttributeError, RuntimeError):
        return False
    return True


POSSIBLE = [(layout, dtype) for layout in LAYOUTS for dtype in EPS if can(layout, dtype)]
each_layout = pytest.mark.parametrize(("layout", "dtype"), POSSIBLE, ids=str)


@each_layout
@pytest.mark.parametrize("num_rows", [1, 2, 5, 9, 49, 65])
@pytest.mark.parametrize("shape", [(512, 128), (7, 5), (320, 896)])
@pytest.mark.parametrize("biased", [False, True])
def test_the_products_differ_by_rounding_only(layout, dtype, num_rows, shape, biased):
    """A sum of I products, in whatever order, is off by I u sum |x w| at most; rounded to the dtype once more."""
    generator = torch.Generator().manual_seed(num_rows)
    weight = torch.randn(shape, generator=generator).bfloat16().to(dtype)
    bias = torch.randn(shape[0], generator=generator).to(dtype) if biased else None
    x = torch.randn((2, num_rows, shape[1]), generator=generator).to(dtype)
    with torch.inference_mode():
        found = linear(weight, bias, [layout] * len(BANDS))(x).double()
        exact = torch.nn.functional.linear(x.double(), weight.double(), bias if bias is None else bias.double())
        size = torch.nn.functional.linear(
            x.double().abs(), weight.double().abs(), bias if bias is None else bias.double().abs()
        )
    assert bool(
        ((found - exact).abs() <= (shape[1] + 2) * 2.0**-24 * size + EPS[dtype] * (exact.abs() + size * 2.0**-8)).all()
    )


@each_layout
@pytest.mark.parametrize("num_rows", [2, 5, 9])
def test_a_row_keeps_every_bit_whatever_the_other_rows_hold(layout, dtype, num_rows):
    weight, x = torch.randn((24, 40)).to(dtype), torch.randn((1, num_rows, 40)).to(dtype)
    others = torch.cat([x[:, :1], torch.full((1, num_rows - 1, 40), torch.nan, dtype=dtype)], dim=1)
    apply = linear(weight, None, [layout] * len(BANDS))
    with torch.inference_mode():
        assert torch.equal(apply(x)[:, 0], apply(others)[:, 0])


@each_layout
def test_gradients_go_through_the_plain_weight(layout, dtype):
    weight = torch.randn((6, 4)).to(dtype)
    x = torch.randn((3, 4)).to(dtype).requires_grad_()
    linear(weight, None, [layout] * len(BANDS))(x).sum().backward()
    assert torch.equal(x.grad, weight.sum(dim=0).expand(3, -1))


@pytest.mark.parametrize("dtype", EPS, ids=str)
def test_float16_is_chosen_for_nothing_that_it_does_not_hold(dtype, monkeypatch):
    monkeypatch.setattr(module, "_kept", lambda *_: None)
    monkeypatch.setattr(module, "replace_file", lambda *_: None)
    monkeypatch.setattr(module, "measured", lambda weights, names: (names[-1],) * len(BANDS))
    weight = torch.randn((1024, 520)).bfloat16().to(dtype)
    (held,) = choices([[weight]])
    assert set(held) == {"float16"}
    for place, value in ((0, 1e5), (7, torch.inf), (9, torch.nan), (3, 0.3 + 2.0**-20)):
        spoilt = weight.clone()
        spoilt[place, place] = value
        if not torch.equal(spoilt[place, place].half().to(dtype), spoilt[place, place]):
            (other,) = choices([[weight], [spoilt]])[:1]
            assert set(other) == {"without-onednn"}, value
    tiny = weight.clone()
    tiny[0, :2] = torch.tensor([2.0**-17 * 1.0078125, 2.0**-40])  # the second becomes 0: an error of 2^-40
    assert set(choices([[tiny]])[0]) == {"float16"}
    assert set(choices([[weight * 2.0**-20]])[0]) == {"without-onednn"}


def test_a_choice_is_measured_once_and_kept_for_the_machine(monkeypatch):
    asked = []
    monkeypatch.setattr(
        module, "measured", lambda weights, _: asked.append(len(weights)) or ("packed", "plain", "packed")
    )
    groups = [[torch.ones((640, 577))], [torch.ones((641, 577))]]
    before = {*cache_folder("layouts").glob("*.json")}
    first = choices(groups)
    assert asked == [1, 1] and first == [("packed", "plain", "packed")] * 2
    assert choices(groups) == first and asked == [1, 1]
    (kept,) = {*cache_folder("layouts").glob("*.json")} - before
    for damaged in ("{", "[]", '[["packed"], ["packed"]]', '[["a", "b", "c"], ["a", "b", "c"]]', "[1, 2]"):
        kept.write_text(damaged)
        assert choices(groups) == first
    assert len(asked) == 12
    kept.unlink()


def test_a_model_computes_the_same_but_for_rounding(monkeypatch):
    config = port.ModelConfig(**TINY)
    weights, logits = port.Weights.random(config, 0, torch.float32), []
    for matrix in (weights.output, *(each for layer in weights.layers for each in module.matrices(layer))):
        matrix.copy_(matrix.bfloat16())
    for layouts in ((), *((layout,) * 3 for layout, dtype in POSSIBLE if dtype == torch.float32)):
        monkeypatch.setattr(module, "choices", lambda groups, layouts=layouts: [layouts] * len(groups))
        layers, output = linears_of(weights)
        assert len(layers[0].gate_up.layouts) == len(output.layouts) == len(layouts)
        logits.append(port.Transformer(config, weights).forward([[1, 2, 0, 1]]))
    assert len(logits) > 2 and all(torch.allclose(logits[0], each, rtol=1e-5, atol=1e-5) for each in logits)


@pytest.mark.parametrize("units", [False, True])
@pytest.mark.parametrize("stored", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
def test_16_bits_are_computed_where_there_are_units_for_them(units, stored, monkeypatch):
    monkeypatch.setattr(precision, "has_bfloat16_units", lambda: units)
    wide = {torch.float64: torch.float64, torch.bfloat16: torch.bfloat16 if units else torch.float32}
    assert precision.automatic_dtype(stored, torch.device("cpu")) == wide.get(stored, torch.float32)
    assert precision.automatic_dtype(stored, torch.device("cuda")) == stored
