"""The output of commands: coloured text, and a progress bar; and the encoding of prompts."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

from ..decode_options import shown
from ..outside import reason_of

if TYPE_CHECKING:
    from pass_sampling.reference.ending import Ending
    from pass_sampling.reference.record import Record

COLOURS = {"exact": "", "accepted": "\033[32m", "correction": "\033[31m", "bonus": "\033[36m"}
MARKS = {"exact": ("", ""), "accepted": ("[+", "+]"), "correction": ("[~", "~]"), "bonus": ("[*", "*]")}
LEGEND = {
    "exact": "drawn from the model before any draft",
    "accepted": "an accepted draft",
    "correction": "replaces a rejected draft",
    "bonus": "drawn after all drafts were accepted",
}
DIM, RESET = "\033[2m", "\033[0m"


def print_json(result: Any) -> None:
    """Print an object as JSON, which has no NaN."""
    print(json.dumps(result, indent=2, allow_nan=False))


def is_colourful(stream: TextIO) -> bool:
    """Return whether a stream shows colours: a terminal does, unless NO_COLOR is set or TERM is dumb."""
    return stream.isatty() and not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb"


class SourceStream:
    """Prints new text as soon as later tokens cannot take it back; pass `record` as a generation's callback.

    Neighbouring tokens from the same source are marked together. As a context, it closes what it has opened, so that a
    terminal is not left in colour where generation fails or is interrupted.
    """

    def __init__(
        self,
        ending: Ending,
        stream: TextIO | None = None,
        colourful: bool | None = None,
        plain: bool = False,
        prompt: Sequence[int] = (),
    ):
        """Print what follows a prompt to a stream, by default standard output: in colours, with marks, or `plain`."""
        self._text = ending.written(prompt)
        self._stream = sys.stdout if stream is None else stream
        self._colourful = is_colourful(self._stream) if colourful is None else colourful
        self._plain, self._num_shown = plain, 0
        self._source = self._last = ""  # of the text that is shown, and of the last token

    def __enter__(self) -> SourceStream:
        return self

    def __exit__(self, kind: type[BaseException] | None, *rest: object) -> None:
        if kind is not None and not issubclass(kind, OSError):  # where the stream is not what failed
            self._switch("")
            self._stream.flush()

    def record(self, request: int, record: Record) -> None:
        """Show what a step has added."""
        for token, self._last in zip(record.tokens, record.sources, strict=True):
            self._text = self._text.after((token,))
            self._show(self._text.news)
        self._stream.flush()

    def finish(self, text: str) -> None:
        """Show the rest of a text that has ended."""
        self._show(text[self._num_shown :])
        self._switch("")
        self._stream.write("\n")
        self._stream.flush()

    def _show(self, text: str) -> None:
        if text:
            self._num_shown += len(text)
            self._switch(self._last)
            self._stream.write(text)

    def _switch(self, source: str) -> None:
        """Close the mark of the last source, open that of the next."""
        if source == self._source or self._plain:
            return
        before, self._source = self._source, source
        if self._colourful:
            self._stream.write((RESET if COLOURS.get(before) else "") + COLOURS.get(source, ""))
        else:
            self._stream.write((MARKS[before][1] if before else "") + (MARKS[source][0] if source else ""))


def dimmed(text: str) -> str:
    """Return a text for standard output, dim where that shows colours."""
    return f"{DIM}{text}{RESET}" if is_colourful(sys.stdout) else text


def legend() -> str:
    """Return one line that explains the colours of standard output, or the marks."""
    colourful = is_colourful(sys.stdout)
    names = {each: f"{COLOURS[each]}{each}{RESET}" if colourful else each.join(MARKS[each]) for each in LEGEND}
    return "; ".join(f"{names[source]} {meaning}" for source, meaning in LEGEND.items())


def acceptance_lines(acceptance: Sequence[Mapping[str, Any]]) -> list[str]:
    """Return a line for each setting at which the acceptance of drafts was measured."""
    line = "expected acceptance of its drafts at temperature {temperature:g}, top-k {top_k}: {expected:.3f}"
    return [line.format(**each) for each in acceptance]


class Bar:
    """A bar that is made when the first figure arrives, and closed when the work ends or fails."""

    def __init__(self, what: str, unit: str = "step", quiet: bool = False):
        self._what, self._unit, self._quiet = what, unit, quiet
        self._bar: Any = None
        self._first = 0  # the step after which a training is resumed

    def __enter__(self) -> Bar:
        return self

    def __exit__(self, kind: type[BaseException] | None, *rest: object) -> None:
        if self._bar is not None:
            self._bar.close()

    def show(self, done: int, total: int, **figures: str) -> None:
        """Move the bar to `done` of `total`."""
        if self._bar is None:
            from tqdm import tqdm

            about: Any = {"desc": self._what, "unit": self._unit, "disable": self._quiet, "dynamic_ncols": True}
            self._bar = tqdm(total=total, initial=self._first, **about)
        self._bar.set_postfix(figures, refresh=False)
        self._bar.update(done - self._bar.n)

    def learn(self, news: dict[str, Any]) -> None:
        """Show a step of training, which may have been resumed."""
        if "step" in news:
            self._first = news["step"] - 1 if self._bar is None else self._first
            self.show(news["step"], news["num_steps"], loss=f"{news['loss']:.3f}")


def encode_prompt(tokenizer: Any, text: str, origin: str = "--prompt", room: int | None = None) -> list[int]:
    """Return a prompt's tokens; an empty prompt is the beginning-of-text token, if the tokenizer has one."""
    tokens = list(tokenizer(text)["input_ids"])
    if not tokens and tokenizer.bos_token_id is not None:
        tokens = [tokenizer.bos_token_id]
    if not tokens:
        raise ValueError(f"{origin} is empty, expected at least one token of text")
    _check_room(len(tokens), room)
    return tokens


