"""Where a text ends, and what may be shown of it before: distributions of both packages."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import product
from typing import Any

import numpy as np
import pytest
from hypothesis import assume, example, given
from hypothesis import strategies as st

from adapters import Port, each_port
from folders import both_packages, module

# Tokens are pieces of UTF-8, some with parts of characters: the two bytes of é, the three of €, a byte that is none.
PIECES = [b"a", b"b", b"ab", b"", b"ba\n", b"\xc3", b"\xa9", b"\xe2\x82", b"\xac", b"\xff", "é".encode(), b"<end>"]
STOPS = ["a", "ab", "abc", "aba", "bb", "é", "€", "a\n", "éa", "<end>", "b<"]

tokens = st.lists(st.integers(0, len(PIECES) - 1), min_size=1, max_size=12)
stop_strings = st.lists(st.sampled_from(STOPS), max_size=3, unique=True)
eos_ids = st.lists(st.integers(0, len(PIECES) - 1), max_size=3, unique=True)
limits = st.integers(1, 14)


def decode(new_tokens: Sequence[int]) -> str:
    """Join the pieces; what is no character is a replacement character, as in Hugging Face's byte-level tokenizers."""
    return b"".join(PIECES[token] for token in new_tokens).decode("utf-8", errors="replace")


def known(package: str) -> Any:
    """Return the same as a decoder that knows what each token adds."""
    home = module(package, "text.token_decoder")
    return home.TokenDecoder([home.Piece(data=piece) for piece in PIECES].__getitem__)


either_decoder = pytest.mark.parametrize("decoder", [lambda package: decode, known], ids=["plain", "known"])


def ending_of(package: str, *arguments: Any, **settings: Any) -> Any:
    return module(package, "ending").Ending(*arguments, **settings)


def piece(text: str) -> int:
    return PIECES.index(text.encode())


# --- Where a text ends ---


@both_packages
@either_decoder
@given(tokens, limits, eos_ids, stop_strings)
@example([1, 0], 2, [0], [])  # eos and length at once
@example([2], 5, [], ["a", "ab"])  # one token completes two stop strings
def test_the_reason_is_the_first_that_holds(
    package: str, decoder: Any, text: list[int], limit: int, eos: list[int], stops: list[str]
) -> None:
    ending = ending_of(package, limit, eos, stops, decoder(package))
    if text[-1] in eos:
        expected = "eos"
    elif any(stop in decode(text) for stop in stops):
        expected = "stop_string"
    else:
        expected = "length" if len(text) >= limit else None
    assert ending.reason(text) == expected
    assert ending.reason(tuple(text)) == expected


@both_packages
@either_decoder
@given(tokens, limits, eos_ids, stop_strings, st.data())
def test_a_text_ends_at_the_first_token_that_ends_it_however_it_is_cut_into_blocks(
    package: str, decoder: Any, text: list[int], limit: int, eos: list[int], stops: list[str], data: st.DataObject
) -> None:
    ending = ending_of(package, limit, eos, stops, decoder(package))
    ends = [n for n in range(1, len(text) + 1) if ending.reason(text[:n]) is not None]
    expected = text[: ends[0]] if ends else text
    reached: list[int] = []
    reason = None
    while reason is None and len(reached) < len(text):
        block = text[len(reached) : len(reached) + data.draw(st.integers(1, 5))]
        count, reason = ending.first(reached, block)
        assert 1 <= count <= len(block) and (count == len(block) or reason is not None)
        reached += block[:count]
    assert reached == expected
    assert reason == (ending.reason(expected) if ends else None)


@both_packages
@either_decoder
def test_each_way_to_end(package: str, decoder: Any) -> None:
    a, b, end = piece("a"), piece("b"), piece("<end>")
    ending = ending_of(package, 4, (end, b), ("aaa", "é"), decoder(package))
    assert ending.first([], [a, end, a]) == (2, "eos")
    assert ending.first([a], [b, a]) == (1, "eos")
    assert ending.first([a], [a, a, a]) == (2, "stop_string")
    assert ending.first([a, 5], [6, a]) == (1, "stop_string"), "two tokens make one character"
    assert ending.first([a, 3, 3], [3, 3, 3]) == (1, "length")
    assert ending.first([a], [3, 3]) == (2, None)
    assert ending.first([a], []) == (0, None)
    assert ending.reason([]) is None


