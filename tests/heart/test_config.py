"""Settings: what is refused, and what config.json and generation_config.json mean, by transformers' own account."""

from __future__ import annotations

import dataclasses
import logging
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from folders import FAMILIES, both_packages, config_json, edit_json, module, tiny_config, write_json

SIZES = [
    ("vocab_size", 2**26),
    ("hidden_size", 2**20),
    ("intermediate_size", 2**22),
    ("num_hidden_layers", 2**14),
    ("num_attention_heads", 2**16),
    ("num_key_value_heads", 2**16),
    ("max_position_embeddings", 2**30),
    ("sliding_window", 2**30),
]


def model_config(package: str, **changes: Any) -> Any:
    fields = {field.name: getattr(tiny_config(), field.name) for field in dataclasses.fields(tiny_config())}
    return module(package, "model.config").ModelConfig(**fields | changes)


@both_packages
@pytest.mark.parametrize(("name", "largest"), SIZES)
@pytest.mark.parametrize("value", [-1, 0, 10**15, 1.5, "8", True, [1]])
def test_absurd_sizes_are_refused_by_name(package: str, name: str, largest: int, value: Any) -> None:
    with pytest.raises(ValueError) as error:
        model_config(package, **{name: value})
    assert str(error.value) == f"{name}: found {value!r}, expected an integer from 1 to {largest}"


@both_packages
@pytest.mark.parametrize("name", ["rms_norm_eps", "rope_theta"])
@pytest.mark.parametrize("value", [math.nan, math.inf, -1.0, 0, None, "1e-6", True])
def test_numbers_that_are_not_positive_and_finite_are_refused(package: str, name: str, value: Any) -> None:
    with pytest.raises(ValueError) as error:
        model_config(package, **{name: value})
    assert str(error.value) == f"{name}: found {value!r}, expected a finite number above 0"


@both_packages
@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"num_key_value_heads": 3},
            "num_attention_heads: found 4, expected a multiple of num_key_value_heads 3",
        ),
        ({"head_dim": 5}, "head_dim: found 5, expected an even number for the rotary embedding"),
        ({"head_dim": 1}, "head_dim: found 1, expected an integer from 2 to 16384"),
        ({"attention_bias": 1}, "attention_bias: found 1, expected true or false"),
        ({"tie_word_embeddings": None}, "tie_word_embeddings: found None, expected true or false"),
        ({"rope_scaling": {}}, "rope_scaling: found {}, expected a RopeScaling or None"),
        (
            {"sliding_layers": (True, False)},
            "sliding_layers is given without a sliding_window, expected both or neither",
        ),
        (
            {"sliding_window": 4, "sliding_layers": (True,)},
            "sliding_layers has 1 entries, expected one for each of the 2 layers",
        ),
        (
            {"sliding_window": 4, "sliding_layers": (1, 0)},
            "sliding_layers: found (1, 0), expected a tuple of true or false, one per layer",
        ),
    ],
)
def test_settings_that_contradict_each_other_are_refused(package: str, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError) as error:
        model_config(package, **changes)
    assert str(error.value) == message


@both_packages
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("yarn", 2.0), "rope_type: found 'yarn', expected 'linear' or 'llama3'"),
        (("linear", 0.0), "factor: found 0.0, expected a finite number above 0"),
        (("linear", math.nan), "factor: found nan, expected a finite number above 0"),
        (("llama3", 8.0, 4.0, 4.0), "low_freq_factor: found 4.0, expected a number below high_freq_factor 4.0"),
        (
            ("llama3", 8.0, 1.0, 4.0, 0),
            "original_max_position_embeddings: found 0, expected an integer from 1 to 1073741824",
        ),
    ],
)
def test_rope_scaling_without_meaning_is_refused(package: str, arguments: Any, message: str) -> None:
    with pytest.raises(ValueError) as error:
        module(package, "model.config").RopeScaling(*arguments)
    assert str(error.value) == message


