"""Text from disk, and its division into a training side and a held-out side.

Texts are divided by file, never within one, and files that repeat each other stay together: else the held-out loss
would measure memory.

Text that a model has written itself, to train on: the very text that drafts will have to follow.

Glossary of shapes: N tokens of a text.
"""

from __future__ import annotations

import hashlib
import json
import os
import sysconfig
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch

from pass_sampling.reference.checkpoint.folder import read_header
from pass_sampling.reference.config import SamplingConfig, check_integer

from ..generation import generate_batch
from ..methods import Autoregressive
from ..model.language_model import LanguageModel
from .resume import write_file

__all__ = ["SUFFIXES", "near_duplicates", "own_text", "read_texts", "split_texts", "standard_library"]


SUFFIXES = (".py", ".txt", ".md", ".rst")
MIN_LINE = 16  # shorter lines, stripped, say nothing about where they were copied from
COMMON = 20  # and lines that stand in more files than this are boilerplate
SHARED = 0.3  # two files are near-duplicates if this part of the shorter one's telling lines stands in the other


def read_texts(
    paths: Iterable[str | os.PathLike[str]],
    suffixes: tuple[str, ...] = SUFFIXES,
    left_out: tuple[str, ...] = (),
) -> dict[str, str]:
    """Read files, and every file with one of the suffixes below folders, in the order of their names.

    Args:
        paths: files and folders.
        suffixes: of the files that are read below folders.
        left_out: beginnings of names that are not read below folders.

    Returns:
        The texts by name: below a folder its path from there with "/", else the file's own name. Files that are not
        UTF-8 and empty ones are left out.

    Raises:
        FileNotFoundError: a path is not there.
        ValueError: a path has no text in it, or two files have the same name.
    """
    texts: dict[str, str] = {}
    for path in map(Path, paths):
        if path.is_dir():
            files = sorted(file for file in path.rglob("*") if file.suffix in suffixes and file.is_file())
            named = [(file.relative_to(path).as_posix(), file) for file in files]
            named = [(name, file) for name, file in named if not name.startswith(left_out)]
        elif path.is_file():
            named = [(path.name, path)]
        else:
            raise FileNotFoundError(f"{path} is not there, expected a text file or a folder of such")
        found = {name: text for name, file in named if (text := _read(file))}
        if not found:
            kinds = ", ".join(suffixes)
            raise ValueError(f"{path} holds no text, expected UTF-8 text (in a folder: {kinds} files)")
        twice = texts.keys() & found.keys()
        if twice:
            raise ValueError(f"{path} holds {min(twice)!r}, found before, expected every name once")
        texts |= found
    if not texts:
        raise ValueError("found no text, expected at least one file or folder")
    return texts


def standard_library() -> dict[str, str]:
    """Read the running Python's standard library, tests included, without what is generated or packaged with it.

    Raises:
        FileNotFoundError: this Python has no library on disk.
    """
    root = Path(sysconfig.get_paths()["stdlib"])
    if not (root / "os.py").is_file():
        raise FileNotFoundError(f"{root} holds no standard library, expected Python's source files there")
    packaged = ("site-packages/", "dist-packages/")
    generated = ("encodings/", "config-", "_sysconfigdata")
    return read_texts([root], (".py",), packaged + generated)


def split_texts(texts: Mapping[str, str], fraction: float = 0.05) -> tuple[list[str], list[str]]:
    """Divide texts by name into a training side and a held-out side.

    A group of near-duplicates goes to one side. Which side follows from its first name alone, so that most texts stay
    on their side when others are added.

    Args:
        texts: by name.
        fraction: about which part of the groups is held out.

    Raises:
        ValueError: there are too few texts to have both sides.
    """
    groups = near_duplicates(texts)
    if len(groups) < 2:
        raise ValueError(
            f"found {len(texts)} texts, too few to hold any out, expected at least 2 that are no copies of one another"
        )
    draws = {group[0]: hashlib.sha256(group[0].encode()).digest()[:8] for group in groups}
    share = {name: int.from_bytes(draw, "little") / 2**64 for name, draw in draws.items()}
    limit = max(fraction, min(share.values()))  # however few there are, one group is held out
    if limit >= max(share.values()):  # and one is not
        limit = min(share.values())
    held_out = [name for group in groups for name in group if share[group[0]] <= limit]
    training = [name for group in groups for name in group if share[group[0]] > limit]
    return sorted(training), sorted(held_out)


