"""Folders on the command line, or the names of repositories on the Hub in their place."""

from __future__ import annotations

import argparse
from pathlib import Path

from ..checkpoints import MODEL

__all__ = ["add_lookahead", "add_model", "fetch_folders", "place", "said"]

FLAGS = ("model", "lookahead", "draft_model", "ngram")


def place(text: str) -> Path:
    """Read a path or a name on the Hub; what begins with a dot or ends in a slash is a path, never a name."""
    path = Path(text)
    return path.absolute() if text.startswith(".") or text.endswith("/") else path


def add_model(parser: argparse.ArgumentParser) -> None:
    """Add --model."""
    parser.add_argument(
        "--model",
        type=place,
        default=MODEL,
        metavar="FOLDER",
        help="a Hugging Face folder (Llama, Mistral, Qwen2, Qwen3), or org/name on the Hub; default: the small model "
        "bundled",
    )
    parser.add_argument("--revision", metavar="NAME", help="branch, tag or commit of --model org/name; default: main")


def add_lookahead(parser: argparse.ArgumentParser) -> None:
    """Add --lookahead."""
    parser.add_argument(
        "--lookahead", type=place, metavar="FOLDER", help="look-ahead vectors for the model; default: the bundled ones"
    )


def fetch_folders(arguments: argparse.Namespace) -> None:
    """Put folders in the place of names on the Hub, at every flag that takes either; fetch them if need be.

    Raises:
        FileNotFoundError: there is no such repository or revision, or no way to it.
        ValueError: it may not be fetched, or a revision stands beside a folder.
    """
    from ..checkpoint.hub import local_folder

    for flag in FLAGS:
        given: Path | None = getattr(arguments, flag, None)
        if given is not None:
            revision = getattr(arguments, "revision", None) if flag == "model" else None
            instead = f"--{flag.replace('_', '-')} FOLDER"
            setattr(arguments, flag, local_folder(given.as_posix(), revision, flag == "lookahead", instead))
    arguments.revision = None  # from here on they are folders


def said(folder: Path) -> str:
    """Return a folder as it was asked for: by its name on the Hub, or as a path."""
    from pass_sampling.reference.checkpoint.folder import name_of

    name = name_of(folder)
    return name if "/" in name else str(folder)