@both_packages
@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"temperature": -0.5}, "temperature: found -0.5, expected a finite number of at least 0"),
        ({"temperature": math.nan}, "temperature: found nan, expected a finite number of at least 0"),
        ({"temperature": math.inf}, "temperature: found inf, expected a finite number of at least 0"),
        ({"temperature": 10**400}, f"temperature: found 1{'0' * 79}, expected a finite number of at least 0"),
        ({"temperature": "1"}, "temperature: found '1', expected a finite number of at least 0"),
        ({"top_k": -1}, "top_k: found -1, expected an integer from 0 to 67108864"),
        ({"top_k": 2.0}, "top_k: found 2.0, expected an integer from 0 to 67108864"),
        ({"top_p": 0.0}, "top_p: found 0.0, expected a number above 0 and at most 1"),
        ({"top_p": 1.01}, "top_p: found 1.01, expected a number above 0 and at most 1"),
        ({"top_p": math.nan}, "top_p: found nan, expected a number above 0 and at most 1"),
    ],
)
def test_sampling_without_meaning_is_refused(package: str, settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError) as error:
        module(package, "config").SamplingConfig(**settings)
    assert str(error.value) == message


@both_packages
def test_top_k_above_the_vocabulary_is_refused(package: str) -> None:
    sampling = module(package, "config").SamplingConfig(top_k=11)
    sampling.check(11)
    with pytest.raises(ValueError) as error:
        sampling.check(10)
    assert str(error.value) == "top_k: found 11, expected at most the vocabulary size 10"


@both_packages
def test_numbers_of_numpy_become_plain_ones(package: str) -> None:
    sampling = module(package, "config").SamplingConfig(np.float32(0.5), np.int64(3), np.float64(0.9))
    assert [type(value) for value in dataclasses.astuple(sampling)] == [float, int, float]
    assert type(model_config(package, vocab_size=np.int32(9)).vocab_size) is int


@both_packages
def test_window_of_each_layer(package: str) -> None:
    assert model_config(package).window(0) is None
    assert model_config(package, sliding_window=5).window(1) == 5
    some = model_config(package, sliding_window=5, sliding_layers=(False, True))
    assert [some.window(layer) for layer in range(2)] == [None, 5]


