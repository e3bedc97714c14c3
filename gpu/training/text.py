"""Text to train on: from disk, divided into a training side and a held-out side, or written by the model itself.

Texts are divided by file, and copies stay together: else the held-out loss would measure memory.

Glossary of shapes: N tokens of a text.
"""

from __future__ import annotations

import hashlib
import json
import os
import sysconfig
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import lru_cache
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch

from pass_sampling.reference.checkpoint.folder import read_header, replace_file
from pass_sampling.reference.config import SamplingConfig, check_integer

from ..generation import generate_batch
from ..methods import Autoregressive
from ..model.language_model import LanguageModel

SUFFIXES = (".py", ".txt", ".md", ".rst")
QUESTION = 64  # tokens of a question at most
SIDE_BY_SIDE = 32  # own texts per batch


def read_texts(
    paths: Iterable[str | os.PathLike[str]], suffixes: tuple[str, ...] = SUFFIXES, left_out: tuple[str, ...] = ()
) -> dict[str, str]:
    """Read files, and every file with one of the suffixes below folders, in the order of their names; return by name.

    Below folders, names that begin with one of `left_out` are not read, nor are files that are empty or not UTF-8.
    Raise FileNotFoundError for a path that is not there, ValueError for one without text, and for two files of a name.
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
            raise ValueError(f"{path} holds no text, expected UTF-8 text (in a folder: {', '.join(suffixes)} files)")
        if twice := texts.keys() & found.keys():
            raise ValueError(f"{path} holds {min(twice)!r}, found before, expected every name once")
        texts |= found
    if not texts:
        raise ValueError("found no text, expected at least one file or folder")
    return texts


def standard_library() -> dict[str, str]:
    """Read the running Python's library, without what is generated or packaged; raise FileNotFoundError without one."""
    root = Path(sysconfig.get_paths()["stdlib"])
    if not (root / "os.py").is_file():
        raise FileNotFoundError(f"{root} holds no standard library, expected Python's source files there")
    packaged = ("site-packages/", "dist-packages/")
    generated = ("encodings/", "config-", "_sysconfigdata")
    return read_texts([root], (".py",), packaged + generated)


def split_texts(
    texts: Mapping[str, str], fraction: float = 0.05, held_out: Iterable[str] | None = None
) -> tuple[list[str], list[str]]:
    """Divide texts by name into a training side and a held-out side: those named, or about a `fraction` of them.

    Without names, the side follows from a text alone, so that copies stay together, and texts on their side when others
    are added. Raise ValueError if there are too few to have both sides.
    """
    if held_out is not None:
        held = sorted(set(held_out) & texts.keys())
        if not 0 < len(held) < len(texts):
            raise ValueError(f"held_out names {len(held)} of the {len(texts)} texts, expected some of them and not all")
        return sorted(texts.keys() - held), held
    digests = {name: hashlib.sha256(text.strip().encode()).digest()[:8] for name, text in texts.items()}
    draws = {name: int.from_bytes(digest, "little") / 2**64 for name, digest in digests.items()}
    if len(set(draws.values())) < 2:
        raise ValueError(f"found {len(texts)} texts, too few to hold any out, expected at least 2 that differ")
    limit = max(fraction, min(draws.values()))  # however few there are, one is held out
    if limit >= max(draws.values()):  # and one is not
        limit = min(draws.values())
    held_out = {name for name, draw in draws.items() if draw <= limit}
    return sorted(texts.keys() - held_out), sorted(held_out)


def _read(path: Path) -> str:
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
    begin: Callable[[int], Sequence[Sequence[int]]] | None = None,
) -> npt.NDArray[np.int64]:  # [N]
    """Let the model write texts by plain decoding, and return the tokens of one after the other.

    A text is a prompt and at most `length` tokens with it, or after it where `begin` gives the prompts of a batch by
    its number. Without them a text begins with the end of text if the model has one, else with a random token. A file
    keeps the tokens of every batch, so that the same call resumes a run that was killed. A damaged file raises
    ValueError. `watch` is called with the number of tokens written so far.
    """
    from safetensors.torch import save

    check_integer("num_tokens", num_tokens, 1, 2**40)
    check_integer("length", length, 2, model.max_position_embeddings)
    check_integer("seed", seed, 0, 2**63 - 1)
    first = [] if begin is None else [list(map(int, each)) for each in begin(0)]
    described = json.dumps([model.fingerprint, num_tokens, length, vars(sampling), seed, first])
    described = hashlib.sha256(described.encode()).hexdigest()
    written, number = ([], 0) if file is None else _kept_text(file, described)
    method, ends = Autoregressive(model, sampling), model.eos_token_ids
    while len(written) < num_tokens:
        generator = np.random.default_rng([seed, number])
        firsts = list(ends[:1]) * SIDE_BY_SIDE or generator.integers(model.vocab_size, size=SIDE_BY_SIDE).tolist()
        begun = [[first] for first in firsts] if begin is None else begin(number)
        uniform_stream = int(generator.integers(2**63))  # not seed + 1, + 2 …: those are other seeds' texts
        for result in generate_batch(method, begun, length - 1, stop_strings=(), seed=uniform_stream):
            ended = bool(ends) and begin is None and written[-1:] == [result.prompt[0]]  # one end between two texts
            written += [*result.prompt[ended:], *result.tokens]
        number += 1
        if file is not None:
            state = {"text": described, "batches": str(number)}
            replace_file(file, save({"tokens": torch.tensor(written)}, metadata=state))
        watch(min(len(written), num_tokens))
    return np.array(written[:num_tokens], np.int64)


def in_turn(prompts: Sequence[Sequence[int]], seed: int) -> Callable[[int], Sequence[Sequence[int]]]:
    """Return the prompts of each batch, taken in turn in an order of their own, from the first again after the last."""
    order = np.random.default_rng(seed).permutation(len(prompts)).tolist()

    def begin(number: int) -> Sequence[Sequence[int]]:
        first = number * SIDE_BY_SIDE
        return [prompts[order[i % len(order)]] for i in range(first, first + SIDE_BY_SIDE)]

    return begin


def own_questions(
    model: LanguageModel, before: Sequence[int], after: Sequence[int], seed: int
) -> Callable[[int], Sequence[Sequence[int]]]:
    """Return prompts that the model writes itself, between the tokens before and after a question in its chat template.

    Source: Xu et al. 2024, "Magpie" (arXiv 2406.08464).
    """
    method = Autoregressive(model, SamplingConfig(temperature=1.0, top_k=min(200, model.vocab_size)))

    @lru_cache(maxsize=1)  # the first batch is asked for once more, to tell a run from others
    def begin(number: int) -> Sequence[Sequence[int]]:
        stream = int(np.random.default_rng([seed, number, 1]).integers(2**63))
        asked = generate_batch(method, [before] * SIDE_BY_SIDE, QUESTION, stop_strings=(), seed=stream)
        return [[*before, *(each for each in one.tokens if each not in model.eos_token_ids), *after] for one in asked]

    return begin


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