def _check_room(count: int, room: int | None) -> None:
    if room is not None and count > room:
        most = f"{room}: the model's context, less --max-new-tokens"
        raise ValueError(f"found a prompt of {count} tokens, expected at most {most}")


def check_unicode(flag: str, text: str) -> str:
    """Return a text from the command line, after a check that it has no bytes that are not text."""
    if any("\ud800" <= character <= "\udfff" for character in text):
        raise ValueError(f"{flag} is not UTF-8: found {text!a:.80}, expected text")
    return text


class Conversation:
    """The messages so far, in the chat template of a tokenizer."""

    def __init__(self, tokenizer: Any, folder: Path, system: str | None = None):
        if not getattr(tokenizer, "chat_template", None):
            raise ValueError(f"--chat: found no chat template in the tokenizer of {shown(folder)}, expected one")
        self._tokenizer, self._folder = tokenizer, folder
        self._system = [] if system is None else [{"role": "system", "content": system}]
        self._exchanges: list[list[dict[str, str]]] = []

    def tokens(self, message: str, room: int | None = None) -> tuple[list[int], int]:
        """Return the tokens of the conversation with one more message, and how many old exchanges are left out."""
        for left_out in range(len(self._exchanges) + 1):
            turns = [turn for exchange in self._exchanges[left_out:] for turn in exchange]
            tokens = self._written([*self._system, *turns, {"role": "user", "content": message}])
            if room is None or len(tokens) <= room:
                break
        _check_room(len(tokens), room)
        return tokens, left_out

    def around(self) -> tuple[list[int], list[int]]:
        """Return the tokens before a message and after it."""
        mark = "@@@"
        turns = [*self._system, {"role": "user", "content": mark}]
        text = self._tokenizer.apply_chat_template(turns, add_generation_prompt=True, tokenize=False)
        before, after = (self._tokenizer(part, add_special_tokens=False)["input_ids"] for part in text.split(mark))
        return list(map(int, before)), list(map(int, after))

    def add(self, message: str, answer: str, left_out: int = 0) -> None:
        """Keep an exchange, and forget the oldest ones."""
        turns = [{"role": "user", "content": message}, {"role": "assistant", "content": answer}]
        self._exchanges = [*self._exchanges[left_out:], turns]

    def _written(self, turns: list[dict[str, str]]) -> list[int]:
        try:
            found = self._tokenizer.apply_chat_template(turns, add_generation_prompt=True, return_dict=True)
        except Exception as error:  # templates raise errors of their own
            what = f"a conversation that the template of {shown(self._folder)} does not take"
            raise ValueError(f"--chat: found {what} ({reason_of(error)}), expected another") from None
        return list(map(int, found["input_ids"]))
