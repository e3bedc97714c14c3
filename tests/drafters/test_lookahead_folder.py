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

from folders import as_numpy, both_packages, contents, edit_json, module, tiny_config, write_checkpoint, write_json

CONFIG, VECTORS, TENSOR = "config.json", "model.safetensors", "lookahead_embeddings"
PRINT = "0123456789abcdef" * 4


def class_of(package: str) -> Any:
    return module(package, "lookahead.vectors").LookAhead


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


SIZES = ("num_hidden_layers", "hidden_size", "intermediate_size")
SIZES += ("num_attention_heads", "num_key_value_heads", "head_dim")


def of_tiny_model(package: str, rank: int = 2, width: int = 5, alone: bool = False, seed: int = 0) -> Any:
    """Return a look-ahead with random parts for the model that `write_checkpoint` writes."""
    config, parts = tiny_config(), {}
    if rank:
        parts["adapter"] = module(package, "lookahead.adapter").Adapter.random(config, rank, seed)
    if width:
        head = module(package, "lookahead.head").SamplerHead.random(24, width, seed)
        parts["head"] = dataclasses.replace(head, uses_lookahead=not alone)
    shapes = {name: getattr(config, name) for name in ("vocab_size", *SIZES)}
    vectors = class_of(package).random(3, 24, seed)
    return dataclasses.replace(vectors, base_model="tiny", base_shapes=shapes, **parts)


def fields(lookahead: Any) -> dict[str, Any]:
    """Return all that a look-ahead holds, in plain Python."""
    parts = [part and plain(part.tensors()) for part in (lookahead.adapter, lookahead.head)]
    bare = dataclasses.replace(lookahead, adapter=None, head=None)
    found = dataclasses.asdict(bare) | {"vectors": as_numpy(lookahead.vectors).tolist()}
    head = lookahead.head
    return found | {"adapter": parts[0], "head": parts[1], "uses_lookahead": head and head.uses_lookahead}


def plain(tensors: dict[str, Any]) -> dict[str, Any]:
    return {name: as_numpy(tensor).tolist() for name, tensor in tensors.items()}


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
    load_model = module(package, "checkpoint.load").load_model
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
        monkeypatch.setattr(module(package, "checkpoint.folder"), "open", break_down, raising=False)
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


HEAD = {"kind": "head", "width": 4, "alone": False}
A_HEAD = "expected null, or a head with its width and whether alone"
BASE = {"name": "tiny", "shapes": {}, "fingerprint": None}
BAD: list[tuple[dict[str, Any], str]] = [
    ({"format_version": ...}, "format_version is missing, expected a look-ahead folder"),
    ({"format_version": 2}, "format_version: found 2, expected 1"),
    ({"format_version": True}, "format_version: found True, expected 1"),
    ({"format_version": 2, "new": 1}, "format_version: found 2, expected 1"),
    ({"embedding_space": "hidden"}, "embedding_space: found 'hidden', expected 'inputs_embeds'"),
    ({"adapter_rank": -1}, "adapter_rank: found -1, expected an integer from 0 to 65536"),
    ({"adapter_rank": 2.0}, "adapter_rank: found 2.0, expected an integer from 0 to 65536"),
    ({"adapter_rank": None}, "adapter_rank: found None, expected an integer from 0 to 65536"),
    ({"adapter_rank": 8}, "base_model shapes num_hidden_layers: found None, expected an integer from 1 to 4096"),
    (
        {"adapter_rank": 8, "base_model": BASE | {"shapes": dict.fromkeys(SIZES, 10**9)}},
        "base_model shapes num_hidden_layers: found 1000000000, expected an integer from 1 to 4096",
    ),
    (
        {"adapter_rank": 8, "base_model": BASE | {"shapes": dict.fromkeys(SIZES, 1) | {"head_dim": 0}}},
        "base_model shapes head_dim: found 0, expected an integer from 1 to 1048576",
    ),
    *[
        ({"refine": refine}, f"refine: found {refine!r}, {A_HEAD}")
        for refine in ("head", [], {}, {"kind": "ngram"}, {"kind": "head", "width": 4}, HEAD | {"new": 1})
    ],
    ({"refine": HEAD | {"kind": "ngram"}}, f"refine: found {HEAD | {'kind': 'ngram'}!r}, {A_HEAD}"),
    ({"refine": HEAD | {"width": 0}}, "refine width: found 0, expected an integer from 1 to 65536"),
    ({"refine": HEAD | {"width": True}}, "refine width: found True, expected an integer from 1 to 65536"),
    ({"refine": HEAD | {"alone": 0}}, "refine alone: found 0, expected true or false"),
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
        ({TENSOR: np.ones((2, 8), np.float32)}, "F32 [2, 8] as 'lookahead_embeddings', expected F32 [3, 8]"),
        ({TENSOR: np.ones((8, 3), np.float32)}, "F32 [8, 3] as 'lookahead_embeddings', expected F32 [3, 8]"),
        ({TENSOR: np.ones((3, 8), np.float64)}, "F64 [3, 8] as 'lookahead_embeddings', expected F32 [3, 8]"),
        ({"prompt": np.ones((3, 8), np.float32)}, "nothing as 'lookahead_embeddings', expected F32 [3, 8]"),
        ({}, "nothing as 'lookahead_embeddings', expected F32 [3, 8]"),
    ],
)
def test_vectors_from_elsewhere_are_refused(package: str, tensors: Any, message: str, tmp_path: Path) -> None:
    trained(package).save(tmp_path)
    save_file(tensors, tmp_path / VECTORS)
    with pytest.raises(ValueError) as error:
        class_of(package).load(tmp_path)
    assert str(error.value) == f"{tmp_path / VECTORS} holds {message}"


