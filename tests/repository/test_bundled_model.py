"""The checkpoint that comes with the package: what its card claims, and that everything opens and agrees on it."""

import fnmatch
import json
import tomllib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

import hf_float64
import pass_sampling.gpu as port
import pass_sampling.reference as reference
from pass_sampling.gpu.checkpoints import DRAFT_MODEL, FUSED, HELD_OUT, LOOKAHEAD, MODEL, NGRAM
from pass_sampling.gpu.cli.generate import PROMPTS
from pass_sampling.gpu.cli.options import read_names
from pass_sampling.gpu.model.precision import automatic_dtype
from pass_sampling.gpu.training.acceptance import acceptance_of, fixed_token_vectors
from pass_sampling.gpu.training.text import standard_library
from pass_sampling.gpu.training.tokens import encode_texts, evenly_spaced

ROOT = Path(__file__).resolve().parents[2]
CARD = (MODEL.parent / "README.md").read_text(encoding="utf-8")
RECORD = json.loads((MODEL / "pretraining.json").read_text(encoding="utf-8"))
DRAFT_RECORD = json.loads((DRAFT_MODEL / "pretraining.json").read_text(encoding="utf-8"))
TRAINING = json.loads((LOOKAHEAD / "config.json").read_text(encoding="utf-8"))["training"]
TOKENIZER = AutoTokenizer.from_pretrained(str(MODEL))
TOKENS = [TOKENIZER(prompt)["input_ids"] for prompt in PROMPTS]


@pytest.fixture(scope="module")
def texts() -> dict[str, str]:
    """Those held-out files that the running Python has; some systems package its library without the tests."""
    library = standard_library()
    found = {name: library[name] for name in read_names(HELD_OUT) if name in library}
    assert len(found) >= 15, "the running Python lacks most of the held-out files"
    return found


@pytest.fixture(scope="module")
def windows(texts: dict[str, str]) -> Any:
    tokens = np.concatenate(encode_texts(TOKENIZER, list(texts.values()), 0))
    return evenly_spaced(tokens, 256, 24)


def test_the_folders_together_stay_under_20_megabytes() -> None:
    for limit, folders in ((20e6, (MODEL, LOOKAHEAD, FUSED)), (5e6, (DRAFT_MODEL, NGRAM))):
        assert sum(file.stat().st_size for folder in folders for file in folder.iterdir()) < limit
    assert (DRAFT_MODEL / "model.safetensors").stat().st_size < 3e6


def test_everything_bundled_goes_into_the_wheel() -> None:
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["setuptools"]
    patterns = settings["package-data"]["pass_sampling.gpu.checkpoints"]
    files = [path.relative_to(MODEL.parent) for path in MODEL.parent.rglob("*") if path.is_file()]
    shipped = [file.as_posix() for file in files if file.suffix != ".py" and "__pycache__" not in file.parts]
    assert [file for file in shipped if not any(fnmatch.fnmatch(file, pattern) for pattern in patterns)] == []


@pytest.mark.parametrize("folder", [MODEL, DRAFT_MODEL], ids=["model", "draft model"])
def test_transformers_opens_it_and_computes_the_same_logits(folder: Path) -> None:
    opened = AutoModelForCausalLM.from_pretrained(str(folder))
    assert opened.config.vocab_size == 4096 and type(opened).__name__ == "LlamaForCausalLM"
    assert opened.dtype is torch.bfloat16
    assert port.load_model(folder).dtype is automatic_dtype(opened.dtype, torch.device("cpu"))
    peer = hf_float64.load(folder)
    ours = reference.load_model(folder, dtype="float64")
    port_model = port.load_model(folder, dtype="float64")
    for tokens in TOKENS:
        theirs = hf_float64.logits(peer, np.array(tokens))
        logits = ours.forward(tokens)
        assert np.abs(logits - theirs).max() < 1e-11  # logits up to 20, some 400 sums of rounded products each
        assert np.abs(port_model.forward([tokens])[0].numpy() - logits).max() < 1e-11


def test_the_held_out_files_are_those_of_the_record() -> None:
    held_out = set(read_names(HELD_OUT))
    assert sorted(held_out) == RECORD["held_out_files"]


def loss_on(sequences: Any) -> float:
    """Mean loss of the model on sequences, nats per token."""
    model = port.load_model(MODEL, dtype="float32")
    tokens = torch.from_numpy(sequences)
    with torch.inference_mode():
        logits = model.forward(tokens)[:, :-1].flatten(0, 1)
    return float(torch.nn.functional.cross_entropy(logits, tokens[:, 1:].flatten()))


def test_the_held_out_loss_is_what_the_card_says(texts: dict[str, str], windows: Any) -> None:
    assert RECORD["held_out_loss"] <= 3.2 and 7.5e6 < RECORD["num_parameters"] < 8.5e6
    assert f"{RECORD['held_out_loss']:.2f} nats per token" in CARD
    assert f"{RECORD['bits_per_byte']:.2f} bits per byte" in CARD
    found = {"all": loss_on(windows)}
    library = [text for name, text in texts.items() if "test" not in name]
    found["library"] = loss_on(evenly_spaced(np.concatenate(encode_texts(TOKENIZER, library, 0)), 512, 24))
    print({name: round(loss, 2) for name, loss in found.items()})
    assert max(found.values()) <= 3.2
    if any("test" in name for name in texts):  # which are easier
        assert abs(found["all"] - RECORD["held_out_loss"]) < 0.35  # another sample, and windows of half the length


