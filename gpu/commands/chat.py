"""Conversations, in the form that a model was trained on: by the chat template of its tokenizer."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from .places import said
from .text import check_room, check_unicode

__all__ = ["Conversation", "add_chat", "check_chat"]


def add_chat(parser: argparse.ArgumentParser) -> None:
    """Add --chat and --system."""
    parser.add_argument(
        "--chat", action="store_true", help="put the prompt as a message, in the form that the model's tokenizer says"
    )
    parser.add_argument(
        "--system",
        metavar="TEXT",
        help="with --chat, what the model is told before the first message; default: nothing",
    )


def check_chat(arguments: argparse.Namespace) -> None:
    """Refuse flags that do not go together, before anything is loaded."""
    if arguments.system is not None:
        if not arguments.chat:
            raise ValueError("--system: found it without --chat, expected both or neither")
        check_unicode("--system", arguments.system)
    if arguments.interactive and arguments.json:
        raise ValueError("--json: found it with --interactive, expected one of them")


class Conversation:
    """What has been said so far, and how the model reads it."""

    def __init__(self, tokenizer: Any, folder: Path, system: str | None = None):
        """Begin a conversation.

        Raises:
            ValueError: the tokenizer has no chat template.
        """
        if not getattr(tokenizer, "chat_template", None):
            raise ValueError(
                f"--chat: found no chat template in the tokenizer of {said(folder)}, expected that of a model that was "
                "trained for conversations"
            )
        self._tokenizer = tokenizer
        self._folder = folder
        self._system = [] if system is None else [{"role": "system", "content": system}]
        self._exchanges: list[list[dict[str, str]]] = []

    def tokens(self, message: str, room: int | None = None) -> tuple[list[int], int]:
        """Return what the model reads with one more message, and how many of the oldest exchanges that leaves out.

        Raises:
            ValueError: the message alone has no room, or the template does not take it.
        """
        for left_out in range(len(self._exchanges) + 1):
            turns = [turn for exchange in self._exchanges[left_out:] for turn in exchange]
            tokens = self._written([*self._system, *turns, {"role": "user", "content": message}])
            if room is None or len(tokens) <= room:
                break
        check_room(len(tokens), room)
        return tokens, left_out

    def add(self, message: str, answer: str, left_out: int = 0) -> None:
        """Keep an exchange, and forget the oldest ones."""
        turns = [{"role": "user", "content": message}, {"role": "assistant", "content": answer}]
        self._exchanges = [*self._exchanges[left_out:], turns]

    def _written(self, turns: list[dict[str, str]]) -> list[int]:
        try:
            found = self._tokenizer.apply_chat_template(turns, add_generation_prompt=True, return_dict=True)
        except Exception as error:  # a template says what it does not take in its own way
            reason = " ".join(str(error).split())[:200]
            raise ValueError(
                f"--chat: found a conversation that the template of {said(self._folder)} does not take ({reason}), "
                "expected one that it does"
            ) from None
        return list(map(int, found["input_ids"]))
