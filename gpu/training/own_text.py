"""Text that a model has written itself, to train on: the very text that drafts will have to follow.

Glossary of shapes: N tokens of a text.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch

from ..config import SamplingConfig, check_integer
from ..files.folder import read_header
from ..generation import generate_batch
from ..methods import Autoregressive
from ..methods.language_model import LanguageModel
from .resume import write_file

__all__ = ["own_text"]

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
        sampling: the law it is written with.
        seed: of the tapes, and of random first tokens.
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
        tape = int(generator.integers(2**63))  # not seed + 1, + 2 …: those are other seeds' texts
        for result in generate_batch(method, [[first] for first in firsts], length - 1, stop_strings=(), seed=tape):
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