@both_packages
def test_a_criterion_ends_a_text_after_the_first_prefix_that_meets_it(package: str) -> None:
    a, b, end = piece("a"), piece("b"), piece("<end>")
    ending = ending_of(package, 6, (end,), ("bb",), decode, criterion=lambda new: sum(new) >= 3)
    assert ending.reason([]) is None
    assert ending.first([], [b, a, b, a, b]) == (5, "criterion")
    assert ending.first([b], [b, b]) == (1, "stop_string")
    assert ending.first([b], [3]) == (1, "criterion")
    assert ending.first([b], [end]) == (1, "eos")
    assert ending.first([a, a, a, a], [a, a]) == (2, "length")


@pytest.mark.torch
def test_a_criterion_is_asked_in_a_batch_as_well() -> None:
    port = Port("cpu")
    ending = ending_of("gpu", 9, criterion=lambda new: len(new) == 1 + new[0])
    cache = port.module("model.cache").KVCache(1, 1, 2, port.tensor(np.zeros(1)).dtype, 40, 3, port.device)
    state = port.module("state").first_state([[0, 1]] * 3, ending, cache)
    block, counts = np.array([[1, 5, 5], [2, 5, 5], [4, 5, 5]]), np.array([3, 3, 2])
    kept, ended = state.num_kept(port.tensor(block), port.tensor(counts))
    assert (kept.tolist(), ended.tolist()) == ([2, 3, 2], [True, True, False])


@both_packages
@either_decoder
def test_a_stop_string_may_stand_where_tokens_end_or_inside_one(package: str, decoder: Any) -> None:
    ending = ending_of(package, 9, (), ("nd",), decoder(package))
    assert ending.reason([piece("<end>")]) == "stop_string"
    assert ending.text([piece("a"), piece("<end>")]) == "a<e"


@both_packages
def test_without_a_decoder_there_is_no_text(package: str) -> None:
    ending = ending_of(package, 2)
    assert ending.text([1, 2]) is None
    assert (ending.reason([1]), ending.reason([1, 2])) == (None, "length")
    with pytest.raises(ValueError) as error:
        ending.safe_text([1])
    assert str(error.value) == "decode: found None, expected a function that turns tokens into text"


# --- What may be shown ---


def final_text(ending: Any, text: list[int]) -> tuple[str, list[int]]:
    """Run a text to its end; return what it finally says, and the tokens up to there."""
    count, _ = ending.first([], text)
    return ending.text(text[:count]), text[:count]


@both_packages
@given(tokens, limits, eos_ids, stop_strings)
@example([0, 1], 9, [], ["ab"])
@example([7, 8], 9, [], ["€"])
@example([2, 2, 1], 9, [], ["ababb", "bab"])
@example([1, 1], 9, [], ["ab", "bb"])
@example([1, 1], 9, [], ["bb", "ab"])
def test_what_was_shown_is_never_taken_back(
    package: str, text: list[int], limit: int, eos: list[int], stops: list[str]
) -> None:
    ending = ending_of(package, limit, eos, stops, known(package))
    final, kept = final_text(ending, text)
    shown = [ending.safe_text(kept[:n]) for n in range(len(kept))]  # asked while the text goes on
    for earlier, later in zip(shown, [*shown[1:], final], strict=False):
        assert later.startswith(earlier)
    for part in (*shown, final):
        assert all(stop not in part for stop in stops), "a stop string was shown"


@both_packages
@given(tokens, stop_strings)
def test_no_more_is_withheld_than_must_be(package: str, text: list[int], stops: list[str]) -> None:
    ending = ending_of(package, 99, (), stops, known(package))
    assume(ending.reason(text) is None)
    shown, more = ending.safe_text(text), range(len(PIECES))
    longer = [decode([*text, *rest]) for rest in ((), *product(more, more))]
    beginnings = (longer[0][:count] for count in range(len(longer[0]), -1, -1))
    certain = next(each for each in beginnings if all(whole.startswith(each) for whole in longer))
    assert certain.startswith(shown)
    withheld = certain[len(shown) :]
    assert withheld == "" or any(stop.startswith(withheld) for stop in stops)


@both_packages
def test_incomplete_characters_and_beginnings_of_stop_strings_are_withheld(package: str) -> None:
    ending = ending_of(package, 99, (), ("ab<end>",), known(package))
    a, b = piece("a"), piece("b")
    assert ending.safe_text([b, 5]) == "b"
    assert ending.safe_text([b, 5, 6]) == "bé"
    assert ending.safe_text([b, 9, a]) == "b\ufffd", "a byte that is no character stays one"
    assert ending.safe_text([b, a, b]) == "b"
    assert ending.safe_text([b, a, b, a]) == "bab"
    assert ending.text([b, a, b, piece("<end>")]) == "b"
    assert ending.safe_text([]) == ""


