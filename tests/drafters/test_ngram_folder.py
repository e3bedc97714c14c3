"""The folder of an n-gram model: the same in both packages, checked before use, and saved whole or not at all."""

from __future__ import annotations

import dataclasses
import json
import math
import tracemalloc
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from safetensors.numpy import load_file, save_file

from folders import as_numpy, both_packages, contents, edit_json, module, write_checkpoint, write_json
from test_ngram import PRINT, Tables, random_tables

CONFIG, ARRAYS = "config.json", "model.safetensors"
TRAINING = {"texts": 3, "corpus": "the café", "discounts": [[0.5, 1.25]]}


def class_of(package: str) -> Any:
    return module(package, "drafters.ngram").NgramModel


def counted(package: str, seed: int = 0, order: int = 3, vocab_size: int = 6) -> Any:
    """Return a model with every field set."""
    made = random_tables(vocab_size, order, seed)
    return made.model(package, base_model="tiny", tokenizer=PRINT, training=TRAINING)


def fields(model: Any) -> dict[str, Any]:
    """Return all that a model holds, in plain Python."""
    orders = [[as_numpy(value).tolist() for value in vars(order).values()][:3] for order in model.orders]
    rest = {name: getattr(model, name) for name in ("base_model", "tokenizer", "training")}
    return {"unigram": as_numpy(model.unigram).tolist(), "orders": orders, **rest}


@both_packages
@pytest.mark.parametrize("order", [1, 2, 3, 4])
def test_a_saved_model_comes_back(package: str, order: int, tmp_path: Path) -> None:
    folder = tmp_path / "new" / "ngram"
    for seed in range(3):
        model = counted(package, seed, order)
        model.save(folder)  # the second time over the first
        assert fields(class_of(package).load(folder)) == fields(model)
    random_tables(1, order, 0).model(package).save(folder)
    assert class_of(package).load(folder).tokenizer is None
    assert sorted(contents(tmp_path)) == ["new", "new/ngram", f"new/ngram/{CONFIG}", f"new/ngram/{ARRAYS}"]


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


def test_a_large_vocabulary_has_wider_tokens(tmp_path: Path) -> None:
    for vocab_size, dtype in ((2**16, np.uint16), (2**16 + 1, np.int32), (2**20, np.int32)):
        last = vocab_size - 1
        successors = np.eye(1, vocab_size, last, dtype=np.int64)[0]
        made = Tables(np.ones(vocab_size), [(successors, np.array([last]), np.array([200]))], {})
        made.model("reference").save(tmp_path)
        assert load_file(tmp_path / ARRAYS)["order_2.tokens"].dtype == dtype
        loaded = class_of("reference").load(tmp_path)
        assert loaded.logits([last], None).argmax() == last


@pytest.mark.torch
def test_a_large_vocabulary_is_looked_up_in_the_port_as_well(tmp_path: Path) -> None:
    """Three tokens of the largest vocabulary make keys near 2^60."""
    vocab_size, last = 2**20, 2**20 - 1
    one = (np.array([1]), np.array([last]), np.array([200]))
    first = (np.eye(1, vocab_size, last, dtype=np.int64)[0], *one[1:])
    made = Tables(np.ones(vocab_size), [first, one, one], {})
    made.model("reference").save(tmp_path)
    import torch

    ours, theirs = (class_of(package).load(tmp_path) for package in ("reference", "gpu"))
    for text in ([last] * 3, [last] * 2, [last - 1, last, last], [last, last, last - 1]):
        row = theirs.logits(torch.tensor([text]), None, torch.tensor([len(text)]), 1)[0]
        assert np.abs(as_numpy(row) - ours.logits(text, None)).max() < 1e-13


