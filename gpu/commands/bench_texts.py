"""What a comparison is made on: prompts, and places in text at which an expectation is taken."""

from __future__ import annotations

import argparse
import os
import time
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from ..checkpoints import HELD_OUT
from .drafting import num_draft
from .options import named_held_out
from .text import check_unicode, encode_prompt

if TYPE_CHECKING:
    from ..methods import Method

__all__ = ["affordable", "bench_texts", "prefixes_for", "prompts_for", "room_of"]

PROMPT_LENGTH, PREFIX_LENGTH = 96, 128  # tokens


def bench_texts(arguments: argparse.Namespace) -> tuple[str, list[str]]:
    """Return where the prompts come from, and the texts: the prompts themselves, or files that they begin."""
    from ..bench.prompts import read_library, read_prompts
    from .demo import PROMPTS

    if arguments.prompts is not None:
        try:
            prompts = read_prompts(arguments.prompts)
        except OSError as error:
            raise ValueError(
                f"--prompts: {arguments.prompts} cannot be read ({error.strerror}), expected JSON lines"
            ) from None
        return os.fspath(arguments.prompts), [check_unicode("--prompts", prompt) for prompt in prompts]
    library = read_library(named_held_out(HELD_OUT))
    if library:
        return "held-out files of the standard library", list(library.values())
    return "beginnings that come with the package", list(PROMPTS)  # this Python has its library in an archive


def prompts_for(arguments: argparse.Namespace, tokenizer: Any, texts: list[str], room: int) -> list[list[int]]:
    """Return the prompts that everybody continues."""
    from ..bench.prompts import pieces

    if arguments.prompts is not None:
        return [encode_prompt(tokenizer, text, "--prompts") for text in texts]
    length = max(1, min(PROMPT_LENGTH, room - arguments.max_new_tokens))
    return [encode_prompt(tokenizer, text)[:length] for text in pieces(texts, arguments.num_prompts, length)]


def room_of(method: Method) -> int:
    """Return the length of a text after which a method has room for a step."""
    from ..bench.expectation import most_new_tokens

    drafter = getattr(method, "drafter", None)
    contexts = [method.model.max_position_embeddings, getattr(drafter, "max_position_embeddings", None)]
    return min(context for context in contexts if context is not None) - most_new_tokens(method)


def prefixes_for(
    arguments: argparse.Namespace, tokenizer: Any, texts: list[str], prompts: list[list[int]], room: int
) -> list[list[int]]:
    """Return the places at which an expectation is taken: prefixes of text that the model did not write."""
    from ..bench.prompts import pieces, prefixes_of

    if room < 1:
        raise ValueError(
            f"num_draft: found {num_draft(arguments)}, expected fewer drafts: no step of so many fits into the "
            "model's context"
        )
    if arguments.prompts is not None:
        return [prefix[:room] for prefix in prefixes_of(prompts, arguments.num_places)]
    length = min(PREFIX_LENGTH, room)
    inside = pieces(texts, arguments.num_places, length)
    return [encode_prompt(tokenizer, text)[:length] for text in inside]


def affordable(
    methods: Mapping[str, Method], prefixes: list[list[int]], num_streams: int, seconds: float | None
) -> list[list[int]]:
    """Return as many places, spread evenly, as there is time for, at least two; what two take tells."""
    from ..bench.expectation import expected_tokens_per_forward

    if seconds is None or len(prefixes) <= 2:
        return prefixes
    began = time.perf_counter()
    for method in methods.values():
        expected_tokens_per_forward(method, prefixes[:2], num_streams)
    spent = time.perf_counter() - began
    count = max(2, min(len(prefixes), int(2 * (seconds - spent) / spent)))
    return [prefixes[place * len(prefixes) // count] for place in range(count)]
