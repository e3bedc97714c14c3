"""Names on the Hub: download `org/name` into a folder by huggingface_hub and its cache.

Only weights in safetensors, JSON and the files of tokenizers are fetched: no file that runs code when opened.
"""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any

from ..outside import reason_of
from .gguf import FETCHED, converted, fetched_folder

REPOSITORY = re.compile(r"([A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*)(?:@(\S+))?", re.ASCII)  # org/name@revision
WANTED = ("*.safetensors", "*.json", "*.jinja", "merges.txt", "vocab.txt", "tokenizer.model", "spiece.model")
UNWANTED = ("*/*", "consolidated*")  # other formats of the same model, in folders or next to it
VECTORS = ("config.json", "model.safetensors")


def local_folder(place: str | os.PathLike[str], vectors: bool = False, instead: str = "a folder") -> Path:
    """Return the folder that a path or a name on the Hub stands for; a path at which there is something wins.

    Offline mode, caches and tokens are huggingface_hub's: HF_HUB_OFFLINE, HF_HOME, HF_HUB_CACHE, HF_TOKEN.

    Args:
        place: a path, or as a string `org/name` or `org/name@revision`: a branch, a tag or a commit.
        vectors: whether it is look-ahead vectors, of which no other file is fetched.
        instead: what to use in place of a name that cannot be fetched, for the error message.
    """
    path, named = Path(place), REPOSITORY.fullmatch(place) if isinstance(place, str) else None
    if isinstance(place, str) and place in FETCHED and not os.path.lexists(path):
        path = fetched_folder(place)
        if not path.is_dir():
            raise FileNotFoundError(f"{place} is not on this machine, expected `pass-sampling fetch {place}` before")
    if named is not None and not os.path.lexists(path):
        path = _snapshot(named[1], named[2], vectors, instead)
    if not vectors and path.is_dir() and any(path.glob("*.gguf")) and not any(path.glob("model*.safetensors")):
        return converted(path)
    return path


def _snapshot(name: str, revision: str | None, vectors: bool, instead: str) -> Path:
    """Download a repository; if that fails, raise an error that gives the reason in one sentence."""
    from huggingface_hub import constants, errors, snapshot_download

    patterns: dict[str, Any] = {"allow_patterns": list(VECTORS if vectors else WANTED)}
    patterns |= {} if vectors else {"ignore_patterns": list(UNWANTED)}
    try:
        return Path(snapshot_download(name, revision=revision, **patterns))
    except Exception as error:  # of the network, of the disk, of the Hub
        if isinstance(error, OSError) and error.errno is not None and error.filename:  # the cache cannot be written
            raise
        unreachable = "offline mode (HF_HUB_OFFLINE)" if constants.HF_HUB_OFFLINE else "no way to reach the Hub"
        sentences: dict[Any, str] = {  # the first that fits: some of these are kinds of those after them
            errors.GatedRepoError: "a gated repository, expected its terms accepted at "
            f"https://huggingface.co/{name} and a token (hf auth login)",
            errors.RepositoryNotFoundError: "neither a folder nor a repository of that name on the Hub, or a private "
            "one, expected a name that is there, with a token (hf auth login) if it is private",
            errors.RevisionNotFoundError: f"no revision {revision!r:.80}, expected a branch, a tag or a commit of it",
            (errors.LocalEntryNotFoundError, errors.OfflineModeIsEnabled, ConnectionError): "no folder of that name, "
            f"not all of it in the cache, and {unreachable}, expected a network to fetch it once",
            Exception: f"that it cannot be fetched ({reason_of(error)}), expected a repository",
        }
        said = next(said for kind, said in sentences.items() if isinstance(error, kind))
        name += "" if revision is None else f" at the revision {revision!r:.80}"
        raise FileNotFoundError(f"{name}: found {said}, or {instead}") from None
