"""Settings that are refused, and what config.json and generation_config.json mean by transformers' own account.

All of this is in the reference alone; the port imports it.
"""

import dataclasses
import logging
import math
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from folders import FAMILIES, config_json, edit_json, tiny_config, write_json
from pass_sampling.reference.checkpoint import generation_settings as home
from pass_sampling.reference.checkpoint.generation_settings import read_generation_config
from pass_sampling.reference.checkpoint.model_settings import read_config
from pass_sampling.reference.config import SamplingConfig
from pass_sampling.reference.model.config import RopeScaling

SIZES = {
    "vocab_size": 2**26,
    "hidden_size": 2**20,
    "intermediate_size": 2**22,
    "num_hidden_layers": 2**14,
    "num_attention_heads": 2**16,
    "num_key_value_heads": 2**16,
    "max_position_embeddings": 2**30,
    "sliding_window": 2**30,
}
MODELS: list[tuple[dict[str, Any], str]] = [  # settings, and why they are refused
    *(
        ({name: value}, f"{name}: found {value!r}, expected an integer from 1 to {largest}")
        for name, largest in SIZES.items()
        for value in (-1, 0, 10**15, 1.5, "8", True, [1])
    ),
    *(
        ({name: value}, f"{name}: found {value!r}, expected a finite number above 0")
        for name in ("rms_norm_eps", "rope_theta")
        for value in (math.nan, math.inf, -1.0, 0, None, "1e-6", True)
    ),
    ({"num_key_value_heads": 3}, "num_attention_heads: found 4, expected a multiple of num_key_value_heads 3"),
    ({"head_dim": 5}, "head_dim: found 5, expected an even number for the rotary embedding"),
    ({"attention_bias": 1}, "attention_bias: found 1, expected true or false"),
    ({"rope_scaling": {}}, "rope_scaling: found {}, expected a RopeScaling or None"),
    ({"sliding_layers": (True, False)}, "sliding_layers is given without a sliding_window, expected both or neither"),
    (
        {"sliding_window": 4, "sliding_layers": (True,)},
        "sliding_layers has 1 entries, expected one for each of the 2 layers",
    ),
    (
        {"sliding_window": 4, "sliding_layers": (1, 0)},
        "sliding_layers: found (1, 0), expected a tuple of true or false, one per layer",
    ),
]
ROPES: list[tuple[dict[str, Any], str]] = [
    ({"rope_type": "yarn"}, "rope_type: found 'yarn', expected 'linear' or 'llama3'"),
    *(({"factor": value}, f"factor: found {value}, expected a finite number above 0") for value in (0.0, math.nan)),
    (
        {"rope_type": "llama3", "low_freq_factor": 4.0, "high_freq_factor": 4.0},
        "low_freq_factor: found 4.0, expected a number below high_freq_factor 4.0",
    ),
    (
        {"rope_type": "llama3", "original_max_position_embeddings": 0},
        "original_max_position_embeddings: found 0, expected an integer from 1 to 1073741824",
    ),
]
SAMPLING: list[tuple[dict[str, Any], str]] = [
    *(
        ({"temperature": value}, f"temperature: found {value!r:.80}, expected a finite number of at least 0")
        for value in (-0.5, math.nan, math.inf, 10**400, "1")
    ),
    *(({"top_k": value}, f"top_k: found {value}, expected an integer from 0 to 67108864") for value in (-1, 2.0)),
    *(
        ({"top_p": value}, f"top_p: found {value}, expected a number above 0 and at most 1")
        for value in (0.0, 1.01, math.nan)
    ),
]
REFUSED = [
    *((tiny_config, *case) for case in MODELS),
    *((partial(RopeScaling, rope_type="linear", factor=8.0), *case) for case in ROPES),
    *((SamplingConfig, *case) for case in SAMPLING),
    (SamplingConfig(top_k=11).check, {"vocab_size": 10}, "top_k: found 11, expected at most the vocabulary size 10"),
]


@pytest.mark.parametrize(("make", "settings", "message"), REFUSED, ids=[message[:80] for *_, message in REFUSED])
def test_settings_without_meaning_are_refused_by_name(make, settings, message):
    with pytest.raises(ValueError) as error:
        make(**settings)
    assert str(error.value) == message


