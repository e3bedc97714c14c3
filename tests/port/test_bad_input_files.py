"""Bad folders: one sentence that names the file, the same in both packages; nothing allocated, nothing written."""

from __future__ import annotations

import json
import math
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from safetensors.numpy import load_file, save_file

from folders import both_packages, contents, edit_json, module, tiny_config, write_checkpoint, write_json, write_tensors

Break = Callable[[Path], None]
CONFIG, WEIGHTS, INDEX = "config.json", "model.safetensors", "model.safetensors.index.json"
FIRST, SECOND = "model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"
QUERY = "model.layers.1.self_attn.q_proj.weight"


def refused(package: str, folder: Path, kind: type[Exception] = ValueError, **arguments: Any) -> str:
    """Return what `load_model` says of a folder; it must leave the folder as it was."""
    before = contents(folder.parent)
    with pytest.raises(kind) as error:
        module(package, "checkpoint.load").load_model(folder, **arguments)
    assert type(error.value) is kind
    assert contents(folder.parent) == before
    message = str(error.value)
    assert "\n" not in message
    assert "expected" in message
    return message


@pytest.fixture
def nothing_allocated(package: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def allocate(*_: object) -> None:
        raise AssertionError("memory was allocated for a folder that cannot be loaded")

    monkeypatch.setattr(module(package, "checkpoint.load"), "allocate", allocate)


def settings(**changes: Any) -> Break:
    return lambda folder: edit_json(folder / CONFIG, **changes)


def text(content: str | bytes, name: str = CONFIG) -> Break:
    return lambda folder: (
        (folder / name).write_bytes(content if isinstance(content, bytes) else content.encode()) and None
    )


def half(name: str) -> Break:
    def cut(folder: Path) -> None:
        content = (folder / name).read_bytes()
        (folder / name).write_bytes(content[: len(content) // 2])

    return cut


ROPE = {"rope_type": "default", "rope_theta": 10000.0}
CONFIGS: dict[str, tuple[Break, str]] = {
    "half-written": (
        text('{"model_type": "llama", '),
        " is damaged or half-written (Expecting property name enclosed in double quotes: line 1 column 25 (char 24)), "
        "expected a JSON object",
    ),
    "empty": (
        text(""),
        " is damaged or half-written (Expecting value: line 1 column 1 (char 0)), expected a JSON object",
    ),
    "binary": (
        text(b"\xff\xfe\x00"),
        " is damaged or half-written ('utf-8' codec can't decode byte 0xff in position 0: invalid start byte), "
        "expected a JSON object",
    ),
    "a list": (text("[1]"), " holds a list, expected a JSON object"),
    "a key twice": (text('{"a": 1, "a": 2}'), " has the key 'a' twice, expected every key once"),
    "remote code": (
        settings(auto_map={"AutoModel": "evil.Model"}),
        ": auto_map asks to run code from the folder, expected a model that needs none",
    ),
    "no model type": (settings(model_type=...), ": model_type: found None, expected llama, mistral, qwen2 or qwen3"),
    "unknown model type": (
        settings(model_type="gpt2"),
        ": model_type: found 'gpt2', expected llama, mistral, qwen2 or qwen3",
    ),
    "quantised": (
        settings(quantization_config={"quant_method": "gptq", "bits": 4}),
        ": quantization_config asks for 'gptq', expected weights that are not quantised",
    ),
    "layers of their own": (
        settings(per_layer_config={"0": {"intermediate_size": 4}}),
        ": per_layer_config is set, expected layers of one shape",
    ),
    "mlp bias": (settings(mlp_bias=True), ": mlp_bias: found True, expected false"),
    "other activation": (settings(hidden_act="gelu"), ": hidden_act: found 'gelu', expected 'silu'"),
    "yarn": (
        settings(rope_parameters=ROPE | {"rope_type": "yarn", "factor": 2.0}),
        ": rope_type: found 'yarn', expected 'default', 'linear' or 'llama3'",
    ),
    "old dynamic": (
        settings(rope_scaling={"type": "dynamic", "factor": 2.0}),
        ": rope_type: found 'dynamic', expected 'default', 'linear' or 'llama3'",
    ),
    "rope of a layer type": (
        settings(rope_parameters={"full_attention": ROPE}),
        ": rope_parameters has the unknown key 'full_attention', expected only rotary settings",
    ),
    "rope without factor": (
        settings(rope_parameters=ROPE | {"rope_type": "linear"}),
        ": rope_parameters has no factor, expected one for rope_type 'linear'",
    ),
    "partial rotary": (
        settings(rope_parameters=ROPE | {"partial_rotary_factor": 0.5}),
        ": partial_rotary_factor: found 0.5, expected 1",
    ),
    "old partial rotary": (settings(partial_rotary_factor=0.25), ": partial_rotary_factor: found 0.25, expected 1"),
    "rope theta": (
        settings(rope_parameters=ROPE | {"rope_theta": -1}),
        ": rope_theta: found -1, expected a finite number above 0",
    ),
    "linear attention": (
        settings(model_type="qwen2", layer_types=["full_attention", "linear_attention"]),
        ": layer_types names 'linear_attention', expected 'full_attention' or 'sliding_attention'",
    ),
    "window not in use": (
        settings(model_type="qwen2", layer_types=["full_attention", "sliding_attention"], sliding_window=4),
        ": layer_types names 'sliding_attention', expected a sliding_window that is in use",
    ),
    "half a mistral": (
        settings(model_type="mistral", layer_types=["full_attention", "sliding_attention"]),
        ": layer_types names 'full_attention', expected the sliding_window in every layer of mistral",
    ),
    "window of llama": (
        settings(sliding_window=8),
        ": sliding_window: found 8, expected none for model_type llama",
    ),
    "too few layer types": (
        settings(layer_types=["full_attention"]),
        ": layer_types: found ['full_attention'], expected one name for each of the 2 layers",
    ),
    "no vocabulary": (settings(vocab_size=...), ": vocab_size is missing, expected an integer"),
    "negative vocabulary": (
        settings(vocab_size=-1),
        ": vocab_size: found -1, expected an integer from 1 to 67108864",
    ),
    "absurd vocabulary": (
        settings(vocab_size=10**15),
        f": vocab_size: found {10**15}, expected an integer from 1 to 67108864",
    ),
    "absurd depth": (
        settings(num_hidden_layers=10**9),
        f": num_hidden_layers: found {10**9}, expected an integer from 1 to 16384",
    ),
    "no heads": (
        settings(num_attention_heads=0, head_dim=None),
        ": num_attention_heads: found 0, expected an integer from 1 to 65536",
    ),
    "heads that do not divide": (
        settings(num_attention_heads=5, head_dim=None),
        ": hidden_size: found 24, expected a multiple of num_attention_heads 5",
    ),
    "groups that do not divide": (
        settings(num_key_value_heads=3),
        ": num_attention_heads: found 4, expected a multiple of num_key_value_heads 3",
    ),
    "epsilon": (settings(rms_norm_eps=math.nan), ": rms_norm_eps: found nan, expected a finite number above 0"),
    "end id": (settings(eos_token_id=-3), ": eos_token_id: found -3, expected token ids of at least 0"),
    "end ids": (settings(eos_token_id=[1, "2"]), ": eos_token_id: found [1, '2'], expected token ids of at least 0"),
}


@both_packages
@pytest.mark.usefixtures("nothing_allocated")
@pytest.mark.parametrize("case", CONFIGS)
def test_a_bad_config(package: str, case: str, tmp_path: Path) -> None:
    destroy, message = CONFIGS[case]
    folder = write_checkpoint(tmp_path / "model")
    destroy(folder)
    assert refused(package, folder) == f"{folder / CONFIG}{message}"


@both_packages
@pytest.mark.usefixtures("nothing_allocated")
def test_a_config_that_strains_the_parser(package: str, tmp_path: Path) -> None:
    folder = write_checkpoint(tmp_path / "model")
    for content in ("[" * 200_000, '{"vocab_size": ' + "9" * 5000 + "}"):
        (folder / CONFIG).write_text(content)
        message = refused(package, folder)
        assert message.startswith(f"{folder / CONFIG} is damaged or half-written (")
        assert message.endswith("), expected a JSON object")
    with open(folder / CONFIG, "wb") as file:
        file.truncate(2**26 + 1)
    with pytest.raises(ValueError) as error:
        module(package, "checkpoint.load").load_model(folder)
    assert str(error.value) == f"{folder / CONFIG} has 67108865 bytes, expected a JSON file of at most 67108864"


@both_packages
@pytest.mark.usefixtures("nothing_allocated")
@pytest.mark.parametrize(
    ("content", "message"),
    [
        ('{"do_sample": "yes"}', ": do_sample: found 'yes', expected true or false"),
        (
            '{"do_sample": true, "temperature": -1}',
            ": temperature: found -1, expected a finite number of at least 0",
        ),
        ('{"do_sample": true, "top_p": 2}', ": top_p: found 2, expected a number above 0 and at most 1"),
        ('{"eos_token_id": [null]}', ": eos_token_id: found [None], expected token ids of at least 0"),
        ("[]", " holds a list, expected a JSON object"),
    ],
)
def test_a_bad_generation_config(package: str, content: str, message: str, tmp_path: Path) -> None:
    folder = write_checkpoint(tmp_path / "model")
    (folder / "generation_config.json").write_text(content)
    assert refused(package, folder) == f"{folder / 'generation_config.json'}{message}"


@both_packages
@pytest.mark.usefixtures("nothing_allocated")
def test_a_missing_file(package: str, tmp_path: Path) -> None:
    folder = write_checkpoint(tmp_path / "model", shards=2)
    (folder / SECOND).unlink()
    assert refused(package, folder, FileNotFoundError) == f"{folder / SECOND} is missing, expected a file"
    (folder / INDEX).unlink()
    expected = f"{folder} holds no weights, expected {WEIGHTS} or {INDEX}"
    assert refused(package, folder, FileNotFoundError) == expected
    (folder / CONFIG).unlink()
    assert refused(package, folder, FileNotFoundError) == f"{folder / CONFIG} is missing, expected a file"
    (folder / CONFIG).mkdir()
    assert refused(package, folder, FileNotFoundError) == f"{folder / CONFIG} is missing, expected a file"
    shutil.rmtree(folder)
    expected = f"{folder} is not a folder, expected one with config.json and model.safetensors"
    assert refused(package, folder, FileNotFoundError) == expected


@both_packages
@pytest.mark.usefixtures("nothing_allocated")
@pytest.mark.parametrize("name", ["pytorch_model.bin", "model.pt", "model.pth", "last.ckpt", "weights.pkl"])
def test_pickled_weights_are_never_opened(package: str, name: str, tmp_path: Path) -> None:
    class Bomb:
        def __reduce__(self) -> tuple[Any, ...]:
            return (Path.touch, (tmp_path / "exploded",))

    folder = write_checkpoint(tmp_path / "model")
    (folder / WEIGHTS).unlink()
    (folder / name).write_bytes(pickle.dumps(Bomb()))
    assert refused(package, folder) == (
        f"{folder}: found pickled weights, which may run code when opened ({name}), expected {CONFIG} and {WEIGHTS}"
    )


ADAPTER = '{"peft_type": "LORA", "base_model_name_or_path": "org/base"}'
OTHERS: dict[str, tuple[dict[str, str], str]] = {
    "an adapter": (
        {"adapter_config.json": ADAPTER, "adapter_model.safetensors": "", "tokenizer.json": "{}"},
        "a PEFT adapter for 'org/base' (adapter_config.json)",
    ),
    "an adapter for nothing": ({"adapter_config.json": "{}"}, "a PEFT adapter (adapter_config.json)"),
    "GGUF": ({"model-Q4_K_M.gguf": "GGUF", "tokenizer.json": "{}"}, "weights in GGUF (model-Q4_K_M.gguf)"),
    "ONNX": ({"onnx/model.onnx": "", "tokenizer.json": "{}"}, "an ONNX graph (onnx/model.onnx)"),
    "ONNX alone": ({"model.onnx": ""}, "an ONNX graph (model.onnx)"),
    "TensorFlow": ({"tf_model.h5": ""}, "weights of TensorFlow (tf_model.h5)"),
    "Flax": ({"flax_model.msgpack": ""}, "weights of Flax (flax_model.msgpack)"),
    "Mistral's own": (
        {"params.json": "{}", "consolidated.safetensors": ""},
        "weights in Mistral's own format (consolidated.safetensors)",
    ),
    "a pickle": ({"pytorch_model.bin": ""}, "pickled weights, which may run code when opened (pytorch_model.bin)"),
    "a pipeline": ({"model_index.json": "{}", "unet/config.json": "{}"}, "a pipeline of diffusers (model_index.json)"),
    "a cache": ({"snapshots/0a1b/config.json": "{}"}, "a cache of models (snapshots/0a1b/config.json)"),
}


@both_packages
@pytest.mark.usefixtures("nothing_allocated")
@pytest.mark.parametrize(("files", "found"), OTHERS.values(), ids=OTHERS)
@pytest.mark.parametrize("with_config", [False, True], ids=["no config.json", "config.json"])
def test_a_folder_of_another_kind_is_named(
    package: str, files: dict[str, str], found: str, with_config: bool, tmp_path: Path
) -> None:
    folder = write_checkpoint(tmp_path / "model")
    (folder / WEIGHTS).unlink()
    if not with_config:
        (folder / CONFIG).unlink()
    for name, content in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(content)
    message = refused(package, folder)
    assert message.startswith(f"{folder}: found {found}") and message.endswith(f", expected {CONFIG} and {WEIGHTS}")
    if package == "gpu":
        with pytest.raises(ValueError, match="found") as error:
            module("gpu", "hf.model_checks").load_with_transformers(folder)
        assert str(error.value) == message


@both_packages
def test_weights_without_a_config_are_not_called_what_lies_beside_them(package: str, tmp_path: Path) -> None:
    folder = write_checkpoint(tmp_path / "model")
    (folder / CONFIG).unlink()
    for name in ("training_args.bin", "tokenizer.json"):
        (folder / name).touch()
    assert refused(package, folder, FileNotFoundError) == f"{folder / CONFIG} is missing, expected a file"


@both_packages
def test_a_tokenizer_alone_is_named(package: str, tmp_path: Path) -> None:
    (tmp_path / "tokenizer.json").write_text("{}")
    expected = f"{tmp_path}: found a tokenizer (tokenizer.json), expected {CONFIG} and {WEIGHTS}"
    assert refused(package, tmp_path) == expected
    for kind in ("lookahead.vectors.LookAhead", "drafters.ngram.NgramModel"):
        where, _, name = kind.rpartition(".")
        with pytest.raises(ValueError, match="found a tokenizer"):
            getattr(module(package, where), name).load(tmp_path)


def tensors(**changes: Any) -> Break:
    """Return what replaces, adds or (with ...) removes tensors; `__` in a name stands for a dot."""

    def rewrite(folder: Path) -> None:
        found = load_file(folder / WEIGHTS) | {name.replace("__", "."): value for name, value in changes.items()}
        write_tensors(folder, {name: value for name, value in found.items() if value is not ...})

    return rewrite


def header(content: bytes, data: bytes = b"") -> Break:
    return text(len(content).to_bytes(8, "little") + content + data, WEIGHTS)


ONE = b'"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}'
DAMAGED = " is damaged or half-written ({}), expected a safetensors file"
TENSORS: dict[str, tuple[Break, str]] = {
    "no byte": (text(b"", WEIGHTS), "damaged"),
    "seven bytes": (text(b"1234567", WEIGHTS), "damaged"),
    "half": (half(WEIGHTS), "damaged"),
    "absurd header": (text(b"\xff" * 8 + b"{}", WEIGHTS), "damaged"),
    "no header": (text(b"\0" * 64, WEIGHTS), "damaged"),
    "a pickle": (text(pickle.dumps({"a": 1}), WEIGHTS), "damaged"),
    "offset beyond the end": (header(b"{" + ONE.replace(b"4]", b"400]") + b"}", b"1234"), "damaged"),
    "overflowing shape": (header(b"{" + ONE.replace(b"[1]", b"[4294967296,4294967296]") + b"}", b"1234"), "damaged"),
    "a tensor twice": (
        header(b"{" + ONE + b"," + ONE + b"}", b"1234"),
        " has the key 'a' twice, expected every key once",
    ),
    "unexpected": (
        tensors(extra=np.ones(2, np.float32)),
        " holds the tensor 'extra', expected only those of config.json",
    ),
    "a path for a name": (
        tensors(**{"../../x": np.ones(2, np.float32)}),
        " holds the tensor '../../x', expected only those of config.json",
    ),
    "shape": (
        tensors(model__layers__1__self_attn__q_proj__weight=np.ones((24, 23), np.float32)),
        f": tensor {QUERY} has shape [24, 23], expected [24, 24] as config.json says",
    ),
    "transposed": (
        tensors(model__layers__0__mlp__up_proj__weight=np.ones((24, 20), np.float32)),
        ": tensor model.layers.0.mlp.up_proj.weight has shape [24, 20], expected [20, 24] as config.json says",
    ),
    "empty tensor": (
        tensors(model__norm__weight=np.ones(0, np.float32)),
        ": tensor model.norm.weight has shape [0], expected [24] as config.json says",
    ),
    "integers": (
        tensors(model__norm__weight=np.ones(24, np.int64)),
        ": tensor model.norm.weight is stored as I64, expected F64, F32, BF16 or F16",
    ),
    "other vocabulary": (
        settings(vocab_size=30),
        ": tensor lm_head.weight has shape [23, 24], expected [30, 24] as config.json says",
    ),
    "absurd but allowed width": (
        settings(intermediate_size=2**22),
        ": tensor model.layers.0.mlp.down_proj.weight has shape [24, 20], expected [24, 4194304] as config.json says",
    ),
    "biases that should not be": (
        tensors(model__layers__0__self_attn__q_proj__bias=np.ones(24, np.float32)),
        " holds the tensor 'model.layers.0.self_attn.q_proj.bias', expected only those of config.json",
    ),
}


@both_packages
@pytest.mark.usefixtures("nothing_allocated")
@pytest.mark.parametrize("case", TENSORS)
def test_a_bad_safetensors_file(package: str, case: str, tmp_path: Path) -> None:
    destroy, message = TENSORS[case]
    folder = write_checkpoint(tmp_path / "model")
    destroy(folder)
    found = refused(package, folder)
    if message != "damaged":
        assert found == f"{folder / WEIGHTS}{message}"
        return
    start, end = DAMAGED.split("{}")
    assert found.startswith(f"{folder / WEIGHTS}{start}")
    assert found.endswith(end)


@both_packages
@pytest.mark.usefixtures("nothing_allocated")
@pytest.mark.parametrize("kept", [0.1, 0.5, 0.9, 0.999])
def test_a_half_written_shard(package: str, kept: float, tmp_path: Path) -> None:
    folder = write_checkpoint(tmp_path / "model", shards=2)
    content = (folder / SECOND).read_bytes()
    (folder / SECOND).write_bytes(content[: int(kept * len(content))])
    assert refused(package, folder).startswith(f"{folder / SECOND} is damaged or half-written (")


@both_packages
@pytest.mark.usefixtures("nothing_allocated")
@pytest.mark.parametrize(
    ("destroy", "missing", "number"),
    [
        (tensors(lm_head__weight=...), "lm_head.weight", 21),
        (settings(num_hidden_layers=3), "model.layers.2.input_layernorm.weight", 30),
        (settings(num_hidden_layers=2**14), "model.layers.2.input_layernorm.weight", 147459),
        (settings(model_type="qwen2"), "model.layers.0.self_attn.q_proj.bias", 27),
        (settings(model_type="qwen3"), "model.layers.0.self_attn.q_norm.weight", 25),
    ],
)
def test_a_missing_tensor(package: str, destroy: Break, missing: str, number: int, tmp_path: Path) -> None:
    folder = write_checkpoint(tmp_path / "model")
    destroy(folder)
    expected = f"{folder} lacks the tensor {missing}, expected all {number} tensors of config.json"
    assert refused(package, folder) == expected


@both_packages
@given(place=st.integers(0, 10**6), change=st.integers(1, 255), shards=st.sampled_from([1, 2]))
def test_a_folder_with_one_wrong_byte_is_loaded_or_refused(
    package: str, place: int, change: int, shards: int, tmp_path_factory: pytest.TempPathFactory
) -> None:
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


OUTSIDE = [
    "../outside.safetensors",
    "sub/outside.safetensors",
    "..\\outside.safetensors",
    "/tmp/outside.safetensors",
    "C:outside.safetensors",
    "a\0.safetensors",
    "a\n.safetensors",
]


@both_packages
@pytest.mark.usefixtures("nothing_allocated")
@pytest.mark.parametrize("name", OUTSIDE)
def test_an_index_that_points_outside(package: str, name: str, tmp_path: Path) -> None:
    folder = write_checkpoint(tmp_path / "model", shards=2)
    for place in (tmp_path, folder / "sub"):  # the file it points to is there, and is good
        place.mkdir(exist_ok=True)
        shutil.copy(folder / SECOND, place / "outside.safetensors")
    redirect(folder, SECOND, name)
    expected = f"{folder}: the file name {name!r} is not plain, expected a name without a path"
    assert refused(package, folder) == expected


def redirect(folder: Path, old: str, new: str) -> None:
    index = json.loads((folder / INDEX).read_text())
    index["weight_map"] = {key: new if value == old else value for key, value in index["weight_map"].items()}
    write_json(folder / INDEX, index)


@both_packages
@pytest.mark.usefixtures("nothing_allocated")
@pytest.mark.parametrize("name", [CONFIG, "generation_config.json", WEIGHTS, INDEX, SECOND])
def test_a_link_that_leads_outside(package: str, name: str, tmp_path: Path) -> None:
    folder = write_checkpoint(tmp_path / "model", shards=1 if name == WEIGHTS else 2, generation_config={})
    outside = tmp_path / "outside"
    (folder / name).rename(outside)
    try:
        (folder / name).symlink_to(outside)
    except OSError:
        pytest.skip("this system makes no links")
    expected = f"{folder / name} is a link that leads to {outside.resolve()}, expected a file in the folder"
    assert refused(package, folder) == expected


@both_packages
def test_only_the_hub_cache_may_link_to_blobs(package: str, tmp_path: Path) -> None:
    folder = write_checkpoint(tmp_path / "models" / "mine")
    (tmp_path / "blobs").mkdir()
    outside = (folder / CONFIG).rename(tmp_path / "blobs" / "0")
    try:
        (folder / CONFIG).symlink_to(outside)
    except OSError:
        pytest.skip("this system makes no links")
    expected = f"{folder / CONFIG} is a link that leads to {outside.resolve()}, expected a file in the folder"
    assert refused(package, folder) == expected


@both_packages
@pytest.mark.parametrize("name", ["", ".", "..", "a/b", "a\\b", "a:b", "a\nb"])
def test_a_file_name_that_is_not_plain(package: str, name: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError) as error:
        module(package, "checkpoint.folder").file_in(tmp_path, name)
    assert str(error.value) == f"{tmp_path}: the file name {name!r} is not plain, expected a name without a path"


def shards(**changes: Any) -> Break:
    def rewrite(folder: Path) -> None:
        index = json.loads((folder / INDEX).read_text())
        write_json(folder / INDEX, index | {"weight_map": index["weight_map"] | changes})

    return rewrite


def twice(folder: Path) -> None:
    found = load_file(folder / SECOND) | {"model.embed_tokens.weight": np.ones((23, 24), np.float32)}
    save_file(found, folder / SECOND)


INDEXES: dict[str, tuple[Break, str]] = {
    "half-written": (half(INDEX), f"/{INDEX} is damaged or half-written ("),
    "no map": (
        text('{"metadata": {}}', INDEX),
        f"/{INDEX} has no weight_map, expected one from tensor names to file names",
    ),
    "a map to numbers": (
        text('{"weight_map": {"a": 1}}', INDEX),
        f"/{INDEX} has no weight_map, expected one from tensor names to file names",
    ),
    "a name twice": (
        text(f'{{"weight_map": {{"a": "{FIRST}", "a": "{SECOND}"}}}}', INDEX),
        f"/{INDEX} has the key 'a' twice, expected every key once",
    ),
    "pickled shards": (
        lambda folder: redirect(folder, FIRST, "pytorch_model-00001-of-00002.bin"),
        f"/{INDEX} names the file 'pytorch_model-00001-of-00002.bin', expected only .safetensors files",
    ),
    "config.json as a shard": (
        lambda folder: redirect(folder, FIRST, CONFIG),
        f"/{INDEX} names the file 'config.json', expected only .safetensors files",
    ),
    "a tensor that is nowhere": (
        shards(phantom=FIRST),
        f"/{FIRST} lacks the tensor 'phantom', expected it there as {INDEX} says",
    ),
    "a tensor in the other file": (
        shards(**{"model.embed_tokens.weight": SECOND}),
        f"/{FIRST} holds the tensor 'model.embed_tokens.weight', expected it only where {INDEX} says: '{SECOND}'",
    ),
    "a tensor in both files": (
        twice,
        f"/{SECOND} holds the tensor 'model.embed_tokens.weight', expected it only where {INDEX} says: '{FIRST}'",
    ),
}


@both_packages
@pytest.mark.usefixtures("nothing_allocated")
@pytest.mark.parametrize("case", INDEXES)
def test_a_bad_index(package: str, case: str, tmp_path: Path) -> None:
    destroy, message = INDEXES[case]
    folder = write_checkpoint(tmp_path / "model", shards=2)
    destroy(folder)
    found = refused(package, folder).replace(str(folder), "", 1).replace("\\", "/")
    assert found.startswith(message) if message.endswith("(") else found == message


@both_packages
@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize(("dtype", "shards"), [("float32", 1), ("bfloat16", 1), ("float16", 2), ("float64", 2)])
def test_weights_that_are_not_finite(package: str, value: float, dtype: str, shards: int, tmp_path: Path) -> None:
    weights = module("reference", "model.weights").Weights.random(tiny_config(), 0)
    weights.layers[1].query[23, 23] = value
    folder = write_checkpoint(tmp_path / "model", weights=weights, dtype=dtype, shards=shards)
    file = next(path for path in folder.glob("*.safetensors") if QUERY in load_file(path))
    expected = f"{file}: tensor {QUERY} holds NaN or infinity, expected finite weights"
    assert refused(package, folder, dtype="float32") == expected


@both_packages
def test_weights_too_large_for_the_dtype(package: str, tmp_path: Path) -> None:
    weights = module("reference", "model.weights").Weights.random(tiny_config(), 0)
    weights.layers[1].query[0, 0] = 1e39
    folder = write_checkpoint(tmp_path / "model", weights=weights, dtype="float64")
    file = folder / WEIGHTS
    module(package, "checkpoint.load").load_model(folder, dtype="float64")
    expected = f"{file}: tensor {QUERY} holds values too large for float32, expected a wider dtype"
    assert refused(package, folder, dtype="float32") == expected


@both_packages
def test_an_output_that_is_said_to_be_tied_and_is_not(package: str, tmp_path: Path) -> None:
    folder = write_checkpoint(tmp_path / "model")
    edit_json(folder / CONFIG, tie_word_embeddings=True)
    assert refused(package, folder) == (
        f"{folder / WEIGHTS}: tensor lm_head.weight differs from the embedding, "
        "expected the same where tie_word_embeddings is true"
    )


@both_packages
@pytest.mark.usefixtures("nothing_allocated")
@pytest.mark.parametrize("dtype", ["int8", "f4", "complex128", "", 7, int])
def test_an_unknown_dtype(package: str, dtype: Any, tmp_path: Path) -> None:
    folder = write_checkpoint(tmp_path / "model")
    names = {"reference": "float64 or float32", "gpu": "float64, float32, bfloat16 or float16"}
    message = refused(package, folder, dtype=dtype)
    assert message.startswith("dtype: found ")
    assert message.endswith(f", expected {names[package]}")


@pytest.mark.torch
@pytest.mark.parametrize(
    ("device", "message"),
    [
        ("cuda:99", "device: found cuda:99 and PyTorch finds {count} CUDA devices, expected cpu"),
        ("mps", "device: found mps, which has no float64 to sample with, expected cpu or cuda"),
        ("meta", "device: found meta, expected cpu or cuda"),
        ("tpu", "device: found tpu, expected cpu or cuda"),
        ("", "device: found , expected cpu or cuda"),
    ],
)
def test_a_device_that_is_not_there(device: str, message: str, tmp_path: Path) -> None:
    import torch

    folder = write_checkpoint(tmp_path / "model")
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    assert refused("gpu", folder, device=device) == message.format(count=count)
    if count == 0:
        expected = "device: found cuda and PyTorch finds 0 CUDA devices, expected cpu"
        assert refused("gpu", folder, device="cuda") == expected
