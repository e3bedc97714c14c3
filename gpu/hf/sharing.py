"""A folder for the Hub: look-ahead vectors, and the code with which transformers' `generate` uses them by name."""

from __future__ import annotations

import os
from pathlib import Path

from ..lookahead import LookAhead
from .card import model_card

__all__ = ["write_custom_generate"]

CODE = '''"""Decode with the look-ahead vectors of this repository; pass-sampling does the work."""

from pass_sampling.gpu.huggingface import generate_with_pass
from pass_sampling.gpu.hf.sharing import shared_lookahead

REPOSITORY = {repository!r}


def generate(model, inputs=None, lookahead=None, **named):
    """Call `generate_with_pass` with what was given."""
    named = {{name: value for name, value in named.items() if value is not None}}
    return generate_with_pass(model, inputs, lookahead=lookahead or shared_lookahead(REPOSITORY), **named)
'''


def write_custom_generate(
    folder: str | os.PathLike[str],
    lookahead: LookAhead,
    repository: str | None = None,
) -> None:
    """Write a repository that `generate(custom_generate=...)` takes, with vectors, code, requirements and a card.

    Args:
        folder: a path at which there is nothing yet, or an empty folder.
        lookahead: what to share.
        repository: the name it will have on the Hub, as "user/name"; default: the folder itself, where it lies now.

    Raises:
        ValueError: the path holds something, or the vectors are of no use to a model of transformers.
    """
    path = Path(folder).resolve()
    if path.exists() and (not path.is_dir() or any(path.iterdir())):
        raise ValueError(f"{path} holds something already, expected a new path or an empty folder")
    if lookahead.adapter is not None:
        raise ValueError("lookahead: found vectors with an adapter, expected none for a model of transformers")
    texts = {
        "custom_generate/generate.py": CODE.format(repository=str(path) if repository is None else repository),
        "custom_generate/requirements.txt": "pass-sampling\n",
        "README.md": model_card(lookahead, repository or path.name, custom_generate=True),
    }
    (path / "custom_generate").mkdir(parents=True, exist_ok=True)
    for name, text in texts.items():
        (path / name).write_text(text, encoding="utf-8")
    lookahead.save(path / "lookahead")


def shared_lookahead(repository: str) -> LookAhead:
    """Return the vectors of a folder that was written for sharing, or download them from the Hub."""
    return LookAhead.load(repository)
