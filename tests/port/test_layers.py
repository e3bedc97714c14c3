"""Each equation: the port computes what the reference computes, and both what the equation promises."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from folders import LINEAR, LLAMA3, tiny_config
from pass_sampling.gpu.model import layers as port
from pass_sampling.reference.model import layers as reference
from passes import difference, own_config, same_bits

DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)]
on_devices = pytest.mark.parametrize("device", DEVICES)
sizes = st.integers(1, 7)
seeds = st.integers(0, 2**32 - 1)
# Sums of at most a few hundred products of numbers of order 1 to 10, each wrong by a few times 2^-53.
EXACT = 1e-12


def normal(seed: int, *shape: int, scale: float = 1.0) -> np.ndarray:
    return scale * np.random.default_rng(seed).standard_normal(shape)


@on_devices
@given(sizes, sizes, seeds, st.sampled_from([1e-12, 1e-6, 1e-2]), st.sampled_from([1e-4, 1.0, 1e4]))
def test_rms_norm_is_the_same_in_both(device, rows, width, seed, eps, scale):
    x, weight = normal(seed, rows, width, scale=scale), normal(seed + 1, width)
    expected = reference.rms_norm(x, weight, eps)
    found = port.rms_norm(torch.tensor(x, device=device), torch.tensor(weight, device=device), eps)
    assert difference(found.cpu().numpy(), expected) <= EXACT
    for row, normed in zip(x, expected, strict=True):
        assert difference(row * weight / math.sqrt(sum(v * v for v in row) / width + eps), normed) <= EXACT


@given(
    st.integers(1, 64).map(lambda half: 2 * half),
    st.sampled_from([100.0, 1e4, 5e5]),
    st.sampled_from([None, LINEAR, LLAMA3]),
)
def test_rope_frequencies_are_the_same_in_both(head_dim, theta, scaling):
    config = tiny_config(head_dim=head_dim, rope_theta=theta, rope_scaling=scaling)
    expected = reference.rope_frequencies(config)
    found = port.rope_frequencies(own_config("gpu", config))
    assert found.dtype is torch.float64
    assert np.allclose(found.numpy(), expected, rtol=1e-14, atol=0)
    assert expected[0] == (0.5 if scaling is LINEAR else 1.0)
    assert np.all(np.diff(expected) < 0)


@on_devices
@given(sizes, sizes, sizes, seeds, st.lists(st.integers(0, 10**6), min_size=7, max_size=7))
def test_rope_is_the_same_in_both_and_turns_without_stretching(device, heads, rows, half, seed, positions):
    frequencies = np.sort(np.random.default_rng(seed).random(half))[::-1].copy()
    x, places = normal(seed, heads, rows, 2 * half), np.array(positions[:rows])
    cos, sin = reference.rope_tables(frequencies, places)
    expected = reference.rope(x, cos, sin)
    tables = port.rope_tables(torch.tensor(frequencies, device=device), torch.tensor(places[None], device=device))
    found = port.rope(torch.tensor(x[None], device=device), *(table.unsqueeze(1) for table in tables))
    assert difference(found[0].cpu().numpy(), expected) <= 1e-9  # an angle of 10^6 radians is known to 10^-10
    pairs, turned = (v[..., :half] + 1j * v[..., half:] for v in (x, expected))
    assert difference(np.abs(turned), np.abs(pairs)) <= EXACT
    assert np.abs(pairs * np.exp(1j * places[:, None] * frequencies) - turned).max() <= 1e-9


@given(sizes, seeds, st.integers(0, 1000), st.integers(0, 1000), st.integers(0, 1000))
def test_rotated_products_depend_on_the_distance_alone(half, seed, first, second, shift):
    frequencies = np.random.default_rng(seed).random(half)
    query, key = normal(seed, 1, 1, 2 * half), normal(seed + 1, 1, 1, 2 * half)

    def product(query_position: int, key_position: int) -> float:
        rotated = [
            reference.rope(x, *reference.rope_tables(frequencies, np.array([place])))
            for x, place in ((query, query_position), (key, key_position))
        ]
        return float(np.sum(rotated[0] * rotated[1]))

    assert abs(product(first, second) - product(first + shift, second + shift)) <= 1e-10  # angles known to 10^-13


@on_devices
@given(sizes, st.integers(1, 3), sizes, sizes, st.integers(0, 5), seeds, st.booleans())
def test_attention_is_the_same_in_both_and_a_loop(device, groups, repeats, rows, head_dim, more, seed, masked):
    heads, places = groups * repeats, rows + more
    queries, keys = normal(seed, heads, rows, head_dim, scale=2.0), normal(seed + 1, groups, places, head_dim)
    values, visible = normal(seed + 2, groups, places, head_dim), None
    if masked:
        visible = np.random.default_rng(seed).random((rows, places)) < 0.5
        visible[np.arange(rows), np.arange(rows)] = True
    expected = reference.attention(queries, keys, values, visible)

    mask = None
    if visible is not None:
        mask = torch.tensor(np.where(visible, 0.0, -np.inf)[None, None], device=device)
    tensors = [torch.tensor(array[None], device=device) for array in (queries, keys, values)]
    assert difference(port.attention(*tensors, mask)[0].cpu().numpy(), expected) <= EXACT

    for head in range(heads):
        for row in range(rows):
            seen = np.ones(places, dtype=bool) if visible is None else visible[row]
            scores = keys[head // repeats, seen] @ queries[head, row] / math.sqrt(head_dim)
            weights = np.exp(scores) / np.exp(scores).sum()
            part = expected[row, head * head_dim : (head + 1) * head_dim]
            assert difference(part, weights @ values[head // repeats, seen]) <= EXACT


@on_devices
@given(
    *(st.integers(1, 3), st.integers(1, 3), sizes, sizes, st.integers(0, 5), seeds),
    st.sampled_from([math.nan, math.inf, -math.inf, 1e300]),
    st.sampled_from(["keys", "values", "both"]),
)
def test_attention_does_not_depend_on_what_a_row_does_not_attend_to(
    device, groups, repeats, rows, head_dim, more, seed, junk, where
):
    """To the last bit; where keys are large, their scores with other rows' queries overflow."""
    heads, places, generator = groups * repeats, rows + more, np.random.default_rng(seed)
    arrays = [
        normal(seed, heads, rows, head_dim, scale=1e10),
        *(normal(seed + i, groups, places, head_dim) for i in (1, 2)),
    ]
    visible, hidden = generator.random((rows, places)) < 0.5, generator.random(places) < 0.3
    visible[np.arange(rows), np.arange(rows)] = True
    mask = torch.tensor(np.where(visible, 0.0, -np.inf)[None, None], device=device)

    def found(attention, arrays) -> list[np.ndarray]:
        tensors = [torch.tensor(array[None], device=device) for array in arrays]
        return [reference.attention(*arrays, visible), attention(*tensors, mask)[0].cpu().numpy()]

    spoilt = [array.copy() for array in arrays]
    for array in spoilt[{"values": 2}.get(where, 1) : {"keys": 2}.get(where, 3)]:
        array[:, hidden] = junk
    untouched = ~(visible & hidden).any(axis=1)
    with np.errstate(over="ignore", invalid="ignore"):
        for before, after in zip(found(port.attention, arrays), found(port.attention_apart, spoilt), strict=True):
            assert same_bits(after[untouched], before[untouched])