@both_packages
@either_decoder
@given(tokens, stop_strings)
def test_the_text_stops_before_the_first_stop_string(
    package: str, decoder: Any, text: list[int], stops: list[str]
) -> None:
    ending = ending_of(package, 99, (), stops, decoder(package))
    whole = decode(text[: ending.first([], text)[0]])
    cuts = [i for i in range(len(whole)) for stop in stops if whole.startswith(stop, i)]
    assert final_text(ending, text)[0] == whole[: min(cuts, default=len(whole))]


@both_packages
@given(tokens, stop_strings)
def test_nothing_of_a_plain_decoders_text_is_safe(package: str, text: list[int], stops: list[str]) -> None:
    assert ending_of(package, 99, (), stops, decode).safe_text(text) == ""


# --- Bad arguments ---


@both_packages
@pytest.mark.parametrize("value", [0, -1, True, 1.0, 2.5, None, "3"], ids=repr)
def test_a_length_that_ends_nothing_is_refused(package: str, value: Any) -> None:
    with pytest.raises(ValueError) as error:
        ending_of(package, value)
    assert str(error.value) == f"max_new_tokens: found {value!r}, expected a positive integer"


@both_packages
@pytest.mark.parametrize("value", ["end", [""], ("a", ""), [3], [None]], ids=repr)
def test_stop_strings_that_are_none_are_refused(package: str, value: Any) -> None:
    with pytest.raises(ValueError) as error:
        ending_of(package, 3, (), value, decode)
    assert str(error.value) == f"stop_strings: found {value!r}, expected a sequence of non-empty strings"


@both_packages
def test_a_single_end_of_sequence_id_is_refused(package: str) -> None:
    with pytest.raises(ValueError) as error:
        ending_of(package, 3, 2)
    assert str(error.value) == "eos_token_ids: found 2, expected a sequence of token ids"


@both_packages
def test_stop_strings_need_a_decoder(package: str) -> None:
    with pytest.raises(ValueError) as error:
        ending_of(package, 3, (), ("a",))
    assert str(error.value) == "stop_strings: found no decode function, expected one that turns tokens into text"


@both_packages
def test_what_is_accepted_is_kept_as_plain_tuples(package: str) -> None:
    ending = ending_of(package, np.int64(3), [1, 2], ["a"], decode)
    assert (ending.max_new_tokens, ending.eos_token_ids, ending.stop_strings) == (3, (1, 2), ("a",))
    assert type(ending.max_new_tokens) is int
    assert ending == ending_of(package, 3, (1, 2), ("a",), decode)


# --- The port looks for ends on the device ---


@each_port
@given(st.lists(st.tuples(tokens, st.integers(0, 4)), min_size=1, max_size=4), limits, eos_ids, stop_strings)
def test_a_batch_ends_where_each_of_its_texts_does(
    port: Port, texts: list[tuple[list[int], int]], limit: int, eos: list[int], stops: list[str]
) -> None:
    # Each row commits its text in one block after a prompt; a row may have nothing to commit.
    ending = ending_of("gpu", limit, eos, stops, known("gpu"))
    width = max(len(text) for text, _ in texts)
    block = np.array([text + [0] * (width - len(text)) for text, _ in texts])
    counts = np.array([len(text) * (skip > 0) for text, skip in texts])
    cache = port.module("model.cache").KVCache(1, 1, 2, port.tensor(np.zeros(1)).dtype, 40, len(texts), port.device)
    state = port.module("state").first_state([[0, 1]] * len(texts), ending, cache)
    kept, ended = (part.tolist() for part in state.num_kept(port.tensor(block), port.tensor(counts)))
    one_more = state.ends_with(port.tensor(block[:, :1])).tolist()
    for n, (text, _) in enumerate(texts):
        alone = ending_of("reference", limit, eos, stops, known("reference"))
        count, reason = alone.first([], text[: counts[n]], [0, 1])
        assert (kept[n], ended[n]) == (count, reason is not None)
        assert one_more[n] == (alone.reason(text[:1], [0, 1]) is not None)


@both_packages
def test_an_unfinished_character_is_no_stop_string(package: str) -> None:
    with pytest.raises(ValueError) as error:
        ending_of(package, 3, (), ["a\ufffd"], decode)
    expected = "stop_strings: found ('a\ufffd',), expected none with U+FFFD, which is an unfinished character"
    assert str(error.value) == expected
