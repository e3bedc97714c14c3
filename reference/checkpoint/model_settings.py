"""A Hugging Face folder's config.json: the shape of the model, or one sentence why it is refused.

Source: transformers 5.23, configuration_{llama,mistral,qwen2,qwen3}.py and modeling_rope_utils.py; a key that
is absent means what it means there.
"""

from __future__ import annotations

import os
from typing import Any

from ..model.config import ModelConfig, RopeScaling
from .folder import FLAG, Field, check_fields, errors_of, file_in, open_folder, read_json

Settings = dict[str, Any]

QWEN: Settings = {"max_position_embeddings": 32768, "num_key_value_heads": 32, "sliding_window": 4096}
# The values of absent keys: those that differ between the families, and the others.
FAMILIES: dict[str, Settings] = {
    "llama": {"max_position_embeddings": 2048},
    "mistral": {"max_position_embeddings": 131072, "num_key_value_heads": 8, "sliding_window": 4096},
    "qwen2": QWEN,
    "qwen3": QWEN | {"head_dim": 128},
}
DEFAULTS: Settings = {
    "rms_norm_eps": 1e-6,
    "rope_theta": 10000.0,
    "tie_word_embeddings": False,
    "attention_bias": False,
    "use_sliding_window": False,
    "mlp_bias": False,
    "hidden_act": "silu",
}
ONLY = {  # the only values of these keys that are supported
    "mlp_bias": Field(lambda value: value is False, "false"),
    "hidden_act": Field(lambda value: value == "silu", "'silu'"),
    "use_sliding_window": FLAG,
}
SIZES = ("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads")
ROPE_KEYS = {"rope_type", "type", "rope_theta", "factor", "low_freq_factor", "high_freq_factor"}
ROPE_KEYS |= {"original_max_position_embeddings", "partial_rotary_factor"}


def read_config(folder: str | os.PathLike[str]) -> ModelConfig:
    """Return the shape of the model in a folder; raise ValueError for what is damaged, absurd or not supported."""
    path = file_in(open_folder(folder), "config.json")
    settings = read_json(path)
    with errors_of(path):
        return _model_config(settings)


def _model_config(settings: Settings) -> ModelConfig:
    family = settings.get("model_type")
    if family not in tuple(FAMILIES):
        raise ValueError(f"model_type: found {family!r:.80}, expected llama, mistral, qwen2 or qwen3")
    settings = DEFAULTS | FAMILIES[family] | settings
    _refuse_unsupported(settings)
    for name in SIZES:
        if name not in settings:
            raise ValueError(f"{name} is missing, expected an integer")
    heads, biased = settings["num_attention_heads"], settings["attention_bias"]
    rope_theta, rope_scaling = _rope(settings)
    sliding_window, sliding_layers = _window(family, settings)
    return ModelConfig(
        **{name: settings[name] for name in SIZES},
        num_key_value_heads=heads if settings.get("num_key_value_heads") is None else settings["num_key_value_heads"],
        head_dim=_head_dim(settings),
        max_position_embeddings=settings["max_position_embeddings"],
        rms_norm_eps=settings["rms_norm_eps"],
        rope_theta=rope_theta,
        rope_scaling=rope_scaling,
        tie_word_embeddings=settings["tie_word_embeddings"],
        attention_bias=biased if family in ("llama", "qwen3") else family == "qwen2",
        attention_output_bias=biased if family in ("llama", "qwen3") else False,
        query_key_norm=family == "qwen3",
        sliding_window=sliding_window,
        sliding_layers=sliding_layers,
    )


def _refuse_unsupported(settings: Settings) -> None:
    if settings.get("auto_map"):
        raise ValueError("auto_map asks to run code from the folder, expected a model that needs none")
    for name in ("quantization_config", "compression_config"):
        if settings.get(name):
            method = settings[name].get("quant_method") if isinstance(settings[name], dict) else settings[name]
            raise ValueError(f"{name} asks for {method!r:.80}, expected weights that are not quantised")
    if settings.get("per_layer_config"):
        raise ValueError("per_layer_config is set, expected layers of one shape")
    check_fields(settings, ONLY)


