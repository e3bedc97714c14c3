"""Training for models of transformers, folders to share, and a command that reads folders of other kinds."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoTokenizer

from console import Box, run
from hf_float64 import Float64Mode, build
from hf_models import VOCAB, config_of, greedy, prompts, shared, tiny, with_pass
from pass_sampling.gpu import LookAhead, SamplerHead, TransformersModel, load_model
from pass_sampling.gpu.checkpoints import MODEL
from pass_sampling.gpu.hf.model_checks import load_with_transformers
from pass_sampling.gpu.training.acceptance import anchored_rows, kl_loss, mean_loss
from pass_sampling.gpu.training.train import TrainConfig, first_parts, train

SMALL = {"num_lookahead": 2, "num_steps": 4, "batch_size": 2, "context": 24, "num_anchors": 6}


def text(length: int, seed: int = 0) -> Any:
    return np.random.default_rng(seed).integers(4, VOCAB, length)


@pytest.mark.parametrize("kind", ["llama", "gpt2", "mistral", "gemma3_text", "opt"])
def test_rows_after_many_anchors_are_those_of_draft_calls(kind: str) -> None:
    with Float64Mode():
        model = TransformersModel(build(config_of(kind)))
        tokens, anchors = torch.from_numpy(text(40)).view(2, 20), torch.tensor([0, 4, 5, 11, 16])
        vectors = model.embed(torch.tensor([[7, 8]]))[0]
        rows = anchored_rows(model, vectors, tokens, anchors)

        def logits(inputs: torch.Tensor) -> torch.Tensor:
            return model.logits(model.hidden(inputs, model.new_cache(20)))[0]

        for b, row in enumerate(tokens):
            plain = logits(model.embed(row[None]))
            for n, anchor in enumerate(anchors.tolist()):
                call = logits(torch.cat([model.embed(row[None, : anchor + 1]), vectors[None]], dim=1))
                assert (rows.draft_logits[b, n] - call[anchor + 1 :]).abs().max() < 1e-12
                assert (rows.target_logits[b, n] - plain[anchor + 1 : anchor + 3]).abs().max() < 1e-12


@pytest.mark.parametrize("head_width", [0, 5])
@pytest.mark.parametrize("kind", ["gpt2", "gemma3_text"])
def test_vectors_and_heads_learn_and_are_used(kind: str, head_width: int, tmp_path: Path) -> None:
    model = tiny(kind, torch.float32)
    config = TrainConfig(**{**SMALL, "num_steps": 30}, head_width=head_width)
    adapted = TransformersModel(model)
    lookahead = train(adapted, text(2000), text(400, seed=1), tmp_path / "vectors", config)
    tokens, anchors = torch.from_numpy(text(240)).view(10, 24), torch.arange(0, 20, 3)
    with torch.no_grad():
        before, after = (
            mean_loss(kl_loss(anchored_rows(adapted, each.vectors, tokens, anchors, head=each.head), 0.8), 1.0)
            for each in (first_parts(adapted, config), lookahead)
        )
    assert after < before
    assert lookahead.base_shapes["vocab_size"] == VOCAB
    inputs = {"input_ids": prompts(1)}
    found = with_pass(model, inputs, lookahead=tmp_path / "vectors", return_dict_in_generate=True)
    assert torch.equal(found.sequences, greedy(model, inputs))
    assert (lookahead.head is not None) == bool(head_width)


def test_a_head_drafts_in_one_call_by_default() -> None:
    model = shared("llama")
    head = SamplerHead.random(16, 5, seed=0)
    lookahead = LookAhead(0.1 * torch.randn(3, 16, generator=torch.Generator().manual_seed(0)), head=head)
    found = with_pass(model, {"input_ids": prompts(1)}, lookahead=lookahead, return_dict_in_generate=True)
    assert torch.equal(found.sequences, greedy(model, {"input_ids": prompts(1)}))
    assert {"exact"}.isdisjoint(found.generations[0].sources)  # PaSS in two calls begins with one
    with pytest.raises(ValueError, match="expected PaSSOneCall"):
        with_pass(model, {"input_ids": prompts(1)}, lookahead=lookahead, fused=False)


def test_the_fingerprint_is_that_of_the_folder() -> None:
    model = TransformersModel(load_with_transformers(MODEL))
    assert (model.fingerprint, model.name) == (load_model(MODEL).fingerprint, MODEL.name)
    assert model.eos_token_ids == load_model(MODEL).eos_token_ids


@pytest.fixture(scope="module")
def folder(box: Box, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model of a kind that this package's own Transformer is not, with the tokenizer of the box."""
    path = tmp_path_factory.mktemp("gpt2")
    tiny("gpt2", torch.float32, vocab_size=300).save_pretrained(path)
    AutoTokenizer.from_pretrained(str(box.model)).save_pretrained(path)
    return path


@pytest.mark.parametrize("source", ["text", "self"])
def test_the_command_trains_for_models_of_other_kinds(source, box, folder, tmp_path, capsys):
    given = ["--text", box.text] if source == "text" else ["--self", "--self-tokens", 300]
    small = ["--steps", 2, "--batch-size", 2, "--context", 24, "--anchors", 4, "--num-lookahead", 2, "--json"]
    assert run("train", "--model", folder, "--output", tmp_path / "vectors", *given, *small) == 0
    assert len(json.loads(capsys.readouterr().out)["held_out"]["acceptance"]) == 2
    assert LookAhead.load(tmp_path / "vectors").hidden_size == 16
