"""Text on its way into tokens and back."""

from __future__ import annotations

from typing import Any

from ..hf.text_decoder import decoder_of
from ..training.tokens import load_tokenizer

__all__ = ["check_room", "check_unicode", "decoder_of", "encode_prompt", "load_tokenizer"]


def encode_prompt(tokenizer: Any, text: str, origin: str = "--prompt") -> list[int]:
    """Return a prompt's tokens; an empty prompt is the token that texts begin with, where there is one.

    Raises:
        ValueError: the prompt has no token.
    """
    tokens = list(tokenizer(text)["input_ids"])
    if not tokens and tokenizer.bos_token_id is not None:
        tokens = [tokenizer.bos_token_id]
    if not tokens:
        raise ValueError(f"{origin} is empty, expected at least one token of text")
    return tokens


def check_room(count: int, room: int | None) -> None:
    """Raise ValueError unless there is room for the tokens of a prompt."""
    if room is not None and count > room:
        raise ValueError(
            f"found a prompt of {count} tokens, expected at most {room}: the model's context, less --max-new-tokens"
        )


def check_unicode(flag: str, text: str) -> str:
    """Return a text from the command line, which may have held bytes that are no text.

    Raises:
        ValueError: it did.
    """
    try:
        text.encode()
    except UnicodeEncodeError:
        raise ValueError(f"{flag} is not UTF-8: found {text!a:.80}, expected text") from None
    return text
