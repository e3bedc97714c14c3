"""Look-ahead folders: their format, the model that they belong to, and what is refused, alike in both packages."""

import json
import math
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import load_file

from draft_folders import ARRAYS, CONFIG, PRINT, SIZES, TRAINING, refused, settings, tensors, trained
from folders import both_packages, module, tiny_config, write_checkpoint
from lookaheads import PARTS

TENSOR, DOWN = "lookahead_embeddings", "adapter.0.down.down"  # [L, D], [R, intermediate_size]
KINDS = {"block heads": "block"}
BF16 = np.dtype(ml_dtypes.bfloat16)


def class_of(package: str) -> Any:
    return module(package, "lookahead.vectors").LookAhead


def said_of(function: Any, *arguments: Any) -> str:
    with pytest.raises(ValueError) as error:
        function(*arguments)
    return str(error.value)


@both_packages
@pytest.mark.parametrize("parts", PARTS)
def test_the_format(package: str, parts: str, tmp_path: Path) -> None:
    """Parts are rounded when a look-ahead is made, so what is saved is what was measured."""
    rank, width, alone = PARTS[parts]
    made = trained(package, parts)
    made.save(tmp_path / "parts")
    assert json.loads((tmp_path / "parts" / CONFIG).read_text()) == {
        "format_version": 1,
        "embedding_space": "inputs_embeds",
        "adapter_rank": rank,
        "refine": {"kind": KINDS.get(parts, "head"), "width": width, "alone": alone} if width else None,
        "num_lookahead": 3,
        "hidden_size": 24,
        "sampling": {"temperature": 0.8, "top_k": 10, "top_p": 0.95},
        "base_model": {"name": "tiny", "shapes": made.base_shapes, "fingerprint": PRINT},
        "training": TRAINING,
    }
    stored = load_file(tmp_path / "parts" / ARRAYS)
    assert {name: array.dtype for name, array in stored.items()} == {
        name: np.float32 if name == TENSOR else BF16 for name in stored
    }
    of_head = 6 if parts == "block heads" else 3 * bool(width)
    assert stored[TENSOR].shape == (3, 24) and len(stored) == 1 + 16 * bool(rank) + of_head
    loaded = class_of(package).load(tmp_path / "parts")
    assert (loaded.num_lookahead, loaded.hidden_size) == (3, 24)
    assert (0 if loaded.adapter is None else loaded.adapter.rank) == rank
    assert (loaded.head and (loaded.head.width, loaded.head.uses_lookahead)) == ((width, not alone) if width else None)


NOT_FINITE = "holds NaN or infinity, expected finite numbers"


@both_packages
@pytest.mark.parametrize(
    ("vectors", "message"),
    [
        ([1.0, 2.0], "vectors has shape [2], expected [num_lookahead, hidden_size]"),
        ([[]], "vectors has shape [1, 0], expected [num_lookahead, hidden_size]"),
        ([[1.0, math.nan]], f"vectors {NOT_FINITE}"),
        ([[1e300, 1.0]], f"vectors {NOT_FINITE}"),
    ],
)
def test_vectors_that_cannot_be_used_are_refused(package: str, vectors: Any, message: str) -> None:
    array = np.array(vectors) if package == "reference" else __import__("torch").tensor(vectors, dtype=float)
    assert said_of(class_of(package), array) == message


@both_packages
def test_parts_too_large_for_what_they_are_stored_in_are_refused(package: str) -> None:
    head = module(package, "lookahead.head").SamplerHead.random(24, 5, 0)
    head.matrices["out"][0, 0] = 3.4e38  # float32 goes to 3.4028e38, bfloat16 to 3.3895e38
    assert said_of(lambda: replace(trained(package), head=head)) == f"adapter or head {NOT_FINITE}"


