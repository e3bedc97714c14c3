"""Folders in Hugging Face's format: the right numbers, in little memory, with a fingerprint."""

import math
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file

from folders import as_numpy, both_packages, contents, module, tiny_config, write_checkpoint, write_tensors
from pass_sampling.reference.model.config import ModelConfig
from pass_sampling.reference.model.weights import Weights, destination, weight_table

REQUESTED = {"reference": ("float64", "float32", None), "gpu": ("float64", "float32", "bfloat16", "float16", None)}


def with_dtypes(*dtypes: str | None) -> pytest.MarkDecorator:
    """Run a test on both packages, with those of the dtypes that the package can compute in."""
    cases = [
        pytest.param(package, dtype, marks=[pytest.mark.torch] if package == "gpu" else [])
        for package, possible in REQUESTED.items()
        for dtype in dtypes
        if dtype in possible
    ]
    return pytest.mark.parametrize(("package", "dtype"), cases)


def read(package: str, folder: Path, dtype: str | None = None) -> tuple[Any, str]:
    """Return the weights in a folder, and their fingerprint."""
    checkpoint = module(package, "checkpoint.load")
    return checkpoint.read_weights(folder, checkpoint.read_config(folder), dtype)


def flat(weights: Any) -> dict[str, np.ndarray]:
    """Return the weights outside the layers; those of layers show in the logits of `test_transformer`."""
    return {name: as_numpy(getattr(weights, name)) for name in ("embedding", "norm", "output")}


@with_dtypes("float64", "float32", "bfloat16", "float16", None)
@pytest.mark.parametrize("stored", ["float64", "float32", "float16", "bfloat16"])
def test_every_stored_dtype_reads_as_every_requested_one(package, stored, dtype, tmp_path):
    config = tiny_config("qwen2")
    write_checkpoint(tmp_path, config, model_type="qwen2", dtype=stored, shards=2)
    weights, _ = read(package, tmp_path, dtype)
    given = dtype or "float64"
    if dtype is None and package == "gpu":  # float32 in place of 16 bits that this CPU has no units for
        home = module(package, "model.precision")
        given = str(home.automatic_dtype(home.check_dtype(stored), weights.embedding.device)).removeprefix("torch.")
    assert str(weights.embedding.dtype).removeprefix("torch.") == given
    found = flat(weights)
    for name, array in flat(Weights.random(config, 0)).items():
        wanted = array.astype(stored).astype(given)
        assert np.array_equal(found[name], wanted.astype(np.float32) if given == "bfloat16" else wanted), name


@both_packages
@pytest.mark.parametrize("chunk_bytes", [1, 100, 200, 10**9])
def test_chunks_of_any_size_fit_together(package, chunk_bytes, tmp_path, monkeypatch):
    write_checkpoint(tmp_path, model_type="qwen3")
    monkeypatch.setattr(module("reference", "checkpoint.tensors"), "CHUNK_BYTES", chunk_bytes)
    weights, fingerprint = read(package, tmp_path, "float64")
    random = flat(Weights.random(tiny_config("qwen3"), 0, np.float32))
    assert all(np.array_equal(array, random[name]) for name, array in flat(weights).items())
    monkeypatch.undo()
    if chunk_bytes > 16 * 4:  # the fingerprint takes 16 values of the first chunk
        assert fingerprint == read(package, tmp_path, "float64")[1]


EVEN_FINGERPRINT = "e8c10f25a4d3979fcf6e2138ab5079f45d84b14cffdab00a56df825d8e1e538c"


@both_packages
def test_a_fingerprint_depends_on_the_weights_alone(package: str, tmp_path: Path) -> None:
    def fingerprint(name: str, dtype: str = "float32", **arguments: Any) -> str:
        return read(package, write_checkpoint(tmp_path / name, **arguments), dtype)[1]

    first = fingerprint("single")
    assert first == fingerprint("shards", shards=3) == fingerprint("wide", dtype="float64")
    assert first != fingerprint("other", seed=1)
    # Written down, because a change of the definition would orphan every look-ahead folder saved before it.
    even = Weights.random(tiny_config(), 0)
    for entry in weight_table(tiny_config()):
        destination(even, entry)[...] = 0.5
    assert fingerprint("even", weights=even) == EVEN_FINGERPRINT


