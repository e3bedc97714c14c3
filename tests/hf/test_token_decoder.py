"""Texts that are decoded token by token, against their definition: every prefix is decoded as a whole."""

from itertools import groupby
from typing import Any, NamedTuple

from hypothesis import example, given
from hypothesis import strategies as st

from pass_sampling.reference.ending import Ending
from pass_sampling.reference.text.token_decoder import Piece, TokenDecoder

UNFINISHED = "\ufffd"
TEXTS = ["a", "b", "ab", " ", " a", "", "é", UNFINISHED]
SPECIALS = ["<s>", "<ab>"]
BYTES = ["é".encode()[:1], "é".encode()[1:], *(bytes([byte]) for byte in "€".encode()), b"a", b" ", b"\xff", b"\xed"]
PARTS = [*BYTES, "é".encode(), b"ab", "€".encode()[1:] + b"a", b"b" + "é".encode()[:1], "aéb".encode(), b""]
STOPS = ["a", "ab", "aba", "bb", "é", "€", "éé", " a", "  ", "<s>", "b<", "s>a", "b<ab>"]

stop_strings = st.lists(st.sampled_from(STOPS), max_size=3, unique=True).map(tuple)


class Case(NamedTuple):
    """What the tokens of a decoder add, with their visibility, and a prompt and a text made of them."""

    in_runs: bool
    strip: int
    prompt: list[tuple[str | bytes, bool]]
    text: list[tuple[str | bytes, bool]]

    @property
    def decoder(self) -> TokenDecoder:
        """The decoder; token i is the i-th piece of prompt and text."""
        pieces = [
            Piece(data=piece) if isinstance(piece, bytes) else Piece(piece, is_special=not is_visible)
            for piece, is_visible in (*self.prompt, *self.text)
        ]
        return TokenDecoder(pieces.__getitem__, self.in_runs, self.strip)

    @property
    def tokens(self) -> tuple[range, range]:
        """The tokens of the prompt and of the text."""
        count = len(self.prompt)
        return range(count), range(count, count + len(self.text))

    def expected(self, stops: tuple[str, ...], count: int) -> tuple[str, bool]:
        """Return what is shown of some tokens, and whether a stop string ends after the prompt."""
        whole = _decoded([*self.prompt, *self.text[:count]], self.in_runs, self.strip)
        start, text = len(_decoded(self.prompt, self.in_runs, self.strip)), "".join(each for each, _ in whole)
        places = [n for n in range(len(text)) for stop in stops if text.startswith(stop, n) and n + len(stop) > start]
        shown = whole[start : min(places, default=len(text))]
        return "".join(character for character, is_visible in shown if is_visible), bool(places)


def _decoded(pieces: list[tuple[str | bytes, bool]], in_runs: bool, strip: int) -> list[tuple[str, bool]]:
    found: list[tuple[str, bool]] = []
    for is_bytes, run in groupby(pieces, lambda each: isinstance(each[0], bytes)):
        parts = list(run)
        if is_bytes:
            data = b"".join(part for part, _ in parts)
            try:
                text = data.decode() if in_runs else data.decode(errors="replace")
            except UnicodeDecodeError:
                text = UNFINISHED * len(data)
            parts = [(text, True)]
        found += [(character, shown) for part, shown in parts for character in part]
    first = next((n for n, (_, shown) in enumerate(found) if shown), None)
    if strip and first is not None and found[first][0] == " ":
        found[first] = (" ", False)
    return found


@st.composite
def cases(draw: st.DrawFn) -> Case:
    """A decoder of either family; what stands at the end of the prompt is whole."""
    in_runs = draw(st.booleans())
    pieces = st.sampled_from([*((each, True) for each in BYTES if len(each) == 1), *((each, True) for each in TEXTS)])
    if not in_runs:
        pieces = st.sampled_from([(each, True) for each in PARTS])
    pieces = st.one_of(pieces, pieces, st.sampled_from([(each, False) for each in SPECIALS]))
    prompt = draw(st.lists(pieces, max_size=4))
    if prompt and isinstance(prompt[-1][0], bytes):
        prompt.append(draw(st.sampled_from([("a", True), ("<s>", False)])))
    return Case(in_runs, draw(st.integers(0, in_runs)), prompt, draw(st.lists(pieces, max_size=10)))


