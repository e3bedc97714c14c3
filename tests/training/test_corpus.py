"""Text for training: read from disk or written by the model, divided, put into tokens, and cut into windows."""

import importlib
import os
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
from pass_sampling.gpu.training.text import in_turn, own_text, read_texts, split_texts, standard_library
from pass_sampling.gpu.training.tokens import END_OF_TEXT, Windows, encode_texts, evenly_spaced, train_tokenizer
from training import model


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
def test_paths_without_text_and_names_that_come_twice_are_refused_in_one_sentence(names, error, message, tmp_path):
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


def sides_of(texts: dict[str, str]) -> dict[str, bool]:
    """Say of every text whether it is held out."""
    training, held_out = split_texts(texts, 0.3)
    assert training == sorted(training) and held_out == sorted(held_out)
    assert not set(training) & set(held_out) and set(training) | set(held_out) == set(texts)
    return dict.fromkeys(training, False) | dict.fromkeys(held_out, True)


@given(numbers=st.sets(st.integers(20, 10**6), max_size=30), data=st.data())
def test_copies_stand_on_one_side_and_the_order_of_texts_is_nothing(numbers: set[int], data: st.DataObject) -> None:
    texts = {f"text_{number}.py": f"print({number})" for number in numbers | {*range(20)}}  # enough for both sides
    copies = {f"copy/{name}": f"\n{texts[name]}\n" for name in data.draw(st.sets(st.sampled_from(sorted(texts))))}
    sides = sides_of(texts | copies)
    assert all(sides[name] == sides[name.removeprefix("copy/")] for name in copies)
    shuffled = data.draw(st.permutations(sorted(texts | copies)))
    assert sides_of({name: (texts | copies)[name] for name in shuffled}) == sides


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


own_text_module = importlib.import_module(own_text.__module__)


@given(
    num_tokens=st.integers(1, 200), length=st.integers(2, 12), top_k=st.sampled_from([1, 2, 0]), seed=st.integers(0, 99)
)
def test_own_text_is_written_by_plain_decoding_under_the_settings(num_tokens, length, top_k, seed):
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


def test_own_answers_follow_every_prompt_in_turn(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(own_text_module, "SIDE_BY_SIDE", 2)
    prompts, length, texts = [[1, 2], [3, 4, 5], [6]], 4, list[tuple[int, ...]]()
    tokens = own_text(model(), 40, length, SamplingConfig(0.7), 5, begin=in_turn(prompts, 5)).tolist()
    while tokens:
        (prompt,) = [tuple(each) for each in prompts if tokens[: len(each)] == each][:1]
        texts.append(prompt)
        tokens = tokens[len(prompt) + length - 1 :]  # this model has no end of text
    assert sorted(texts[:3]) == sorted(map(tuple, prompts)) and texts[3:6] == texts[:3]


def test_own_text_goes_on_after_the_batches_that_are_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "text.safetensors"

    def interrupt(done: int) -> None:
        if done > 300:
            raise KeyboardInterrupt

    def written(file: Path | None, watch: Any = lambda done: None) -> np.ndarray:
        return own_text(model(), 900, 8, SamplingConfig(0.5), 3, file, watch, in_turn([[1, 2], [3]], 0))

    with pytest.raises(KeyboardInterrupt):
        written(file, interrupt)
    done: list[int] = []
    assert np.array_equal(written(file, done.append), written(None)) and min(done) > 600
