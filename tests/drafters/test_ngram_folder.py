"""The folder of an n-gram model: its format, its size, and what is refused, alike in both packages."""

import json
import re
import tracemalloc
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from safetensors.numpy import load_file

from draft_folders import ARRAYS, CONFIG, PRINT, TRAINING, Tables, counted, refused, settings, tensors
from folders import as_numpy, both_packages, module


def class_of(package: str) -> Any:
    return module(package, "drafters.ngram").NgramModel


def test_the_format(tmp_path: Path) -> None:
    successors = [np.array([2, 0, 1]), np.array([0, 1, 1])]
    orders = [(successors[0], np.array([0, 2, 1]), np.array([9, 7, 5])), (successors[1], np.array([2, 2]), [1, 2])]
    made = Tables(np.array([1.0, 2.0, 0.5]), [tuple(map(np.asarray, arrays)) for arrays in orders], {})
    made.model("reference", base_model="tiny", tokenizer=PRINT, training=TRAINING).save(tmp_path / "ngram")
    assert json.loads((tmp_path / "ngram" / CONFIG).read_text()) == {
        "format_version": 1,
        "model_type": "ngram",
        "share": "code^2 / 65536",
        "vocab_size": 3,
        "num_ngrams": [3, 2],
        "base_model": "tiny",
        "tokenizer": PRINT,
        "training": TRAINING,
    }
    stored = load_file(tmp_path / "ngram" / ARRAYS)
    found = {name: (str(array.dtype), array.tolist()) for name, array in stored.items()}
    assert found == {
        "unigram": ("float32", [1.0, 2.0, 0.5]),
        "order_2.contexts": ("uint8", [0b00110100]),  # two successors, none, one
        "order_2.tokens": ("uint16", [0, 2, 1]),
        "order_2.codes": ("uint8", [9, 7, 5]),
        "order_3.contexts": ("uint8", [0b10101000]),
        "order_3.tokens": ("uint16", [2, 2]),
        "order_3.codes": ("uint8", [1, 2]),
    }


def last_token_alone(vocab_size: int, order: int) -> Any:
    """Return a model that knows only runs of the last token."""
    last = vocab_size - 1
    one = (np.array([1]), np.array([last]), np.array([200]))
    first = (np.eye(1, vocab_size, last, dtype=np.int64)[0], *one[1:])
    return Tables(np.ones(vocab_size), [first, one, one][: order - 1], {}).model("reference")


def test_a_large_vocabulary_has_wider_tokens(tmp_path: Path) -> None:
    for vocab_size, dtype in ((2**16, np.uint16), (2**16 + 1, np.int32), (2**20, np.int32)):
        last_token_alone(vocab_size, 2).save(tmp_path)
        assert load_file(tmp_path / ARRAYS)["order_2.tokens"].dtype == dtype
        loaded = class_of("reference").load(tmp_path)
        assert loaded.logits([vocab_size - 1], None).argmax() == vocab_size - 1


@pytest.mark.torch
def test_a_large_vocabulary_is_looked_up_in_the_port_as_well(tmp_path: Path) -> None:
    """Three tokens of the largest vocabulary make keys near 2^60."""
    import torch

    last = 2**20 - 1
    last_token_alone(last + 1, 4).save(tmp_path)
    ours, theirs = (class_of(package).load(tmp_path) for package in ("reference", "gpu"))
    for text in ([last] * 3, [last] * 2, [last - 1, last, last], [last, last, last - 1]):
        row = theirs.logits(torch.tensor([text]), None, torch.tensor([len(text)]), 1)[0]
        assert np.abs(as_numpy(row) - ours.logits(text, None)).max() < 1e-13