@pytest.mark.torch
@pytest.mark.parametrize("order", [1, 2, 3, 4])
def test_both_packages_write_and_read_the_same(order: int, tmp_path: Path) -> None:
    for package in ("reference", "gpu"):
        counted(package, 5, order).save(tmp_path / package)
    for name in (CONFIG, ARRAYS):
        assert (tmp_path / "reference" / name).read_bytes() == (tmp_path / "gpu" / name).read_bytes()
    assert fields(class_of("gpu").load(tmp_path / "reference")) == fields(counted("reference", 5, order))


@both_packages
@given(numbers=st.lists(st.integers(0, 20)))
def test_numbers_in_unary_come_back(package: str, numbers: list[int]) -> None:
    home = module(package, "checkpoint.ngram_folder")
    marks = home._marks(np.array(numbers, dtype=np.int64))
    assert len(marks) == -(-(len(numbers) + sum(numbers)) // 8)
    assert home._num_successors(marks, len(numbers), sum(numbers)).tolist() == numbers


@both_packages
def test_the_size_is_known_beforehand(package: str, tmp_path: Path) -> None:
    model = counted(package, 1, 4)
    model.save(tmp_path)
    size = sum(array.nbytes for array in load_file(tmp_path / ARRAYS).values())
    counts = [len(order.tokens) for order in model.orders]
    assert module(package, "checkpoint.ngram_folder").array_bytes(6, counts) == size


# --- What is refused ---


@both_packages
def test_a_save_never_destroys_anything_else(package: str, tmp_path: Path) -> None:
    model = counted(package)
    (tmp_path / "file").write_text("dear diary")
    (tmp_path / "letters").mkdir()
    (tmp_path / "letters" / "a.txt").write_text("dear Ann")
    write_checkpoint(tmp_path / "model")
    model.save(tmp_path / "annotated")
    (tmp_path / "annotated" / "NOTES.md").write_text("mine")
    before = contents(tmp_path)
    for name in ("file", "letters", "model", "annotated"):
        with pytest.raises(ValueError) as error:
            model.save(tmp_path / name)
        said = f"{tmp_path / name} holds something else, expected a new path or the folder of an n-gram model"
        assert str(error.value) == said
    assert contents(tmp_path) == before
    (tmp_path / "empty").mkdir()
    model.save(tmp_path / "empty")
    assert fields(class_of(package).load(tmp_path / "empty")) == fields(model)


@both_packages
@pytest.mark.parametrize("training", [{"loss": math.nan}, {"when": object()}, {"loss": {1, 2}}])
def test_a_training_record_must_be_plain(package: str, training: Any, tmp_path: Path) -> None:
    with pytest.raises(
        ValueError, match=r"^training is not plain JSON \(.*\), expected text, finite numbers and such$"
    ):
        dataclasses.replace(counted(package), training=training).save(tmp_path / "ngram")
    assert not list(tmp_path.iterdir())


ALL = "format_version, model_type, share, vocab_size, num_ngrams, base_model, tokenizer, training"
BAD_CONFIG: list[tuple[dict[str, Any], str]] = [
    ({"format_version": ...}, "format_version is missing, expected the folder of an n-gram model"),
    ({"format_version": 2, "new": 1}, "format_version: found 2, expected 1"),
    ({"format_version": True}, "format_version: found True, expected 1"),
    ({"model_type": "llama"}, "model_type: found 'llama', expected 'ngram'"),
    ({"share": "code / 256"}, "share: found 'code / 256', expected 'code^2 / 65536'"),
    ({"new": 1}, f"the key 'new' is missing or unknown, expected exactly {ALL}"),
    ({"training": ...}, f"the key 'training' is missing or unknown, expected exactly {ALL}"),
    ({"vocab_size": 0}, "vocab_size: found 0, expected an integer from 1 to 1048576"),
    ({"vocab_size": 2**20 + 1}, "vocab_size: found 1048577, expected an integer from 1 to 1048576"),
    ({"vocab_size": "6"}, "vocab_size: found '6', expected an integer from 1 to 1048576"),
    ({"num_ngrams": 3}, "num_ngrams: found 3, expected a list of at most 3 numbers"),
    ({"num_ngrams": [1, 2, 3, 4]}, "num_ngrams: found [1, 2, 3, 4], expected a list of at most 3 numbers"),
    ({"num_ngrams": [1, -2]}, "num_ngrams: found -2, expected an integer from 0 to 2147483647"),
    ({"num_ngrams": [1, 2.0]}, "num_ngrams: found 2.0, expected an integer from 0 to 2147483647"),
    ({"tokenizer": "abc"}, "tokenizer: found 'abc', expected 64 hexadecimal digits or null"),
    ({"tokenizer": 3}, "tokenizer: found 3, expected 64 hexadecimal digits or null"),
    ({"base_model": None}, "base_model: found None, expected text"),
    ({"training": []}, "training: found [], expected an object"),
]


@both_packages
@pytest.mark.parametrize(("changes", "message"), BAD_CONFIG, ids=lambda value: str(value)[:40])
def test_a_config_from_elsewhere_is_refused(
    package: str, changes: dict[str, Any], message: str, tmp_path: Path
) -> None:
    counted(package).save(tmp_path)
    edit_json(tmp_path / CONFIG, **changes)
    before = contents(tmp_path)
    with pytest.raises(ValueError) as error:
        class_of(package).load(tmp_path)
    assert str(error.value) == f"{tmp_path / CONFIG}: {message}"
    assert contents(tmp_path) == before


@both_packages
@pytest.mark.parametrize(
    ("changes", "found", "expected"),
    [
        ({"vocab_size": 2**20}, "'unigram' F32 [3]", "'unigram' F32 [1048576]"),
        ({"num_ngrams": [2**31 - 1]}, "'order_2.contexts' U8 [1]", "'order_2.contexts' U8 [268435457]"),
        ({"num_ngrams": []}, "'order_2.codes' U8 [2]", "no tensor 'order_2.codes'"),
        ({"num_ngrams": [2, 7]}, "no tensor 'order_3.contexts'", "'order_3.contexts' U8 [2]"),
    ],
)
def test_sizes_are_compared_before_anything_is_read(
    package: str, changes: dict[str, Any], found: str, expected: str, tmp_path: Path
) -> None:
    bad = Tables(np.ones(3), [(np.array([1, 1, 0]), np.array([2, 0]), np.array([9, 9]))], {})
    bad.model(package).save(tmp_path)
    edit_json(tmp_path / CONFIG, **changes)
    class_of(package)  # imports of their own
    tracemalloc.start()
    with pytest.raises(ValueError) as error:
        class_of(package).load(tmp_path)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    message = f"{tmp_path / ARRAYS} holds {found}, expected {expected} as config.json says"
    assert str(error.value) == message
    assert peak < 2**20


SPOILT: list[tuple[str, Any, str]] = [
    ("unigram", np.array([1, np.nan, 1], np.float32), ": unigram: found something else, expected a finite positive"),
    ("unigram", np.array([1, 0, 1], np.float32), ": unigram: found something else, expected a finite positive number"),
    ("unigram", np.ones(3), " holds 'unigram' F64 [3], expected 'unigram' F32 [3] as config.json says"),
    ("unigram", np.ones((3, 1), np.float32), " holds 'unigram' F32 [3, 1], expected 'unigram' F32 [3] as config.json"),
    ("unigram", None, " holds no tensor 'unigram', expected 'unigram' F32 [3] as config.json says"),
    ("extra", np.ones(3), " holds 'extra' F64 [3], expected no tensor 'extra' as config.json says"),
    (
        "order_2.tokens",
        np.array([2, 0], np.int32),
        " holds 'order_2.tokens' I32 [2], expected 'order_2.tokens' U16 [2]",
    ),
    ("order_2.tokens", np.array([3, 0], np.uint16), ": order_2.tokens: found 3, expected 0 to 2"),
    (
        "order_2.contexts",
        np.array([0b00111000], np.uint8),
        ": order_2.tokens: found 0 after 2 in one context, expected them to grow",
    ),
    (
        "order_2.contexts",
        np.array([0b01010000], np.uint8),
        ": order_2.contexts: found 2 marks, the last one at 3, expected 3, the last one at 4",
    ),
    (
        "order_2.contexts",
        np.array([0], np.uint8),
        ": order_2.contexts: found 0 marks, expected 3, the last one at 4",
    ),
    (
        "order_2.contexts",
        np.array([0b01110000], np.uint8),
        ": order_2.contexts: found 3 marks, the last one at 3, expected 3, the last one at 4",
    ),
    (
        "order_2.contexts",
        np.array([0b01010010], np.uint8),
        ": order_2.contexts: found 3 marks, the last one at 6, expected 3, the last one at 4",
    ),
    ("order_2.codes", np.array([9], np.uint8), " holds 'order_2.codes' U8 [1], expected 'order_2.codes' U8 [2]"),
]


@both_packages
@pytest.mark.parametrize(("name", "array", "message"), SPOILT, ids=[message[:60] for _, _, message in SPOILT])
def test_arrays_from_elsewhere_are_refused(package: str, name: str, array: Any, message: str, tmp_path: Path) -> None:
    Tables(np.ones(3), [(np.array([1, 1, 0]), np.array([2, 0]), np.array([9, 9]))], {}).model(package).save(tmp_path)
    stored = {key: value.copy() for key, value in load_file(tmp_path / ARRAYS).items() if key != name}
    save_file(stored if array is None else stored | {name: array}, tmp_path / ARRAYS)
    with pytest.raises(ValueError) as error:
        class_of(package).load(tmp_path)
    assert str(error.value).startswith(f"{tmp_path / ARRAYS}{message}") and "\n" not in str(error.value)


@both_packages
def test_shares_that_leave_nothing_are_refused(package: str, tmp_path: Path) -> None:
    Tables(np.ones(3), [(np.array([2, 0, 0]), np.array([0, 2]), np.array([9, 9]))], {}).model(package).save(tmp_path)
    stored = {key: value.copy() for key, value in load_file(tmp_path / ARRAYS).items()}
    save_file(stored | {"order_2.codes": np.array([255, 23], np.uint8)}, tmp_path / ARRAYS)
    with pytest.raises(ValueError) as error:
        class_of(package).load(tmp_path)
    said = "order_2.codes: found shares of one context that add up to 1.0003, expected less than 1"
    assert str(error.value) == f"{tmp_path / ARRAYS}: {said}"


@both_packages
def test_a_damaged_folder_is_refused(package: str, tmp_path: Path) -> None:
    load, folder = class_of(package).load, tmp_path / "ngram"
    counted(package).save(folder)
    whole = (folder / ARRAYS).read_bytes()
    for length in (0, 7, 100, len(whole) - 1):
        (folder / ARRAYS).write_bytes(whole[:length])
        with pytest.raises(ValueError, match="is damaged or half-written"):
            load(folder)
    (folder / ARRAYS).unlink()
    with pytest.raises(FileNotFoundError) as missing:
        load(folder)
    assert str(missing.value) == f"{folder / ARRAYS} is missing, expected a file"
    with pytest.raises(FileNotFoundError, match="is not a folder"):
        load(tmp_path / "nowhere")
    (folder / CONFIG).write_text("{")
    with pytest.raises(ValueError, match="is damaged or half-written"):
        load(folder)
    write_json(folder / CONFIG, {"model_type": "llama"})
    with pytest.raises(ValueError, match="format_version is missing, expected the folder of an n-gram model"):
        load(folder)


@both_packages
@given(seed=st.integers(0, 2**32))
def test_whatever_is_damaged_is_refused_in_a_sentence_or_is_a_distribution_all_the_same(
    package: str, seed: int, tmp_path_factory: pytest.TempPathFactory
) -> None:
    folder, draw = tmp_path_factory.mktemp("spoilt"), np.random.default_rng(seed)
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
