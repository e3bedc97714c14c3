"""Arguments that several commands share, and what is made of them."""

from __future__ import annotations

import argparse
import contextlib
import os
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from ..checkpoints import LOOKAHEAD, MODEL
from .places import add_lookahead, add_model, fetch_folders, said

if TYPE_CHECKING:
    from pass_sampling.reference.config import SamplingConfig

    from ..lookahead.vectors import LookAhead
    from ..model.transformer import Transformer

__all__ = [
    "add_device",
    "add_json",
    "add_lookahead",
    "add_machine",
    "add_model",
    "add_sampling",
    "add_seed",
    "add_text",
    "check_new_folder",
    "is_bundled",
    "load_vectors",
    "named_held_out",
    "no_vectors",
    "open_model",
    "read_training_texts",
    "sampling_of",
]


def add_machine(parser: argparse.ArgumentParser) -> None:
    """Add --dtype and --device."""
    parser.add_argument(
        "--dtype",
        help="what to compute in: float64, float32, bfloat16 or float16; default: what the checkpoint is stored in",
    )
    add_device(parser)


def add_device(parser: argparse.ArgumentParser) -> None:
    """Add --device."""
    parser.add_argument("--device", default="cpu", help="where to compute: cpu, cuda or cuda:N; default: %(default)s")


def add_sampling(parser: argparse.ArgumentParser, temperature: float = 0.8, top_k: int = 10) -> None:
    """Add the settings of the target distribution, and the seed."""
    parser.add_argument(
        "--temperature",
        type=float,
        default=temperature,
        metavar="X",
        help="0 is greedy, 1 the model's own distribution; default: %(default)s",
    )
    parser.add_argument(
        "--top-k",
        type=int,
        default=top_k,
        metavar="K",
        help="only the K likeliest tokens, 0 for all; default: %(default)s",
    )
    parser.add_argument(
        "--top-p",
        type=float,
        default=1.0,
        metavar="P",
        help="only the likeliest tokens that make up P; default: 1, all",
    )
    add_seed(parser)


def add_seed(parser: argparse.ArgumentParser) -> None:
    """Add --seed."""
    parser.add_argument(
        "--seed",
        type=int,
        default=0,
        metavar="N",
        help="same seed, machine and settings: same result; default: %(default)s",
    )


def add_json(parser: argparse.ArgumentParser) -> None:
    """Add --json."""
    parser.add_argument(
        "--json", action="store_true", help="print one JSON object, and nothing else on standard output"
    )


def add_text(parser: argparse.ArgumentParser) -> None:
    """Add where text comes from."""
    parser.add_argument(
        "--text",
        type=Path,
        nargs="+",
        metavar="PATH",
        help="text to learn from: files, and folders of .py, .txt, .md and .rst files; default: none",
    )
    parser.add_argument(
        "--standard-library",
        action="store_true",
        help="learn from the running Python's own source code instead, of which there is always some",
    )
    parser.add_argument(
        "--held-out-list",
        type=Path,
        metavar="FILE",
        help="names of files to hold out, one per line; default: about 5 %% of them",
    )


def sampling_of(arguments: argparse.Namespace) -> SamplingConfig:
    """Return the settings of the target distribution; the seed is checked as well, before anything is loaded."""
    from pass_sampling.reference.config import SamplingConfig, check_integer

    check_integer("seed", arguments.seed, 0, 2**64 - 1)
    return SamplingConfig(arguments.temperature, arguments.top_k, arguments.top_p)


def open_model(arguments: argparse.Namespace) -> Transformer:
    """Load the model."""
    from ..checkpoint.load import load_model

    fetch_folders(arguments)
    return load_model(arguments.model, arguments.dtype, arguments.device)


def check_new_folder(output: Path, what: str) -> None:
    """Refuse an output path that is taken or cannot be written, before hours are spent on what should go there.

    Raises:
        OSError: its name is too long.
        ValueError: there is something already, or no folder can be made there.
    """
    from ..training.resume import check_output, partial_file

    check_output(output, what)
    partial = partial_file(output)
    with contextlib.suppress(FileNotFoundError, NotADirectoryError):
        os.lstat(partial.with_name(f".{partial.name}.new"))  # the longest name that will be written
    above = next(folder for folder in partial.parents if os.path.lexists(folder))
    try:
        os.rmdir(tempfile.mkdtemp(prefix=".pass-sampling-", dir=above))  # permissions alone do not tell
    except OSError as error:
        reason = error.strerror or error
        raise ValueError(f"--output: {above} takes no new folder ({reason}), expected one that does") from None


def is_bundled(folder: Path) -> bool:
    """Say whether a path is that of the bundled model, however it is written."""
    return os.path.realpath(folder) == os.path.realpath(MODEL)


def load_vectors(arguments: argparse.Namespace, model: Transformer, bundled: Path = LOOKAHEAD) -> LookAhead | None:
    """Load the look-ahead vectors: those asked for, else for the bundled model its own, else None."""
    from ..lookahead.vectors import LookAhead

    folder = arguments.lookahead
    if folder is None and is_bundled(arguments.model):
        folder = bundled if bundled.is_dir() else LOOKAHEAD
    return None if folder is None else LookAhead.load(folder, model.device)


def no_vectors(model: Path) -> str:
    """Return what to say where vectors are needed and there are none."""
    return (
        f"found no look-ahead vectors for {said(model)}, expected --lookahead FOLDER "
        f"(pass-sampling train --model {said(model)} --self --output FOLDER makes them)"
    )


def read_training_texts(arguments: argparse.Namespace) -> dict[str, str]:
    """Read the text that was asked for, by name.

    Raises:
        FileNotFoundError: a path is not there.
        ValueError: none was asked for, or what was holds no text.
    """
    from ..training.text import read_texts, standard_library

    if arguments.standard_library:
        if arguments.text:
            raise ValueError("found both --text and --standard-library, expected one of them")
        return standard_library()
    if not arguments.text:
        choices = (
            "--text PATH, --standard-library or --self" if "own" in arguments else "--text PATH or --standard-library"
        )
        raise ValueError(f"found no text, expected {choices}")
    return read_texts(arguments.text)


def named_held_out(path: Path) -> list[str]:
    """Read a list of names, one per line; lines that begin with # say something about it.

    Raises:
        OSError: the file cannot be read.
        ValueError: it is not UTF-8.
    """
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except UnicodeDecodeError:
        raise ValueError(f"{path} is not UTF-8, expected a text file with a name on each line") from None
    return [line.strip() for line in lines if line.strip() and not line.startswith("#")]
