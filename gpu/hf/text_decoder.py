"""Decoders made from tokenizers, which know what each token adds to a text.

Known are byte-level decoders (GPT-2, Llama 3, Qwen), those with byte fallback (Llama 2, Mistral, Gemma), Metaspace,
WordPiece, and none at all. A text of any other decoder is decoded from its beginning whenever it is asked about.
"""

from __future__ import annotations

import json
import re
from functools import cache
from typing import Any

from pass_sampling.reference.text.decoder import Decoder
from pass_sampling.reference.text.token_decoder import Piece, TokenDecoder

BYTE_LEVEL = re.compile("ByteLevel (Fuse )?")
BY_TOKEN = re.compile(
    "(Replace |Metaspace |WordPiece )*(ByteFallback )?(Fuse )?|(Replace )*(ByteFallback )?Fuse Strip "
)
STRIP = {"type": "Strip", "content": " ", "start": 1, "stop": 0}
BYTE_TOKEN = re.compile("<0x([0-9A-Fa-f]{2})>")
PRINTABLE = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
BYTES = {chr(byte): byte for byte in PRINTABLE}  # of a byte-level vocabulary, by the character that stands for it
BYTES |= {chr(256 + n): byte for n, byte in enumerate(sorted(set(range(256)) - set(PRINTABLE)))}


def decoder_of(tokenizer: Any) -> Decoder:
    """Return what turns tokens of a transformers tokenizer into text: special tokens are matched, but not shown."""
    from transformers import PreTrainedTokenizerFast

    if getattr(type(tokenizer), "_decode", None) is PreTrainedTokenizerFast._decode:
        backend = tokenizer.backend_tokenizer
        steps = _steps(backend.decoder)
        types = "".join(f"{step['type']} " for step in steps)
        if BYTE_LEVEL.fullmatch(types) or (BY_TOKEN.fullmatch(types) and ("Strip" not in types or STRIP in steps)):
            return _token_decoder(backend, types)

    def decode(tokens: Any, skips: bool = True) -> str:
        return str(tokenizer.decode(tokens, skip_special_tokens=skips, clean_up_tokenization_spaces=False))

    return Decoder(decode, lambda tokens: decode(tokens, skips=False))


def _steps(decoder: Any) -> list[dict[str, Any]]:
    """Return a decoder's steps in turn, those of sequences in sequences included."""
    if decoder is None:
        return []
    try:
        states = [json.loads(decoder.__getstate__())]
    except Exception:  # the library raises no narrower class for a decoder that is written in Python
        return [{"type": "Python"}]
    while any(state["type"] == "Sequence" for state in states):
        states = [step for state in states for step in state.get("decoders", [state])]
    return states


def _token_decoder(backend: Any, types: str) -> TokenDecoder:
    special = {token.content for token in backend.get_added_tokens_decoder().values() if token.special}
    is_byte_level, strip = "ByteLevel" in types, int("Strip" in types)

    def data_of(name: str) -> bytes | None:
        if is_byte_level:
            return bytes(BYTES[each] for each in name) if BYTES.keys() >= set(name) else name.encode()
        byte = BYTE_TOKEN.fullmatch(name) if "ByteFallback" in types else None
        return byte and bytes.fromhex(byte[1])

    @cache
    def piece(token: int) -> Piece | None:
        name = backend.id_to_token(int(token))
        if name is None:
            return None
        data, is_special = data_of(name), name in special
        if data is not None:
            return Piece(data.decode(errors="replace"), is_special=True) if is_special else Piece(data=data)
        once, twice = (backend.decode([int(token)] * n, skip_special_tokens=False) for n in (1, 2))
        return Piece(twice[len(once) :], first=None if strip else once, is_special=is_special)

    return TokenDecoder(piece, "ByteFallback" in types, strip)