BASE = {"vocab_size": 40, "hidden_size": 64, "intermediate_size": 48, "num_hidden_layers": 4, "num_attention_heads": 4}
LLAMA3 = {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
TWO_KEYS, SLIDING = {"num_key_value_heads": 2}, {"sliding_window": 7, "use_sliding_window": True}
MIXED = ["full_attention", "sliding_attention", "attention", "sliding_attention"]
OF_FAMILIES: dict[str, list[dict[str, Any]]] = {
    "llama": [
        {},
        {"rms_norm_eps": 1e-5, "max_position_embeddings": 99, "tie_word_embeddings": True},
        {"head_dim": 10, "attention_bias": True},
        {"head_dim": None, "rope_theta": 500000},
        {"rope_scaling": None, "rope_theta": 500000.0},
        {"rope_scaling": {"type": "linear", "factor": 2.0}},
        {"rope_scaling": {"rope_type": "linear", "type": "yarn", "factor": 3}, "rope_theta": 7.0},
        {"rope_scaling": LLAMA3, "max_position_embeddings": 77},
        {"rope_scaling": LLAMA3 | {"original_max_position_embeddings": 33}, "rope_theta": 5e5},
        {"rope_parameters": LLAMA3 | {"rope_theta": 9.0}, "original_max_position_embeddings": 44},
        {"rope_parameters": {"rope_type": "default", "rope_theta": 9.0}, "rope_theta": 8.0},
        {"rope_parameters": {"rope_type": "linear", "factor": 2.0}, "rope_theta": 8.0},
        {"rope_parameters": {"rope_theta": 9.0, "partial_rotary_factor": 1.0}},
    ],
    "mistral": [TWO_KEYS | {"sliding_window": None}, TWO_KEYS | {"sliding_window": 7, "head_dim": 12}],
    "qwen2": [TWO_KEYS | {"sliding_window": 7}, TWO_KEYS | SLIDING, TWO_KEYS | SLIDING | {"max_window_layers": 3}],
    "qwen3": [
        {"use_sliding_window": True, "max_window_layers": 0, "attention_bias": True} | TWO_KEYS,
        TWO_KEYS | SLIDING | {"sliding_window": 9, "layer_types": MIXED, "head_dim": 6},
    ],
}
# Folders as people have them: absent keys, explicit nulls, the rope settings of transformers 4 and 5.
FOLDERS: list[dict[str, Any]] = [
    *({"model_type": family, "num_key_value_heads": 2} for family in FAMILIES),
    *({"model_type": family, "num_key_value_heads": None} for family in FAMILIES if family != "mistral"),
    *({"model_type": family, "num_attention_heads": 32} for family in FAMILIES),
    *({"model_type": family} | settings for family, some in OF_FAMILIES.items() for settings in some),
]


@pytest.mark.torch
@pytest.mark.parametrize("settings", FOLDERS, ids=lambda settings: "-".join(map(str, settings.values()))[:60])
def test_config_json_means_what_transformers_says(settings: dict[str, Any], tmp_path: Path) -> None:
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    settings = BASE | settings
    write_json(tmp_path / "config.json", settings)
    ours = read_config(tmp_path)
    theirs = AutoConfig.from_pretrained(tmp_path)
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(theirs)

    for name in (*BASE, "num_key_value_heads", "max_position_embeddings", "rms_norm_eps", "tie_word_embeddings"):
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


def test_end_ids_fall_back_to_config_json(tmp_path: Path) -> None:
    write_json(tmp_path / "config.json", config_json(tiny_config()) | {"eos_token_id": [4, 6]})
    assert read_generation_config(tmp_path)[0] == (4, 6)
    write_json(tmp_path / "generation_config.json", {"do_sample": True})
    assert read_generation_config(tmp_path)[0] == (4, 6)
    edit_json(tmp_path / "generation_config.json", eos_token_id=5)
    assert read_generation_config(tmp_path)[0] == (5,)
    edit_json(tmp_path / "config.json", eos_token_id=...)
    edit_json(tmp_path / "generation_config.json", eos_token_id=None)
    assert read_generation_config(tmp_path)[0] == ()


def logged(folder: Path, caplog: pytest.LogCaptureFixture) -> tuple[Any, list[str]]:
    """Return the settings that are read from a folder, and the warnings of the log."""
    caplog.clear()
    with caplog.at_level(logging.WARNING):
        found = read_generation_config(folder)
    return found, [record.getMessage() for record in caplog.records]


@pytest.mark.torch
@pytest.mark.parametrize("name", ["config.json", "generation_config.json"])
def test_every_setting_of_the_library_is_applied_named_or_changes_no_text(name, tmp_path, caplog):
    """The list of settings is that of the class; what changes no text is compared with its `generate` elsewhere."""
    from generation_settings import OTHER_VALUES, settings_of

    config = config_json(tiny_config()) | {"vocab_size": 60}

    def read(**changes: Any) -> tuple[Any, list[str]]:
        write_json(tmp_path / "config.json", config)
        write_json(tmp_path / name, (config if name == "config.json" else {}) | changes)
        return logged(tmp_path, caplog)

    for setting, default in settings_of().items():
        assert read(**{setting: default}) == read() == (read()[0], []), setting
        beside, value = OTHER_VALUES[setting]
        found, said = read(**beside | {setting: value})
        assert (found != read(**beside)[0]) == (setting in home.APPLIED), setting
        assert said == ([f"{tmp_path / name}: not applied: {setting}"] if setting in home.OTHERS else []), setting
    assert {*home.APPLIED, *home.SAMPLING, *home.OTHERS} <= set(settings_of())


def test_stop_strings_are_read_beside_the_end_ids(tmp_path: Path) -> None:
    write_json(tmp_path / "config.json", config_json(tiny_config()))
    path = tmp_path / "generation_config.json"
    for stops, expected in ((None, ()), ("###", ("###",)), (["a", "b"], ("a", "b")), ([], ())):
        write_json(path, {"stop_strings": stops})
        assert read_generation_config(tmp_path).stop_strings == expected
    for bad in (3, "", [""], ["a", None], {"a": 1}):
        write_json(path, {"stop_strings": bad})
        with pytest.raises(ValueError, match=r"generation_config\.json: stop_strings: found .*, expected .*text"):
            read_generation_config(tmp_path)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=6,
)
KEYS = sorted(
    {*config_json(tiny_config("qwen3")), "rope_scaling", "rope_theta", "layer_types", "auto_map", "mlp_bias"}
    | {"eos_token_id", "do_sample", "temperature", "top_k", "top_p", "quantization_config", "max_window_layers"}
)


@given(family=st.sampled_from(FAMILIES), changes=st.dictionaries(st.sampled_from(KEYS), JSON, max_size=3))
def test_whatever_config_json_says_the_answer_is_a_config_or_one_sentence(family, changes, tmp_path_factory):
    folder = tmp_path_factory.getbasetemp() / "any_config"
    folder.mkdir(exist_ok=True)
    write_json(folder / "config.json", config_json(tiny_config(family), family) | changes)
    for read in (read_config, read_generation_config):
        try:
            read(folder)
        except ValueError as error:
            assert str(error).startswith(str(folder / "config.json"))
            assert "expected" in str(error) and "\n" not in str(error)
