"""A Hugging Face folder's generation_config.json: where generation ends, and how `generate` would sample.

Source: transformers 5.23, generation/configuration_utils.py; a key that is absent means what it means there.
"""

from __future__ import annotations

import logging
import os
from pathlib import Path
from typing import Any

from ..config import SamplingConfig
from .folder import file_in, open_folder, read_json

__all__ = ["read_generation_config"]

Settings = dict[str, Any]

# Settings of generate() that change the text and have no field in SamplingConfig, with the values for "off".
OTHER_SAMPLERS: dict[str, tuple[Any, ...]] = {
    "num_beams": (1,),
    "min_p": (0, 0.0),
    "top_h": (),
    "typical_p": (1.0,),
    "epsilon_cutoff": (0.0,),
    "eta_cutoff": (0.0,),
    "repetition_penalty": (1.0,),
    "no_repeat_ngram_size": (0,),
    "bad_words_ids": (),
    "suppress_tokens": ([],),
    "begin_suppress_tokens": ([],),
    "sequence_bias": (),
    "forced_bos_token_id": (),
    "forced_eos_token_id": (),
    "exponential_decay_length_penalty": (),
    "guidance_scale": (1.0,),
    "min_length": (0,),
    "min_new_tokens": (0,),
    "watermarking_config": (),
}


def read_generation_config(folder: str | os.PathLike[str]) -> tuple[tuple[int, ...], SamplingConfig]:
    """Return the end-of-sequence ids and the sampling that `generate` of transformers would use by default.

    Settings come from generation_config.json or, where that is missing, from config.json. Unless `do_sample`
    is true this is greedy decoding; with it, an absent top_k means 50, and one above the vocabulary means no
    limit. Settings that SamplingConfig cannot express, such as a repetition penalty, are left out, and the
    log says so.

    Raises:
        FileNotFoundError: there is no such folder, or no config.json in it.
        ValueError: a file is damaged, or a value is none that sampling allows.
    """
    root = open_folder(folder)
    path = file_in(root, "config.json")
    fallback = settings = read_json(path)
    if (root / "generation_config.json").exists():
        path = file_in(root, "generation_config.json")
        settings = read_json(path)
    _log_other_samplers(path, settings)
    try:
        eos = settings.get("eos_token_id")
        return _eos_token_ids(fallback.get("eos_token_id") if eos is None else eos), _sampling(settings, fallback)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None


def _eos_token_ids(value: Any) -> tuple[int, ...]:
    ids = [] if value is None else value if isinstance(value, list) else [value]
    for token in ids:
        if type(token) is not int or not 0 <= token < 2**31:
            raise ValueError(f"eos_token_id: found {value!r:.80}, expected token ids of at least 0")
    return tuple(ids)


def _sampling(settings: Settings, config: Settings) -> SamplingConfig:
    sample = settings.get("do_sample")
    if sample not in (None, True, False):
        raise ValueError(f"do_sample: found {sample!r:.80}, expected true or false")
    if not sample:
        return SamplingConfig(temperature=0.0)

    def value(name: str, absent: float) -> Any:
        return absent if settings.get(name) is None else settings[name]

    sampling = SamplingConfig(value("temperature", 1.0), value("top_k", 50), value("top_p", 1.0))
    vocab_size = config.get("vocab_size")
    if type(vocab_size) is int and sampling.top_k >= vocab_size:
        return SamplingConfig(sampling.temperature, 0, sampling.top_p)
    return sampling


def _log_other_samplers(path: Path, settings: Settings) -> None:
    active = [name for name, off in OTHER_SAMPLERS.items() if settings.get(name) is not None]
    active = [name for name in active if settings[name] not in OTHER_SAMPLERS[name]]
    if active:
        logging.getLogger(__name__).warning("%s: not applied here: %s", path, ", ".join(active))