@both_packages
def test_a_tied_output_may_be_stored_as_well(package: str, tmp_path: Path) -> None:
    config = tiny_config(tie_word_embeddings=True)
    write_checkpoint(tmp_path, config)
    tensors = load_file(tmp_path / "model.safetensors")
    _, alone = read(package, tmp_path)
    tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"].copy()
    tensors["model.layers.0.self_attn.rotary_emb.inv_freq"] = np.ones(3, np.float32)
    write_tensors(tmp_path, tensors)
    weights, both = read(package, tmp_path)
    assert weights.output is weights.embedding
    assert alone == both


@both_packages
def test_a_model_from_a_folder(package: str, tmp_path: Path) -> None:
    folder = write_checkpoint(tmp_path / "tiny", eos_token_id=[2, 3], generation_config={"stop_strings": "###"})
    before = contents(folder)
    model = module(package, "checkpoint.load").load_model(folder, dtype="float32")
    assert (model.name, model.eos_token_ids, len(model.fingerprint)) == ("tiny", (2, 3), 64)
    assert model.stop_strings == ("###",)
    assert model.config.vocab_size == 23
    assert str(model.weights.norm.dtype).endswith("float32")
    assert contents(folder) == before
    assert module(package, "checkpoint.load").load_model(str(folder)).fingerprint == model.fingerprint


BIG = ModelConfig(16000, 512, 1408, 16, 8, 4, 64, 64)
MEASURE = """
import contextlib, sys
from pass_sampling.{package}.checkpoint import load as checkpoint

def status(name):
    with open("/proc/self/status") as file:
        return next(1024 * int(line.split()[1]) for line in file if line.startswith(name))

tiny, big, dtype = sys.argv[1:]
checkpoint.read_weights(tiny, checkpoint.read_config(tiny), dtype)
config = checkpoint.read_config(big)
with contextlib.suppress(OSError), open("/proc/self/clear_refs", "w") as file:
    file.write("5")  # forget the peak so far
before = status("VmRSS")
weights, _ = checkpoint.read_weights(big, config, dtype)
print(status("VmHWM") - before)
"""


@pytest.fixture(scope="module")
def big_folders(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Path]]:
    """Yield folders with a model of 60 million parameters, stored in float32 and in bfloat16."""
    root = tmp_path_factory.mktemp("big")
    weights = module("reference", "model.weights").allocate(BIG, np.float32)
    for entry in weight_table(BIG):
        destination(weights, entry)[...] = 1.0
    folders = {name: write_checkpoint(root / name, BIG, weights, dtype=name) for name in ("float32", "bfloat16")}
    yield folders | {"tiny": write_checkpoint(root / "tiny")}
    for path in root.rglob("*.safetensors"):
        path.unlink()


@with_dtypes("float32", "bfloat16")
@pytest.mark.skipif(sys.platform != "linux", reason="reads the peak memory from /proc")
@pytest.mark.parametrize("stored", ["float32", "bfloat16"])
def test_loading_needs_little_more_memory_than_the_weights(package, stored, dtype, big_folders):
    arguments = [str(big_folders["tiny"]), str(big_folders[stored]), dtype]
    command = [sys.executable, "-c", MEASURE.format(package=package), *arguments]
    grown = int(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
    num_weights = sum(math.prod(entry.shape) for entry in weight_table(BIG))
    assert num_weights >= 60e6
    ratio = grown / (num_weights * (2 if dtype == "bfloat16" else 4))
    print(f"{package}, {stored} -> {dtype}: {ratio:.3f} times the weights")
    assert 0.9 <= ratio <= 1.3
