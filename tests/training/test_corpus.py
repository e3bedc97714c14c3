"""Text for training: read from disk or written by the model, divided, put into tokens, and cut into windows."""

from __future__ import annotations

import importlib
import os
import string
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from folders import contents
from pass_sampling.gpu import SamplingConfig, Transformer
from pass_sampling.gpu.training.text import own_text, read_texts, split_texts, standard_library
from pass_sampling.gpu.training.tokens import END_OF_TEXT, Windows, encode_texts, evenly_spaced, train_tokenizer
from training import model

# --- Reading ---


def write(folder: Path, files: dict[str, bytes]) -> Path:
    for name, content in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)
    return folder


def test_texts_below_a_folder_are_named_by_their_path_from_there_and_files_by_themselves(tmp_path: Path) -> None:
    """Of a folder those with a suffix of texts that hold some in UTF-8; nothing is touched."""
    files = {"b.py": b"b", "a/z.md": b"z", "a/deep/er/y.rst": b"y", "x.txt": b"x", "a.bin": b"no", "Makefile": b"no"}
    no_text = {"latin.txt": "né".encode("latin-1"), "empty.txt": b"", "folder.txt/a.bin": b"no"}
    folder = write(tmp_path / "texts", files | no_text)
    before = contents(folder)
    assert read_texts([folder]) == {"b.py": "b", "a/z.md": "z", "a/deep/er/y.rst": "y", "x.txt": "x"}
    assert list(read_texts([folder], left_out=("a/", "x"))) == ["b.py"]
    assert read_texts([str(folder / "a"), folder / "a.bin"]) == {"z.md": "z", "deep/er/y.rst": "y", "a.bin": "no"}
    assert read_texts([folder], (".bin",)) == {"a.bin": "no", "folder.txt/a.bin": "no"}
    assert contents(folder) == before


@given(text=st.text(min_size=1).filter(lambda text: "\r" not in text))
def test_lines_end_the_same_on_every_system(text: str, tmp_path_factory: pytest.TempPathFactory) -> None:
    folder = tmp_path_factory.mktemp("texts")
    write(folder, {"unix.txt": text.encode(), "windows.txt": text.replace("\n", "\r\n").encode()})
    assert read_texts([folder]) == {"unix.txt": text, "windows.txt": text}


WRONG_PATHS = [
    (["missing"], FileNotFoundError, r"missing is not there, expected a text file or a folder of such$"),
    (["latin.txt"], ValueError, r"latin\.txt holds no text, expected UTF-8 text"),
    (["empty.txt"], ValueError, r"empty\.txt holds no text, expected UTF-8 text"),
    (["none"], ValueError, r"none holds no text, expected UTF-8 text \(in a folder: \.py, \.txt, \.md, \.rst files\)$"),
    (["one", "two"], ValueError, r"two holds 'a\.txt', found before, expected every name once$"),
    (["one", "one"], ValueError, r"one holds 'a\.txt', found before, expected every name once$"),
    (["one", "two/a.txt"], ValueError, r"a\.txt holds 'a\.txt', found before, expected every name once$"),
    ([], ValueError, r"^found no text, expected at least one file or folder$"),
]


@pytest.mark.parametrize("names, error, message", WRONG_PATHS)
def test_paths_without_text_and_names_that_come_twice_are_refused_in_one_sentence(
    names: list[str], error: type[Exception], message: str, tmp_path: Path
) -> None:
    files = {"latin.txt": b"n\xe9", "empty.txt": b"", "none/a.bin": b"x", "one/a.txt": b"1", "two/a.txt": b"2"}
    before = contents(write(tmp_path, files))
    with pytest.raises(error, match=message) as caught:
        read_texts([tmp_path / name for name in names])
    assert "\n" not in str(caught.value)
    assert contents(tmp_path) == before


