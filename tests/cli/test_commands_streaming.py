"""Text as it is accepted: marks and colours take nothing from it and add nothing to it."""

import io

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from console import COLOUR, MARK, Terminal
from pass_sampling.gpu.cli.console import COLOURS, MARKS, SourceStream, is_colourful
from pass_sampling.reference.ending import Ending
from pass_sampling.reference.record import Record
from pass_sampling.reference.text.token_decoder import Piece, TokenDecoder

SOURCES = ("exact", "accepted", "correction", "bonus")


def plain(tokens) -> str:
    """Tokens that are single bytes, all of which become U+FFFD unless all are UTF-8."""
    try:
        return bytes(tokens).decode()
    except UnicodeDecodeError:
        return "\ufffd" * len(tokens)


# The same tokens, as byte-level tokenizers decode them, and those with byte fallback; letters are no bytes in these.
decode = TokenDecoder(lambda token: Piece(data=bytes([token])))
in_runs = TokenDecoder(lambda token: Piece(chr(token)) if token < 128 else Piece(data=bytes([token])), in_runs=True)


@st.composite
def written(draw):
    """The bytes of a text in blocks, as steps accept them, with the source of every byte, and stop strings."""
    text = draw(st.text(st.sampled_from("ab \né日😀\u0301"), min_size=1, max_size=20))
    tokens = list(text.encode())
    if draw(st.booleans()):  # and bytes that are no text
        tokens = draw(st.lists(st.sampled_from([*tokens, 0x80, 0xE6, 0xF0, 0xFF]), min_size=1, max_size=20))
    sources = [draw(st.sampled_from(SOURCES)) for _ in tokens]
    cuts = sorted(draw(st.sets(st.integers(1, len(tokens)), max_size=8)) | {len(tokens)})
    stops = draw(st.lists(st.text(st.sampled_from("ab é日"), min_size=1, max_size=3), max_size=2))
    return tokens, sources, cuts, stops, draw(st.sampled_from([decode, in_runs, plain]))


def shown(tokens, sources, cuts, stops, decoder=decode, **how) -> tuple[str, str, list[str]]:
    """Stream a text block by block; return it as the ending sees it, all that was printed, and what after each block.

    The text ends where the ending says so, as in a generation.
    """
    ending = Ending(len(tokens), (), stops, decoder)
    stream = io.StringIO()
    source_stream = SourceStream(ending, stream, **how)
    start, after = 0, []
    for stop in cuts:
        count, end = ending.first(tokens[:start], tokens[start:stop])
        block = slice(start, start + count)
        log_probs = (0.0,) * count
        source_stream.record(0, Record(tuple(tokens[block]), tuple(sources[block]), log_probs))
        after.append(stream.getvalue())
        start += count
        if end is not None:
            break
    text = ending.text(tokens[:start])
    assert text is not None
    source_stream.finish(text)
    return text, stream.getvalue(), after


@given(written())
@example((list("日本".encode()), ["accepted"] * 6, [1, 2, 4, 5, 6], ["本"]))
@example(([0xF0, 0x9F, 0x61], ["exact", "bonus", "accepted"], [1, 2, 3], ["a"]))
@example((list("世界".encode())[:4], ["exact"] * 4, [1, 2, 3, 4], [], in_runs))
@example((list("世界".encode())[:4], ["exact"] * 4, [1, 2, 3, 4], [], plain))
@example((list("世界".encode()), ["exact"] * 6, [1, 2, 3, 4, 5, 6], [], plain))
def test_the_streamed_text_without_its_colours_or_marks_is_the_text(case):
    for how, added in (
        ({"plain": True}, None),
        ({"colourful": True}, COLOUR),
        ({"colourful": False}, MARK),
        ({"colourful": True, "plain": True}, None),
    ):
        text, printed, after = shown(*case, **how)
        bare = printed if added is None else added.sub("", printed)
        assert bare == text + "\n"
        for early in after:  # what stands on the screen is never taken back
            assert printed.startswith(early)


@given(written())
def test_every_mark_is_closed_before_the_next_opens_and_before_the_end_of_the_line(case):
    _, printed, _ = shown(*case, colourful=False)
    marks = MARK.findall(printed)
    pairs = {opened: closed for opened, closed in MARKS.values() if opened}
    assert [pairs[opened] for opened in marks[::2]] == marks[1::2]
    assert not MARK.search(printed[printed.rfind("]") + 1 :])
    _, printed, _ = shown(*case, colourful=True)
    colours = COLOUR.findall(printed)
    assert colours[1::2] == ["\033[0m"] * (len(colours) // 2) and len(colours) % 2 == 0
    assert set(colours[::2]) <= set(COLOURS.values())


def test_text_that_fails_or_is_interrupted_leaves_no_colour_after():
    for failure in (KeyboardInterrupt, ValueError):
        stream = Terminal()
        with pytest.raises(failure), SourceStream(Ending(9, decode=decode), stream) as source_stream:
            source_stream.record(0, Record((97,), ("accepted",), (0.0,)))
            raise failure
        assert stream.getvalue() == "\033[32ma\033[0m"


def test_colours_are_for_terminals_that_want_them(monkeypatch):
    for name in ("NO_COLOR", "TERM"):
        monkeypatch.delenv(name, raising=False)
    assert is_colourful(Terminal()) and not is_colourful(io.StringIO())
    monkeypatch.setenv("NO_COLOR", "")  # set but empty: not set
    assert is_colourful(Terminal())
    monkeypatch.setenv("NO_COLOR", "1")
    assert not is_colourful(Terminal())
    monkeypatch.delenv("NO_COLOR")
    monkeypatch.setenv("TERM", "dumb")
    assert not is_colourful(Terminal())
