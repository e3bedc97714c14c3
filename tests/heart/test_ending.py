"""Where a text ends, and what may be shown of it before."""

from collections.abc import Sequence
from itertools import pairwise, product
from typing import Any

import numpy as np
import pytest
from hypothesis import assume, example, given
from hypothesis import strategies as st

from adapters import each_port
from pass_sampling.reference.ending import Ending
from pass_sampling.reference.text.token_decoder import Piece, TokenDecoder

# Tokens are pieces of UTF-8, some with parts of characters: the two bytes of é, the three of €, a byte that is none.
PIECES = [b"a", b"b", b"ab", b"", b"ba\n", b"\xc3", b"\xa9", b"\xe2\x82", b"\xac", b"\xff", "é".encode(), b"<end>"]
STOPS = ["a", "ab", "abc", "aba", "bb", "é", "€", "a\n", "éa", "<end>", "b<", "nd"]
A, B, END = (PIECES.index(piece) for piece in (b"a", b"b", b"<end>"))

tokens = st.lists(st.integers(0, len(PIECES) - 1), min_size=1, max_size=12)
stop_strings = st.lists(st.sampled_from(STOPS), max_size=3, unique=True)
eos_ids = st.lists(st.integers(0, len(PIECES) - 1), max_size=3, unique=True)
limits = st.integers(1, 14)


def decode(new_tokens: Sequence[int]) -> str:
    """Join the pieces; what is no character is a replacement character, as in Hugging Face's byte-level tokenizers."""
    return b"".join(PIECES[token] for token in new_tokens).decode("utf-8", errors="replace")


KNOWN = TokenDecoder([Piece(data=piece) for piece in PIECES].__getitem__)  # which knows what each token adds
each_decoder = pytest.mark.parametrize("decoder", [decode, KNOWN], ids=["plain", "known"])


@each_decoder
@given(tokens, limits, eos_ids, stop_strings, st.data())
@example([B, A], 2, [A], [], None)  # eos and length at once
@example([2], 5, [], ["a", "ab"], None)  # one token completes two stop strings
@example([5, 6], 5, [], ["é"], None)  # two tokens make one character
def test_a_text_ends_at_the_first_token_that_ends_it_however_it_is_cut_into_blocks(
    decoder: Any, text: list[int], limit: int, eos: list[int], stops: list[str], data: st.DataObject | None
) -> None:
    ending = Ending(limit, eos, stops, decoder)
    reasons: list[str | None] = [None]
    for count in range(1, len(text) + 1):
        stopped = any(stop in decode(text[:count]) for stop in stops)
        late = "length" if count >= limit else None
        reasons.append("eos" if text[count - 1] in eos else "stop_string" if stopped else late)
    for count, reason in enumerate(reasons):
        assert ending.reason(text[:count]) == ending.reason(tuple(text[:count])) == reason
    last = next((count for count, reason in enumerate(reasons) if reason), len(text))
    reached: list[int] = []
    reason = None
    while reason is None and len(reached) < len(text):
        size = 1 if data is None else data.draw(st.integers(1, 5))
        block = text[len(reached) : len(reached) + size]
        count, reason = ending.first(reached, block)
        assert count == len(block) or (reason is not None and 1 <= count)
        reached += block[:count]
    assert (reached, reason) == (text[:last], reasons[last])


@each_port
@given(st.lists(st.tuples(tokens, st.booleans()), min_size=1, max_size=4), limits, eos_ids, stop_strings, st.booleans())
def test_a_batch_ends_where_each_of_its_texts_does(port, texts, limit, eos, stops, criterion):
    """Each row commits its text in one block after a prompt; a row may have nothing to commit."""
    ending = Ending(limit, eos, stops, KNOWN, (lambda new: len(new) == 1 + new[0]) if criterion else None)
    width = max(len(text) for text, _ in texts)
    block = np.array([text + [0] * (width - len(text)) for text, _ in texts])
    counts = np.array([len(text) * commits for text, commits in texts])
    cache = port.module("model.cache").KVCache(1, 1, 2, port.tensor(np.zeros(1)).dtype, 40, len(texts), port.device)
    state = port.module("state").first_state([[0, 1]] * len(texts), ending, cache)
    kept, ended = (part.tolist() for part in state.num_kept(port.tensor(block), port.tensor(counts)))
    one_more = state.ends_with(port.tensor(block[:, :1])).tolist()
    for n, (text, _) in enumerate(texts):
        count, reason = ending.first([], text[: counts[n]], [0, 1])
        assert (kept[n], ended[n]) == (count, reason is not None)
        assert one_more[n] == (ending.reason(text[:1], [0, 1]) is not None)


@given(tokens, limits, eos_ids, stop_strings)
@example([0, 1], 9, [], ["ab"])
@example([7, 8], 9, [], ["€"])
@example([2, 2, 1], 9, [], ["ababb", "bab"])
@example([1, 1], 9, [], ["ab", "bb"])
@example([1, 1], 9, [], ["bb", "ab"])
def test_what_was_shown_is_never_taken_back(text: list[int], limit: int, eos: list[int], stops: list[str]) -> None:
    ending = Ending(limit, eos, stops, KNOWN)
    kept = text[: ending.first([], text)[0]]
    shown = [
        *(ending.written().after(kept[:n]).news for n in range(len(kept))),
        ending.text(kept),
    ]  # as the text goes on
    assert all(later.startswith(earlier) for earlier, later in pairwise(shown))
    assert not any(stop in part for part in shown for stop in stops), "a stop string was shown"


@given(tokens, stop_strings)
@example([B, 9, A], [])  # a byte that is no character stays one
@example([B, A, B], ["ab<end>"])
@example([B, A, B, A], ["ab<end>"])
def test_no_more_is_withheld_than_must_be(text: list[int], stops: list[str]) -> None:
    ending = Ending(99, (), stops, KNOWN)
    assume(ending.reason(text) is None)
    shown, more = ending.written().after(text).news, range(len(PIECES))
    longer = [decode([*text, *rest]) for rest in ((), *product(more, more))]
    beginnings = (longer[0][:count] for count in range(len(longer[0]), -1, -1))
    certain = next(each for each in beginnings if all(whole.startswith(each) for whole in longer))
    assert certain.startswith(shown)
    withheld = certain[len(shown) :]
    assert withheld == "" or any(stop.startswith(withheld) for stop in stops)


def test_without_a_decoder_there_is_no_text_and_nothing_of_a_plain_one_is_safe() -> None:
    assert Ending(2).text([1, 2]) is None
    assert Ending(9, decode=decode).written().after([A, B]).news == ""
    with pytest.raises(ValueError, match=r"^decode: found None, expected a function that turns tokens into text$"):
        Ending(2).written()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        *(
            ((value,), f"max_new_tokens: found {value!r}, expected a positive integer")
            for value in (0, -1, True, 1.0, 2.5, None, "3")
        ),
        *(
            ((3, (), value, decode), f"stop_strings: found {value!r}, expected a sequence of non-empty strings")
            for value in ("end", [""], ("a", ""), [3], [None])
        ),
        ((3, 2), "eos_token_ids: found 2, expected a sequence of token ids"),
        ((3, (), ("a",)), "stop_strings: found no decode function, expected one that turns tokens into text"),
        (
            (3, (), ["a\ufffd"], decode),
            "stop_strings: found ('a\ufffd',), expected none with U+FFFD, which is an unfinished character",
        ),
    ],
)
def test_what_ends_no_text_is_refused(arguments: Any, message: str) -> None:
    with pytest.raises(ValueError) as error:
        Ending(*arguments)
    assert str(error.value) == message
