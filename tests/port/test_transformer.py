"""Both transformers compute what the transformers library computes, and the same as each other."""

from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import AutoConfig

import hf_float64
from folders import LINEAR, LLAMA3, module
from pass_sampling.gpu.model import layers as port_layers
from pass_sampling.reference.model import layers as reference_layers
from pass_sampling.reference.model.config import ModelConfig
from passes import KINDS, Passes, difference, everywhere, same_bits

LENGTH = 200  # long enough for the slow rotary frequencies to matter
VOCABULARY = 29

SIZES = {
    "vocab_size": VOCABULARY,
    "hidden_size": 24,
    "intermediate_size": 20,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
    "rms_norm_eps": 1e-3,  # large, so that leaving it out would show
    "tie_word_embeddings": False,
}
ROPE = {"rope_theta": 10000.0}
ROPE_LLAMA3 = {**ROPE, "rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
ROPE_LLAMA3["original_max_position_embeddings"] = 64  # of the pairs, some are kept, some blended, some stretched
QWEN_WINDOW = {"use_sliding_window": True, "sliding_window": 7, "max_window_layers": 1}

CASES: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("llama", {}),
    "llama, tied": ("llama", {"tie_word_embeddings": True}),
    "llama, llama3 rope": ("llama", {"head_dim": 16, "rope_parameters": ROPE_LLAMA3}),
    "llama, linear rope": ("llama", {"rope_parameters": {**ROPE, "rope_type": "linear", "factor": 4.0}}),
    "llama, fast rope": ("llama", {"rope_parameters": {"rope_type": "default", "rope_theta": 20.0}}),
    "llama, biases": ("llama", {"attention_bias": True}),
    "llama, head size": ("llama", {"head_dim": 10}),
    "llama, one kv head": ("llama", {"num_key_value_heads": 1}),
    "llama, as many kv heads": ("llama", {"num_key_value_heads": 4}),
    "qwen2": ("qwen2", {}),
    "qwen2, some windows": ("qwen2", QWEN_WINDOW),
    "qwen2, tied, all windows": ("qwen2", {**QWEN_WINDOW, "max_window_layers": 0, "tie_word_embeddings": True}),
    "qwen3": ("qwen3", {"head_dim": 8}),
    "qwen3, some windows, biases": ("qwen3", {"head_dim": 8, "attention_bias": True, **QWEN_WINDOW}),
    "mistral, window": ("mistral", {"sliding_window": 7}),
    "mistral, no window": ("mistral", {"sliding_window": None, "head_dim": 8}),
}
on_cases = pytest.mark.parametrize("case", CASES)


@dataclass(frozen=True)
class Saved:
    """A random checkpoint that the library wrote, and what the library says of it."""

    single: Path
    sharded: Path
    tokens: np.ndarray  # [T]
    truth: np.ndarray  # [T, V]


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """Give the checkpoint of a case, written when first asked for."""

    @cache
    def write(case: str) -> Saved:
        family, changes = CASES[case]
        model = hf_float64.build(AutoConfig.for_model(family, **{**SIZES, **changes}))
        seed = list(CASES).index(case)
        _randomise(model, seed)
        tokens = np.random.default_rng(seed).integers(VOCABULARY, size=LENGTH)
        truth = hf_float64.logits(model, tokens)
        folder = tmp_path_factory.mktemp("checkpoint")
        model.to(torch.float32).save_pretrained(folder / "single")
        model.to(torch.bfloat16).save_pretrained(folder / "sharded", max_shard_size="9KB")
        return Saved(folder / "single", folder / "sharded", tokens, truth)

    return write


def _randomise(model: torch.nn.Module, seed: int) -> None:
    """Draw all weights anew: the library starts with biases of 0 and norms of 1, which hide mistakes.

    All are numbers of bfloat16, so that they mean the same in every dtype.
    """
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in model.named_parameters():
        normal = torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
        if name.endswith("norm.weight"):
            drawn = 1.0 + 0.3 * normal
        elif name.endswith("bias"):
            drawn = 0.5 * normal
        else:
            drawn = normal / parameter.shape[-1] ** 0.5
        parameter.data.copy_(drawn.bfloat16())