def test_the_standard_library_is_there_without_what_is_installed_into_it() -> None:
    texts = standard_library()
    assert len(texts) > 500 and {"os.py", "json/decoder.py"} <= texts.keys()
    assert texts["os.py"] == Path(os.__file__).read_bytes().decode().replace("\r\n", "\n")
    assert not [name for name in texts if "site-packages" in name or name.startswith("encodings/")]
    training, held_out = split_texts(texts)
    assert 0.02 < len(held_out) / len(texts) < 0.15
    assert sorted(training + held_out) == sorted(texts)


def test_a_python_without_its_library_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sysconfig.get_paths", lambda: {"stdlib": str(tmp_path)})
    with pytest.raises(FileNotFoundError, match=r" holds no standard library, expected Python's source files there$"):
        standard_library()


# --- Dividing ---


def lines_of(seed: int, count: int) -> list[str]:
    """Return telling lines: long enough, and unlike those of any other seed."""
    letters = np.random.default_rng(seed).choice(list(string.ascii_lowercase), size=(count, 20))
    return ["".join(line) for line in letters]


def corpus(seeds: Any, count: int = 6) -> dict[str, str]:
    return {f"text_{seed}.py": "\n".join(lines_of(seed, count)) for seed in seeds}


seeds = st.sets(st.integers(0, 10**6), min_size=1, max_size=30)


def sides_of(texts: dict[str, str]) -> dict[str, bool]:
    """Say of every text whether it is held out."""
    training, held_out = split_texts(texts, 0.3)
    assert training == sorted(training) and held_out == sorted(held_out)
    assert not set(training) & set(held_out) and set(training) | set(held_out) == set(texts)
    return dict.fromkeys(training, False) | dict.fromkeys(held_out, True)


@given(seeds=seeds, data=st.data())
def test_copies_stand_on_one_side_and_the_order_of_texts_is_nothing(seeds: set[int], data: st.DataObject) -> None:
    texts = corpus(seeds) | corpus(range(10**6 + 1, 10**6 + 21))  # enough for both sides
    copies = {f"copy/{name}": f"\n{texts[name]}\n" for name in data.draw(st.sets(st.sampled_from(sorted(texts))))}
    sides = sides_of(texts | copies)
    assert all(sides[name] == sides[name.removeprefix("copy/")] for name in copies)
    shuffled = data.draw(st.permutations(sorted(texts | copies)))
    assert sides_of({name: (texts | copies)[name] for name in shuffled}) == sides


@given(more=st.sets(st.integers(2000, 10**6), max_size=20))
def test_adding_unrelated_texts_moves_none(more: set[int]) -> None:
    before = sides_of(corpus(range(40)))
    after = sides_of(corpus([*range(40), *more]))
    assert {name: after[name] for name in before} == before


def test_about_the_asked_part_is_held_out() -> None:
    """Of 2000 texts 5 % are 100, give or take 10; six times that is passed by one set of names in a billion."""
    _, held_out = split_texts(corpus(range(2000), 1))
    assert 40 <= len(held_out) <= 160


# --- Tokens ---

TOKENIZER = train_tokenizer(["def main():\n    return 'é'\n" * 9, "naïve text, twice; naïve text\r\n\t"], 280, 64)


@given(text=st.text())
def test_the_tokenizer_gives_every_text_back_byte_for_byte(text: str) -> None:
    (tokens,) = encode_texts(TOKENIZER, [text], None)
    assert tokens.dtype == np.int64 and (tokens < 280).all()
    assert TOKENIZER.decode(tokens.tolist()) == text


@given(texts=st.lists(st.text(st.characters(codec="utf-8", exclude_characters="<")), max_size=4))
def test_every_text_ends_with_the_end_of_text_and_holds_it_nowhere_else(texts: list[str]) -> None:
    end = TOKENIZER.eos_token_id
    assert TOKENIZER.decode([end]) == END_OF_TEXT
    plain, ended = encode_texts(TOKENIZER, texts, None), encode_texts(TOKENIZER, texts, end)
    assert len(plain) == len(ended) == len(texts)
    for without, tokens in zip(plain, ended, strict=True):
        assert end not in without
        assert tokens.tolist() == [*without, end]


