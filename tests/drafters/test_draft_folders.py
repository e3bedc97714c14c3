"""Folders of look-ahead vectors and of n-gram models: the same in both packages, and saved whole or not at all."""

import os
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from math import nan
from pathlib import Path
from typing import Any

import pytest

from draft_folders import ARRAYS, CONFIG, counted, plain, random_tables, refused, trained
from folders import both_packages, contents, module, write_checkpoint
from lookaheads import PARTS

Make = Callable[..., Any]
KINDS: dict[str, tuple[Make, str]] = {
    "vectors": (trained, "a look-ahead folder"),
    "n-grams": (counted, "the folder of an n-gram model"),
}
each_kind = pytest.mark.parametrize(("make", "kind"), KINDS.values(), ids=KINDS)
VARIANTS: dict[str, Make] = {
    **{parts: lambda package, seed, parts=parts: trained(package, parts, seed) for parts in PARTS},
    "few tokens": lambda package, seed: replace(trained(package, seed=seed), draft_vocab=[0, 2, 5]),
    "no vectors": lambda package, seed: trained(package, "vectors", seed, 0),
    "nothing but vectors": lambda package, seed: module(package, "lookahead.vectors").LookAhead.random(1, 8, seed),
    **{f"{n}-grams": lambda package, seed, n=n: counted(package, seed, n) for n in (1, 2, 3, 4)},
    "nothing but tables": lambda package, seed: random_tables(1, 2, seed).model(package),
}
each_variant = pytest.mark.parametrize("make", VARIANTS.values(), ids=VARIANTS)


@both_packages
@each_variant
def test_what_is_saved_comes_back(package: str, make: Make, tmp_path: Path) -> None:
    folder = tmp_path / "new" / "saved"
    for seed in range(3):
        made = make(package, seed)
        made.save(folder)  # the second time over the first
        assert plain(type(made).load(folder)) == plain(made)
    assert sorted(contents(tmp_path)) == ["new", "new/saved", f"new/saved/{CONFIG}", f"new/saved/{ARRAYS}"]


@pytest.mark.torch
@each_variant
def test_both_packages_write_and_read_the_same(make: Make, tmp_path: Path) -> None:
    both = [make(package, 5) for package in ("reference", "gpu")]
    for name, made in zip("ab", both, strict=True):
        made.save(tmp_path / name)
    for name, made, other in zip("ba", both, reversed(both), strict=True):
        loaded = type(made).load(tmp_path / name)
        assert plain(loaded) == plain(other)
        loaded.save(tmp_path / f"{name} again")
    for name in (CONFIG, ARRAYS):
        assert len({(folder / name).read_bytes() for folder in tmp_path.iterdir()}) == 1


@both_packages
@each_kind
def test_a_save_never_destroys_anything_else(package: str, make: Make, kind: str, tmp_path: Path) -> None:
    made = make(package)
    (tmp_path / "file").write_text("dear diary")
    (tmp_path / "letters").mkdir()
    (tmp_path / "letters" / "a.txt").write_text("dear Ann")
    write_checkpoint(tmp_path / "model")
    made.save(tmp_path / "annotated")
    (tmp_path / "annotated" / "NOTES.md").write_text("mine")
    made.save(tmp_path / "broken")
    (tmp_path / "broken" / CONFIG).write_text("{")
    before = contents(tmp_path)
    for name in ("file", "letters", "model", "annotated", "broken"):
        with pytest.raises(ValueError) as error:
            made.save(tmp_path / name)
        assert str(error.value) == f"{tmp_path / name} holds something else, expected a new path or {kind}"
    assert contents(tmp_path) == before
    (tmp_path / "empty").mkdir()
    made.save(tmp_path / "empty")
    assert plain(type(made).load(tmp_path / "empty")) == plain(made)


@both_packages
@each_kind
@pytest.mark.parametrize("training", [{"loss": nan}, {"when": object()}, {"loss": {1, 2}}])
def test_a_training_record_must_be_plain(package: str, make: Make, kind: str, training: Any, tmp_path: Path) -> None:
    message = r"^training is not plain JSON \(.*\), expected text, finite numbers and such$"
    with pytest.raises(ValueError, match=message):
        replace(make(package), training=training).save(tmp_path / "saved")
    assert not list(tmp_path.iterdir())


@both_packages
@pytest.mark.parametrize("existing", [False, True])
@pytest.mark.parametrize("function", ["open", "fsync", "replace"])
@pytest.mark.parametrize("failing", [1, 2, 3])
def test_a_save_that_fails_leaves_everything_as_it_was(package, existing, function, failing, tmp_path, monkeypatch):
    made, folder = VARIANTS["nothing but vectors"](package, 9), tmp_path / "saved"
    if existing:
        trained(package).save(folder)
    before, calls = contents(tmp_path), 0

    def break_down(*arguments: Any, **options: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == failing:
            raise KeyboardInterrupt("the disk is full, or someone pressed a key")
        return right(*arguments, **options)

    right: Any = open if function == "open" else getattr(os, function)
    home: Any = module(package, "checkpoint.folder") if function == "open" else os
    monkeypatch.setattr(home, function, break_down, raising=False)
    with suppress(KeyboardInterrupt):
        made.save(folder)
    monkeypatch.undo()
    if calls >= failing:
        assert contents(tmp_path) == before
    else:
        assert plain(type(made).load(folder)) == plain(made)
    assert {path.name for path in tmp_path.iterdir()} <= {"saved"}


@both_packages
@each_kind
def test_a_damaged_folder_is_refused(package: str, make: Make, kind: str, tmp_path: Path) -> None:
    made = make(package)
    made.save(tmp_path)
    whole = {name: (tmp_path / name).read_bytes() for name in (ARRAYS, CONFIG)}
    damaged = [(ARRAYS, whole[ARRAYS][:length]) for length in (0, 7, 100, len(whole[ARRAYS]) - 1)] + [(CONFIG, b"{")]
    for name, content in [*damaged, (CONFIG, b'{"model_type": "llama"}')]:
        said = refused(
            made.load, tmp_path, lambda _, name=name, content=content: (tmp_path / name).write_bytes(content)
        )
        another = f"{CONFIG}: format_version is missing, expected {kind}"
        assert said.startswith(f"{name} is damaged or half-written" if (name, content) in damaged else another)
        (tmp_path / name).write_bytes(whole[name])
    for name in (ARRAYS, CONFIG):
        said = refused(made.load, tmp_path, lambda _, name=name: (tmp_path / name).unlink(), FileNotFoundError)
        assert said == f"{name} is missing, expected a file"
        (tmp_path / name).write_bytes(whole[name])
    with pytest.raises(FileNotFoundError, match="is not a folder"):
        made.load(tmp_path / "nowhere")