def load(package: str, folder: Path, device: str, dtype: str) -> Passes:
    options = {"device": device} if package == "gpu" else {}
    model = module(package, "checkpoint.load").load_model(folder, dtype, **options)
    return Passes(package, model.config, device, dtype, model=model)


@everywhere
@on_cases
def test_float64_logits_are_those_of_the_library(saved, case, package, device):
    checkpoint = saved(case)
    assert len(list(checkpoint.single.glob("*.safetensors"))) == 1
    assert len(list(checkpoint.sharded.glob("*.safetensors"))) > 2
    for folder in (checkpoint.single, checkpoint.sharded):
        model = load(package, folder, device, "float64")
        assert difference(model.run(checkpoint.tokens), checkpoint.truth) <= 1e-10


LOWER = [pytest.param("reference", "cpu", "float32", id="reference-float32")]
for dtype in ("float32", "bfloat16", "float16"):
    LOWER.append(pytest.param("gpu", "cpu", dtype, id=f"gpu-{dtype}"))
    LOWER.append(pytest.param("gpu", "cuda", dtype, id=f"gpu-cuda-{dtype}", marks=pytest.mark.gpu))


@pytest.mark.parametrize("package, device, dtype", LOWER)
@on_cases
def test_the_error_in_lower_precision_is_at_most_twice_the_library_s(saved, case, package, device, dtype):
    """Ours <= 2 library + floor, both against float64; the floor is two units in the last place of the largest logit.

    Both add the same few thousand roundings in another order, so that their worst elements are of one size; twice
    allows for the order. The library runs on the CPU, where its products are accumulated like those of the reference.
    """
    checkpoint, kind = saved(case), getattr(torch, dtype)
    library = hf_float64.logits(hf_float64.load(checkpoint.single, kind), checkpoint.tokens)
    found = load(package, checkpoint.single, device, dtype).run(checkpoint.tokens)
    _check_error(found, checkpoint.truth, library, kind)


def _check_error(found: np.ndarray, truth: np.ndarray, library: np.ndarray, kind: torch.dtype) -> None:
    errors = np.abs(found.astype(np.float64) - truth)
    allowed = np.abs(library[-len(truth) :] - truth).max()
    floor = 1e-10 if kind is torch.float64 else 2 * torch.finfo(kind).eps * np.abs(truth).max()
    row, token = np.unravel_index(errors.argmax(), errors.shape)
    message = f"row {row}, token {token}: error {errors.max():.2e}, the library's worst {allowed:.2e}"
    print(message)
    assert errors.max() <= 2 * allowed + floor, message  # not a number fails as well


@st.composite
def configs(draw) -> ModelConfig:
    """Draw a small model with any combination of features."""
    groups, layers = draw(st.integers(1, 3)), draw(st.integers(1, 3))
    window = draw(st.none() | st.integers(1, 6))
    return ModelConfig(
        vocab_size=draw(st.integers(2, 9)),
        hidden_size=draw(st.integers(1, 12)),
        intermediate_size=draw(st.integers(1, 12)),
        num_hidden_layers=layers,
        num_attention_heads=groups * draw(st.integers(1, 3)),
        num_key_value_heads=groups,
        head_dim=2 * draw(st.integers(1, 5)),
        max_position_embeddings=64,
        rms_norm_eps=draw(st.sampled_from([1e-6, 1e-2])),
        rope_theta=draw(st.sampled_from([10.0, 10000.0])),
        rope_scaling=draw(st.sampled_from([None, LINEAR, LLAMA3])),
        tie_word_embeddings=draw(st.booleans()),
        attention_bias=draw(st.booleans()),
        attention_output_bias=draw(st.booleans()),
        query_key_norm=draw(st.booleans()),
        sliding_window=window,
        sliding_layers=() if window is None else tuple(draw(st.lists(st.booleans(), min_size=layers, max_size=layers))),
    )


