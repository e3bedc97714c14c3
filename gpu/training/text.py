"""Text to train on: from disk, divided into a training side and a held-out side, or written by the model itself.

Texts are divided by file, never within one, and files that repeat each other stay together: else the held-out loss
would measure memory.

Glossary of shapes: N tokens of a text.
"""

from __future__ import annotations

import hashlib
import json
import os
import sysconfig
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import combinations
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

SUFFIXES = (".py", ".txt", ".md", ".rst")
MIN_LINE = 16  # shorter lines, stripped, do not show where they were copied from
COMMON = 20  # lines in more files than this are boilerplate
SHARED = 0.3  # two files are near-duplicates if the other one has this part of the shorter one's telling lines
SIDE_BY_SIDE = 32  # own texts per batch


def read_texts(
    paths: Iterable[str | os.PathLike[str]], suffixes: tuple[str, ...] = SUFFIXES, left_out: tuple[str, ...] = ()
) -> dict[str, str]:
    """Read files, and every file with one of the suffixes below folders, in the order of their names.

    Below folders, names that begin with one of `left_out` are not read, nor are files that are empty or not UTF-8.

    Returns:
        The texts by name: below a folder its path from there with "/", else the file's own name.

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
        fraction: the part of the groups that is held out, about.

    Raises:
        ValueError: there are too few texts to have both sides.
    """
    groups = near_duplicates(texts)
    if len(groups) < 2:
        raise ValueError(
            f"found {len(texts)} texts, too few to hold any out, expected at least 2 that are no copies of one another"
        )
    digests = [hashlib.sha256(group[0].encode()).digest()[:8] for group in groups]
    draws = [int.from_bytes(digest, "little") / 2**64 for digest in digests]
    limit = max(fraction, min(draws))  # however few there are, one group is held out
    if limit >= max(draws):  # and one is not
        limit = min(draws)
    held_out = [name for group, draw in zip(groups, draws, strict=True) if draw <= limit for name in group]
    return sorted(texts.keys() - held_out), sorted(held_out)


def near_duplicates(texts: Mapping[str, str]) -> list[list[str]]:
    """Group texts that share much, directly or through others; most groups have one member.

    Two texts belong together if they are equal, or share at least three telling lines and 30 % of those of the text
    with fewer. A line is telling if it has at least 16 characters and is in at most 20 texts.
    """
    homes: dict[str, list[str]] = {}
    for name in sorted(texts):
        for line in {line.strip() for line in texts[name].splitlines()}:
            if len(line) >= MIN_LINE:
                homes.setdefault(line, []).append(name)
    telling: Counter[str] = Counter()
    shared: Counter[tuple[str, str]] = Counter()
    for names in homes.values():
        if len(names) <= COMMON:
            telling.update(names)
            shared.update(combinations(names, 2))
    equal: dict[str, str] = {}
    related = [(equal.setdefault(texts[name].strip(), name), name) for name in sorted(texts)]
    for (one, other), count in shared.items():
        if count >= SHARED * min(telling[one], telling[other]) and count >= 3:
            related.append((one, other))

    groups = {name: [name] for name in texts}
    for one, other in related:
        if groups[one] is not groups[other]:
            larger, smaller = sorted((groups[one], groups[other]), key=len, reverse=True)
            larger += smaller
            groups.update(dict.fromkeys(smaller, larger))
    return [list(group) for group in sorted({tuple(sorted(group)) for group in groups.values()})]


def _read(path: Path) -> str:
    """Return the text of a file; nothing if it is not UTF-8."""
    try:
        return path.read_bytes().decode("utf-8").replace("\r\n", "\n")
    except (UnicodeDecodeError, OSError):
        return ""


def own_text(
    model: LanguageModel,
    num_tokens: int,
    length: int,
    sampling: SamplingConfig,
    seed: int,
    file: Path | None = None,
    watch: Callable[[int], None] = lambda done: None,
    prompts: Sequence[Sequence[int]] = (),
) -> npt.NDArray[np.int64]:  # [N]
    """Let the model write texts by plain decoding, and return the tokens of one after the other.

    A text is a prompt and the model's answer. Without prompts it begins with the end of text if the model has one, as
    in the text that it was trained on, else with a random token.

    Args:
        model: the writer.
        num_tokens: of all texts together.
        length: tokens that are written of a text at most, its first one included; it may end sooner.
        sampling: the distribution of the texts.
        seed: of the uniform streams, of random first tokens and of the order of the prompts.
        file: keeps the tokens of every batch, so that a run that was killed goes on after them; None: not kept.
        watch: called with the number of tokens written so far.
        prompts: taken in turn, from the first again after the last.

    Raises:
        ValueError: a length, a setting or a prompt is out of range, or the file is damaged.
    """
    from safetensors.torch import save

    check_integer("num_tokens", num_tokens, 1, 2**40)
    check_integer("length", length, 2, model.max_position_embeddings)
    check_integer("seed", seed, 0, 2**63 - 1)
    every = hashlib.sha256(json.dumps([[int(token) for token in each] for each in prompts]).encode()).hexdigest()
    described = json.dumps([model.fingerprint, num_tokens, length, vars(sampling), seed, every])
    written, number = ([], 0) if file is None else _kept_text(file, described)
    method, ends = Autoregressive(model, sampling), model.eos_token_ids
    order = np.random.default_rng(seed).permutation(len(prompts)).tolist()
    while len(written) < num_tokens:
        generator = np.random.default_rng([seed, number])
        if prompts:
            first = number * SIDE_BY_SIDE
            begun = [prompts[order[i % len(order)]] for i in range(first, first + SIDE_BY_SIDE)]
        else:
            firsts = list(ends[:1]) * SIDE_BY_SIDE or generator.integers(model.vocab_size, size=SIDE_BY_SIDE).tolist()
            begun = [[first] for first in firsts]
        uniform_stream = int(generator.integers(2**63))  # not seed + 1, + 2 …: those are other seeds' texts
        for result in generate_batch(method, begun, length - 1, stop_strings=(), seed=uniform_stream):
            ended = bool(ends) and not prompts and written[-1:] == [result.prompt[0]]  # one end between two texts
            written += [*result.prompt[ended:], *result.tokens]
        number += 1
        if file is not None:
            state = {"text": described, "batches": str(number)}
            write_file(file, save({"tokens": torch.tensor(written)}, metadata=state))
        watch(min(len(written), num_tokens))
    return np.array(written[:num_tokens], np.int64)


def _kept_text(file: Path, described: str) -> tuple[list[int], int]:
    """Return the tokens that an earlier run of the same text has written, and how many batches that were."""
    from safetensors import safe_open

    if file.exists():
        read_header(file)
        with safe_open(file, framework="numpy") as stream:
            state = stream.metadata() or {}
            if state.get("text") == described:
                return stream.get_tensor("tokens").tolist(), int(state["batches"])
    return [], 0