def test_the_same_texts_give_the_same_tokenizer() -> None:
    texts = ["one two three four five six seven " * 3, "two three four, five"]
    first, second = (train_tokenizer(iter(texts), 270, 64).get_vocab() for _ in range(2))
    assert first == second and len(first) == 270 and sorted(first.values()) == list(range(270))


# --- Windows ---


@st.composite
def windows(draw: Any) -> Windows:
    length, batch_size = draw(st.integers(1, 7)), draw(st.integers(1, 5))
    spare = draw(st.integers(0, 5 * length * batch_size))
    return Windows(np.arange(length * (batch_size + 1) + spare), length, batch_size, draw(st.integers(0, 2**63 - 1)))


@given(windows=windows(), epoch=st.integers(0, 5))
def test_every_epoch_visits_every_window_once_and_misses_less_than_a_batch(windows: Windows, epoch: int) -> None:
    """The text counts its own places, so a window tells where it was."""
    per_epoch, length = windows.batches_per_epoch, windows.length
    batches = [windows.batch(epoch * per_epoch + place) for place in range(per_epoch)]
    assert all(batch.shape == (windows.batch_size, length) for batch in batches)
    rows = np.concatenate(batches)
    assert (np.diff(rows, axis=1) == 1).all(), "a window is a piece of the text"
    starts = np.sort(rows[:, 0])
    assert (np.diff(starts) == length).all(), "no place twice, none left out between"
    assert 0 <= starts[0] < length
    assert len(windows.tokens) - rows.size < length * (windows.batch_size + 1)


@given(windows=windows(), steps=st.lists(st.integers(0, 200), min_size=1, max_size=5))
def test_a_batch_depends_on_the_seed_and_the_step_alone(windows: Windows, steps: list[int]) -> None:
    again = Windows(windows.tokens.copy(), windows.length, windows.batch_size, windows.seed)
    expected = {step: again.batch(step) for step in sorted(set(steps))}
    for step in steps:
        assert np.array_equal(windows.batch(step), expected[step])


def test_epochs_and_seeds_have_orders_and_offsets_of_their_own() -> None:
    tokens = np.arange(2000)
    texts = [
        np.concatenate([Windows(tokens, 10, 4, seed).batch(49 * epoch + place) for place in range(49)])[:, 0]
        for seed in (0, 1)
        for epoch in (0, 1, 2)
    ]
    assert len({tuple(starts) for starts in texts}) == 6
    assert len({int(starts[0]) % 10 for starts in texts}) > 1


@given(length=st.integers(1, 9), batch_size=st.integers(1, 9), missing=st.integers(1, 20))
def test_a_text_in_which_no_batch_fits_is_refused(length: int, batch_size: int, missing: int) -> None:
    needed = length * (batch_size + 1)
    with pytest.raises(ValueError, match=rf"^the text has \d+ tokens, expected at least {needed} for batches of"):
        Windows(np.arange(max(0, needed - missing)), length, batch_size, 0)
    assert Windows(np.arange(needed), length, batch_size, 0).batch(0).shape == (batch_size, length)


