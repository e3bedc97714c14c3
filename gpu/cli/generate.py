"""Continue a text with any method; all of them sample from the same distribution.

  pass-sampling generate --prompt 'def main():'
  pass-sampling generate --model FOLDER --lookahead VECTORS --prompt-file story.txt --temperature 0.7 --json
  pass-sampling generate --model org/name --chat --interactive

With --interactive every line of standard input is a prompt, and a line that ends in a backslash goes on in the next.
Ctrl-C ends a text, or the program if none is being written; /quit and the end of the input end it too.

The new text goes to standard output as it is accepted, a summary to standard error.
"""

from __future__ import annotations

import contextlib
import json
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

from ..decode_options import DecodeOptions, Unavailable, option
from .console import Conversation, SourceStream, check_room, check_unicode, encode_prompt
from .options import ModelOptions, SamplingOptions, json_option
from .plan import find_plan, plan_option, read_plan

if TYPE_CHECKING:
    from pass_sampling.reference.ending import Ending
    from pass_sampling.reference.record import Generation, Record

    from ..bench.plan import Plan
    from ..methods import Method

__all__ = ["HELP", "Options", "prompts", "run"]

HELP = "continue a text"
QUIT = "/quit"
ENOUGH_TOKENS = 200  # for which the seconds that a plan takes pay


@dataclass(frozen=True)
class Options:
    """Options of `pass-sampling generate`."""

    target: ModelOptions = ModelOptions()
    decode: DecodeOptions = DecodeOptions()
    plan: Path | None = plan_option()
    prompt: str | None = option(help="the text to continue; default: none", metavar="TEXT")
    prompt_file: Path | None = option(help="a UTF-8 file with the text to continue; default: none", metavar="FILE")
    interactive: bool = option(False, "read prompts from standard input, line by line")
    chat: bool = option(False, "put the prompt as a message into the chat template of the model's tokenizer")
    system: str | None = option(help="with --chat, the system message; default: none", metavar="TEXT")
    max_new_tokens: int = option(128, "length of the new text")
    stop_strings: tuple[str, ...] = option(
        (),
        "end before this text or special token; may be repeated; default: only the stop strings of the model's "
        "generation_config.json",
        flag="--stop",
        action="append",
        metavar="TEXT",
    )
    sampling: SamplingOptions = SamplingOptions()
    json: bool = json_option()

    def __post_init__(self) -> None:
        """Refuse options that do not go together, before anything is loaded."""
        from pass_sampling.reference.config import check_integer

        check_integer("max_new_tokens", self.max_new_tokens, 1, 2**30)
        given = (self.prompt is not None) + (self.prompt_file is not None) + self.interactive
        if given != 1:
            raise ValueError(f"found {given} of --prompt, --prompt-file and --interactive, expected one")
        if self.system is not None and not self.chat:
            raise ValueError("--system: found it without --chat, expected both or neither")
        if self.interactive and self.json:
            raise ValueError("--json: found it with --interactive, expected one of them")
        for flag, text in (
            ("--prompt", self.prompt),
            ("--system", self.system),
            *(("--stop", each) for each in self.stop_strings),
        ):
            if text is not None:
                check_unicode(flag, text)

    def read_prompt(self) -> str:
        """Return the text of --prompt or --prompt-file."""
        if self.prompt_file is None:
            return self.prompt or ""
        try:
            return self.prompt_file.read_text(encoding="utf-8-sig")
        except UnicodeDecodeError:
            raise ValueError(f"{self.prompt_file} is not UTF-8, expected a text file") from None
        except OSError as error:
            raise ValueError(f"{self.prompt_file} cannot be read ({error.strerror}), expected a text file") from None


def run(options: Options) -> None:
    """Load, generate, print."""
    from pass_sampling.reference.ending import Ending

    from ..hf.text_decoder import decoder_of
    from ..make_method import make_method
    from ..methods import Autoregressive
    from ..training.tokens import load_tokenizer

    text = "" if options.interactive else options.read_prompt()
    target = options.target.fetched()
    model, tokenizer = target.load(), load_tokenizer(target.model)
    conversation = Conversation(tokenizer, target.model, options.system) if options.chat else None
    if options.interactive:
        prompt = [0]  # in the place of the first one
    elif conversation is not None:
        prompt, _ = conversation.tokens(text)
    else:
        origin = "--prompt" if options.prompt_file is None else str(options.prompt_file)
        prompt = encode_prompt(tokenizer, text, origin)
    stops = [*options.stop_strings, *model.stop_strings]
    ending = Ending(options.max_new_tokens, model.eos_token_ids, stops, decoder_of(tokenizer))
    decode, sampling, plan = options.decode.fetched(), options.sampling, None
    if options.plan is not None:
        plan = read_plan(options.plan, model, sampling, decode)
    elif decode.is_open:
        plain = Autoregressive(model, sampling.config)
        pays = options.interactive or options.max_new_tokens >= ENOUGH_TOKENS
        check = partial(plain.start, prompt, ending)
        plan = find_plan(target, model, sampling, decode, make=pays, quiet=options.json, check=check)
        if plan is None and not decode.given:
            decode = DecodeOptions("autoregressive")
    decode = decode.checked(target.model) if plan is None else plan.options
    try:
        method = make_method(decode, model, sampling.config, target.model)
    except Unavailable as error:
        raise ValueError(f"--method {decode.method}: {error}") from None
    how = f"{decode.method}{', planned' if plan else ''}"
    how += f", LOSSY: lenience {decode.lenience:g}" if (decode.lenience or 1) < 1 else ""
    if options.interactive:
        _talk(method, how, tokenizer, ending, conversation, sampling.seed)
        return
    started = time.perf_counter()
    result = _written(method, prompt, ending, sampling.seed, shown=not options.json)
    seconds = time.perf_counter() - started
    if options.json:
        found = _summary(str(decode.method), result, seconds) | _setting(options, method, text, plan)
        print(json.dumps(found, indent=2, allow_nan=False))
        return
    print(
        f"{len(result.tokens)} tokens in {result.num_forward_passes} passes, {result.tokens_per_forward:.2f} per pass, "
        f"{seconds:.2f} s ({len(result.tokens) / seconds:.0f} tokens per second), {_dtype(method)}, method {how}",
        file=sys.stderr,
    )