# What is refused: damage to a folder of three tokens and two n-grams, and the sentence.
KEYS = "format_version, model_type, share, vocab_size, num_ngrams, base_model, tokenizer, training"
KEYS = f"is missing or unknown, expected exactly {KEYS}"
CONFIGS: list[tuple[dict[str, Any], str]] = [
    ({"format_version": ...}, "format_version is missing, expected the folder of an n-gram model"),
    ({"format_version": 2, "new": 1}, "format_version: found 2, expected 1"),
    ({"model_type": "llama"}, "model_type: found 'llama', expected 'ngram'"),
    ({"share": "code / 256"}, "share: found 'code / 256', expected 'code^2 / 65536'"),
    ({"new": 1}, f"the key 'new' {KEYS}"),
    ({"vocab_size": 2**20 + 1}, "vocab_size: found 1048577, expected an integer from 1 to 1048576"),
    ({"num_ngrams": 3}, "num_ngrams: found 3, expected a list of at most 3 numbers"),
    ({"num_ngrams": [1, 2, 3, 4]}, "num_ngrams: found [1, 2, 3, 4], expected a list of at most 3 numbers"),
    ({"num_ngrams": [1, -2]}, "num_ngrams: found -2, expected an integer from 0 to 2147483647"),
    ({"tokenizer": "abc"}, "tokenizer: found 'abc', expected 64 hexadecimal digits or null"),
    ({"base_model": None}, "base_model: found None, expected text"),
    ({"training": []}, "training: found [], expected an object"),
]
OTHER_SIZES: list[tuple[dict[str, Any], str, str]] = [
    ({"vocab_size": 2**20}, "F32 [3]", "F32 [1048576]"),
    ({"num_ngrams": [2**31 - 1]}, "U8 [1]", "U8 [268435457]"),
    ({"num_ngrams": []}, "U8 [2]", "nothing"),
    ({"num_ngrams": [2, 7]}, "nothing", "U8 [2]"),
]
OTHER_TENSORS: list[tuple[str, Any, str, str]] = [
    ("unigram", np.ones(3), "F64 [3]", "F32 [3]"),
    ("unigram", None, "nothing", "F32 [3]"),
    ("extra", np.ones(3), "F64 [3]", "nothing"),
    ("order_2.tokens", np.array([2, 0], np.int32), "I32 [2]", "U16 [2]"),
    ("order_2.codes", np.array([9], np.uint8), "U8 [1]", "U8 [2]"),
]
NUMBERS: list[tuple[str, Any, str]] = [
    (
        "unigram",
        np.array([1, np.nan, 1], np.float32),
        "unigram: found something else, expected a finite positive number for each token",
    ),
    ("order_2.tokens", np.array([3, 0], np.uint16), "order_2.tokens: found 3, expected 0 to 2"),
]
MARKS = {
    0b01010000: "2 marks, the last one at 3",
    0: "0 marks",
    0b01110000: "3 marks, the last one at 3",
    0b01010010: "3 marks, the last one at 6",
}
NUMBERS += [
    ("order_2.contexts", np.array([marks], np.uint8), f"order_2.contexts: found {found}, expected 3, the last one at 4")
    for marks, found in MARKS.items()
]
REFUSED = [(settings(**changes), f"{CONFIG}: {message}") for changes, message in CONFIGS]
REFUSED += [
    (tensors({name: array}), f"{ARRAYS} holds {found} as {name!r}, expected {expected}")
    for name, array, found, expected in OTHER_TENSORS
]
REFUSED += [(tensors({name: array}), f"{ARRAYS}: {message}") for name, array, message in NUMBERS]


def save_small(package: str, folder: Path) -> None:
    arrays = np.array([1, 1, 0]), np.array([2, 0]), np.array([9, 9])
    Tables(np.ones(3), [arrays], {}).model(package, base_model="tiny", tokenizer=PRINT, training=TRAINING).save(folder)


@both_packages
@pytest.mark.parametrize(("damage", "message"), REFUSED, ids=[message[:60] for _, message in REFUSED])
def test_a_folder_from_elsewhere_is_refused(package: str, damage: Any, message: str, tmp_path: Path) -> None:
    save_small(package, tmp_path)
    assert refused(class_of(package).load, tmp_path, damage) == message


@both_packages
@pytest.mark.parametrize(("changes", "found", "expected"), OTHER_SIZES)
def test_sizes_are_compared_before_anything_is_read(package, changes, found, expected, tmp_path):
    save_small(package, tmp_path)
    load = class_of(package).load  # its imports allocate, too
    tracemalloc.start()
    said = refused(load, tmp_path, settings(**changes))
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert re.sub(r" as '[\w.]+'", "", said) == f"{ARRAYS} holds {found}, expected {expected}"
    assert peak < 2**20


@both_packages
@given(seed=st.integers(0, 2**32))
def test_whatever_is_damaged_is_refused_in_a_sentence_or_is_a_distribution_all_the_same(
    package: str, seed: int, tmp_path_factory: pytest.TempPathFactory
) -> None:
    folder, draw = tmp_path_factory.mktemp("damaged"), np.random.default_rng(seed)
    counted(package, seed % 7).save(folder)
    content = bytearray((folder / ARRAYS).read_bytes())
    for place in draw.integers(0, len(content), 3):
        content[place] = draw.integers(0, 256)
    (folder / ARRAYS).write_bytes(content)
    try:
        model = class_of(package).load(folder)
    except ValueError as error:
        assert str(error).startswith(str(folder)) and "expected" in str(error) and "\n" not in str(error)
        return
    if package == "reference":
        for text in ([0], [1, 2], [5, 5, 3]):
            assert abs(np.exp(model.logits(text, None)).sum() - 1) < 1e-13