@both_packages
def test_vectors_are_checked_against_the_model(package: str) -> None:
    def model(hidden_size: int = 24, fingerprint: str | None = PRINT) -> Any:
        return SimpleNamespace(hidden_size=hidden_size, fingerprint=fingerprint, name="other")

    lookahead = trained(package, "vectors")
    lookahead.check(model())
    lookahead.check(model(fingerprint=None))  # random weights, which have none
    said = "the look-ahead vectors have hidden_size 24, expected 16 as in the model 'other'"
    assert said_of(lookahead.check, model(hidden_size=16)) == said
    assert said_of(lookahead.check, model(fingerprint="f" * 64)) == (
        "the look-ahead vectors were trained for the model 'tiny' (0123456789ab), this is 'other' (ffffffffffff), "
        "expected the same; other vectors keep the text exact but make it slow, and "
        "dataclasses.replace(lookahead, fingerprint=None) skips this check"
    )
    replace(lookahead, fingerprint=None).check(model(fingerprint="f" * 64))


OTHER_SHAPES = "the look-ahead adapter has the shapes of another model, expected those of"


@both_packages
@pytest.mark.parametrize("changes", [{"intermediate_size": 21}, {"num_hidden_layers": 3}, {"num_key_value_heads": 1}])
def test_an_adapter_for_other_shapes_is_refused_by_name(package: str, changes: Any, tmp_path: Path) -> None:
    """Even if nothing says which model it was trained for."""
    load_model = module(package, "checkpoint.load").load_model
    other = load_model(write_checkpoint(tmp_path / "other", tiny_config(**changes)))
    table = module(package, "model.table").TableModel(24)  # as wide, and without layers
    lookahead = replace(trained(package), fingerprint=None)
    for model in (other, table):
        assert said_of(lookahead.check, model) == f"{OTHER_SHAPES} {model.name!r}"
    replace(lookahead, adapter=None).check(other)


@both_packages
@pytest.mark.parametrize("name, shape", [("0.down.down", (4, 20)), ("1.output.up", (24, 4)), ("1.gate_up.up", (20, 3))])
def test_a_term_of_another_shape_is_refused(package: str, name: str, shape: tuple[int, int], tmp_path: Path) -> None:
    """Another rank than the others', or as if gate and up had not one term together."""
    model = module(package, "checkpoint.load").load_model(write_checkpoint(tmp_path / "model"))
    lookahead = replace(trained(package), fingerprint=None)
    lookahead.check(model)
    terms = lookahead.adapter.matrices
    terms[name] = np.ones(shape, np.float32) if package == "reference" else __import__("torch").ones(shape)
    other = replace(lookahead, adapter=type(lookahead.adapter)(terms))
    assert said_of(other.check, model) == f"{OTHER_SHAPES} 'model'"