def near_duplicates(texts: Mapping[str, str]) -> list[list[str]]:
    """Group texts that share much, directly or through others; most groups have one member.

    Two texts belong together if 30 % of the telling lines of the one with fewer, and at least three, stand in the
    other; or if they are equal. A line is telling if it has at least 16 characters and stands in at most 20 texts.
    """
    lines = {name: {line.strip() for line in text.splitlines()} for name, text in texts.items()}
    homes: dict[str, list[str]] = {}
    for name in sorted(lines):
        for line in lines[name]:
            if len(line) >= MIN_LINE:
                homes.setdefault(line, []).append(name)
    telling: Counter[str] = Counter()
    shared: Counter[tuple[str, str]] = Counter()
    for names in homes.values():
        if len(names) > COMMON:
            continue
        telling.update(names)
        shared.update((one, other) for i, one in enumerate(names) for other in names[i + 1 :])
    leader = {name: name for name in lines}

    def find(name: str) -> str:
        while leader[name] != name:
            leader[name] = name = leader[leader[name]]
        return name

    def join(one: str, other: str) -> None:
        first, second = sorted((find(one), find(other)))
        leader[second] = first

    equal: dict[str, str] = {}
    for name in sorted(texts):
        join(name, equal.setdefault(texts[name].strip(), name))
    for (one, other), count in shared.items():
        if count >= SHARED * min(telling[one], telling[other]) and count >= 3:
            join(one, other)

    groups: dict[str, list[str]] = {}
    for name in sorted(lines):
        groups.setdefault(find(name), []).append(name)
    return [groups[name] for name in sorted(groups)]


def _read(path: Path) -> str:
    try:
        return path.read_bytes().decode("utf-8").replace("\r\n", "\n")
    except (UnicodeDecodeError, OSError):
        return ""


SIDE_BY_SIDE = 32  # texts per batch


def own_text(
    model: LanguageModel,
    num_tokens: int,
    length: int,
    sampling: SamplingConfig,
    seed: int,
    file: Path | None = None,
    watch: Callable[[int], None] = lambda done: None,
) -> npt.NDArray[np.int64]:  # [N]
    """Let the model write texts of a length by plain decoding, each begun with a token of its own.

    The first token is the end of text where the model has one, as between the texts that it was trained on, else
    drawn at random.

    Args:
        model: the writer.
        num_tokens: how much to write, at least.
        length: tokens of a text at most; it may end sooner.
        sampling: the distribution it is written with.
        seed: of the uniform streams, and of random first tokens.
        file: keeps the text, so that a run that was killed finds it again; None: not kept.
        watch: called with the number of tokens written so far.

    Raises:
        ValueError: a length or a setting is out of range, or the file is damaged.
    """
    from safetensors.torch import load_file, save

    check_integer("num_tokens", num_tokens, 1, 2**40)
    check_integer("length", length, 2, model.max_position_embeddings)
    check_integer("seed", seed, 0, 2**63 - 1)
    described = json.dumps([model.fingerprint, num_tokens, length, vars(sampling), seed])
    if file is not None and file.exists() and _description(file) == described:
        kept: npt.NDArray[np.int64] = load_file(file)["tokens"].numpy()
        return kept
    method = Autoregressive(model, sampling)
    generator = np.random.default_rng(seed)
    written: list[int] = []
    while len(written) < num_tokens:
        firsts = [model.eos_token_ids[0]] * SIDE_BY_SIDE if model.eos_token_ids else None
        if firsts is None:
            firsts = generator.integers(model.vocab_size, size=SIDE_BY_SIDE).tolist()
        uniform_stream = int(generator.integers(2**63))  # not seed + 1, + 2 …: those are other seeds' texts
        for result in generate_batch(
            method, [[first] for first in firsts], length - 1, stop_strings=(), seed=uniform_stream
        ):
            ended = bool(model.eos_token_ids) and written[-1:] == [result.prompt[0]]  # one end between two texts
            written += [*result.prompt[ended:], *result.tokens]
        watch(min(len(written), num_tokens))
    tokens = np.array(written[:num_tokens], np.int64)
    if file is not None:
        write_file(file, save({"tokens": torch.from_numpy(tokens)}, metadata={"text": described}))
    return tokens


def _description(file: Path) -> str | None:
    """Return what the file says of its text.

    Raises:
        ValueError: the file is damaged.
    """
    from safetensors import safe_open

    read_header(file)
    with safe_open(file, framework="pt") as stream:
        return (stream.metadata() or {}).get("text")