@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
@given(config=configs(), seed=st.integers(0, 1000), num_rows=st.integers(1, 20))
def test_both_packages_compute_the_same_from_the_same_seed(device, config, seed, num_rows):
    """To 1e-12: logits of order 1 to 10 from a few hundred roundings of 2^-53."""
    tokens = np.random.default_rng(seed).integers(config.vocab_size, size=num_rows)
    reference = Passes("reference", config, seed=seed).run(tokens)
    port = Passes("gpu", config, device, seed=seed).run(tokens)
    assert difference(port, reference) <= 1e-12 * max(1.0, np.abs(reference).max())


@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
@given(
    st.integers(1, 7),
    st.integers(1, 7),
    st.integers(1, 7),
    st.integers(0, 2**32),
    st.lists(st.integers(0, 10**6), min_size=7, max_size=7),
)
def test_rope_is_the_same_in_both_and_turns_without_stretching(device, heads, rows, half, seed, positions):
    frequencies = np.sort(np.random.default_rng(seed).random(half))[::-1].copy()
    x = np.random.default_rng(seed).standard_normal((heads, rows, 2 * half))
    places = np.array(positions[:rows])
    cos, sin = reference_layers.rope_tables(frequencies, places)
    expected = reference_layers.rope(x, cos, sin)
    tables = port_layers.rope_tables(
        torch.tensor(frequencies, device=device), torch.tensor(places[None], device=device)
    )
    factors = (each.unsqueeze(1) for each in port_layers.rotation(*tables))
    found = port_layers.rotate(torch.tensor(x[None], device=device), *factors)
    assert difference(found[0].cpu().numpy(), expected) <= 1e-9  # an angle of 10^6 radians is known to 10^-10
    pairs, turned = (v[..., :half] + 1j * v[..., half:] for v in (x, expected))
    assert difference(np.abs(turned), np.abs(pairs)) <= 1e-12
    assert np.abs(pairs * np.exp(1j * places[:, None] * frequencies) - turned).max() <= 1e-9


@everywhere
@pytest.mark.parametrize("kind", KINDS)
def test_what_is_left_out_is_the_plain_causal_pass_over_tokens(package, device, kind):
    model = Passes(package, KINDS[kind], device)
    tokens, prefix = np.arange(7), np.arange(5)
    caches = [model.cache() for _ in range(2)]
    for found in caches:
        model.run(prefix, found)
    plain = model.run(tokens, caches[0])
    spelt_out = model.run(model.embed(tokens), caches[1], 5 + np.arange(7), np.tri(7, dtype=bool))
    assert same_bits(plain, spelt_out)


# Plausible mistakes. Each wraps one name that transformer.py imports, in both packages alike: only axes are indexed.


def _unscaled_frequencies(rope_frequencies: Any) -> Any:
    return lambda config: rope_frequencies(type(config)(**{**vars(config), "rope_scaling": None}))


MUTANTS = {
    "opposite turn": ("rope", lambda rope: lambda x, cos, sin: rope(x, cos, -sin), "llama"),
    "unscaled scores": ("attention", lambda attend: lambda q, *rest: attend(q * q.shape[-1] ** 0.5, *rest), "llama"),
    "no epsilon": ("rms_norm", lambda norm: lambda x, weight, eps: norm(x, weight, 0.0), "llama"),
    "no norm weight": ("rms_norm", lambda norm: lambda x, weight, eps: norm(x, weight * 0 + 1, eps), "llama"),
    "gate and up swapped": ("swiglu", lambda swiglu: lambda gate, up: swiglu(up, gate), "llama"),
    "frequencies without llama3": ("rope_frequencies", _unscaled_frequencies, "llama, llama3 rope"),
    "frequencies without linear": ("rope_frequencies", _unscaled_frequencies, "llama, linear rope"),
}


@everywhere
@pytest.mark.parametrize("mutant", MUTANTS)
def test_the_comparison_rejects_a_mistake_in_an_equation(saved, monkeypatch, mutant, package, device):
    home, (name, mutate, case) = module(package, "model.transformer"), MUTANTS[mutant]
    name = "rotate" if (package, name) == ("gpu", "rope") else name  # what the port turns heads with
    monkeypatch.setattr(home, name, mutate(getattr(home, name)))
    found = load(package, saved(case).single, device, "float64").run(saved(case).tokens)
    assert difference(found, saved(case).truth) > 1e-6