# --- An adapter and a head ---

PARTS = {"adapter": (2, 0, False), "head": (0, 5, False), "both": (3, 4, False), "head alone": (0, 5, True)}
on_parts = pytest.mark.parametrize("parts", PARTS)
BF16 = np.dtype("bfloat16")


@both_packages
@on_parts
def test_saved_parts_come_back_as_they_are_used(package: str, parts: str, tmp_path: Path) -> None:
    """Parts are rounded when a look-ahead is made, so what is saved is what was measured."""
    lookahead = of_tiny_model(package, *PARTS[parts])
    lookahead.save(tmp_path / "parts")
    loaded = class_of(package).load(tmp_path / "parts")
    assert fields(loaded) == fields(lookahead)
    stored = load_file(tmp_path / "parts" / VECTORS)
    assert {name: array.dtype for name, array in stored.items()} == {
        name: np.float32 if name == TENSOR else BF16 for name in stored
    }
    settings = json.loads((tmp_path / "parts" / CONFIG).read_text())
    rank, width, alone = PARTS[parts]
    assert settings["adapter_rank"] == rank == (0 if loaded.adapter is None else loaded.adapter.rank)
    assert settings["refine"] == ({"kind": "head", "width": width, "alone": alone} if width else None)
    assert (loaded.head and (loaded.head.width, loaded.head.uses_lookahead)) == ((width, not alone) if width else None)
    loaded.check(module(package, "checkpoint.load").load_model(write_checkpoint(tmp_path / "model")))


@pytest.mark.torch
@on_parts
def test_both_packages_write_and_read_parts_byte_for_byte_alike(parts: str, tmp_path: Path) -> None:
    for package in ("reference", "gpu"):
        of_tiny_model(package, *PARTS[parts]).save(tmp_path / package)
    for package, other in (("reference", "gpu"), ("gpu", "reference")):
        loaded = class_of(package).load(tmp_path / other)
        assert fields(loaded) == fields(of_tiny_model(other, *PARTS[parts]))
        loaded.save(tmp_path / f"{package} again")
    for name in (CONFIG, VECTORS):
        assert len({(folder / name).read_bytes() for folder in tmp_path.iterdir()}) == 1


@both_packages
@pytest.mark.parametrize("changes", [{"intermediate_size": 21}, {"num_hidden_layers": 3}, {"num_key_value_heads": 1}])
def test_an_adapter_for_other_shapes_is_refused_by_name(package: str, changes: Any, tmp_path: Path) -> None:
    """Even if nothing says which model it was trained for."""
    load_model = module(package, "checkpoint.load").load_model
    other = load_model(write_checkpoint(tmp_path / "other", tiny_config(**changes)))
    lookahead = of_tiny_model(package)
    with pytest.raises(ValueError) as error:
        lookahead.check(other)
    assert str(error.value) == "the look-ahead adapter has the shapes of another model, expected those of 'other'"
    dataclasses.replace(lookahead, adapter=None).check(other)
    table = module(package, "model.table").TableModel(24)  # as wide, and without layers
    with pytest.raises(ValueError, match=r"^the look-ahead adapter has the shapes of another model, expected those of"):
        lookahead.check(table)


