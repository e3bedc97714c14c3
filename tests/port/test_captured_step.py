"""A captured step asks the host nothing, brings nothing to its device and mixes no devices: shown without a GPU."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import pass_sampling.gpu as port
from on_meta import asking_nothing, on_meta
from pass_sampling.gpu.engine.capture import Frozen, standing
from pass_sampling.gpu.engine.rows import empty_rows
from pass_sampling.gpu.sampling import _sum_in_parts
from test_engine import KINDS, method_of

on_kinds = pytest.mark.parametrize("kind", KINDS)


def frozen_step(method: Any, num_rows: int = 3, fixed: bool = True) -> Any:
    """Return a step after the first one as it is captured, on tensors of shapes alone, and the place of its passes."""
    state = empty_rows(method, port.Ending(40, (2,)), num_rows, 4)
    frozen = Frozen(method, standing(state), state.cache.capacity)
    uniforms = torch.zeros((num_rows, method.num_uniforms), dtype=torch.float64)
    with torch.inference_mode():
        frozen.step(uniforms)  # makes what is made once
        frozen, uniforms = on_meta((frozen, uniforms))
        if not fixed:
            for cache in frozen.state.caches:
                cache.kv_length = None
            return lambda: frozen.method.step(frozen.state, uniforms)
        frozen.step(uniforms)
    return lambda: frozen.step(uniforms)


@pytest.mark.parametrize("window", [None, 3])
@on_kinds
def test_a_captured_step_asks_the_host_nothing_and_mixes_no_devices(kind: str, window: int | None) -> None:
    asking_nothing(frozen_step(method_of(kind, sliding_window=window)))


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind != "plain"])
def test_a_step_in_free_shapes_asks(kind: str) -> None:
    """So the check bites."""
    step = frozen_step(method_of(kind), fixed=False)
    with pytest.raises((AssertionError, RuntimeError, NotImplementedError)):
        asking_nothing(step)


LIMITS = {"plain": 92, "fused": 263, "lookahead": 301}
"""Operations of a step in float64 outside its layers, with two look-ahead vectors, at most; `-rP` prints them."""


@pytest.mark.parametrize("kind", LIMITS)
def test_a_step_has_few_operations_outside_its_layers(kind: str) -> None:
    """Each is a launch on a GPU, where a plain step of a model of 1B parameters takes 0.6 ms at best."""
    one, two = (
        sum(asking_nothing(frozen_step(method_of(kind, num_hidden_layers=number), 1)).values()) for number in (1, 2)
    )
    print(f"{kind}: {2 * one - two} operations outside the layers, {two - one} in each")
    assert 2 * one - two <= LIMITS[kind]


@given(
    size=st.sampled_from([1, 2, 511, 512, 513, 1024, 5000, 49_152]),
    seed=st.integers(0, 99),
    zeros=st.sampled_from([0.0, 0.5, 0.999]),
)
def test_sums_in_parts_are_those_in_a_row_but_for_rounding_and_never_decrease(
    size: int, seed: int, zeros: float
) -> None:
    draw = torch.Generator().manual_seed(seed)
    weights = torch.rand((2, size), generator=draw, dtype=torch.float64) ** 8 + 1e-300
    weights = weights.masked_fill(torch.rand((2, size), generator=draw) < zeros, 0.0)
    weights[:, seed % size] = 1.0
    probs = weights / weights.sum(dim=1, keepdim=True)
    sums = _sum_in_parts(probs)
    assert sums.shape == probs.shape and bool((sums.diff(dim=1) >= 0).all())
    assert bool(((sums - probs.cumsum(dim=1)).abs() <= 2 * size * 2.0**-53).all())
