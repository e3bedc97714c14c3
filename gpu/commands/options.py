"""Arguments that several commands share, and what is made of them."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..checkpoints import HELD_OUT, LOOKAHEAD, MODEL

if TYPE_CHECKING:
    from ..config import SamplingConfig
    from ..lookahead import LookAhead
    from ..transformer import Transformer

__all__ = [
    "add_json",
    "add_machine",
    "add_model",
    "add_sampling",
    "add_text",
    "load_tokenizer",
    "load_vectors",
    "named_held_out",
    "open_model",
    "read_training_texts",
    "sampling_of",
]


def add_model(parser: argparse.ArgumentParser) -> None:
    """Add --model."""
    parser.add_argument(
        "--model",
        type=Path,
        default=MODEL,
        metavar="FOLDER",
        help="a Hugging Face folder (Llama, Mistral, Qwen2, Qwen3); default: the small model in the box",
    )


def add_machine(parser: argparse.ArgumentParser) -> None:
    """Add --dtype and --device."""
    parser.add_argument("--dtype", help="float64, float32, bfloat16 or float16; default: the checkpoint's own")
    parser.add_argument("--device", default="cpu", help="cpu, cuda or cuda:N; default: cpu")


def add_sampling(parser: argparse.ArgumentParser, temperature: float = 0.8, top_k: int = 10) -> None:
    """Add the settings of the target law, and the seed."""
    parser.add_argument(
        "--temperature",
        type=float,
        default=temperature,
        help="0 is greedy, 1 the model's own law; default: %(default)s",
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
    parser.add_argument(
        "--seed", type=int, default=0, help="same seed, machine and settings: same result; default: %(default)s"
    )


def add_json(parser: argparse.ArgumentParser) -> None:
    """Add --json."""
    parser.add_argument("--json", action="store_true", help="print one JSON object and nothing else")


def add_text(parser: argparse.ArgumentParser) -> None:
    """Add where text comes from."""
    parser.add_argument(
        "--text",
        type=Path,
        nargs="+",
        metavar="PATH",
        help="text files, and folders of .py, .txt, .md and .rst files",
    )
    parser.add_argument(
        "--standard-library",
        action="store_true",
        help="the running Python's own source code, of which there is always some",
    )


def sampling_of(arguments: argparse.Namespace) -> SamplingConfig:
    """Return the settings of the target law."""
    from ..config import SamplingConfig

    return SamplingConfig(arguments.temperature, arguments.top_k, arguments.top_p)


def open_model(arguments: argparse.Namespace) -> Transformer:
    """Load the model."""
    from ..checkpoint import load_model

    return load_model(arguments.model, arguments.dtype, arguments.device)


def load_tokenizer(folder: Path) -> Any:
    """Load the tokenizer that lies beside a model.

    Raises:
        ValueError: there is none that transformers can read.
    """
    from transformers import AutoTokenizer
    from transformers.utils import logging

    logging.set_verbosity_error()  # type: ignore[no-untyped-call]
    try:
        return AutoTokenizer.from_pretrained(str(folder), local_files_only=True, trust_remote_code=False)
    except Exception as error:  # transformers raises anything here
        reason = " ".join(str(error).split())[:200]
        raise ValueError(f"{folder} holds no tokenizer ({reason}), expected tokenizer.json or the like") from None


def load_vectors(arguments: argparse.Namespace, model: Transformer) -> LookAhead | None:
    """Load the look-ahead vectors: those asked for, else for the model in the box its own, else None."""
    from ..lookahead import LookAhead

    folder = arguments.lookahead
    if folder is None and arguments.model == MODEL:
        folder = LOOKAHEAD
    return None if folder is None else LookAhead.load(folder, model.device)


def read_training_texts(arguments: argparse.Namespace) -> dict[str, str]:
    """Read the text that was asked for, by name.

    Raises:
        FileNotFoundError: a path is not there.
        ValueError: none was asked for, or what was holds no text.
    """
    from ..training.corpus import read_texts, standard_library

    if arguments.standard_library:
        if arguments.text:
            raise ValueError("found both --text and --standard-library, expected one of them")
        return standard_library()
    if not arguments.text:
        raise ValueError("found no text, expected --text PATH or --standard-library")
    return read_texts(arguments.text)


def named_held_out(path: Path = HELD_OUT) -> list[str]:
    """Read a list of names, one per line; lines that begin with # say something about it.

    Raises:
        OSError: the file cannot be read.
    """
    lines = path.read_text(encoding="utf-8").splitlines()
    return [line.strip() for line in lines if line.strip() and not line.startswith("#")]