def test_the_vectors_belong_to_the_model_and_beat_a_fixed_token(windows: Any) -> None:
    lookahead = port.LookAhead.load(LOOKAHEAD)
    model = port.load_model(MODEL)
    lookahead.check(model)
    assert lookahead.num_lookahead == 4
    assert lookahead.sampling == port.SamplingConfig(temperature=0.8, top_k=10)
    trained = acceptance_of(model, lookahead.vectors, windows, [lookahead.sampling])[0]
    fixed = acceptance_of(model, fixed_token_vectors(model, 4), windows, [lookahead.sampling])[0]
    assert (trained > 3 * fixed).all()
    small = port.LookAhead.random(4, model.hidden_size, seed=0).vectors
    untrained = acceptance_of(model, small, windows, [lookahead.sampling])[0]
    print("trained", trained.tolist(), "random", untrained.tolist())
    assert trained[0] > untrained[0] and trained.sum() > untrained.sum()
    claimed = torch.tensor(TRAINING["held_out"]["acceptance"], dtype=torch.float64)
    assert (trained - claimed).abs().max() < 0.08  # another sample of the held-out text
    for value in TRAINING["held_out"]["acceptance"]:
        assert f"{value:.3f}" in CARD


def test_the_draft_model_has_the_models_tokenizer_and_ends_and_knows_its_teacher() -> None:
    for name in ("tokenizer.json", "tokenizer_config.json"):
        assert (DRAFT_MODEL / name).read_bytes() == (MODEL / name).read_bytes()
    draft, model = port.load_model(DRAFT_MODEL), port.load_model(MODEL)
    assert draft.eos_token_ids == model.eos_token_ids
    assert draft.max_position_embeddings == model.max_position_embeddings
    assert DRAFT_RECORD["teacher"] == {"name": MODEL.name, "fingerprint": model.fingerprint}
    assert DRAFT_RECORD["held_out_files"] == RECORD["held_out_files"]


def test_the_draft_model_is_accepted_as_often_as_the_card_says(windows: Any) -> None:
    """Once more with its stored weights, on another sample, in windows of half the length."""
    model, draft = port.load_model(MODEL), port.load_model(DRAFT_MODEL)
    for claimed in DRAFT_RECORD["acceptance"]:
        sampling = port.SamplingConfig(claimed["temperature"], claimed["top_k"])
        shared = []
        for window in torch.from_numpy(windows):
            distributions = [port.probs_from_logits(each.forward(window[None]), sampling) for each in (model, draft)]
            shared.append(float(torch.minimum(*distributions).sum(dim=-1).mean()))
        print(claimed, round(float(np.mean(shared)), 3))
        assert abs(np.mean(shared) - claimed["expected"]) < 0.08
        assert f"{claimed['expected']:.3f}" in CARD
        assert claimed["expected"] > 2 * TRAINING["held_out"]["acceptance"][0], "more than the best look-ahead vector"
    assert f"{DRAFT_RECORD['held_out_loss']:.2f} nats per token" in CARD


def written(package: Any, kind: str, dtype: str, sampling: Any, count: int) -> list[Any]:
    """Continue every prompt with a method of a package."""
    model = package.load_model(MODEL, dtype=dtype)
    method = package.Autoregressive(model, sampling)
    if kind == "pass":
        method = package.PaSS(model, package.LookAhead.load(LOOKAHEAD), sampling)
    return [package.generate(method, tokens, count, seed=5) for tokens in TOKENS]


@pytest.mark.parametrize("package", [reference, port], ids=["reference", "gpu"])
def test_greedy_pass_writes_what_greedy_plain_decoding_writes_in_float32(package: Any) -> None:
    plain, drafted = (written(package, kind, "float32", package.SamplingConfig(0), 100) for kind in ("plain", "pass"))
    for one, other in zip(plain, drafted, strict=True):
        assert other.tokens == one.tokens and other.num_forward_passes < one.num_forward_passes


def test_both_packages_write_the_same_text_with_pass_in_float64() -> None:
    packages: tuple[Any, Any] = (reference, port)
    ours, theirs = (written(each, "pass", "float64", each.SamplingConfig(0.8, 10), 60) for each in packages)
    assert [(each.tokens, each.sources) for each in ours] == [(each.tokens, each.sources) for each in theirs]


@pytest.mark.parametrize("method", ["lookup-ngram", "pass-one-call", "blockwise", "blockwise-paths"])
def test_what_is_bundled_for_smollm2_is_found_and_whole(method: str) -> None:
    """Its weights are not here, so it is not run; `pass-sampling fetch` gets them."""
    from pass_sampling.gpu.checkpoint.gguf import fetched_folder
    from pass_sampling.gpu.decode_options import DecodeOptions
    from pass_sampling.gpu.make_method import folders_of

    (folder,) = folders_of(DecodeOptions(method), fetched_folder("smollm2-135m")).values()
    if method == "lookup-ngram":
        assert port.NgramModel.load(folder).vocab_size == 49_152
        return
    vectors = port.LookAhead.load(folder)
    assert vectors.hidden_size == 576 and vectors.base_model == "smollm2-135m" and vectors.head is not None
    assert vectors.head.kind == ("head" if method == "pass-one-call" else "block") and not vectors.head.uses_lookahead