BASE = {
    "vocab_size": 40,
    "hidden_size": 64,
    "intermediate_size": 48,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
}
LLAMA3 = {"factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
# Folders as people have them: absent keys, explicit nulls, the rope settings of transformers 4 and 5.
FOLDERS: list[dict[str, Any]] = [
    *({"model_type": family, "num_key_value_heads": 2} for family in FAMILIES),
    *({"model_type": family, "num_key_value_heads": None} for family in FAMILIES if family != "mistral"),
    *({"model_type": family, "num_attention_heads": 32} for family in FAMILIES),
    {"model_type": "llama"},
    {"model_type": "llama", "rms_norm_eps": 1e-5, "max_position_embeddings": 99, "tie_word_embeddings": True},
    {"model_type": "llama", "head_dim": 10, "attention_bias": True},
    {"model_type": "llama", "head_dim": None, "rope_theta": 500000},
    {"model_type": "llama", "rope_scaling": None, "rope_theta": 500000.0},
    {"model_type": "llama", "rope_scaling": {"type": "linear", "factor": 2.0}},
    {"model_type": "llama", "rope_scaling": {"rope_type": "linear", "type": "yarn", "factor": 3}, "rope_theta": 7.0},
    {"model_type": "llama", "rope_scaling": {"rope_type": "llama3", **LLAMA3}, "max_position_embeddings": 77},
    {
        "model_type": "llama",
        "rope_scaling": {"rope_type": "llama3", "original_max_position_embeddings": 33, **LLAMA3},
        "rope_theta": 5e5,
    },
    {
        "model_type": "llama",
        "rope_parameters": {"rope_type": "llama3", "rope_theta": 9.0, **LLAMA3},
        "original_max_position_embeddings": 44,
    },
    {"model_type": "llama", "rope_parameters": {"rope_type": "default", "rope_theta": 9.0}, "rope_theta": 8.0},
    {"model_type": "llama", "rope_parameters": {"rope_type": "linear", "factor": 2.0}, "rope_theta": 8.0},
    {"model_type": "llama", "rope_parameters": {"rope_theta": 9.0, "partial_rotary_factor": 1.0}},
    {"model_type": "mistral", "num_key_value_heads": 2, "sliding_window": None},
    {"model_type": "mistral", "num_key_value_heads": 2, "sliding_window": 7, "head_dim": 12},
    {"model_type": "qwen2", "num_key_value_heads": 2, "sliding_window": 7},
    {"model_type": "qwen2", "num_key_value_heads": 2, "sliding_window": 7, "use_sliding_window": True},
    {
        "model_type": "qwen2",
        "num_key_value_heads": 2,
        "sliding_window": 7,
        "use_sliding_window": True,
        "max_window_layers": 3,
    },
    {
        "model_type": "qwen3",
        "num_key_value_heads": 2,
        "use_sliding_window": True,
        "max_window_layers": 0,
        "attention_bias": True,
    },
    {
        "model_type": "qwen3",
        "num_key_value_heads": 2,
        "sliding_window": 9,
        "use_sliding_window": True,
        "layer_types": ["full_attention", "sliding_attention", "attention", "sliding_attention"],
        "head_dim": 6,
    },
]


@both_packages
@pytest.mark.torch
@pytest.mark.parametrize("settings", FOLDERS, ids=lambda settings: "-".join(map(str, settings.values()))[:60])
def test_config_json_means_what_transformers_says(package: str, settings: dict[str, Any], tmp_path: Path) -> None:
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    settings = BASE | settings
    write_json(tmp_path / "config.json", settings)
    ours = module(package, "checkpoint.load").read_config(tmp_path)
    theirs = AutoConfig.from_pretrained(tmp_path)
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(theirs)

    same_name = (*BASE, "num_key_value_heads", "max_position_embeddings", "rms_norm_eps", "tie_word_embeddings")
    for name in same_name:
        assert getattr(ours, name) == getattr(theirs, name), name
    attention = model.model.layers[0].self_attn
    assert ours.head_dim == attention.head_dim
    assert ours.attention_bias == (attention.q_proj.bias is not None)
    assert ours.attention_output_bias == (attention.o_proj.bias is not None)
    assert ours.query_key_norm == hasattr(attention, "q_norm")
    rope = theirs.rope_parameters
    assert ours.rope_theta == rope["rope_theta"]
    if rope["rope_type"] == "default":
        assert ours.rope_scaling is None
    else:
        for name in set(rope) & {field.name for field in dataclasses.fields(ours.rope_scaling)}:
            assert getattr(ours.rope_scaling, name) == rope[name], name
    for layer in range(4):
        if settings["model_type"] == "mistral":
            assert ours.window(layer) == theirs.sliding_window
        else:
            assert ours.window(layer) == getattr(model.model.layers[layer].self_attn, "sliding_window", None)


@both_packages
@pytest.mark.parametrize(
    "config",
    [
        *(tiny_config(family) for family in FAMILIES),
        tiny_config(rope_scaling=module("reference", "model.config").RopeScaling("linear", 2.0), rope_theta=77.0),
        tiny_config("qwen3", attention_bias=True, attention_output_bias=True, tie_word_embeddings=True),
        tiny_config("qwen2", sliding_window=3, sliding_layers=(False, True)),
        tiny_config("qwen2", sliding_window=3),
    ],
)
def test_a_config_survives_being_written(package: str, config: Any, tmp_path: Path) -> None:
    family = "qwen3" if config.query_key_norm else "qwen2" if config.attention_bias else "llama"
    family = "mistral" if config == tiny_config("mistral") else family
    write_json(tmp_path / "config.json", config_json(config, family))
    read = module(package, "checkpoint.load").read_config(tmp_path)
    assert dataclasses.asdict(read) == dataclasses.asdict(config)


GENERATION: list[dict[str, Any]] = [
    {},
    {"do_sample": False, "temperature": 0.7},
    {"do_sample": True},
    {"do_sample": True, "temperature": 0.6, "top_p": 0.9},
    {"do_sample": True, "top_k": 0, "top_p": 0.5},
    {"do_sample": True, "top_k": 20, "top_p": 0.8, "temperature": 0.7},
    {"do_sample": True, "top_k": 1000},
    {"do_sample": True, "top_k": None, "temperature": None, "top_p": None},
    {"eos_token_id": 3},
    {"eos_token_id": [3, 5]},
]


@both_packages
@pytest.mark.torch
@pytest.mark.parametrize("inside_config", [False, True], ids=["generation_config.json", "config.json"])
@pytest.mark.parametrize("settings", GENERATION, ids=str)
@pytest.mark.parametrize("vocab_size", [40, 60])
def test_generation_settings_mean_what_transformers_says(
    package: str, settings: dict[str, Any], inside_config: bool, vocab_size: int, tmp_path: Path
) -> None:
    from transformers import AutoModelForCausalLM
    from transformers.generation import GenerationConfig

    config = BASE | {"model_type": "llama", "vocab_size": vocab_size}
    if inside_config:
        write_json(tmp_path / "config.json", config | settings)
        theirs = GenerationConfig.from_pretrained(tmp_path, "config.json", _from_model_config=True)
    else:
        write_json(tmp_path / "config.json", config)
        write_json(tmp_path / "generation_config.json", settings)
        theirs = GenerationConfig.from_pretrained(tmp_path)
    eos_token_ids, sampling, _ = module(package, "checkpoint.load").read_generation_config(tmp_path)

    eos = theirs.eos_token_id
    assert eos_token_ids == (() if eos is None else tuple(eos) if isinstance(eos, list) else (eos,))
    defaults = AutoModelForCausalLM.from_config(module_config(tmp_path)).generation_config
    effective = defaults._get_default_generation_params() | {
        name: value for name, value in theirs.to_dict().items() if value is not None
    }
    if not effective["do_sample"]:
        assert sampling == module(package, "config").SamplingConfig(temperature=0.0)
        return
    top_k = effective["top_k"] if effective["top_k"] < vocab_size else 0
    expected = (effective["temperature"], top_k, effective["top_p"])
    assert (sampling.temperature, sampling.top_k, sampling.top_p) == expected


def module_config(folder: Path) -> Any:
    from transformers import AutoConfig

    return AutoConfig.from_pretrained(folder)


@both_packages
def test_end_ids_fall_back_to_config_json(package: str, tmp_path: Path) -> None:
    write_json(tmp_path / "config.json", config_json(tiny_config()) | {"eos_token_id": [4, 6]})
    read = module(package, "checkpoint.load").read_generation_config
    assert read(tmp_path)[0] == (4, 6)
    write_json(tmp_path / "generation_config.json", {"do_sample": True})
    assert read(tmp_path)[0] == (4, 6)
    edit_json(tmp_path / "generation_config.json", eos_token_id=5)
    assert read(tmp_path)[0] == (5,)
    edit_json(tmp_path / "config.json", eos_token_id=...)
    edit_json(tmp_path / "generation_config.json", eos_token_id=None)
    assert read(tmp_path)[0] == ()


def logged(package: str, folder: Path, caplog: pytest.LogCaptureFixture) -> tuple[Any, list[str]]:
    """What is read of the settings in a folder, and what the log says of them."""
    caplog.clear()
    with caplog.at_level(logging.WARNING):
        found = module(package, "checkpoint.load").read_generation_config(folder)
    return found, [record.getMessage() for record in caplog.records]


@both_packages
@pytest.mark.torch
@pytest.mark.parametrize("name", ["config.json", "generation_config.json"])
def test_every_setting_of_the_library_is_applied_named_or_changes_no_text(
    package: str, name: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """The list of settings is that of the class; what changes no text is compared with its `generate` elsewhere."""
    from generation_settings import OTHER_VALUES, settings_of

    settings, config = (
        module(package, "checkpoint.generation_settings"),
        config_json(tiny_config()) | {"vocab_size": 60},
    )

    def read(**changes: Any) -> tuple[Any, list[str]]:
        write_json(tmp_path / "config.json", config)
        write_json(tmp_path / name, (config if name == "config.json" else {}) | changes)
        return logged(package, tmp_path, caplog)

    for setting, default in settings_of().items():
        assert read(**{setting: default}) == read() == (read()[0], []), setting
        beside, value = OTHER_VALUES[setting]
        found, said = read(**beside | {setting: value})
        assert (found != read(**beside)[0]) == (setting in settings.APPLIED), setting
        assert said == ([f"{tmp_path / name}: not applied: {setting}"] if setting in settings.OTHERS else []), setting
    assert set(settings_of()) == set(settings.APPLIED) | set(settings.OTHERS) | settings.NO_TEXT


@both_packages
def test_settings_that_are_not_applied_are_named_and_those_that_are_off_are_not(
    package: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    write_json(tmp_path / "config.json", config_json(tiny_config()))
    path = tmp_path / "generation_config.json"
    off = {"num_beams": 1, "min_p": 0, "guidance_scale": 1.0, "suppress_tokens": [], "token_healing": False}
    write_json(path, {"do_sample": True, "repetition_penalty": 1.1, "of_a_later_version": True, "min_p": 0.1, "_a": 1})
    _, said = logged(package, tmp_path, caplog)
    assert said == [f"{path}: not applied: min_p, of_a_later_version, repetition_penalty"]
    write_json(path, off)
    assert logged(package, tmp_path, caplog)[1] == []


@both_packages
def test_stop_strings_are_read_beside_the_end_ids(package: str, tmp_path: Path) -> None:
    write_json(tmp_path / "config.json", config_json(tiny_config()))
    path, read = tmp_path / "generation_config.json", module(package, "checkpoint.load").read_generation_config
    for stops, expected in ((None, ()), ("###", ("###",)), (["a", "b"], ("a", "b")), ([], ())):
        write_json(path, {"stop_strings": stops})
        assert read(tmp_path).stop_strings == expected
    for bad in (3, "", [""], ["a", None], {"a": 1}):
        write_json(path, {"stop_strings": bad})
        with pytest.raises(ValueError, match=r"generation_config\.json: stop_strings: found .*, expected .*text"):
            read(tmp_path)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=6,
)
KEYS = sorted(
    {*config_json(tiny_config("qwen3")), "rope_scaling", "rope_theta", "layer_types", "auto_map", "mlp_bias"}
    | {"eos_token_id", "do_sample", "temperature", "top_k", "top_p", "quantization_config", "max_window_layers"}
)


@both_packages
@given(family=st.sampled_from(FAMILIES), changes=st.dictionaries(st.sampled_from(KEYS), JSON, max_size=3))
def test_whatever_config_json_says_the_answer_is_a_config_or_one_sentence(
    package: str, family: str, changes: dict[str, Any], tmp_path_factory: pytest.TempPathFactory
) -> None:
    folder = tmp_path_factory.getbasetemp() / f"any_config_{package}"
    folder.mkdir(exist_ok=True)
    write_json(folder / "config.json", config_json(tiny_config(family), family) | changes)
    checkpoint = module(package, "checkpoint.load")
    for read in (checkpoint.read_config, checkpoint.read_generation_config):
        try:
            read(folder)
        except ValueError as error:
            assert str(error).startswith(str(folder / "config.json"))
            assert "expected" in str(error)
            assert "\n" not in str(error)
