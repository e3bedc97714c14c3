"""Look-ahead folders: the same in both packages, checked before use, and saved whole or not at all."""

from __future__ import annotations

import dataclasses
import json
import math
import os
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from folders import as_numpy, both_packages, contents, edit_json, module, write_checkpoint, write_json

CONFIG, VECTORS, TENSOR = "config.json", "model.safetensors", "lookahead_embeddings"
PRINT = "0123456789abcdef" * 4


def class_of(package: str) -> Any:
    return module(package, "lookahead").LookAhead


def trained(package: str, seed: int = 0, num_lookahead: int = 3) -> Any:
    """Return a look-ahead with every field set."""
    return dataclasses.replace(
        class_of(package).random(num_lookahead, 8, seed),
        base_model="tiny",
        base_shapes={"hidden_size": 8, "vocab_size": 23},
        fingerprint=PRINT,
        sampling=module(package, "config").SamplingConfig(0.8, 10, 0.95),
        training={"steps": 7, "corpus": "the café", "losses": [2.5, 1.25]},
    )


def fields(lookahead: Any) -> dict[str, Any]:
    """Return all that a look-ahead holds, in plain Python."""
    return dataclasses.asdict(dataclasses.replace(lookahead)) | {"vectors": as_numpy(lookahead.vectors).tolist()}


@both_packages
@pytest.mark.parametrize("num_lookahead", [0, 1, 3])
def test_a_saved_lookahead_comes_back(package: str, num_lookahead: int, tmp_path: Path) -> None:
    folder = tmp_path / "new" / "lookahead"
    for lookahead in (trained(package, 0, num_lookahead), class_of(package).random(num_lookahead, 8, 1)):
        lookahead.save(folder)  # the second time over the first
        loaded = class_of(package).load(folder)
        assert fields(loaded) == fields(lookahead)
        assert (loaded.num_lookahead, loaded.hidden_size) == (num_lookahead, 8)
    assert sorted(contents(tmp_path)) == ["new", "new/lookahead", f"new/lookahead/{CONFIG}", f"new/lookahead/{VECTORS}"]


def test_the_format(tmp_path: Path) -> None:
    trained("reference").save(tmp_path / "lookahead")
    assert json.loads((tmp_path / "lookahead" / CONFIG).read_text()) == {
        "format_version": 1,
        "embedding_space": "inputs_embeds",
        "adapter_rank": 0,
        "refine": None,
        "num_lookahead": 3,
        "hidden_size": 8,
        "sampling": {"temperature": 0.8, "top_k": 10, "top_p": 0.95},
        "base_model": {
            "name": "tiny",
            "shapes": {"hidden_size": 8, "vocab_size": 23},
            "fingerprint": PRINT,
        },
        "training": {"steps": 7, "corpus": "the café", "losses": [2.5, 1.25]},
    }
    stored = load_file(tmp_path / "lookahead" / VECTORS)
    assert list(stored) == [TENSOR]
    assert (stored[TENSOR].dtype, stored[TENSOR].shape) == (np.float32, (3, 8))


@pytest.mark.torch
def test_both_packages_draw_write_and_read_the_same(tmp_path: Path) -> None:
    for package in ("reference", "gpu"):
        trained(package, seed=5).save(tmp_path / package)
    for name in (CONFIG, VECTORS):
        assert (tmp_path / "reference" / name).read_bytes() == (tmp_path / "gpu" / name).read_bytes()
    assert fields(class_of("gpu").load(tmp_path / "reference")) == fields(trained("reference", seed=5))


@both_packages
def test_random_vectors_have_the_size_of_embeddings(package: str) -> None:
    vectors = as_numpy(class_of(package).random(64, 256, 0).vectors)
    assert vectors.dtype == np.float32
    assert abs(vectors.std() - 0.02) < 5 * 0.02 / math.sqrt(2 * vectors.size)
    assert not np.array_equal(vectors, as_numpy(class_of(package).random(64, 256, 1).vectors))