DOWN = "adapter.0.down.down"  # [R, intermediate_size]
WRONG_PARTS: dict[str, tuple[dict[str, Any], str]] = {
    "missing in the adapter": ({DOWN: None}, "nothing as 'adapter.0.down.down', expected BF16 [2, 20]"),
    "missing in the head": ({"head.out": None}, "nothing as 'head.out', expected BF16 [24, 5]"),
    "one layer more": ({"adapter.2.down.up": np.ones((24, 2), BF16)}, "BF16 [24, 2] as 'adapter.2.down.up', {}"),
    "a tensor more": ({"head.last": np.ones(3, BF16)}, "BF16 [3] as 'head.last', {}"),
    "another rank": ({DOWN: np.ones((3, 20), BF16)}, "BF16 [3, 20] as 'adapter.0.down.down', expected BF16 [2, 20]"),
    "another model": ({DOWN: np.ones((2, 21), BF16)}, "BF16 [2, 21] as 'adapter.0.down.down', expected BF16 [2, 20]"),
    "another width": ({"head.first": np.ones((4, 24), BF16)}, "BF16 [4, 24] as 'head.first', expected BF16 [5, 24]"),
    "float32": ({"head.out": np.ones((24, 5), np.float32)}, "F32 [24, 5] as 'head.out', expected BF16 [24, 5]"),
    "float16": ({DOWN: np.ones((2, 20), np.float16)}, "F16 [2, 20] as 'adapter.0.down.down', expected BF16 [2, 20]"),
}


@both_packages
@pytest.mark.parametrize("changes, message", WRONG_PARTS.values(), ids=WRONG_PARTS)
def test_parts_from_elsewhere_are_refused(package: str, changes: Any, message: str, tmp_path: Path) -> None:
    of_tiny_model(package).save(tmp_path)
    tensors = load_file(tmp_path / VECTORS) | changes
    save_file({name: array for name, array in tensors.items() if array is not None}, tmp_path / VECTORS)
    with pytest.raises(ValueError) as error:
        class_of(package).load(tmp_path)
    assert str(error.value) == f"{tmp_path / VECTORS} holds {message.format('expected nothing')}"


@both_packages
@pytest.mark.parametrize(
    "changes, message",
    [
        ({"refine": HEAD | {"width": 6}}, "BF16 [5, 24] as 'head.first', expected BF16 [6, 24]"),
        ({"refine": None}, "BF16 [5, 24] as 'head.first', expected nothing"),
        ({"adapter_rank": 0}, "BF16 [2, 20] as 'adapter.0.down.down', expected nothing"),
        ({"adapter_rank": 3}, "BF16 [2, 20] as 'adapter.0.down.down', expected BF16 [3, 20]"),
        ({"num_lookahead": 2}, "F32 [3, 24] as 'lookahead_embeddings', expected F32 [2, 24]"),
        ({"hidden_size": 25}, "F32 [3, 24] as 'lookahead_embeddings', expected F32 [3, 25]"),
    ],
)
def test_a_config_that_disagrees_with_the_tensors_is_refused(
    package: str, changes: Any, message: str, tmp_path: Path
) -> None:
    of_tiny_model(package).save(tmp_path)
    edit_json(tmp_path / CONFIG, **changes)
    with pytest.raises(ValueError) as error:
        class_of(package).load(tmp_path)
    assert str(error.value) == f"{tmp_path / VECTORS} holds {message}"


@both_packages
@pytest.mark.parametrize("name", [DOWN, "head.inner"])
@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_parts_that_are_not_finite_are_refused(package: str, name: str, value: float, tmp_path: Path) -> None:
    of_tiny_model(package).save(tmp_path)
    tensors = {key: array.copy() for key, array in load_file(tmp_path / VECTORS).items()}
    tensors[name][1, 2] = value
    save_file(tensors, tmp_path / VECTORS)
    with pytest.raises(ValueError) as error:
        class_of(package).load(tmp_path)
    said = "adapter or head holds NaN or infinity, expected finite numbers"
    assert str(error.value) == f"{tmp_path / VECTORS}: {said}"


@both_packages
def test_parts_too_large_for_what_they_are_stored_in_are_refused(package: str) -> None:
    head = module(package, "lookahead.head").SamplerHead.random(24, 5, 0)
    head.out[0, 0] = 3.4e38  # float32 goes to 3.4028e38, bfloat16 to 3.3895e38
    with pytest.raises(ValueError, match=r"^adapter or head holds NaN or infinity, expected finite numbers$"):
        dataclasses.replace(of_tiny_model(package), head=head)


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