def _dtype(method: Method) -> str:
    weights = ", weights in int8" if getattr(method.model, "int8", False) else ""
    return str(method.model.dtype).removeprefix("torch.") + weights


def _summary(method: str, result: Generation, seconds: float) -> dict[str, Any]:
    """Return the text and its cost as plain values."""
    rate = result.draft_acceptance_rate
    return {
        "text": result.text,
        "tokens": list(result.tokens),
        "end": result.end,
        "method": method,
        "num_forward_passes": result.num_forward_passes,
        "num_draft_passes": result.num_draft_passes,
        "num_positions": result.num_positions,
        "tokens_per_forward": result.tokens_per_forward,
        "seconds": seconds,
        "num_drafts": result.num_drafts,
        "num_draft_tokens": result.num_draft_tokens,
        "num_accepted_tokens": result.num_accepted_tokens,
        "draft_acceptance_rate": rate if rate == rate else None,
        "accepted_per_position": list(result.accepted_per_position),
        "sources": list(result.sources),
        "log_prob": sum(result.log_probs),
    }


def _setting(options: Options, method: Method, prompt: str, plan: Plan | None) -> dict[str, Any]:
    from ..make_method import described

    model, sampling = method.model, options.sampling
    return {
        "prompt": prompt,
        "chat": options.chat,
        "system": options.system,
        "model": model.name,
        "verify": getattr(method, "rule", None),
        "options": described(method),
        "temperature": sampling.temperature,
        "top_k": sampling.top_k,
        "top_p": sampling.top_p,
        "seed": sampling.seed,
        "dtype": _dtype(method),
        "device": str(model.device),
        "plan": plan and plan.to_json(),
    }


# --- Prompts from standard input ---


def prompts(stream: TextIO | None) -> Iterator[str]:
    r"""Yield prompts: lines, until the end or /quit; a line with a \ at its end goes on in the next."""
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
    """Read a line; on a terminal after a mark, with the terminal's line editing."""
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


def _talk(
    method: Method, how: str, tokenizer: Any, ending: Ending, conversation: Conversation | None, seed: int
) -> None:
    """Continue every prompt, as messages if there is a conversation; refuse a prompt that cannot be continued."""
    from ..bench.prompts import context_of

    if hasattr(sys.stdin, "reconfigure"):
        sys.stdin.reconfigure(errors="surrogateescape")
    room = context_of(method) - ending.max_new_tokens
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
        result = _written(method, tokens, ending, seed, len(done), until_interrupted=True)
        done.append(result)
        if conversation is not None:
            conversation.add(text, result.text or "", left_out)
    tokens_written, passes = sum(len(each.tokens) for each in done), sum(each.num_forward_passes for each in done)
    print(
        f"{len(done)} texts, {tokens_written} tokens in {passes} passes, "
        f"{tokens_written / max(passes, 1):.2f} per pass, method {how}",
        file=sys.stderr,
    )


def _written(
    method: Method,
    tokens: list[int],
    ending: Ending,
    seed: int,
    number: int = 0,
    shown: bool = True,
    until_interrupted: bool = False,
) -> Generation:
    """Write a text, shown as it is accepted; Ctrl-C may end it, and then what there is of it counts."""
    from pass_sampling.reference.record import Generation

    from ..generation import generate

    stream, records = SourceStream(ending, plain=True, prompt=tokens), []

    def record(request: int, each: Record) -> None:
        records.append(each)
        if shown:
            stream.record(request, each)

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
        if not until_interrupted:
            raise
        new = tuple(token for each in records for token in each.tokens)
        result = Generation(tuple(tokens), new, "interrupted", tuple(records), ending.text(new, tokens))
    if shown:
        stream.finish(result.text or "")
    if result.end == "interrupted":
        print("stopped; Ctrl-C once more leaves", file=sys.stderr, flush=True)
    return result