@both_packages
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((-1, 8, 0), "num_lookahead: found -1, expected an integer from 0 to 65536"),
        ((2.0, 8, 0), "num_lookahead: found 2.0, expected an integer from 0 to 65536"),
        ((1, 0, 0), "hidden_size: found 0, expected an integer from 1 to 1048576"),
        ((1, 8, -1), "seed: found -1, expected an integer from 0 to 18446744073709551615"),
    ],
)
def test_random_refuses_sizes_that_make_no_sense(package: str, arguments: Any, message: str) -> None:
    with pytest.raises(ValueError) as error:
        class_of(package).random(*arguments)
    assert str(error.value) == message


@both_packages
@pytest.mark.parametrize(
    ("vectors", "message"),
    [
        ([1.0, 2.0], "vectors has shape [2], expected [num_lookahead, hidden_size]"),
        ([[]], "vectors has shape [1, 0], expected [num_lookahead, hidden_size]"),
        ([[1.0, math.nan]], "vectors holds NaN or infinity, expected finite numbers"),
        ([[1.0, -math.inf]], "vectors holds NaN or infinity, expected finite numbers"),
        ([[1e300, 1.0]], "vectors holds NaN or infinity, expected finite numbers"),
    ],
)
def test_vectors_that_cannot_be_used_are_refused(package: str, vectors: Any, message: str) -> None:
    array = np.array(vectors)
    if package == "gpu":
        import torch

        array = torch.from_numpy(array)
    with pytest.raises(ValueError) as error:
        class_of(package)(array)
    assert str(error.value) == message


def model(hidden_size: int = 8, fingerprint: str | None = PRINT) -> Any:
    return SimpleNamespace(hidden_size=hidden_size, fingerprint=fingerprint, name="other")


@both_packages
def test_vectors_are_checked_against_the_model(package: str) -> None:
    lookahead = trained(package)
    lookahead.check(model())
    lookahead.check(model(fingerprint=None))  # random weights, which have none
    with pytest.raises(ValueError) as error:
        lookahead.check(model(hidden_size=16))
    assert str(error.value) == ("the look-ahead vectors have hidden_size 8, expected 16 as in the model 'other'")
    with pytest.raises(ValueError) as error:
        lookahead.check(model(fingerprint="f" * 64))
    assert str(error.value) == (
        "the look-ahead vectors were trained for the model 'tiny' (0123456789ab), this is 'other' (ffffffffffff), "
        "expected the same; wrong vectors keep the text exact but make it slow, and "
        "dataclasses.replace(lookahead, fingerprint=None) uses them all the same"
    )
    dataclasses.replace(lookahead, fingerprint=None).check(model(fingerprint="f" * 64))


@both_packages
def test_vectors_know_the_checkpoint_they_were_trained_for(package: str, tmp_path: Path) -> None:
    load_model = module(package, "checkpoint").load_model
    one, two = (load_model(write_checkpoint(tmp_path / str(seed), seed=seed)) for seed in range(2))
    lookahead = dataclasses.replace(class_of(package).random(2, 24, 0), fingerprint=one.fingerprint)
    lookahead.check(one)
    with pytest.raises(ValueError, match="were trained for the model"):
        lookahead.check(two)


