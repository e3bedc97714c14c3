"""Files with one value changed: each is read, or refused in a sentence that names it; no other error comes out."""

import copy
import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from draft_folders import counted, trained
from folders import both_packages, module, write_checkpoint

pytestmark = pytest.mark.check
HUGE = 10**30
VALUES: st.SearchStrategy[Any] = st.one_of(
    st.sampled_from([None, True, False, 0, 1, -1, 2, 3, 7, 2**31, 2**63, -HUGE, HUGE, 0.0, -0.5, 1e-300, 1e300]),
    st.sampled_from([float("nan"), float("inf"), "", "x", "\0", "é" * 300, "../x", "default", "F32", [], {}, [[]]]),
    st.lists(st.sampled_from([None, 0, 1, -1, HUGE, "x", "", 0.5, [1], {"a": 1}, True]), max_size=4),
    st.dictionaries(st.sampled_from(["", "a", "rope_type", "factor", "shape", "name"]), st.integers(-1, 9), max_size=3),
)


def places(document: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """List the paths of all values in a document, those of its lists and objects, too."""
    children = (
        document.items() if isinstance(document, dict) else enumerate(document) if isinstance(document, list) else ()
    )
    return [path, *(place for key, value in children for place in places(value, (*path, key)))]


def changed(data: st.DataObject, document: Any) -> Any:
    """Return a document with one to three values replaced or removed, or another key."""
    document = copy.deepcopy(document)
    for _ in range(data.draw(st.integers(1, 3))):
        path = data.draw(st.sampled_from(places(document)))
        if not path:
            if isinstance(document, dict) and data.draw(st.booleans()):
                document[data.draw(st.sampled_from(["a", "", "rope_scaling", "stop_strings", "min_p"]))] = data.draw(
                    VALUES
                )
            else:
                document = copy.deepcopy(data.draw(VALUES))
            continue
        holder = document
        for key in path[:-1]:
            holder = holder[key]
        if data.draw(st.integers(0, 4)) == 0:
            del holder[path[-1]]
        else:
            holder[path[-1]] = copy.deepcopy(data.draw(VALUES))
    return document


def fuzz(data: st.DataObject, path: Path, load: Callable[[], Any], begin: str) -> None:
    """Change one file, load what it belongs to, and put it back."""
    content = path.read_bytes()
    start = 8 + int.from_bytes(content[:8], "little") if path.suffix == ".safetensors" else 0
    written = json.dumps(changed(data, json.loads(content[8:start] if start else content))).encode()
    written = len(written).to_bytes(8, "little") + written + content[start:] if start else written
    try:
        path.write_bytes(written)
        load()
    except (ValueError, FileNotFoundError) as error:
        said = str(error)
        assert said.startswith(begin) and "expected" in said and "\n" not in said and len(said) < 2000, said
    finally:
        path.write_bytes(content)


FILES = ["config.json", "generation_config.json", "model.safetensors", "model.safetensors.index.json"]


@both_packages
@pytest.mark.parametrize("name", FILES)
@given(data=st.data())
def test_a_model_with_changed_values_is_loaded_or_refused(package, name, data, tmp_path_factory):
    shards = 2 if "index" in name else 1
    folder = tmp_path_factory.getbasetemp() / f"fuzzed_{package}_{shards}"
    if not folder.exists():
        sampled = {"do_sample": True, "temperature": 0.7, "top_k": 5, "top_p": 0.9, "eos_token_id": [2, 3]}
        config = {"rope_parameters": {"rope_type": "linear", "factor": 2.0, "rope_theta": 1e4}, "eos_token_id": 2}
        write_checkpoint(folder, shards=shards, generation_config=sampled, **config)
    load, settings = module(package, "checkpoint.load"), module(package, "checkpoint.generation_settings")
    fuzz(data, folder / name, lambda: (load.load_model(folder), settings.read_generation_config(folder)), str(folder))


@both_packages
@pytest.mark.parametrize("name", ["config.json", "model.safetensors"])
@pytest.mark.parametrize("kind", ["lookahead", "ngram"])
@given(data=st.data())
def test_a_drafter_with_changed_values_is_loaded_or_refused(package, kind, name, data, tmp_path_factory):
    folder = tmp_path_factory.getbasetemp() / f"fuzzed_{package}_{kind}"
    if not folder.exists():
        (trained if kind == "lookahead" else counted)(package).save(folder)
    home = (
        module(package, "lookahead.vectors").LookAhead
        if kind == "lookahead"
        else module(package, "drafters.ngram").NgramModel
    )
    fuzz(data, folder / name, lambda: home.load(folder), str(folder))


@pytest.mark.torch
@given(data=st.data())
def test_a_plan_with_changed_values_is_read_or_refused(data, tmp_path_factory):
    bench = module("gpu", "bench.plan")
    path = tmp_path_factory.getbasetemp() / "fuzzed_plan.json"
    figures = dict.fromkeys(bench.FIGURES, 1.5)
    options = module("gpu", "decode_options").DecodeOptions("pass-one-call", num_draft=3, groups=(0, 1))
    bench.Plan(options, figures, [{"options": {"method": "pass"}, "prediction": figures}]).save(path)
    fuzz(data, path, lambda: bench.Plan.load(path), str(path))


@pytest.mark.torch
@given(data=st.data())
def test_prompts_with_changed_values_are_read_or_refused(data, tmp_path_factory):
    path = tmp_path_factory.getbasetemp() / "fuzzed_prompts.jsonl"
    path.write_text(json.dumps({"prompt": "a", "turns": ["b", "c"], "category": "d"}))
    fuzz(data, path, lambda: module("gpu", "bench.prompts").read_prompts(path), "--prompts: ")


@pytest.mark.torch
@pytest.mark.parametrize("name", ["tokenizer.json", "tokenizer_config.json"])
@given(data=st.data())
def test_a_tokenizer_with_changed_values_is_usable_or_refused(name, data, box):
    load = module("gpu", "training.tokens").load_tokenizer
    fuzz(data, box.model / name, lambda: load(box.model)("def value", verbose=False), str(box.model))


@pytest.mark.torch
@pytest.mark.parametrize("name", ["tokenizer.json", "tokenizer_config.json"])
def test_a_tokenizer_whose_mistake_shows_late_is_refused(name, box, tmp_path):
    """The library panics at the one, and at the other when the tokenizer is used."""
    folder = tmp_path / "model"
    shutil.copytree(box.model, folder)
    found = json.loads((folder / name).read_text())
    found.get("model", {})["continuing_subword_prefix"] = "x" * 9
    (folder / name).write_text(json.dumps(found | {"model_max_length": "x"}))
    with pytest.raises(ValueError, match=f"^{re.escape(str(folder))} holds no tokenizer .*, expected tokenizer.json"):
        module("gpu", "training.tokens").load_tokenizer(folder)


@pytest.mark.torch
@pytest.mark.parametrize("name", ["candidates", "groups"])
def test_options_that_are_several_numbers_are_refused_as_one(name):
    with pytest.raises(ValueError, match=f"^{name}: found True, expected several numbers"):
        module("gpu", "decode_options").DecodeOptions(**{name: True})
