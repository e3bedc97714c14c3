"""Small tokenizers with every kind of decoder, built by the tokenizers library."""

from collections.abc import Callable
from functools import cache
from typing import Any

from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers
from transformers import PreTrainedTokenizerFast

SPECIAL = ["<s>", "<|im_end|>"]
WORDS = ["ok", "abc", "def", "abcdef", "\n", "\n\n", "!", "hi", "\ufffd", "世"]
SPACED = ["\u2581", "\u2581\u2581", *(f"\u2581{word}" for word in ("a", "ok", "hi", "!", "世"))]
BYTE_TOKENS = [f"<0x{byte:02X}>" for byte in range(256)]
REPLACE, BYTES, FUSE = decoders.Replace("\u2581", " "), decoders.ByteFallback(), decoders.Fuse()
LLAMA = decoders.Sequence([REPLACE, BYTES, FUSE, decoders.Strip(" ", 1, 0)])


def of_pieces(decoder: Any, words: list[str]) -> Tokenizer:
    """Return a tokenizer whose tokens are single characters and some words."""
    vocab = ["<unk>", *SPECIAL, *dict.fromkeys([*words, *"".join(words)])]
    tokenizer = Tokenizer(models.WordPiece({word: n for n, word in enumerate(vocab)}, unk_token="<unk>"))
    if decoder is not None:
        tokenizer.decoder = decoder
    return tokenizer


def with_bytes(decoder: Any, byte_tokens: list[str] = BYTE_TOKENS) -> Tokenizer:
    """Return a tokenizer in the manner of SentencePiece: what has no token of its own is spelled in byte tokens."""
    vocab = dict.fromkeys(["<unk>", *SPECIAL, *byte_tokens, *WORDS[:-2], *SPACED, *"abcdefghiok"])
    tokenizer = Tokenizer(models.BPE({word: n for n, word in enumerate(vocab)}, [], byte_fallback=True))
    tokenizer.normalizer = normalizers.Replace(" ", "\u2581")
    tokenizer.decoder = decoder
    return tokenizer


def byte_level() -> Tokenizer:
    """Return a tokenizer whose tokens are bytes, and some words and halves of characters."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    table = {text: spelled(text) for text in (*WORDS, " ok", " a", " ", "\u00e9")}
    halves = [table["世"][:2], table["世"][1:], table["世"][1:] + "a", "a" + table["世"][:1]]
    vocab = dict.fromkeys([*alphabet, *table.values(), *halves])
    tokenizer = Tokenizer(models.BPE({word: n for n, word in enumerate(vocab)}, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    return tokenizer


def spelled(text: str) -> str:
    """Return a text as a byte-level vocabulary writes it."""
    ((word, _),) = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False).pre_tokenize_str(text)
    return word


KINDS: dict[str, Callable[[], Tokenizer]] = {
    "byte level": byte_level,
    "byte fallback": lambda: with_bytes(LLAMA),
    "byte fallback, few bytes": lambda: with_bytes(LLAMA, [f"<0x{byte:02X}>" for byte in "é世".encode()]),
    "byte fallback, no strip": lambda: with_bytes(decoders.Sequence([REPLACE, BYTES, FUSE])),
    "metaspace": lambda: of_pieces(decoders.Metaspace(), [*WORDS, *SPACED, "\u2581a\u2581b"]),
    "wordpiece": lambda: of_pieces(decoders.WordPiece(), [*WORDS, "##ok", "##a", "n't", "don"]),
    "none": lambda: of_pieces(None, [*WORDS, "a b"]),
    "suffixes": lambda: of_pieces(decoders.BPEDecoder(), [*WORDS, "ok</w>", "a</w>", "</w>"]),
}
KNOWN = [kind for kind in KINDS if kind != "suffixes"]


@cache
def tokenizer_of(kind: str) -> PreTrainedTokenizerFast:
    """Return a tokenizer with a kind of decoder, in transformers' form."""
    backend = KINDS[kind]()
    backend.add_special_tokens([AddedToken(special, special=True, normalized=False) for special in SPECIAL])
    backend.add_tokens([AddedToken("<plain>", special=False), AddedToken("é b", special=False)])
    return PreTrainedTokenizerFast(tokenizer_object=backend, bos_token="<s>", clean_up_tokenization_spaces=False)
