"""Processes that share a model, or a training: the programs of docs/several-devices.md do what one process does."""

import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, LlamaConfig

from folders import tiny_config, write_checkpoint
from pass_sampling.gpu import (
    LookAhead,
    PaSSOneCall,
    SamplingConfig,
    TransformersModel,
    generate,
    load_model,
    untrained_lookahead,
)
from pass_sampling.gpu.training import train as home
from pass_sampling.gpu.training.config import TrainConfig
from pass_sampling.gpu.training.train import train

pytestmark = pytest.mark.check
PAGE = Path(__file__).resolve().parents[2] / "docs" / "several-devices.md"
WRITE, LEARN = re.findall(r"^```python\n(.*?)^```", PAGE.read_text(encoding="utf-8"), re.DOTALL | re.MULTILINE)
SIZES = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}


def in_two_processes(program: str, folder: Path, *arguments: object) -> subprocess.CompletedProcess[str]:
    """Run a program as torchrun does, twice side by side."""
    (folder / "program.py").write_text(program)
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    command = [*launcher, str(folder / "program.py"), *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=300)


def test_a_model_in_two_parts_writes_the_text_of_one(tmp_path: Path) -> None:
    config = LlamaConfig(vocab_size=64, num_key_value_heads=2, eos_token_id=None, **SIZES)
    torch.manual_seed(0)
    AutoModelForCausalLM.from_config(config).double().save_pretrained(tmp_path / "model")
    model = TransformersModel(AutoModelForCausalLM.from_pretrained(tmp_path / "model", dtype="auto").eval())
    lookahead = untrained_lookahead(model.model, 3)
    vectors = LookAhead(lookahead.vectors, model.name, {"vocab_size": 64, "hidden_size": 32}, model.fingerprint)
    vectors.save(tmp_path / "vectors")
    method = PaSSOneCall(model, vectors, SamplingConfig(temperature=0.8))
    alone = generate(method, [1, 5, 9], max_new_tokens=20, seed=0)
    found = in_two_processes(WRITE, tmp_path, tmp_path / "model", tmp_path / "vectors")
    assert found.returncode == 0, found.stderr
    assert found.stdout.split() == list(map(str, alone.tokens))


def test_two_processes_learn_what_one_does(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Vectors with a head, and a head alone, whose hidden states are kept in files; stored in 16 bits."""
    folder = write_checkpoint(tmp_path / "model", tiny_config(), dtype="float32")
    model, random = load_model(folder), np.random.default_rng(0)
    tokens = random.integers(model.vocab_size, size=900)
    np.save(tmp_path / "tokens.npy", tokens)
    (call,) = re.findall(r"^train\(.*\n", LEARN, re.MULTILINE)
    more = "from dataclasses import replace\n" + call.replace("3], config", "4], replace(config, head_alone=True)")
    outputs = tmp_path / "two", tmp_path / "two alone"
    found = in_two_processes(LEARN.replace(call, call + more), tmp_path, folder, tmp_path / "tokens.npy", *outputs)
    assert found.returncode == 0, found.stderr
    config = eval(re.findall(r"TrainConfig\(.*\)", LEARN)[0], {"TrainConfig": TrainConfig})
    for output, each in zip(outputs, (config, replace(config, head_alone=True)), strict=True):
        train(model, tokens[:-200], tokens[-200:], tmp_path / f"one, {output.name}", each)
        one, two = (load_file(path / "model.safetensors") for path in (tmp_path / f"one, {output.name}", output))
        assert one.keys() == two.keys()
        assert all(torch.allclose(one[name], two[name], rtol=2.0**-7, atol=2.0**-14) for name in one)
    assert len([*tmp_path.iterdir()]) == 7  # nothing is left behind
    monkeypatch.setattr(home, "process", lambda: (0, 3))
    with pytest.raises(ValueError, match=r"^batch_size: found 4, expected a multiple of 3, the processes$"):
        train(model, tokens[:-200], tokens[-200:], tmp_path / "three", config)
