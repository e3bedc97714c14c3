"""Bad folders: one sentence that names the file, the same in both packages; nothing allocated, nothing written."""

import json
import math
import os
import pickle
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from safetensors.numpy import load_file, save_file

from folders import both_packages, contents, edit_json, module, tiny_config, write_checkpoint, write_json

Damage = Callable[[Path], Any]
CONFIG, GENERATION = "config.json", "generation_config.json"
WEIGHTS, INDEX = "model.safetensors", "model.safetensors.index.json"
FIRST, SECOND = "model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"
QUERY, EMBEDDING = "model.layers.1.self_attn.q_proj.weight", "model.embed_tokens.weight"


def refused(package: str, folder: Path, kind: type[Exception] = ValueError, **arguments: Any) -> str:
    """Return what `load_model` says of a folder; it must leave the folder as it was."""
    before = contents(folder.parent)
    with pytest.raises(kind) as error:
        module(package, "checkpoint.load").load_model(folder, **arguments)
    assert type(error.value) is kind
    assert contents(folder.parent) == before
    message = str(error.value)
    assert "\n" not in message and "expected" in message
    return message


@pytest.fixture
def nothing_allocated(package: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def allocate(*_: object) -> None:
        raise AssertionError("memory was allocated for a folder that cannot be loaded")

    monkeypatch.setattr(module(package, "checkpoint.load"), "allocate", allocate)


before_allocating = pytest.mark.usefixtures("nothing_allocated")


def settings(changes: dict[str, Any]) -> Damage:
    return lambda folder: edit_json(folder / CONFIG, **changes)


def text(content: str | bytes, name: str = CONFIG) -> Damage:
    return lambda folder: (folder / name).write_bytes(content if isinstance(content, bytes) else content.encode())


def part(name: str, kept: float = 0.5) -> Damage:
    def cut(folder: Path) -> None:
        content = (folder / name).read_bytes()
        (folder / name).write_bytes(content[: int(kept * len(content))])

    return cut


def without(*names: str, files: dict[str, str | bytes] | None = None) -> Damage:
    """Remove some files, and write others."""

    def replace(folder: Path) -> None:
        for name in names:
            (folder / name).unlink()
        for name, content in (files or {}).items():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            text(content, name)(folder)

    return replace


def tensors(changes: dict[str, Any], name: str = WEIGHTS) -> Damage:
    """Replace, add or (with ...) remove tensors."""

    def rewrite(folder: Path) -> None:
        found = load_file(folder / name) | changes
        save_file({key: value for key, value in found.items() if value is not ...}, folder / name)

    return rewrite


def header(content: bytes) -> Damage:
    return text(len(content).to_bytes(8, "little") + content + b"1234", WEIGHTS)


def weight_map(change: Callable[[dict[str, str]], dict[str, str]]) -> Damage:
    def rewrite(folder: Path) -> None:
        index = json.loads((folder / INDEX).read_text())
        write_json(folder / INDEX, index | {"weight_map": change(index["weight_map"])})

    return rewrite


def redirected(old: str, new: str) -> Damage:
    return weight_map(lambda files: {key: new if value == old else value for key, value in files.items()})


def ones(*shape: int) -> np.ndarray:
    return np.ones(shape, np.float32)


# What is said of a damage, after the folder's name; a * stands for anything.

JSON = "is damaged or half-written (*), expected a JSON object"
DAMAGED = f"/{WEIGHTS} is damaged or half-written (*), expected a safetensors file"
TOO_LONG = "has 67108865 bytes, expected a JSON file of at most 67108864"
TWICE = "has the key 'a' twice, expected every key once"
ROPE: dict[str, Any] = {"rope_type": "default", "rope_theta": 10000.0}
SLIDING = {"model_type": "qwen2", "layer_types": ["full_attention", "sliding_attention"], "sliding_window": 4}
IDS = "token ids of at least 0"
CONFIGS: list[tuple[str, Any, str]] = [  # a key, its value, and what is expected
    ("model_type", "gpt2", "llama, mistral, qwen2 or qwen3"),
    ("mlp_bias", True, "false"),
    ("hidden_act", "gelu", "'silu'"),
    ("layer_types", ["full_attention"], "one name for each of the 2 layers"),
    ("vocab_size", 10**15, "an integer from 1 to 67108864"),
    ("eos_token_id", -3, IDS),
    ("eos_token_id", [1, "2"], IDS),
]
WHOLE_CONFIGS: list[tuple[dict[str, Any], str]] = [
    ({"model_type": ...}, "model_type: found None, expected llama, mistral, qwen2 or qwen3"),
    ({"vocab_size": ...}, "vocab_size is missing, expected an integer"),
    ({"auto_map": {"": ""}}, "auto_map asks to run code from the folder, expected a model that needs none"),
    (
        {"quantization_config": {"quant_method": "gptq", "bits": 4}},
        "quantization_config asks for 'gptq', expected weights that are not quantised",
    ),
    ({"per_layer_config": {"0": {}}}, "per_layer_config is set, expected layers of one shape"),
    ({"rope_scaling": {"type": "dynamic"}}, "rope_type: found 'dynamic', expected 'default', 'linear' or 'llama3'"),
    (SLIDING, "layer_types names 'sliding_attention', expected a sliding_window that is in use"),
    (
        SLIDING | {"model_type": "mistral"},
        "layer_types names 'full_attention', expected the sliding_window in every layer of mistral",
    ),
]
ROPES: list[tuple[dict[str, Any], str]] = [
    ({"rope_type": "yarn", "factor": 2.0}, "rope_type: found 'yarn', expected 'default', 'linear' or 'llama3'"),
    ({"full_attention": 1}, "rope_parameters has the unknown key 'full_attention', expected only rotary settings"),
    ({"rope_type": "linear"}, "rope_parameters has no factor, expected one for rope_type 'linear'"),
]
ONE = b'"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}'
NORM = "model.norm.weight"
BIAS = "model.layers.0.self_attn.q_proj.bias"
ONLY, SAYS = "expected only those of config.json", "as in config.json"
LACKS = " lacks the tensor {}, expected all {} tensors of config.json"
SINGLE: list[tuple[Damage, str]] = [
    (text(""), f"/{CONFIG} {JSON.replace('*', 'Expecting value: line 1 column 1 (char 0)')}"),
    *((text(content), f"/{CONFIG} {JSON}") for content in ('{"a": 1, ', b"\xff\xfe", "[" * 200_000, f"[{'9' * 5000}]")),
    (text('{"a": 1, "a": 2}'), f"/{CONFIG} {TWICE}"),
    (lambda folder: os.truncate(folder / CONFIG, 2**26 + 1), f"/{CONFIG} {TOO_LONG}"),
    *((settings({key: value}), f"/{CONFIG}: {key}: found {value!r}, expected {rest}") for key, value, rest in CONFIGS),
    *((settings(changes), f"/{CONFIG}: {message}") for changes, message in WHOLE_CONFIGS),
    *((settings({"rope_parameters": ROPE | changes}), f"/{CONFIG}: {message}") for changes, message in ROPES),
    (text("[]", GENERATION), f"/{GENERATION} holds a list, expected a JSON object"),
    (text('{"eos_token_id": [null]}', GENERATION), f"/{GENERATION}: eos_token_id: found [None], expected {IDS}"),
    (without(WEIGHTS), f" holds no weights, expected {WEIGHTS} or {INDEX}"),
    (without(CONFIG), f"/{CONFIG} is missing, expected a file"),
    (lambda folder: (without(CONFIG)(folder), (folder / CONFIG).mkdir()), f"/{CONFIG} is missing, expected a file"),
    (shutil.rmtree, " is not a folder, expected one with config.json and model.safetensors"),
    *((text(content, WEIGHTS), DAMAGED) for content in (b"", b"1234567", b"\xff" * 8 + b"{}", b"\0" * 64)),
    (text(pickle.dumps({"a": 1}), WEIGHTS), DAMAGED),
    (part(WEIGHTS), DAMAGED),
    (header(b"{" + ONE.replace(b"4]", b"400]") + b"}"), DAMAGED),
    (header(b"{" + ONE + b"," + ONE + b"}"), f"/{WEIGHTS} {TWICE}"),
    *((tensors({name: ones(24)}), f"/{WEIGHTS} holds the tensor '{name}', {ONLY}") for name in ("x", "../../x", BIAS)),
    (tensors({QUERY: ones(24, 23)}), f"/{WEIGHTS}: tensor {QUERY} has shape [24, 23], expected [24, 24] {SAYS}"),
    (tensors({NORM: np.ones(24, int)}), f"/{WEIGHTS}: tensor {NORM} is stored as I64, expected F64, F32, BF16 or F16"),
    (settings({"vocab_size": 30}), f"/{WEIGHTS}: tensor lm_head.weight has shape [23, 24], expected [30, 24] {SAYS}"),
    (
        settings({"intermediate_size": 2**22}),
        f"/{WEIGHTS}: tensor model.layers.0.mlp.down_proj.weight has shape [24, 20], expected [24, 4194304] {SAYS}",
    ),
    (tensors({"lm_head.weight": ...}), LACKS.format("lm_head.weight", 21)),
    (settings({"num_hidden_layers": 3}), LACKS.format("model.layers.2.input_layernorm.weight", 30)),
    (settings({"model_type": "qwen2"}), LACKS.format(BIAS, 27)),
]
NO_MAP = f"/{INDEX} has no weight_map, expected one from tensor names to file names"
BOTH_FILES = f'{{"weight_map": {{"a": "{FIRST}", "a": "{SECOND}"}}}}'
SHARDED: list[tuple[Damage, str]] = [
    (without(SECOND), f"/{SECOND} is missing, expected a file"),
    *((part(SECOND, kept), f"/{SECOND} is damaged or half-written (*") for kept in (0.1, 0.5, 0.9, 0.999)),
    (text('{"metadata": {}}', INDEX), NO_MAP),
    (text(BOTH_FILES, INDEX), f"/{INDEX} {TWICE}"),
    *(
        (redirected(FIRST, name), f"/{INDEX} names the file '{name}', expected only .safetensors files")
        for name in ("pytorch_model-00001-of-00002.bin", CONFIG)
    ),
    (
        weight_map(lambda files: files | {"phantom": FIRST}),
        f"/{FIRST} lacks the tensor 'phantom', expected it there by {INDEX}",
    ),
    (
        weight_map(lambda files: files | {EMBEDDING: SECOND}),
        f"/{FIRST} holds the tensor '{EMBEDDING}', expected it only in the file of {INDEX}: '{SECOND}'",
    ),
    (
        tensors({EMBEDDING: ones(23, 24)}, SECOND),
        f"/{SECOND} holds the tensor '{EMBEDDING}', expected it only in the file of {INDEX}: '{FIRST}'",
    ),
]


class Bomb:
    def __reduce__(self) -> tuple[Any, ...]:
        return pytest.fail, ("a pickle was opened",)


ADAPTER = '{"peft_type": "LORA", "base_model_name_or_path": "org/base"}'
PICKLES = ("pytorch_model.bin", "model.pt", "model.pth", "last.ckpt", "weights.pkl")
OTHERS: list[tuple[str, str | bytes, str]] = [  # what is in the place of weights
    *((name, pickle.dumps(Bomb()), "pickled weights, which may run code when opened") for name in PICKLES),
    ("adapter_config.json", ADAPTER, "a PEFT adapter for 'org/base'"),
    ("adapter_config.json", "{}", "a PEFT adapter"),
    ("model-Q4_K_M.gguf", "GGUF", "weights in GGUF"),
    ("tf_model.h5", "", "weights of TensorFlow"),
    ("consolidated.safetensors", "", "weights in Mistral's own format"),
    ("model_index.json", "{}", "a pipeline of diffusers"),
    ("snapshots/0a1b/config.json", "{}", "a cache of models"),
]
BESIDE = {"tokenizer.json": "{}", "params.json": "{}", "unet/config.json": "{}", "adapter_model.safetensors": ""}
FOUND = ": found {} ({}), expected config.json and model.safetensors"
SINGLE += [
    *(
        (without(WEIGHTS, *names, files=BESIDE | {name: content}), FOUND.format(kind, name))
        for name, content, kind in OTHERS
        for names in ((), (CONFIG,))
    ),
    (without(WEIGHTS, CONFIG, files={"tokenizer.json": "{}"}), FOUND.format("a tokenizer", "tokenizer.json")),
    (without(CONFIG, files={"training_args.bin": "", "tokenizer.json": ""}), f"/{CONFIG} is missing, expected a file"),
]
CASES = [(1, *case) for case in SINGLE] + [(2, *case) for case in SHARDED]
NOT_FOUND = re.compile("is missing, expected a file|holds no weights|is not a folder")


@both_packages
@before_allocating
@pytest.mark.parametrize("shards, damage, message", CASES, ids=[f"{n}:{case[2][:60]}" for n, case in enumerate(CASES)])
def test_a_damaged_folder_is_refused(package: str, shards: int, damage: Damage, message: str, tmp_path: Path) -> None:
    folder = write_checkpoint(tmp_path / "model", shards=shards)
    damage(folder)
    found = refused(package, folder, FileNotFoundError if NOT_FOUND.search(message) else ValueError)
    said = found.replace(str(folder), "", 1).replace("\\", "/")
    if package == "gpu" and "GGUF" in message:  # which the port reads
        assert said.startswith("/model-Q4_K_M.gguf cannot be read"), said
        return
    assert re.fullmatch(re.escape(message).replace(r"\*", ".*"), said), said
    if package == "gpu" and message.startswith(": found"):
        with pytest.raises(ValueError, match="found") as error:
            module("gpu", "hf.model_checks").load_with_transformers(folder)
        assert str(error.value) == found


@both_packages
@given(place=st.integers(0, 10**6), change=st.integers(1, 255), shards=st.sampled_from([1, 2]))
def test_a_folder_with_one_wrong_byte_is_loaded_or_refused(package, place, change, shards, tmp_path_factory):
    folder = tmp_path_factory.getbasetemp() / f"wrong_byte_{package}_{shards}"
    if not folder.exists():
        write_checkpoint(folder, shards=shards, generation_config={"do_sample": True, "eos_token_id": [2]})
    files = sorted(folder.iterdir())
    path = files[place % len(files)]
    content = path.read_bytes()
    place = place // len(files) % min(len(content), 3000)  # all of a JSON file, all of a safetensors header
    try:
        path.write_bytes(content[:place] + bytes([content[place] ^ change]) + content[place + 1 :])
        module(package, "checkpoint.load").load_model(folder)
    except (ValueError, FileNotFoundError) as error:
        assert str(error).startswith(str(folder))
        assert "expected" in str(error)
    finally:
        path.write_bytes(content)


OUTSIDE = ["../outside.safetensors", "sub/outside.safetensors", "..\\outside.safetensors", "/tmp/outside.safetensors"]
OUTSIDE += ["C:outside.safetensors", "a\0.safetensors", "a\n.safetensors"]


@both_packages
@before_allocating
@pytest.mark.parametrize("name", OUTSIDE)
def test_an_index_that_points_outside(package: str, name: str, tmp_path: Path) -> None:
    folder = write_checkpoint(tmp_path / "model", shards=2)
    for place in (tmp_path, folder / "sub"):  # the file it points to is there, and is good
        place.mkdir(exist_ok=True)
        shutil.copy(folder / SECOND, place / "outside.safetensors")
    redirected(SECOND, name)(folder)
    assert refused(package, folder) == f"{folder}: the file name {name!r} is not plain, expected a name without a path"


@both_packages
@before_allocating
@pytest.mark.parametrize("name", [CONFIG, GENERATION, WEIGHTS, INDEX, SECOND])
@pytest.mark.parametrize("where", ["outside", "blobs"])
def test_a_link_that_leads_outside(package: str, name: str, where: str, tmp_path: Path) -> None:
    """Only the cache of the Hub, which this is not, may link to blobs."""
    folder = write_checkpoint(tmp_path / "models/mine", shards=1 if name == WEIGHTS else 2, generation_config={})
    (tmp_path / where).mkdir()
    outside = (folder / name).rename(tmp_path / where / "0")
    try:
        (folder / name).symlink_to(outside)
    except OSError:
        pytest.skip("this system makes no links")
    expected = f"{folder / name} is a link that leads to {outside.resolve()}, expected a file in the folder"
    assert refused(package, folder) == expected


NOT_FINITE = "NaN or infinity, expected finite weights"
TOO_LARGE = "values too large for float32, expected a wider dtype"
STORED = [("float32", 1), ("bfloat16", 1), ("float16", 2), ("float64", 2)]
VALUES = [(value, *stored, NOT_FINITE) for value in (math.nan, math.inf, -math.inf) for stored in STORED]


@both_packages
@pytest.mark.parametrize("value, stored, shards, said", [*VALUES, (1e39, "float64", 1, TOO_LARGE)])
def test_weights_that_are_not_finite(package, value, stored, shards, said, tmp_path):
    weights = module("reference", "model.weights").Weights.random(tiny_config(), 0)
    weights.layers[1].query[23, 23] = value
    folder = write_checkpoint(tmp_path / "model", weights=weights, dtype=stored, shards=shards)
    file = next(path for path in folder.glob("*.safetensors") if QUERY in load_file(path))
    assert refused(package, folder, dtype="float32") == f"{file}: tensor {QUERY} holds {said}"
    if math.isfinite(value):
        module(package, "checkpoint.load").load_model(folder, dtype="float64")


@both_packages
def test_an_output_that_is_said_to_be_tied_and_is_not(package: str, tmp_path: Path) -> None:
    folder = write_checkpoint(tmp_path / "model", tie_word_embeddings=True)
    assert refused(package, folder) == (
        f"{folder / WEIGHTS}: tensor lm_head.weight differs from the embedding, "
        "expected the same where tie_word_embeddings is true"
    )


@both_packages
@before_allocating
@pytest.mark.parametrize("dtype", ["int8", "f4", "complex128", "", 7, int])
def test_an_unknown_dtype(package: str, dtype: Any, tmp_path: Path) -> None:
    folder = write_checkpoint(tmp_path / "model")
    names = {"reference": "float64 or float32", "gpu": "float64, float32, bfloat16 or float16"}
    message = refused(package, folder, dtype=dtype)
    assert message.startswith("dtype: found ") and message.endswith(f", expected {names[package]}")


DEVICES = [
    ("cuda", "cuda and PyTorch finds 0 CUDA devices, expected cpu"),
    ("cuda:99", "cuda:99 and PyTorch finds {count} CUDA devices, expected cpu"),
    ("mps", "mps, which has no float64 to sample with, expected cpu or cuda"),
    *((device, f"{device}, expected cpu or cuda") for device in ("meta", "tpu", "")),
]


@pytest.mark.torch
@pytest.mark.parametrize("device, message", DEVICES)
def test_a_device_that_is_not_there(device: str, message: str, tmp_path: Path) -> None:
    import torch

    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if device == "cuda" and count:
        pytest.skip("there is one")
    folder = write_checkpoint(tmp_path / "model")
    assert refused("gpu", folder, device=device) == "device: found " + message.format(count=count)
