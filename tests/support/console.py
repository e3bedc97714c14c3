"""The command line in tests: a small model with a tokenizer, and commands run in this process."""

import io
import json
import os
import random
import re
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest

from folders import edit_json, tiny_config, write_checkpoint

WORDS = "def return for while print index value list café naïve 日本語 the of and to in is not".split()
CHAT_TEMPLATE = (
    "{%- for turn in messages %}{{ '<' + turn.role[0] + '>' + turn.content + '\n' }}{% endfor %}"
    "{%- if messages[0].content == 'never' %}{{ raise_exception('first of all,\n no') }}{% endif %}"
    "{%- if add_generation_prompt %}<a>{% endif %}"
)
COLOUR = re.compile("\033\\[[0-9;]*m")
MARK = re.compile(r"\[[+~*]|[+~*]\]")


class Terminal(io.StringIO):
    """A stream that says it is a terminal."""

    def isatty(self) -> bool:
        return True


class Box(NamedTuple):
    """Paths of a model of 300 tokens, what drafts for it, text to learn from, and prompts to compare methods on."""

    root: Path
    model: Path
    vectors: Path
    text: Path
    draft: Path  # a smaller model with the same tokenizer
    ngram: Path
    prompts: Path
    chat: Path  # the model with a chat template


def build_box(root: Path) -> Box:
    """Write a random model, a tokenizer trained on random words, random drafters, and those words."""

    from pass_sampling.gpu import LookAhead, NgramModel, SamplerHead
    from pass_sampling.gpu.training.tokens import train_tokenizer

    box = Box(root, *(root / name for name in ("model", "vectors", "text", "small", "unigram", "two.jsonl", "chat")))
    config = tiny_config(vocab_size=300, max_position_embeddings=96)
    write_checkpoint(box.model, config, eos_token_id=0, bos_token_id=0)
    draw = random.Random(0)
    box.text.mkdir()
    for number in range(12):
        lines = (" ".join(draw.choices(WORDS, k=8)) + "\n" for _ in range(20))
        (box.text / f"{number}.py").write_text("".join(lines), encoding="utf-8")
    texts = [path.read_text(encoding="utf-8") for path in sorted(box.text.iterdir())]
    train_tokenizer(texts, config.vocab_size, 96).save_pretrained(str(box.model))
    vectors = LookAhead.random(3, config.hidden_size, seed=0)
    vectors.save(box.vectors)
    replace(vectors, head=SamplerHead.random(config.hidden_size, 5, 3)).save(root / "headed")
    write_checkpoint(box.draft, replace(config, num_hidden_layers=1), seed=1)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(box.model / name, box.draft / name)
    NgramModel(np.arange(1.0, 301.0)).save(box.ngram)
    prompts = [{"prompt": "def value list of the index"}, {"prompt": "café return"}]
    box.prompts.write_text("\n".join(map(json.dumps, prompts)), encoding="utf-8")
    shutil.copytree(box.model, box.chat)
    (box.chat / "chat_template.jinja").write_text(CHAT_TEMPLATE, encoding="utf-8")
    _write_bad_things(box)
    return box


def _write_bad_things(box: Box) -> None:
    """Write what nobody should pass to a command."""
    from pass_sampling.gpu.training.tokens import train_tokenizer

    whole = {path.name: path.read_bytes() for path in box.model.iterdir()}
    half = whole["model.safetensors"][: len(whole["model.safetensors"]) // 2]
    without_bos = json.loads(whole["tokenizer_config.json"]) | {"bos_token": None}
    _folder(box.root / "bare", {name: whole[name] for name in ("config.json", "model.safetensors")})
    _folder(box.root / "damaged", whole | {"model.safetensors": half})
    _folder(box.root / "bad-tokenizer", whole | {"tokenizer.json": b"{"})
    _folder(box.root / "no-bos", whole | {"tokenizer_config.json": json.dumps(without_bos).encode()})
    others = {name: content for name, content in whole.items() if not name.startswith("tokenizer")}
    _folder(box.root / "other", others)
    train_tokenizer([" ".join(reversed(WORDS)) * 3 + " zebra yak xerox " * 9], 300, 96).save_pretrained(
        box.root / "other"
    )
    _folder(box.root / "others", {path.name: path.read_bytes() for path in box.vectors.iterdir()})
    base = {"name": "another", "shapes": {}, "fingerprint": "0" * 64}
    edit_json(box.root / "others" / "config.json", base_model=base)
    (box.root / "latin-1").write_bytes(b"caf\xe9")
    (box.root / "nothing").write_bytes(b"")
    (box.root / "surrogate").write_text('{"prompt": "\\udc00"}', encoding="utf-8")
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
