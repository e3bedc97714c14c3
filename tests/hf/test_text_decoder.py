"""Decoders of tokenizers: the text, its stop strings and what joins it to the prompt are the libraries'."""

from typing import Any

import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st
from tokenizers import decoders
from transformers import PreTrainedTokenizerFast, StopStringCriteria

from pass_sampling.gpu import Ending, decoder_of
from pass_sampling.reference.text.token_decoder import TokenDecoder
from tokenizer_kinds import BYTE_TOKENS, KINDS, KNOWN, SPECIAL, tokenizer_of

every_kind = pytest.mark.parametrize("kind", KINDS)
known_kind = pytest.mark.parametrize("kind", KNOWN)
STOPS = ["ok", " ok", "<|im_end|>", "end|>", "ok<|im", "世", "\n\n", "a", " ", " a b", "abc", "hi!", "é b", "kh", "<s>"]


def decoded(tokenizer: Any, tokens: list[int], skips: bool = False) -> str:
    known = [token for token in tokens if token < len(tokenizer)]
    return str(tokenizer.decode(known, skip_special_tokens=skips, clean_up_tokenization_spaces=False))


def texts(kind: str, skips: bool = False, whole: bool = False) -> st.SearchStrategy[list[int]]:
    """Tokens, some that the tokenizer does not know among them; `whole`: bytes make characters, and all are known."""
    tokenizer = tokenizer_of(kind)
    names = tokenizer.get_vocab()
    left_out = {*(SPECIAL if skips else []), *(BYTE_TOKENS if whole else []), "\u2581a\u2581b" if whole else ""}
    words = [[token] for token in sorted(token for name, token in names.items() if name not in left_out)]
    if whole:
        words = [word for word in words if "\ufffd" not in decoded(tokenizer, word)]
        words += [tokenizer.encode(text, add_special_tokens=False) for text in ("世", "é", "\n")]
    else:
        words.append([len(names) + 1])
    favourites = [tokenizer.encode(text, add_special_tokens=False) for text in ("ok", "a", "世", "hi")]
    word = st.sampled_from(words) | st.sampled_from(favourites)
    return st.lists(word, max_size=6).map(lambda found: [token for tokens in found for token in tokens])


def prompts(kind: str) -> st.SearchStrategy[list[int]]:
    """Prompts of whole characters, often the beginning of a text alone."""
    return st.just([tokenizer_of(kind).bos_token_id]) | texts(kind, whole=True).filter(bool)


def first_end(ending: Ending, tokens: list[int], prompt: list[int]) -> int | None:
    count, reason = ending.first([], tokens, prompt)
    return None if reason is None else count


@every_kind
@given(st.data())
def test_the_text_is_what_the_tokenizer_decodes(kind: str, data: st.DataObject) -> None:
    tokenizer, decode = tokenizer_of(kind), decoder_of(tokenizer_of(kind))
    assert isinstance(decode, TokenDecoder) == (kind in KNOWN)
    tokens = data.draw(texts(kind, skips=True))
    known = tokens if kind in KNOWN else [token for token in tokens if token < len(tokenizer)]
    assert decode(known) == decoded(tokenizer, tokens)


@every_kind
@given(st.data())
def test_prompt_and_text_join_as_their_tokens_do(kind: str, data: st.DataObject) -> None:
    tokenizer = tokenizer_of(kind)
    prompt, tokens = data.draw(prompts(kind)), data.draw(texts(kind, skips=True, whole=True))
    text = Ending(99, decode=decoder_of(tokenizer)).text(tokens, prompt)
    assert decoded(tokenizer, prompt, skips=True) + str(text) == decoded(tokenizer, prompt + tokens, skips=True)


@every_kind
@given(st.data())
def test_a_text_ends_where_the_decoded_tokens_contain_a_stop_string(kind: str, data: st.DataObject) -> None:
    """Special tokens and the prompt are decoded with them, and what could be decoded is never refused."""
    tokenizer = tokenizer_of(kind)
    prompt, tokens = data.draw(texts(kind, whole=True)), data.draw(texts(kind, whole=kind not in KNOWN))
    assume(prompt and tokens)
    head, wholes = decoded(tokenizer, prompt), [decoded(tokenizer, prompt + tokens[:n]) for n in range(len(tokens) + 1)]
    assume(all(whole.startswith(head) for whole in wholes))  # not where a run of bytes goes on
    start = data.draw(st.integers(0, len(wholes[-1]) - 1))
    stop = wholes[-1][start : data.draw(st.integers(start + 1, len(wholes[-1])))]
    assume("\ufffd" not in stop)
    assume(not f" {wholes[-1]}".startswith(stop))  # the space that the first token has elsewhere
    ends = [n for n, whole in enumerate(wholes) if whole.find(stop, max(0, len(head) - len(stop) + 1)) >= 0]
    ending = Ending(99, (), [stop], decoder_of(tokenizer))
    assert first_end(ending, tokens, prompt) == min((n for n in ends if n), default=None)