SPOILT = Case(True, 0, [], [(bytes([byte]), True) for byte in "世界".encode()])
ACROSS = Case(True, 1, [("b", True)], [(" a", True), ("b", True)])


@given(cases(), stop_strings)
@example(SPOILT, ("世",))
@example(SPOILT, ())
@example(ACROSS, (" a",))
@example(ACROSS, ("b a",))
@example(Case(True, 1, [], [("<s>", False), (" a", True)]), (" a",))
@example(Case(False, 0, [], [(b"a", True), ("<ab>", False), (b"a", True)]), ("b>a",))
@example(Case(False, 0, [], [(b"\xed", True), (b"\xb4", True)]), ())
@example(Case(False, 0, [(b"a", True)], [("é".encode(), True)]), ("a", "ab"))
def test_every_prefix_up_to_the_end_is_shown_as_it_is_decoded(case: Case, stops: tuple[str, ...]) -> None:
    """What has been shown and the rest are the text, whichever prefix a length limit leaves: nothing is taken back."""
    prompt, tokens = case.tokens
    text = case.decoder.start(stops, prompt)
    shown, has_ended = "", False
    for count, token in enumerate(tokens, 1):
        text = text.after([token])
        shown += text.news
        expected, has_stop = case.expected(stops, count)
        assert has_ended or shown + text.rest == expected
        assert text.has_stop == has_stop
        has_ended = has_ended or text.has_stop


@given(cases(), stop_strings, st.data())
def test_no_answer_depends_on_what_was_asked_before(case: Case, stops: tuple[str, ...], data: st.DataObject) -> None:
    """Texts are continued again and again from any point, in any steps, and asked in any order."""
    prompt, tokens = case.tokens
    if not tokens:
        return
    ending = Ending(len(tokens), (), stops, case.decoder)
    known = [(ending.reading(prompt), ending.written(prompt), "", 0)]
    for _ in range(12):
        reading, text, shown, start = data.draw(st.sampled_from(known))
        stop = data.draw(st.integers(start, len(tokens)))
        reading, text = reading.after(tokens[start:stop]), text.after(tokens[start:stop])
        known.append((reading, text, shown + text.news, stop))
        fresh = Ending(len(tokens), (), stops, case.decoder)
        assert reading.reason == fresh.reason(tokens[:stop], prompt)
        assert shown + text.news == fresh.written(prompt).after(tokens[:stop]).news
        assert shown + text.news + text.rest == fresh.text(tokens[:stop], prompt)
        more = tokens[stop : stop + data.draw(st.integers(0, 3))]
        assert (
            reading.first(more) == fresh.first(tokens[:stop], more, prompt) == ending.first(tokens[:stop], more, prompt)
        )


def test_bytes_that_a_prompt_leaves_unfinished_belong_to_the_new_text() -> None:
    for in_runs in (False, True):
        prompt = [(bytes([byte]), True) for byte in "世".encode()] + [(b"\xe4", True)]
        case = Case(in_runs, 0, prompt, [(b"\xb8", True), (b"\x96", True), ("a", True)])
        text = case.decoder.start(("世",), range(4))
        assert text.rest == UNFINISHED
        assert text.after([4, 5]).has_stop
        assert text.after([6]).news == UNFINISHED + "a"


def test_each_token_is_decoded_once() -> None:
    """A text costs time in proportion to its length, also where all of it is one run of bytes."""
    asked, data = list[int](), "世界".encode()

    def piece(token: int) -> Any:
        asked.append(token)
        return Piece(data=data[token % 6 : token % 6 + 1])

    for in_runs in (False, True):
        for length in (1000, 8000):
            asked.clear()
            ending = Ending(length + 1, (), ("界!",), TokenDecoder(piece, in_runs))
            reading = ending.reading()
            for token in range(length):
                assert reading.first((token,)) == (1, None)
                reading = reading.after((token,))
            assert len(asked) == 2 * length
