"""Prompts from standard input, one after another, each continued on standard output; the method is made once."""

from __future__ import annotations

import argparse
import contextlib
import sys
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, TextIO

from .streaming import SourceStream
from .text import check_room, check_unicode, encode_prompt

if TYPE_CHECKING:
    from pass_sampling.reference.ending import Ending
    from pass_sampling.reference.record import Generation, Record

    from ..methods import Method
    from .chat import Conversation

__all__ = ["prompts", "talk"]

QUIT = "/quit"


def prompts(stream: TextIO | None) -> Iterator[str]:
    r"""Yield what is asked for: lines, until the end or /quit; after a \ at its end a line goes on in the next."""
    text = ""
    while (line := _line(stream, ". " if text else "> ")) is not None:
        if line.endswith("\\"):
            text += line[:-1] + "\n"
            continue
        text += line
        if text.strip() == QUIT:
            return
        if text.strip():
            yield text
        text = ""
    if text.strip():
        yield text


def _line(stream: TextIO | None, mark: str) -> str | None:
    """Read a line; on a terminal after a mark, and with what it offers for editing."""
    if stream is None:  # closed before Python began
        return None
    if stream is sys.stdin and stream.isatty() and sys.stdout.isatty():
        with contextlib.suppress(ImportError):
            import readline  # noqa: F401  (`input` edits lines once it is imported)
        try:
            return input(mark)
        except EOFError:
            return None
    if stream.isatty():
        print(mark, end="", file=sys.stderr, flush=True)
    line = stream.readline()
    return line.rstrip("\r\n") if line else None


def talk(
    method: Method,
    how: str,
    tokenizer: Any,
    ending: Ending,
    conversation: Conversation | None,
    arguments: argparse.Namespace,
) -> None:
    """Continue every prompt, as messages if there is a conversation; one that cannot be is refused, and no more."""
    if hasattr(sys.stdin, "reconfigure"):
        sys.stdin.reconfigure(errors="surrogateescape")
    room = _context(method) - ending.max_new_tokens
    done: list[Generation] = []
    for text in prompts(sys.stdin):
        try:
            check_unicode("standard input", text)
            if conversation is None:
                tokens, left_out = encode_prompt(tokenizer, text, "the prompt"), 0
                check_room(len(tokens), room)
            else:
                tokens, left_out = conversation.tokens(text, room)
        except ValueError as error:
            print(f"pass-sampling generate: {error}", file=sys.stderr, flush=True)
            continue
        if left_out:
            print(f"the context is full: forgot the {left_out} oldest exchanges", file=sys.stderr, flush=True)
        result = _written(method, tokens, ending, arguments.seed, len(done))
        done.append(result)
        if conversation is not None:
            conversation.add(text, result.text or "", left_out)
    tokens_written, passes = sum(len(each.tokens) for each in done), sum(each.num_forward_passes for each in done)
    print(
        f"{len(done)} texts, {tokens_written} tokens in {passes} passes, "
        f"{tokens_written / max(passes, 1):.2f} per pass, method {how}",
        file=sys.stderr,
    )


def _context(method: Method) -> int:
    """Return how many tokens model and drafter can read."""
    drafter = getattr(method, "drafter", None)
    contexts = [method.model.max_position_embeddings, getattr(drafter, "max_position_embeddings", None)]
    return min(context for context in contexts if context is not None)


def _written(method: Method, tokens: list[int], ending: Ending, seed: int, number: int) -> Generation:
    """Write a text as it is accepted; Ctrl-C ends it, and what there is of it counts."""
    from pass_sampling.reference.record import Generation

    from ..generation import generate

    shown, records = SourceStream(ending, plain=True, prompt=tokens), []

    def record(request: int, each: Record) -> None:
        records.append(each)
        shown.record(request, each)

    try:
        result = generate(
            method,
            tokens,
            ending.max_new_tokens,
            stop_strings=ending.stop_strings,
            decode=ending.decode,
            seed=seed,
            request=number,
            callback=record,
        )
    except KeyboardInterrupt:
        new = tuple(token for each in records for token in each.tokens)
        result = Generation(tuple(tokens), new, "interrupted", tuple(records), ending.text(new, tokens))
    shown.finish(result.text or "")
    if result.end == "interrupted":
        print("stopped; Ctrl-C once more leaves", file=sys.stderr, flush=True)
    return result
