"""Names on the Hub, by huggingface_hub itself on a cache on disk, without a network."""

import shutil
import sys
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import pytest
import torch

import pass_sampling.reference as reference
from console import Box, read_strictly, run
from folders import contents
from hub import COMMIT, error_of, write_cached
from pass_sampling.gpu import LookAhead, TransformersModel, load_model
from pass_sampling.gpu.checkpoint.hub import UNWANTED, VECTORS, WANTED, local_folder
from pass_sampling.gpu.hf.model_checks import load_with_transformers
from pass_sampling.reference.checkpoint.folder import file_in

GENERATE = ["generate", "--prompt", "def", "--max-new-tokens", "8"]
MODEL, VECTORS_NAME = "somebody/small-model", "somebody/vectors"


@pytest.fixture
def cache(box: Box, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache with the model of the box, twice tagged, and its vectors."""
    folder = tmp_path / "home" / "hub"
    write_cached(folder, MODEL, box.model, refs=("main", "v1", "refs/pr/1"))
    write_cached(folder, VECTORS_NAME, box.vectors)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(folder))
    return folder


def refused(call: Any, kind: type[Exception] = FileNotFoundError) -> str:
    with pytest.raises(kind) as error:
        call()
    assert type(error.value) is kind and "\n" not in str(error.value) and "expected" in str(error.value)
    return str(error.value)


@pytest.mark.parametrize("name", [MODEL, *(f"{MODEL}@{each}" for each in ("v1", "refs/pr/1", COMMIT))])
def test_a_model_is_loaded_by_its_name(name: str, box: Box, cache: Path) -> None:
    model, expected = load_model(name), load_model(box.model)
    assert (model.name, model.fingerprint) == (MODEL, expected.fingerprint)


def test_the_specification_reads_the_cache_and_calls_the_model_the_same(cache: Path) -> None:
    snapshot = local_folder(MODEL)
    assert snapshot == cache / "models--somebody--small-model" / "snapshots" / COMMIT
    assert reference.load_model(snapshot).name == load_model(snapshot).name == MODEL
    assert TransformersModel(load_with_transformers(snapshot)).name == MODEL


@pytest.mark.parametrize("name", [VECTORS_NAME, f"{VECTORS_NAME}@main"])
def test_vectors_are_loaded_by_name(name: str, box: Box, cache: Path) -> None:
    assert torch.equal(LookAhead.load(name).vectors, LookAhead.load(box.vectors).vectors)


def test_a_folder_of_that_name_wins_and_a_path_is_never_a_name(box, cache, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert "is not a folder" in refused(lambda: load_model(Path(MODEL)))
    assert local_folder(MODEL) == local_folder(f"{MODEL}@v1") != Path(MODEL)
    shutil.copytree(box.model, tmp_path / MODEL)
    assert local_folder(MODEL) == Path(MODEL) and load_model(MODEL).name == "small-model"


def test_a_link_in_the_cache_leads_to_its_blobs_and_nowhere_else(cache: Path) -> None:
    folder = local_folder(VECTORS_NAME, vectors=True)
    assert file_in(folder, "config.json").is_file()
    (cache / "secret.json").write_text("{}")
    try:
        (folder / "out.json").symlink_to(cache / "secret.json")
    except OSError:
        pytest.skip("links may not be made here")
    with pytest.raises(ValueError, match="is a link that leads to"):
        file_in(folder, "out.json")


def test_weights_json_and_tokenizers_are_fetched_and_nothing_that_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    from huggingface_hub.utils import filter_repo_objects

    asked: list[dict[str, Any]] = []
    monkeypatch.setattr("huggingface_hub.snapshot_download", lambda name, **how: asked.append(how) or "somewhere")
    assert local_folder("a/b") == Path("somewhere") == local_folder("a/b@v2", vectors=True)
    assert asked[0] == {"revision": None, "allow_patterns": list(WANTED), "ignore_patterns": list(UNWANTED)}
    assert asked[1] == {"revision": "v2", "allow_patterns": list(VECTORS)}
    used = "config.json generation_config.json model.safetensors model-00001-of-00002.safetensors tokenizer.json"
    used += " model.safetensors.index.json tokenizer_config.json merges.txt vocab.json tokenizer.model"
    used += " special_tokens_map.json chat_template.jinja"
    idle = "pytorch_model.bin model.pt x.pth original/consolidated.00.pth modeling_x.py consolidated.safetensors"
    idle += " README.md onnx/model.onnx original/params.json training_args.bin custom_generate/generate.py model.pkl"
    names = [*used.split(), *idle.split()]
    found = filter_repo_objects(names, allow_patterns=list(WANTED), ignore_patterns=list(UNWANTED))
    assert list(found) == used.split()
    names = ["config.json", "custom_generate/generate.py", "lookahead/config.json", "x.py"]
    assert list(filter_repo_objects(names, allow_patterns=list(VECTORS))) == ["config.json"]


REFUSALS = {
    "RepositoryNotFoundError": (FileNotFoundError, "neither a folder nor a repository of that name on the Hub"),
    "GatedRepoError": (FileNotFoundError, "terms accepted at https://huggingface.co/a/b and a token"),
    "RevisionNotFoundError": (FileNotFoundError, "found no revision 'v2'"),
    "LocalEntryNotFoundError": (FileNotFoundError, "not all of it in the cache, and offline mode (HF_HUB_OFFLINE)"),
    "OfflineModeIsEnabled": (FileNotFoundError, "offline mode"),
    "HFValidationError": (FileNotFoundError, "cannot be fetched (many lines)"),
}


@pytest.mark.parametrize("name", REFUSALS)
def test_why_a_repository_cannot_be_had_is_one_sentence(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.snapshot_download", Mock(side_effect=error_of(name)))
    kind, said = REFUSALS[name]
    sentence = refused(lambda: local_folder("a/b@v2", instead="--model FOLDER"), kind)
    assert said in sentence and "a/b" in sentence and sentence.endswith("--model FOLDER")


def test_a_network_that_is_not_there_and_a_disk_that_is_full(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    unreachable, full = error_of("LocalEntryNotFoundError"), OSError(28, "No space left on device", "blob")
    monkeypatch.setattr("huggingface_hub.snapshot_download", Mock(side_effect=[unreachable, full]))
    assert "no way to reach the Hub" in refused(lambda: local_folder("a/b"))
    with pytest.raises(OSError) as error:
        local_folder("a/b")
    assert error.value is full


def test_without_huggingface_hub_there_are_still_folders(box: Box, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(ModuleNotFoundError):
        load_model("a/b")
    assert load_model(box.model).name == "model"


def test_commands_take_names_wherever_they_take_folders(box: Box, cache: Path, capsys: Any) -> None:
    argv = [*GENERATE, "--json", "--model", f"{MODEL}@v1"]
    for more in (["--lookahead", VECTORS_NAME], ["--draft-model", f"{MODEL}@v1", "--num-draft", "2"]):
        assert run(*argv, *more, "--method", "pass" if "--lookahead" in more else "draft-model") == 0
        found = read_strictly(capsys.readouterr().out)
        assert found["model"] == MODEL and found["num_draft_tokens"] > 0


@pytest.mark.parametrize(
    ("argv", "said"),
    [
        ("--model some/where", "some/where: found no folder of that name, not all of it in the cache"),
        (f"--model {MODEL}@v2", "small-model at the revision 'v2'"),
        (f"--model {MODEL} --method pass", f"found no look-ahead vectors for {MODEL}, expected --lookahead"),
        (f"--model {MODEL} --lookahead some/other", "--lookahead FOLDER"),
        (f"--model ./{MODEL}", f"{MODEL} is not a folder"),
    ],
)
def test_a_name_that_cannot_be_had_is_one_sentence(argv: str, said: str, box: Box, cache: Path, capsys: Any) -> None:
    before = contents(cache)
    assert run(*GENERATE, *argv.format(model=box.model).split()) == 2
    printed = capsys.readouterr()
    assert printed.out == "" and printed.err.count("\n") == 1 and said in printed.err and "expected" in printed.err
    assert contents(cache) == before
