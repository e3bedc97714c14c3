"""A Hugging Face folder's generation_config.json: where a text ends. The sampling is the caller's.

Source: transformers 5.23, generation/configuration_utils.py; a key that is absent means what it means there.
"""

from __future__ import annotations

import logging
import os
from typing import Any, NamedTuple

from .folder import Field, errors_of, file_in, open_folder, read_json

Settings = dict[str, Any]

APPLIED = ("eos_token_id", "stop_strings")
SAMPLING = ("do_sample", "temperature", "top_k", "top_p")
# Settings that change a text and are not applied, with the value, beside null, that changes nothing.
OTHERS: Settings = {
    **dict.fromkeys(("min_length", "min_new_tokens", "min_p", "epsilon_cutoff", "eta_cutoff", "penalty_alpha"), 0),
    **dict.fromkeys(("no_repeat_ngram_size", "encoder_no_repeat_ngram_size"), 0),
    **dict.fromkeys(("num_beams", "typical_p", "guidance_scale"), 1),
    **dict.fromkeys(("repetition_penalty", "encoder_repetition_penalty"), 1),
    **dict.fromkeys(("remove_invalid_values", "token_healing", "is_assistant"), False),
    "suppress_tokens": [],
    "begin_suppress_tokens": [],
    **dict.fromkeys(("max_time", "top_h", "assistant_ensemble_weight", "dola_layers", "watermarking_config"), None),
    **dict.fromkeys(("bad_words_ids", "force_words_ids", "forced_bos_token_id", "forced_eos_token_id"), None),
    **dict.fromkeys(("exponential_decay_length_penalty", "sequence_bias", "constraints"), None),
}


TOKEN_IDS = Field(lambda value: type(value) is int and 0 <= value < 2**31, "token ids of at least 0")
TEXTS = Field(lambda value: isinstance(value, str) and value != "", "a text, or several, none of them empty")


class GenerationSettings(NamedTuple):
    """Where `generate` of transformers ends a text by default."""

    eos_token_ids: tuple[int, ...]
    stop_strings: tuple[str, ...]


def read_generation_config(folder: str | os.PathLike[str]) -> GenerationSettings:
    """Return where a text ends if `generate` of transformers is told nothing else.

    Settings come from generation_config.json or, where that is missing, from config.json. The log names settings that
    change the text and are not applied, such as a repetition penalty.

    Raises:
        FileNotFoundError: there is no such folder, or no config.json in it.
        ValueError: a file or a value is damaged.
    """
    root = open_folder(folder)
    path = file_in(root, "config.json")
    fallback = settings = read_json(path)
    if (root / "generation_config.json").exists():
        path = file_in(root, "generation_config.json")
        settings = read_json(path)
    others = [name for name in sorted(settings) if name in OTHERS and settings[name] not in (None, OTHERS[name])]
    if others:
        logging.getLogger(__name__).warning("%s: not applied: %s", path, ", ".join(others))
    with errors_of(path):
        eos = settings.get("eos_token_id")
        eos = fallback.get("eos_token_id") if eos is None else eos
        return GenerationSettings(
            _listed("eos_token_id", eos, TOKEN_IDS), _listed("stop_strings", settings.get("stop_strings"), TEXTS)
        )


def _listed(name: str, value: Any, field: Field) -> tuple[Any, ...]:
    """Return one value, or several in a list, or none for null."""
    values = [] if value is None else value if isinstance(value, list) else [value]
    if not all(map(field.is_valid, values)):
        raise ValueError(f"{name}: found {value!r:.80}, expected {field.expected}")
    return tuple(values)
