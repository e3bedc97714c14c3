"""The folder that keeps an n-gram model: config.json and model.safetensors, checked before use.

For each order from 2 on, model.safetensors holds the n-grams sorted by their tokens: in `order_N.tokens` the last token
of each, in `order_N.codes` the root of its share, in `order_N.contexts` where the tokens before the last one change.
The tokens before it are an n-gram of the order below, so an n-gram takes three bytes and two or three bits.

Glossary of shapes: P contexts, N n-grams, Z bytes.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from ..config import check_integer
from . import folder

FOLDER, UNIGRAM = "the folder of an n-gram model", "unigram"
# The format that this version reads; other values were written by a version with more features.
FIXED = {"format_version": 1, "model_type": "ngram", "share": "code^2 / 65536"}
MAX_ORDER, MAX_VOCAB_SIZE = 4, 2**20  # so that three tokens make a number of 63 bits
FIELDS = {
    "vocab_size": folder.integer(1, MAX_VOCAB_SIZE),
    "num_ngrams": folder.Field(
        lambda value: isinstance(value, list) and len(value) < MAX_ORDER, f"a list of at most {MAX_ORDER - 1} numbers"
    ),
    "base_model": folder.TEXT,
    "tokenizer": folder.DIGEST,
    "training": folder.OBJECT,
}

Arrays = tuple[npt.NDArray[Any], npt.NDArray[Any], npt.NDArray[Any]]  # of an order: successors, tokens, codes


def read_details(settings: dict[str, Any]) -> dict[str, Any]:
    """Return the fields of NgramModel that config.json holds; raise ValueError unless all of it is valid."""
    folder.check_format(settings, FIXED, FIELDS, FOLDER)
    for count in settings["num_ngrams"]:
        check_integer("num_ngrams", count, 0, 2**31 - 1)
    return {name: settings[name] for name in ("base_model", "tokenizer", "training")}


def read_arrays(
    path: Path, vocab_size: int, num_ngrams: Sequence[int]
) -> tuple[npt.NDArray[np.float32], list[Arrays]]:  # [V], orders
    """Return the unigram's weights, and successors, tokens and codes of each order; raise ValueError for others."""
    from safetensors import safe_open

    found = {name: (tensor.dtype, tensor.shape) for name, tensor in folder.read_header(path).items()}
    folder.check_layout(path, found, _layout(vocab_size, num_ngrams))
    orders = []
    with safe_open(path, framework="numpy") as file:
        for order, (contexts, count) in enumerate(_sizes(vocab_size, num_ngrams), start=2):
            marks, tokens, codes = (
                file.get_tensor(f"order_{order}.{name}") for name in ("contexts", "tokens", "codes")
            )
            with folder.errors_of(f"{path}: order_{order}", "."):
                orders.append((_num_successors(marks, contexts, count), tokens, codes))
        unigram: npt.NDArray[np.float32] = file.get_tensor(UNIGRAM)
    return unigram, orders


def packed(
    unigram: npt.NDArray[np.float32],  # [V]
    orders: Sequence[Arrays],
) -> bytes:
    """Return the content of model.safetensors."""
    from safetensors.numpy import save

    tensors: dict[str, npt.NDArray[Any]] = {UNIGRAM: unigram}
    for order, (num_successors, tokens, codes) in enumerate(orders, start=2):
        tensors[f"order_{order}.contexts"] = _marks(num_successors)
        tensors[f"order_{order}.tokens"] = tokens.astype(np.uint16 if len(unigram) <= 2**16 else np.int32)
        tensors[f"order_{order}.codes"] = codes.astype(np.uint8)
    return save(tensors)


def _layout(vocab_size: int, num_ngrams: Sequence[int]) -> dict[str, folder.Layout]:
    layout: dict[str, folder.Layout] = {UNIGRAM: ("F32", (vocab_size,))}
    for order, (contexts, count) in enumerate(_sizes(vocab_size, num_ngrams), start=2):
        layout[f"order_{order}.contexts"] = ("U8", ((contexts + count + 7) // 8,))
        layout[f"order_{order}.tokens"] = ("U16" if vocab_size <= 2**16 else "I32", (count,))
        layout[f"order_{order}.codes"] = ("U8", (count,))
    return layout


def _sizes(vocab_size: int, num_ngrams: Sequence[int]) -> list[tuple[int, int]]:
    """Return the numbers of contexts and of n-grams of each order from 2 on."""
    return list(zip((vocab_size, *num_ngrams), num_ngrams, strict=False))


def _marks(
    num_successors: npt.NDArray[Any],  # [P]
) -> npt.NDArray[np.uint8]:  # [Z]
    """Write numbers in unary, a 0 for each successor and a 1 after each context: P + N bits, in bytes.

    Source: Jacobson 1989, "Space-efficient Static Trees and Graphs", for trees of this size.
    """
    bits = np.zeros(len(num_successors) + int(num_successors.sum()), dtype=np.uint8)
    bits[np.cumsum(num_successors + 1) - 1] = 1
    return np.packbits(bits)


def _num_successors(marks: npt.NDArray[np.uint8], contexts: int, count: int) -> npt.NDArray[np.int64]:  # [contexts]
    """Read the output of `_marks`; raise ValueError if it has another number of contexts or n-grams."""
    ends = np.flatnonzero(np.unpackbits(marks))
    if len(ends) != contexts or (contexts and ends[-1] != contexts + count - 1):
        last = f", the last one at {ends[-1]}" if len(ends) else ""
        raise ValueError(
            f"contexts: found {len(ends)} marks{last}, expected {contexts}, the last one at {contexts + count - 1}"
        )
    return np.diff(ends, prepend=-1) - 1