@given(count=st.integers(0, 3000), length=st.integers(1, 40), most=st.integers(1, 100))
def test_evenly_spaced_windows_do_not_overlap_and_reach_both_ends(count: int, length: int, most: int) -> None:
    if count < length:
        with pytest.raises(
            ValueError, match=rf"^the held-out text has {count} tokens, expected at least {length}, one"
        ):
            evenly_spaced(np.arange(count), length, most)
        return
    rows = evenly_spaced(np.arange(count), length, most)
    assert rows.shape == (min(most, count // length), length)
    assert (np.diff(rows, axis=1) == 1).all()
    gaps = np.diff(rows[:, 0])
    assert rows[0, 0] == 0 and (len(rows) == 1 or rows[-1, -1] == count - 1)
    assert len(gaps) == 0 or (gaps.min() >= length and gaps.max() - gaps.min() <= 1)


# --- Text that a model writes itself ---

own_text_module = importlib.import_module(own_text.__module__)


@given(
    num_tokens=st.integers(1, 200), length=st.integers(2, 12), top_k=st.sampled_from([1, 2, 0]), seed=st.integers(0, 99)
)
def test_own_text_is_written_by_plain_decoding_under_the_settings(
    num_tokens: int, length: int, top_k: int, seed: int
) -> None:
    text = own_text(model(), num_tokens, length, SamplingConfig(0.7, top_k), seed)
    assert text.dtype == np.int64 and len(text) == num_tokens
    assert (own_text(model(), num_tokens, length, SamplingConfig(0.7, top_k), seed) == text).all()
    for first in range(0, num_tokens, length):  # this model has no end of text, so all texts have this length
        piece = text[first : first + length]
        logits = model().forward(torch.from_numpy(piece[None]))[0, :-1]
        rank = (logits > logits.gather(1, torch.from_numpy(piece[1:, None]))).sum(dim=1)
        assert top_k == 0 or bool((rank < top_k).all())


def test_no_two_batches_of_own_text_read_the_same_stream(monkeypatch: pytest.MonkeyPatch) -> None:
    """Not of one seed, nor of neighbouring ones."""
    uniform_streams: list[int] = []

    def written(*_: Any, seed: int, **__: Any) -> list[Any]:
        uniform_streams.append(seed)
        return [SimpleNamespace(prompt=(1,), tokens=(2, 3))]

    monkeypatch.setattr(own_text_module, "generate_batch", written)
    for seed in range(4):
        assert own_text(model(), 30, 3, SamplingConfig(), seed).tolist() == [1, 2, 3] * 10
    assert len(uniform_streams) == len(set(uniform_streams)) == 40


def test_between_two_own_texts_is_one_end_of_text(monkeypatch: pytest.MonkeyPatch) -> None:
    ending = Transformer(model().config, model().weights, eos_token_ids=(7,))
    written = [(7, 1, 2), (7, 3, 7), (7, 4, 7), (7, 7), (7, 5, 6)]
    results = [SimpleNamespace(prompt=text[:1], tokens=text[1:]) for text in written]
    monkeypatch.setattr(own_text_module, "generate_batch", lambda *_, **__: results)
    assert own_text(ending, 12, 3, SamplingConfig(), 0).tolist() == [7, 1, 2, 7, 3, 7, 4, 7, 7, 5, 6, 7]


def test_own_text_is_kept_and_found_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file, done = tmp_path / "vectors.text.safetensors", list[int]()

    def written(seed: int) -> np.ndarray:
        return own_text(model(), 500, 8, SamplingConfig(0.5), seed, file, done.append)

    text = written(3)
    assert done == [256, 500] and os.listdir(tmp_path) == [file.name]
    with monkeypatch.context() as patch:
        patch.delattr(own_text_module, "generate_batch")
        assert (written(3) == text).all()
    assert not np.array_equal(written(4), text)
    file.write_bytes(b"half")
    with pytest.raises(ValueError, match=r"vectors\.text\.safetensors is damaged or half-written"):
        written(3)


def test_own_text_goes_on_after_the_batches_that_are_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "text.safetensors"

    def interrupt(done: int) -> None:
        if done > 300:
            raise KeyboardInterrupt

    def written(file: Path | None, watch: Any = lambda done: None) -> np.ndarray:
        return own_text(model(), 900, 8, SamplingConfig(0.5), 3, file, watch)

    with pytest.raises(KeyboardInterrupt):
        written(file, interrupt)
    done: list[int] = []
    assert np.array_equal(written(file, done.append), written(None)) and min(done) > 600


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"num_tokens": 0}, r"^num_tokens: found 0, "),
        ({"length": 1}, r"^length: found 1, "),
        ({"length": 65}, r"^length: found 65, expected an integer from 2 to 64$"),
        ({"seed": -1}, r"^seed: found -1, "),
        ({"sampling": SamplingConfig(1.0, 24)}, r"^top_k: found 24, "),
    ],
)
def test_own_text_of_impossible_settings_is_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        own_text(model(), **{"num_tokens": 10, "length": 5, "sampling": SamplingConfig(), "seed": 0} | changes)
