"""What a plan is made from: the ways to draft that there are for a model, places in text, and what it depends on."""

from __future__ import annotations

import argparse
import hashlib
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..checkpoints import HELD_OUT
from .bench_output import machine, versions
from .drafting import Unavailable
from .methods import METHODS, folders_of, method_called
from .options import named_held_out
from .text import encode_prompt, load_tokenizer

if TYPE_CHECKING:
    from pass_sampling.reference.config import SamplingConfig

    from ..bench.ways import Candidate
    from ..model.transformer import Transformer

__all__ = ["SOURCES", "folders_in", "made_for", "places_in_text", "ways_for"]

SOURCES = ("lookahead", "draft_model", "ngram")
NUM_PREFIXES, PREFIX_LENGTH = 64, 96  # that a calibration stands after
MOST_DRAFTS = 6  # of drafters that could go on


def made_for(model: Transformer, sampling: SamplingConfig, folders: dict[str, Path]) -> dict[str, Any]:
    """Return what a plan depends on."""
    where = {name: value for name, value in machine(model.device).items() if name != "load"}
    found: dict[str, Any] = {"model": {"name": model.name, "fingerprint": model.fingerprint}}
    found |= {name: identity for name, folder in folders.items() if (identity := _identity(folder)) is not None}
    return found | {
        "dtype": str(model.dtype).removeprefix("torch."),
        "sampling": {"temperature": sampling.temperature, "top_k": sampling.top_k, "top_p": sampling.top_p},
        "machine": where,
        "versions": versions(),
    }


def folders_in(options: dict[str, Any]) -> dict[str, Path]:
    """Return the folders among a plan's options, by their flags."""
    return {name: Path(folder) for name, folder in options.items() if name in SOURCES}


def ways_for(arguments: argparse.Namespace, model: Transformer, sampling: SamplingConfig) -> list[Candidate]:
    """Return every way of drafting that what was given allows; if nothing was, what there is for the model."""
    from ..bench.ways import Candidate, most_drafts, with_settings

    given = {flag for flag in SOURCES if getattr(arguments, flag) is not None}
    ways = []
    for name, entry in METHODS.items():
        if name == "autoregressive" or (given and not given & set(entry.takes)):
            continue
        asked = argparse.Namespace(**vars(arguments))
        if not {"lookahead"} & set(entry.takes):
            asked.num_draft = MOST_DRAFTS
        try:
            method = method_called(name, asked, model, sampling)
        except Unavailable:
            continue
        context = getattr(getattr(method, "drafter", None), "max_position_embeddings", None)
        context = min(context or model.max_position_embeddings, model.max_position_embeddings)
        fitting = ((context - _prefix_length(model) - 2) // 3 - 2) // 2  # drafts for which there are three steps
        most = min(most_drafts(method), fitting)
        if most > 0:
            ways.append(Candidate(name, with_settings(method, most, "token"), _sources_of(name, asked)))
    return ways


def _sources_of(name: str, arguments: argparse.Namespace) -> dict[str, Any]:
    """Return the folders that a method drafts from, as a plan keeps them."""
    return {flag: os.fspath(Path(folder).resolve()) for flag, folder in folders_of(name, arguments).items()}


def places_in_text(arguments: argparse.Namespace, model: Transformer) -> list[list[int]]:
    """Return beginnings of text: of Python's standard library, which every machine has."""
    from ..bench.prompts import pieces, read_library
    from .demo import PROMPTS

    tokenizer = load_tokenizer(arguments.model)
    texts = list(read_library(named_held_out(HELD_OUT)).values()) or list(PROMPTS)
    length = _prefix_length(model)
    return [encode_prompt(tokenizer, text)[:length] for text in pieces(texts, NUM_PREFIXES, length)]


def _prefix_length(model: Transformer) -> int:
    return max(1, min(PREFIX_LENGTH, model.max_position_embeddings // 4))


def _identity(folder: Path) -> dict[str, str] | None:
    """Return the name of a folder, and what tells its tensors from others; None if there is none."""
    if not folder.is_dir():
        return None
    digest = hashlib.sha256()
    for path in sorted([*folder.glob("*.safetensors"), *folder.glob("config.json")]):
        digest.update(f"{path.name} {path.stat().st_size}".encode())
        with path.open("rb") as file:
            digest.update(hashlib.file_digest(file, "sha256").digest())
    return {"name": folder.name, "fingerprint": digest.hexdigest()}