# What is refused: damage to a folder with an adapter of rank 3 and a head of width 4, and the sentence.
HEAD = {"kind": "head", "width": 4, "alone": False}
A_HEAD = "expected null, or a head with its width and whether alone"
BASE = {"name": "tiny", "shapes": {}, "fingerprint": None}
KEYS = (
    "is missing or unknown, expected exactly format_version, embedding_space, adapter_rank, refine, num_lookahead, "
    "hidden_size, sampling, base_model, training"
)
CONFIGS: list[tuple[dict[str, Any], str]] = [
    ({"format_version": ...}, "format_version is missing, expected a look-ahead folder"),
    ({"format_version": 2, "new": 1}, "format_version: found 2, expected 1"),
    ({"embedding_space": "hidden"}, "embedding_space: found 'hidden', expected 'inputs_embeds'"),
    ({"adapter_rank": -1}, "adapter_rank: found -1, expected an integer from 0 to 65536"),
    ({"base_model": BASE}, "base_model shapes num_hidden_layers: found None, expected an integer from 1 to 4096"),
    (
        {"base_model": BASE | {"shapes": dict.fromkeys(SIZES, 1) | {"head_dim": 0}}},
        "base_model shapes head_dim: found 0, expected an integer from 1 to 1048576",
    ),
    *[
        ({"refine": refine}, f"refine: found {refine!r}, {A_HEAD}")
        for refine in ("head", [], {}, {"kind": "ngram"}, {"kind": "head", "width": 4}, HEAD | {"new": 1})
    ],
    ({"refine": HEAD | {"kind": "ngram"}}, f"refine: found {HEAD | {'kind': 'ngram'}!r}, {A_HEAD}"),
    ({"refine": HEAD | {"width": 0}}, "refine width: found 0, expected an integer from 1 to 65536"),
    ({"refine": HEAD | {"alone": 0}}, "refine alone: found 0, expected true or false"),
    ({"new": 1}, f"the key 'new' {KEYS}"),
    ({"num_lookahead": 10**12}, "num_lookahead: found 1000000000000, expected an integer from 0 to 65536"),
    ({"hidden_size": 0}, "hidden_size: found 0, expected an integer from 1 to 1048576"),
    ({"base_model": "tiny"}, "base_model: found 'tiny', expected an object with name, shapes and fingerprint"),
    ({"base_model": BASE | {"name": 3}}, "base_model name: found 3, expected text"),
    (
        {"base_model": BASE | {"shapes": {"hidden_size": "8"}}},
        "base_model shapes: found {'hidden_size': '8'}, expected an object of integers",
    ),
    ({"base_model": BASE | {"fingerprint": "abc"}}, "fingerprint: found 'abc', expected 64 hexadecimal digits or null"),
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
OTHER_TENSORS: list[tuple[dict[str, Any], str]] = [
    ({"refine": HEAD | {"width": 6}}, "BF16 [4, 24] as 'head.first', expected BF16 [6, 24]"),
    ({"refine": None}, "BF16 [4, 24] as 'head.first', expected nothing"),
    ({"adapter_rank": 0}, f"BF16 [3, 20] as '{DOWN}', expected nothing"),
    ({"hidden_size": 25}, f"F32 [3, 24] as '{TENSOR}', expected F32 [3, 25]"),
]
TENSORS: list[tuple[str, Any, str]] = [
    (TENSOR, np.ones((24, 3), np.float32), "F32 [24, 3], expected F32 [3, 24]"),
    (TENSOR, np.ones((3, 24)), "F64 [3, 24], expected F32 [3, 24]"),
    (TENSOR, None, "nothing, expected F32 [3, 24]"),
    (DOWN, None, "nothing, expected BF16 [3, 20]"),
    (DOWN, np.ones((3, 20), np.float16), "F16 [3, 20], expected BF16 [3, 20]"),
    ("adapter.2.down.up", np.ones((24, 3), BF16), "BF16 [24, 3], expected nothing"),
    ("head.out", np.ones((24, 4), np.float32), "F32 [24, 4], expected BF16 [24, 4]"),
    ("head.first", np.ones((5, 24), BF16), "BF16 [5, 24], expected BF16 [4, 24]"),
    ("head.last", np.ones(3, BF16), "BF16 [3], expected nothing"),
]
TENSORS += [
    ("draft_vocab", np.array([[1]], np.int32), "I32 [1, 1], expected I32 [1]"),
    ("draft_vocab", np.array([1], np.int64), "I64 [1], expected I32 [1]"),
]
TENSORS += [
    (name, np.full(shape, value, dtype), f"{what} {NOT_FINITE}")
    for name, shape, dtype, what in (
        (TENSOR, (3, 24), np.float32, "vectors"),
        (DOWN, (3, 20), BF16, "adapter or head"),
        ("head.inner", (4, 52), BF16, "adapter or head"),
    )
    for value in (math.nan, math.inf)
]


def about(name: str, message: str) -> str:
    """Return the sentence about a tensor, or about the numbers that are not finite."""
    if message.endswith(NOT_FINITE):
        return f"{ARRAYS}: {message}"
    found, expected = message.split(", expected ")
    return f"{ARRAYS} holds {found} as {name!r}, expected {expected}"


REFUSED = [(settings(**changes), f"{CONFIG}: {message}") for changes, message in CONFIGS]
REFUSED += [(settings(**changes), f"{ARRAYS} holds {message}") for changes, message in OTHER_TENSORS]
REFUSED += [(tensors({name: array}), about(name, message)) for name, array, message in TENSORS]


@both_packages
@pytest.mark.parametrize(("damage", "message"), REFUSED, ids=[message[:60] for _, message in REFUSED])
def test_a_folder_from_elsewhere_is_refused(package: str, damage: Any, message: str, tmp_path: Path) -> None:
    trained(package).save(tmp_path)
    assert refused(class_of(package).load, tmp_path, damage) == message