@on_devices
@given(sizes, sizes, seeds, st.sampled_from([1.0, 100.0, 1e6]))
def test_swiglu_is_the_same_in_both(device, rows, width, seed, scale):
    gate, up = normal(seed, rows, width, scale=scale), normal(seed + 1, rows, width)
    expected = reference.swiglu(gate, up)
    found = port.swiglu(torch.tensor(gate, device=device), torch.tensor(up, device=device))
    assert np.allclose(found.cpu().numpy(), expected, rtol=1e-13, atol=1e-300)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
@given(seed=seeds)
def test_a_layer_keeps_the_dtype_of_its_input(dtype, seed):
    kind = getattr(torch, dtype)
    x = torch.tensor(normal(seed, 1, 2, 3, 4)).to(kind)
    tables = port.rope_tables(torch.ones(2, dtype=torch.float64), torch.arange(3))
    results = [port.rms_norm(x, x[0, 0, 0], 1e-6), port.swiglu(x, x), port.attention(x, x, x, None)]
    results.append(port.rope(x, *(table.to(kind) for table in tables)))
    assert {result.dtype for result in results} == {kind}
    if dtype == "float32":
        y = x[0].numpy()
        results = [reference.rms_norm(y, y[0, 0], 1e-6), reference.swiglu(y, y), reference.attention(y, y, y, None)]
        results.append(reference.rope(y, *(table.numpy().astype(dtype) for table in tables)))
        assert {result.dtype for result in results} == {np.dtype(dtype)}