@known_kind
@given(st.data())
def test_a_text_ends_where_transformers_ends_it(kind: str, data: st.DataObject) -> None:
    tokenizer = tokenizer_of(kind)
    prompt, tokens = data.draw(prompts(kind)), data.draw(texts(kind, whole=True))
    stops = data.draw(st.lists(st.sampled_from(STOPS), min_size=1, max_size=2, unique=True))
    try:
        criterion, ending = StopStringCriteria(tokenizer, stops), Ending(99, (), stops, decoder_of(tokenizer))
    except ValueError:
        assume(False)
    rows = [torch.tensor([prompt + tokens[:n]]) for n in range(1, len(tokens) + 1)]
    theirs = next((n for n, row in enumerate(rows, 1) if bool(criterion(row, None)[0])), None)
    assert first_end(ending, tokens, prompt) == theirs


@every_kind
def test_special_tokens_end_a_text_and_are_not_shown(kind: str) -> None:
    tokenizer = tokenizer_of(kind)
    ok, end, a = (tokenizer.convert_tokens_to_ids(name) for name in ("ok", "<|im_end|>", "a"))
    for stop in ("<|im_end|>", "im_end", decoded(tokenizer, [a, ok, end, a])[-len("end|>a") :]):
        ending = Ending(9, (), [stop], decoder_of(tokenizer))
        count, reason = ending.first([], [ok, end, a], [a])
        assert (count, reason) == (2 if stop in "<|im_end|>" else 3, "stop_string")
        shown = ending.text([ok, end, a][:count], [a])
        assert shown == decoded(tokenizer, [a, ok])[len(decoded(tokenizer, [a])) :]
    whole = Ending(9, (), [], decoder_of(tokenizer)).text([ok, end, a], [a])
    assert whole == decoded(tokenizer, [a, ok, end, a], skips=True)[len(decoded(tokenizer, [a])) :]


def test_a_stop_string_that_begins_with_a_space_is_seen_at_the_first_new_token() -> None:
    tokenizer = tokenizer_of("byte fallback")
    prompt, tokens = (tokenizer.convert_tokens_to_ids(names) for names in (["\u2581hi"], ["\u2581ok", "!"]))
    ending = Ending(9, (), [" ok"], decoder_of(tokenizer))
    assert ending.first([], tokens, prompt) == (1, "stop_string")
    assert decoded(tokenizer, prompt) + str(Ending(9, decode=decoder_of(tokenizer)).text(tokens, prompt)) == "hi ok!"


class Python:
    """A decoder that the library cannot describe."""

    def decode_chain(self, tokens: list[str]) -> list[str]:
        return [f"[{token}]" for token in tokens]


def test_any_other_tokenizer_is_decoded_from_the_beginning() -> None:
    replaced = decoders.Sequence([decoders.Fuse(), decoders.Replace("a", "b")])
    for decoder in (decoders.Decoder.custom(Python()), decoders.Strip(" ", 0, 1), replaced):
        tokenizer = PreTrainedTokenizerFast(tokenizer_object=KINDS["none"]())
        tokenizer.backend_tokenizer.decoder = decoder
        decode, (a, ok) = decoder_of(tokenizer), tokenizer.convert_tokens_to_ids(["a", "ok"])
        assert not isinstance(decode, TokenDecoder)
        ending = Ending(9, (), ["k"], decode)
        assert ending.first([], [a, ok], [a]) == (2, "stop_string")
        assert decoded(tokenizer, [a]) + str(ending.text([a, ok], [a])) == decoded(tokenizer, [a, a, ok]).split("k")[0]


@pytest.mark.parametrize("kind", ["byte level", "byte fallback"])
@pytest.mark.parametrize("text", ["ok abc 世 hi! ", "世"], ids=["words", "bytes alone"])
def test_the_tokenizer_is_asked_about_each_token_of_the_vocabulary_once(kind: str, text: str) -> None:
    asked: list[int] = []
    backend = tokenizer_of(kind).backend_tokenizer

    class Counting:
        def __getattr__(self, name: str) -> Any:
            return getattr(backend, name)

        def decode(self, tokens: list[int], **options: Any) -> str:
            asked.append(len(tokens))
            return str(backend.decode(tokens, **options))

    class Counted(PreTrainedTokenizerFast):
        backend_tokenizer = Counting()

    tokenizer = Counted(tokenizer_object=backend)
    tokens = tokenizer_of(kind).encode(text * 3000, add_special_tokens=False)[:8000]
    spent = []
    for count in (1000, 8000):
        asked.clear()
        ending = Ending(count, (), ["never", "<|im_end|>"], decoder_of(tokenizer))
        reading, written = ending.reading(), ending.written()
        for token in tokens[:count]:
            reading, written = reading.after([token]), written.after([token])
        assert reading.reason == "length"
        spent.append(sum(asked))
    assert spent[0] == spent[1] <= 3 * len(set(tokens))