def _head_dim(settings: Settings) -> Any:
    if "head_dim" in settings and (settings["head_dim"] is not None or settings["model_type"] == "qwen3"):
        return settings["head_dim"]
    width, heads = settings["hidden_size"], settings["num_attention_heads"]
    if type(width) is not int or type(heads) is not int or heads < 1:
        return 2  # ModelConfig refuses the size itself, by name
    if width % heads:
        raise ValueError(f"hidden_size: found {width}, expected a multiple of num_attention_heads {heads}")
    return width // heads


def _rope(settings: Settings) -> tuple[Any, RopeScaling | None]:
    """Read `rope_parameters` (transformers 5) or `rope_theta` and `rope_scaling` (before)."""
    rope = settings.get("rope_scaling") or settings.get("rope_parameters") or {}
    if not isinstance(rope, dict):
        raise ValueError(f"rope_parameters: found {rope!r:.80}, expected an object")
    kind = rope.get("rope_type", rope.get("type", "default"))
    if kind not in ("default", "linear", "llama3"):
        raise ValueError(f"rope_type: found {kind!r:.80}, expected 'default', 'linear' or 'llama3'")
    unknown = sorted(set(rope) - ROPE_KEYS)
    if unknown:
        raise ValueError(f"rope_parameters has the unknown key {unknown[0]!r:.80}, expected only rotary settings")
    partial = rope.get("partial_rotary_factor", settings.get("partial_rotary_factor"))
    if partial not in (None, 1):
        raise ValueError(f"partial_rotary_factor: found {partial!r:.80}, expected 1")
    theta = rope.get("rope_theta", settings["rope_theta"])
    if kind == "default":
        return theta, None
    needed = ["factor"] if kind == "linear" else ["factor", "low_freq_factor", "high_freq_factor"]
    for name in needed:
        if name not in rope:
            raise ValueError(f"rope_parameters has no {name}, expected one for rope_type {kind!r}")
    scaling = {name: rope[name] for name in needed}
    if kind == "llama3":
        trained = rope.get("original_max_position_embeddings", settings["max_position_embeddings"])
        scaling["original_max_position_embeddings"] = settings.get("original_max_position_embeddings", trained)
    return theta, RopeScaling(kind, **scaling)


def _window(family: str, settings: Settings) -> tuple[Any, tuple[bool, ...]]:
    """Return the sliding window and the layers that use it, () for all of them."""
    window, layers = settings.get("sliding_window"), settings["num_hidden_layers"]
    if family == "llama" and window is not None:
        raise ValueError(f"sliding_window: found {window!r:.80}, expected none for model_type llama")
    if family.startswith("qwen") and not settings["use_sliding_window"]:
        window = None
    kinds = settings.get("layer_types")
    if kinds is None:
        if window is None or family == "mistral":
            return window, ()
        first = settings.get("max_window_layers", 28)
        if type(first) is not int or first < 0:
            raise ValueError(f"max_window_layers: found {first!r:.80}, expected an integer of at least 0")
        if type(layers) is not int or layers > 2**14:
            return window, ()  # ModelConfig refuses the number of layers, by name
        kinds = ["sliding_attention" if layer >= first else "full_attention" for layer in range(layers)]
    if not isinstance(kinds, list) or len(kinds) != layers:
        raise ValueError(f"layer_types: found {kinds!r:.80}, expected one name for each of the {layers!r:.80} layers")
    for kind in kinds:
        if kind not in ("full_attention", "attention", "sliding_attention"):
            raise ValueError(f"layer_types names {kind!r:.80}, expected 'full_attention' or 'sliding_attention'")
    sliding = tuple(kind == "sliding_attention" for kind in kinds)
    if any(sliding) and window is None:
        raise ValueError("layer_types names 'sliding_attention', expected a sliding_window that is in use")
    if family == "mistral" and window is not None and not all(sliding):
        raise ValueError("layer_types names 'full_attention', expected the sliding_window in every layer of mistral")
    if not any(sliding):
        return None, ()
    return window, () if all(sliding) else sliding