@both_packages
@pytest.mark.parametrize("existing", [False, True])
@pytest.mark.parametrize("function", ["open", "fsync", "replace"])
@pytest.mark.parametrize("failing", [1, 2, 3])
def test_a_save_that_fails_leaves_everything_as_it_was(
    package: str,
    existing: bool,
    function: str,
    failing: int,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    folder = tmp_path / "lookahead"
    if existing:
        trained(package).save(folder)
    before = contents(tmp_path)
    calls = 0

    def break_down(*arguments: Any, **settings: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == failing:
            raise KeyboardInterrupt("the disk is full, or someone pressed a key")
        return real(*arguments, **settings)

    if function == "open":
        real: Any = open
        monkeypatch.setattr(module(package, "files.saving"), "open", break_down, raising=False)
    else:
        real = getattr(os, function)
        monkeypatch.setattr(os, function, break_down)
    failed = False
    try:
        class_of(package).random(1, 8, 9).save(folder)
    except KeyboardInterrupt:
        failed = True
    monkeypatch.undo()
    assert failed == (calls >= failing)
    if failed:
        assert contents(tmp_path) == before
    else:
        assert class_of(package).load(folder).num_lookahead == 1
    assert {path.name for path in tmp_path.iterdir()} <= {"lookahead"}


@both_packages
def test_a_save_never_destroys_anything_else(package: str, tmp_path: Path) -> None:
    lookahead = trained(package)
    (tmp_path / "file").write_text("dear diary")
    (tmp_path / "letters").mkdir()
    (tmp_path / "letters" / "a.txt").write_text("dear Ann")
    write_checkpoint(tmp_path / "model")
    lookahead.save(tmp_path / "annotated")
    (tmp_path / "annotated" / "NOTES.md").write_text("mine")
    lookahead.save(tmp_path / "broken")
    (tmp_path / "broken" / CONFIG).write_text("{")
    before = contents(tmp_path)
    for name in ("file", "letters", "model", "annotated", "broken"):
        with pytest.raises(ValueError) as error:
            lookahead.save(tmp_path / name)
        expected = f"{tmp_path / name} holds something else, expected a new path or a look-ahead folder"
        assert str(error.value) == expected
    assert contents(tmp_path) == before
    (tmp_path / "empty").mkdir()
    lookahead.save(tmp_path / "empty")
    assert fields(class_of(package).load(tmp_path / "empty")) == fields(lookahead)


@both_packages
@pytest.mark.parametrize("training", [{"loss": math.nan}, {"when": object()}, {"loss": {1, 2}}])
def test_a_training_record_must_be_plain(package: str, training: Any, tmp_path: Path) -> None:
    with pytest.raises(
        ValueError, match=r"^training is not plain JSON \(.*\), expected text, finite numbers and such$"
    ):
        dataclasses.replace(trained(package), training=training).save(tmp_path / "lookahead")
    assert not list(tmp_path.iterdir())


BASE = {"name": "tiny", "shapes": {}, "fingerprint": None}
BAD: list[tuple[dict[str, Any], str]] = [
    ({"format_version": ...}, "format_version is missing, expected a look-ahead folder"),
    ({"format_version": 2}, "format_version: found 2, expected 1"),
    ({"format_version": True}, "format_version: found True, expected 1"),
    ({"format_version": 2, "new": 1}, "format_version: found 2, expected 1"),
    ({"embedding_space": "hidden"}, "embedding_space: found 'hidden', expected 'inputs_embeds'"),
    ({"adapter_rank": 8}, "adapter_rank: found 8, expected 0"),
    ({"refine": {"kind": "ngram"}}, "refine: found {'kind': 'ngram'}, expected None"),
    (
        {"new": 1},
        "the key 'new' is missing or unknown, expected exactly format_version, embedding_space, adapter_rank, "
        "refine, num_lookahead, hidden_size, sampling, base_model, training",
    ),
    (
        {"training": ...},
        "the key 'training' is missing or unknown, expected exactly format_version, embedding_space, adapter_rank, "
        "refine, num_lookahead, hidden_size, sampling, base_model, training",
    ),
    ({"num_lookahead": 10**12}, "num_lookahead: found 1000000000000, expected an integer from 0 to 65536"),
    ({"num_lookahead": "3"}, "num_lookahead: found '3', expected an integer from 0 to 65536"),
    ({"hidden_size": 0}, "hidden_size: found 0, expected an integer from 1 to 1048576"),
    ({"base_model": "tiny"}, "base_model: found 'tiny', expected an object with name, shapes and fingerprint"),
    ({"base_model": BASE | {"name": 3}}, "base_model name: found 3, expected text"),
    (
        {"base_model": BASE | {"shapes": {"hidden_size": "8"}}},
        "base_model shapes: found {'hidden_size': '8'}, expected an object of integers",
    ),
    (
        {"base_model": BASE | {"fingerprint": "abc"}},
        "fingerprint: found 'abc', expected 64 hexadecimal digits or null",
    ),
    (
        {"sampling": {"temperature": 1.0}},
        "sampling: found {'temperature': 1.0}, expected an object with temperature, top_k and top_p, or null",
    ),
    (
        {"sampling": {"temperature": -1.0, "top_k": 0, "top_p": 1.0}},
        "temperature: found -1.0, expected a finite number of at least 0",
    ),
    ({"training": []}, "training: found [], expected an object"),
]


@both_packages
@pytest.mark.parametrize(("changes", "message"), BAD, ids=lambda value: str(value)[:40])
def test_a_config_from_elsewhere_is_refused(
    package: str, changes: dict[str, Any], message: str, tmp_path: Path
) -> None:
    folder = tmp_path / "lookahead"
    trained(package).save(folder)
    edit_json(folder / CONFIG, **changes)
    before = contents(tmp_path)
    with pytest.raises(ValueError) as error:
        class_of(package).load(folder)
    assert str(error.value) == f"{folder / CONFIG}: {message}"
    assert contents(tmp_path) == before


@both_packages
@pytest.mark.parametrize(
    ("tensors", "message"),
    [
        ({TENSOR: np.ones((2, 8), np.float32)}, "holds 'lookahead_embeddings' F32 [2, 8], expected {}"),
        ({TENSOR: np.ones((8, 3), np.float32)}, "holds 'lookahead_embeddings' F32 [8, 3], expected {}"),
        ({TENSOR: np.ones((3, 8), np.float64)}, "holds 'lookahead_embeddings' F64 [3, 8], expected {}"),
        ({"prompt": np.ones((3, 8), np.float32)}, "holds 'prompt' F32 [3, 8], expected {}"),
        ({}, "holds no tensor, expected {}"),
    ],
)
def test_vectors_from_elsewhere_are_refused(package: str, tensors: Any, message: str, tmp_path: Path) -> None:
    trained(package).save(tmp_path)
    save_file(tensors, tmp_path / VECTORS)
    with pytest.raises(ValueError) as error:
        class_of(package).load(tmp_path)
    expected = message.format("'lookahead_embeddings' F32 [3, 8] as in config.json")
    assert str(error.value) == f"{tmp_path / VECTORS} {expected}"


@both_packages
def test_a_damaged_folder_is_refused(package: str, tmp_path: Path) -> None:
    folder = tmp_path / "lookahead"
    trained(package).save(folder)
    good = load_file(folder / VECTORS)[TENSOR].copy()
    good[1, 2] = np.nan
    save_file({TENSOR: good}, folder / VECTORS)
    load = class_of(package).load
    with pytest.raises(ValueError) as error:
        load(folder)
    assert str(error.value) == f"{folder / VECTORS}: vectors holds NaN or infinity, expected finite numbers"
    (folder / VECTORS).write_bytes((folder / VECTORS).read_bytes()[:-1])
    with pytest.raises(ValueError, match="is damaged or half-written"):
        load(folder)
    (folder / VECTORS).unlink()
    with pytest.raises(FileNotFoundError) as missing:
        load(folder)
    assert str(missing.value) == f"{folder / VECTORS} is missing, expected a file"
    with pytest.raises(FileNotFoundError, match="is not a folder"):
        load(tmp_path / "nowhere")
    write_json(folder / CONFIG, {"model_type": "llama"})
    with pytest.raises(ValueError, match="format_version is missing, expected a look-ahead folder"):
        load(folder)
