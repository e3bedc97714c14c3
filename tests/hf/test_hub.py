"""Names on the Hub, by huggingface_hub itself on a cache on disk, without a network; cards; what is uploaded."""

import re
import shutil
import sys
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import pytest
import torch

import pass_sampling.reference as reference
from console import Box, read_strictly, run
from folders import both_packages, contents, module
from hub import COMMIT, error_of, write_cached
from pass_sampling.gpu import LookAhead, TransformersModel, load_model
from pass_sampling.gpu.checkpoint.hub import UNWANTED, VECTORS, WANTED, local_folder
from pass_sampling.gpu.checkpoints import FUSED
from pass_sampling.gpu.checkpoints import MODEL as BOXED
from pass_sampling.gpu.hf.model_checks import load_with_transformers
from pass_sampling.gpu.lookahead.card import model_card
from pass_sampling.reference.checkpoint.folder import file_in

GENERATE = ["generate", "--prompt", "def", "--max-new-tokens", "8"]
MODEL, VECTORS_NAME = "somebody/small-model", "somebody/vectors"


@pytest.fixture
def cache(box: Box, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache with the model of the box, twice tagged, and its vectors in both forms."""
    folder = tmp_path / "home" / "hub"
    write_cached(folder, MODEL, box.model, refs=("main", "v1", "refs/pr/1"))
    write_cached(folder, VECTORS_NAME, box.vectors)
    write_cached(folder, "somebody/shared", box.vectors, under="lookahead")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(folder))
    return folder


def refused(call: Any, kind: type[Exception] = FileNotFoundError) -> str:
    with pytest.raises(kind) as error:
        call()
    assert type(error.value) is kind and "\n" not in str(error.value) and "expected" in str(error.value)
    return str(error.value)


@pytest.mark.parametrize(
    ("name", "revision"),
    [(MODEL, None), (MODEL, "v1"), (f"{MODEL}@v1", None), (f"{MODEL}@refs/pr/1", None), (MODEL, COMMIT)],
)
def test_a_model_is_loaded_by_its_name(name: str, revision: str | None, box: Box, cache: Path) -> None:
    model, expected = load_model(name, revision=revision), load_model(box.model)
    assert (model.name, model.fingerprint) == (MODEL, expected.fingerprint)


def test_the_specification_reads_the_cache_and_calls_the_model_the_same(cache: Path) -> None:
    snapshot = local_folder(MODEL)
    assert snapshot == cache / "models--somebody--small-model" / "snapshots" / COMMIT
    assert reference.load_model(snapshot).name == load_model(snapshot).name == MODEL
    assert TransformersModel(load_with_transformers(snapshot)).name == MODEL


@pytest.mark.parametrize("name", [VECTORS_NAME, "somebody/shared", f"{VECTORS_NAME}@main"])
def test_vectors_are_loaded_by_name_in_either_form(name: str, box: Box, cache: Path) -> None:
    expected = LookAhead.load(box.vectors).vectors
    assert torch.equal(LookAhead.load(name).vectors, expected)
    assert torch.equal(LookAhead.from_pretrained(name).vectors, expected)


def test_a_folder_of_that_name_wins_and_a_path_is_never_a_name(box, cache, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert "is not a folder" in refused(lambda: load_model(Path(MODEL)))
    assert local_folder(MODEL) == local_folder(MODEL, "v1") != Path(MODEL)
    shutil.copytree(box.model, tmp_path / MODEL)
    assert local_folder(MODEL) == Path(MODEL) and load_model(MODEL).name == "small-model"
    assert "revision: found 'v1' with the folder" in refused(lambda: load_model(MODEL, revision="v1"), ValueError)
    assert "expected one revision" in refused(lambda: load_model(f"{VECTORS_NAME}@v1", revision="v1"), ValueError)


def test_a_link_in_a_folder_of_the_cache_leads_to_its_blobs_and_nowhere_else(cache: Path) -> None:
    folder = local_folder("somebody/shared", vectors=True)
    assert folder.name == "lookahead" and file_in(folder, "config.json").is_file()
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
    names = ["lookahead/config.json", "config.json", "custom_generate/generate.py", "lookahead/x.py"]
    assert list(filter_repo_objects(names, allow_patterns=list(VECTORS))) == ["lookahead/config.json", "config.json"]


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
    argv = [*GENERATE, "--json", "--model", MODEL, "--revision", "v1"]
    for more in (["--lookahead", "somebody/shared"], ["--draft-model", f"{MODEL}@v1", "--num-draft", "2"]):
        assert run(*argv, *more, "--method", "pass" if "--lookahead" in more else "draft-model") == 0
        found = read_strictly(capsys.readouterr().out)
        assert found["model"] == MODEL and found["num_draft_tokens"] > 0


@pytest.mark.parametrize(
    ("argv", "said"),
    [
        ("--model some/where", "some/where: found no folder of that name, not all of it in the cache"),
        (f"--model {MODEL} --revision v2", "small-model at the revision 'v2'"),
        (f"--model {MODEL} --method pass", f"found no look-ahead vectors for {MODEL}, expected --lookahead"),
        (f"--model {MODEL} --lookahead some/other", "--lookahead FOLDER"),
        (f"--model ./{MODEL}", f"{MODEL} is not a folder"),
        ("--model {model} --revision v1", "--revision: found 'v1' with the folder"),
        (f"--model {MODEL}@v1 --revision v1", "--revision: found 'v1' beside somebody/small-model@v1"),
    ],
)
def test_a_name_that_cannot_be_had_is_one_sentence(argv: str, said: str, box: Box, cache: Path, capsys: Any) -> None:
    before = contents(cache)
    assert run(*GENERATE, *argv.format(model=box.model).split()) == 2
    printed = capsys.readouterr()
    assert printed.out == "" and printed.err.count("\n") == 1 and said in printed.err and "expected" in printed.err
    assert contents(cache) == before


def test_a_card_says_what_the_vectors_are_and_what_was_measured(tmp_path: Path) -> None:
    lookahead = replace(LookAhead.load(FUSED), adapter=None, base_model="somebody/model")
    lookahead.save_pretrained(tmp_path / "vectors")
    assert sorted(contents(tmp_path / "vectors")) == ["README.md", "config.json", "model.safetensors"]
    card = (tmp_path / "vectors" / "README.md").read_text(encoding="utf-8")
    assert card.startswith("---\n# license: ") and "\nbase_model: somebody/model\n" in card
    assert (
        "6 vectors of 320 numbers and a head of width 512" in card
        and "--lookahead vectors --method pass-one-call" in card
    )
    assert "| these | 0.689 | 0.614 | 0.595 | 0.579 | 0.570 | 0.557 | 2.640 |" in card
    assert "| as trained for | draft 1 |" in card and "| greedy |" in card and "| random vectors | 0.187 |" in card
    for package in (LookAhead, reference.LookAhead):
        assert package.load(tmp_path / "vectors").base_model == "somebody/model"


@pytest.mark.parametrize("parts", ["vectors", "an adapter and a head"])
def test_the_program_of_a_card_runs(parts: str, box: Box, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    place, model = (tmp_path / "vectors", box.model) if parts == "vectors" else (FUSED, BOXED)
    lookahead = replace(LookAhead.load(box.vectors if parts == "vectors" else FUSED), base_model=str(model))
    card = model_card(lookahead, str(place))
    if parts == "vectors":
        lookahead.save(place, card)
    else:
        assert "an adapter of rank 16 and a head" in card and "pass_generate" not in card
    (program,) = re.findall(r"^```python\n(.*?)^```", card, re.MULTILINE | re.DOTALL)
    exec(program, {})
    assert capsys.readouterr().out


@both_packages
def test_a_card_that_was_edited_is_kept(package: str, tmp_path: Path) -> None:
    lookahead = module(package, "lookahead.vectors").LookAhead.random(2, 8, seed=0)
    lookahead.save(tmp_path / "vectors", card="mine\n")
    lookahead.save(tmp_path / "vectors")
    LookAhead.random(3, 8, seed=0).save_pretrained(tmp_path / "vectors")
    assert (tmp_path / "vectors" / "README.md").read_text() == "mine\n"
    assert LookAhead.load(tmp_path / "vectors").num_lookahead == 3
    lookahead.save(tmp_path / "vectors", card="yours\n")
    assert (tmp_path / "vectors" / "README.md").read_text() == "yours\n"


class Hub:
    """What stands in for HfApi, and for the repository after it."""

    def __init__(self) -> None:
        self.files: dict[str, bytes] = {}
        self.calls: list[tuple[str, Any]] = []

    def __call__(self, token: str | None = None) -> "Hub":
        self.calls.append(("token", token))
        return self

    def create_repo(self, repo_id: str, *, private: bool | None, exist_ok: bool) -> str:
        self.calls.append((repo_id, private))
        return f"https://huggingface.co/{repo_id}"

    def file_exists(self, repo_id: str, filename: str) -> bool:
        return filename in self.files

    def upload_folder(self, *, repo_id: str, folder_path: str, commit_message: str, ignore_patterns: Any) -> None:
        self.calls.append((repo_id, commit_message))
        new = {path.name: path.read_bytes() for path in Path(folder_path).iterdir()}
        self.files |= {name: content for name, content in new.items() if name not in (ignore_patterns or ())}


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Hub:
    hub = Hub()
    monkeypatch.setattr("huggingface_hub.HfApi", hub)
    return hub


def test_vectors_are_uploaded_with_a_card_that_stays_once_it_is_there(hub: Hub) -> None:
    lookahead = LookAhead(torch.ones(2, 4), base_model="a/b")
    assert lookahead.push_to_hub("me/vectors", private=True, token="t") == "https://huggingface.co/me/vectors"
    assert hub.calls == [("token", "t"), ("me/vectors", True), ("me/vectors", "Upload look-ahead vectors")]
    assert sorted(hub.files) == ["README.md", "config.json", "model.safetensors"]
    assert b"lookahead='me/vectors'" in hub.files["README.md"]
    hub.files["README.md"] += b"licence and all\n"
    edited, old = hub.files["README.md"], hub.files["model.safetensors"]
    LookAhead(torch.ones(3, 4)).push_to_hub("me/vectors", commit_message="three")
    assert hub.files["README.md"] == edited and hub.files["model.safetensors"] != old and hub.calls[-1][1] == "three"


def test_an_upload_to_what_is_no_name_or_that_fails_is_one_sentence(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    lookahead = LookAhead(torch.ones(2, 4))
    for name in ("vectors", "a/b/c", "", "me/vectors@v1", "../x/y"):
        assert "expected user/name" in refused(partial(lookahead.push_to_hub, name), ValueError)
    assert hub.calls == []
    monkeypatch.setattr(hub, "create_repo", Mock(side_effect=error_of("OfflineModeIsEnabled")))
    sentence = refused(lambda: lookahead.push_to_hub("me/x"), ValueError)
    assert sentence.startswith("me/x: found that it cannot be uploaded (many lines), expected a network, a token")
