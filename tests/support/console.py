"""The command line in tests: a small model with a tokenizer, and commands run in this process."""

from __future__ import annotations

import io
import json
import os
import random
import re
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from folders import edit_json, tiny_config, write_checkpoint

WORDS = "def return for while print index value list café naïve 日本語 the of and to in is not".split()


COLOUR = re.compile("\033\\[[0-9;]*m")
MARK = re.compile(r"\[[+~*]|[+~*]\]")


class Terminal(io.StringIO):
    """A stream that says it is a terminal."""

    def isatty(self) -> bool:
        return True


class Box(NamedTuple):
    """Paths of a model that reads 300 tokens, of vectors for it, and of a folder with text."""

    root: Path
    model: Path
    vectors: Path
    text: Path


def build_box(root: Path) -> Box:
    """Write a random model, a tokenizer trained on random words, random vectors, and those words."""
    from pass_sampling.gpu import LookAhead
    from pass_sampling.gpu.training.tokens import train_tokenizer

    box = Box(root, root / "model", root / "vectors", root / "text")
    config = tiny_config(vocab_size=300, max_position_embeddings=96)
    write_checkpoint(box.model, config, eos_token_id=0, bos_token_id=0)
    draw = random.Random(0)
    box.text.mkdir()
    for number in range(12):
        lines = (" ".join(draw.choices(WORDS, k=8)) + "\n" for _ in range(20))
        (box.text / f"{number}.py").write_text("".join(lines), encoding="utf-8")
    texts = [path.read_text(encoding="utf-8") for path in sorted(box.text.iterdir())]
    train_tokenizer(texts, config.vocab_size, 96).save_pretrained(str(box.model))
    LookAhead.random(3, config.hidden_size, seed=0).save(box.vectors)
    _write_bad_things(box)
    return box


def _write_bad_things(box: Box) -> None:
    """Write what nobody should pass to a command."""
    whole = {path.name: path.read_bytes() for path in box.model.iterdir()}
    half = whole["model.safetensors"][: len(whole["model.safetensors"]) // 2]
    without_bos = json.loads(whole["tokenizer_config.json"]) | {"bos_token": None}
    _folder(box.root / "bare", {name: whole[name] for name in ("config.json", "model.safetensors")})
    _folder(box.root / "damaged", whole | {"model.safetensors": half})
    _folder(box.root / "bad-tokenizer", whole | {"tokenizer.json": b"{"})
    _folder(box.root / "no-bos", whole | {"tokenizer_config.json": json.dumps(without_bos).encode()})
    _folder(box.root / "others", {path.name: path.read_bytes() for path in box.vectors.iterdir()})
    base = {"name": "another", "shapes": {}, "fingerprint": "0" * 64}
    edit_json(box.root / "others" / "config.json", base_model=base)
    (box.root / "latin-1").write_bytes(b"caf\xe9")
    (box.root / "nothing").write_bytes(b"")
    (box.root / "short.txt").write_text("a few words", encoding="utf-8")
    (box.root / "empty").mkdir()
    (box.root / "list.txt").write_text("# held out\n0.py\n", encoding="utf-8")


def _folder(folder: Path, files: dict[str, bytes]) -> None:
    folder.mkdir()
    for name, content in files.items():
        (folder / name).write_bytes(content)


def run(*argv: object) -> int:
    """Run a command in this process and return its exit status."""
    from pass_sampling.gpu.__main__ import main

    return main([str(argument) for argument in argv])


def buffered() -> dict[str, str]:
    """Return the environment for a process whose output is buffered, as it is by default."""
    return {name: value for name, value in os.environ.items() if name != "PYTHONUNBUFFERED"}


def read_strictly(text: str) -> Any:
    """Return what JSON says, which must not hold the words for numbers that JSON has not."""
    return json.loads(text, parse_constant=lambda word: pytest.fail(f"{word} is no JSON"))
