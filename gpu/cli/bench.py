"""Compare every way of decoding on one checkpoint and one set of prompts, and transformers' `generate`."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from functools import cache
from pathlib import Path
from typing import Any

from pass_sampling.reference.config import check_integer
from pass_sampling.reference.ending import Ending

from ..bench.expectation import expected_tokens_per_forward, most_new_tokens
from ..bench.plan import Plan
from ..bench.prompts import Question, context_of, pieces, prefixes_of, read_library, read_prompts
from ..bench.report import Comparison, table_lines
from ..bench.runs import Baseline, Entry, Runs, load_peer, method_writer, peer_writer, run_all
from ..checkpoints import HELD_OUT, PROMPTS
from ..decode_options import NUM_DRAFT, DecodeOptions, Unavailable, flag_of, options_taken
from ..generation import generate
from ..hf.text_decoder import decoder_of
from ..make_method import described, folders_of, make_method
from ..methods import Autoregressive
from ..model.transformer import Transformer
from ..training.tokens import load_tokenizer
from .commands import FULL, PEERS, PLAIN, PLANNED, QUICK, Bench, names_of_all
from .console import Bar, Conversation, check_unicode, encode_prompt, print_json
from .options import read_names
from .plan import find_plan

PROMPT_LENGTH, PREFIX_LENGTH = 96, 128  # tokens

Texts = Sequence[Sequence[int]]


def _size(options: Bench, name: str) -> int:
    """Return a number that may be given, and depends on --quick otherwise."""
    given: int | None = getattr(options, name, None)
    return (QUICK if options.quick else FULL)[name] if given is None else given


def _taken(name: str) -> set[str]:
    """Return the options that a method, a peer or the planned method takes."""
    return set() if name == PLANNED else PEERS[name] if name in PEERS else options_taken(name)


def _names(options: Bench) -> list[str]:
    """Return the methods to compare, plain decoding first whether or not it was asked for."""
    for name in ("repeats", "max_new_tokens", "limit"):
        if (number := getattr(options, name)) is not None:
            check_integer(name, number, 1, 2**20)
    for name in ("chat", "limit"):
        if getattr(options, name) and options.prompts is None:
            raise ValueError(f"--{name}: found it without --prompts, expected both or neither")
    known = names_of_all()
    asked = known if options.methods is None else [name.strip() for name in options.methods.split(",")]
    for name in asked:
        if name not in known:
            raise ValueError(f"--methods: found {name!r:.80}, expected some of {', '.join(known)}, with commas between")
        if asked.count(name) > 1:
            raise ValueError(f"--methods: found {name} twice, expected every method once")
    for each in options.decode.given:
        if not any(each in _taken(name) for name in asked):
            raise ValueError(f"{flag_of(each)}: found it without a method that takes it, expected one in --methods")
    return [PLAIN, *(name for name in asked if name != PLAIN)]


def run_bench(options: Bench) -> None:
    """Check, load, compare, print."""
    names = _names(options)
    source, questions = _questions(options)
    options = replace(options, target=options.target.fetched(), decode=options.decode.fetched())
    model, tokenizer = options.target.load(), load_tokenizer(options.target.model)
    prompts, categories = _prompts(options, model, tokenizer, questions)
    entries, reasons, plan = _entries(options, model, names)
    length, methods = _size(options, "max_new_tokens"), {each.name: each.method for each in entries if each.method}
    for method in methods.values():
        for prompt in prompts:
            method.start(prompt, Ending(length))  # refuses what does not fit, before anything is run
    room = min(context_of(method) - most_new_tokens(method) for method in methods.values())
    places = [] if options.chat else _places(options, tokenizer, questions, prompts, room)

    asked = {name: _size(options, name) for name in FULL} | asdict(options.sampling)
    asked |= {"quick": options.quick, "chat": options.chat, "decode": options.decode.to_json(), "source": source}
    found = Comparison(asked, model, prompts, places, entries, reasons, plan, categories)
    num_streams, seed = _size(options, "num_streams"), options.sampling.seed
    try:
        with Bar("writing", unit="text") as bar:

            def written(done: int, total: int, runs: Runs) -> None:
                bar.show(done, total)
                found.runs = runs

            repeats = _size(options, "repeats")
            found.runs = run_all(entries, prompts, length, repeats, seed, model.device, written, options.chat)
        with Bar("expecting", unit="method") as bar:
            for name, method in methods.items() if places else ():
                found.expectations[name] = expected_tokens_per_forward(method, places, num_streams, seed)
                bar.show(len(found.expectations), len(methods))
        found.is_partial = False
    finally:  # also where Ctrl-C has stopped it
        if any(found.runs.values()):
            result = found.result()
            print_json(result) if options.json else print(*table_lines(result), sep="\n", flush=True)


def _plan(options: Bench, model: Transformer) -> Plan:
    """Return the plan that takes part; --quick makes none, which takes some seconds, unless it is asked for by name."""
    if not options.decode.is_open:
        raise Unavailable("found options that select a method, expected none for a plan")
    make = not options.quick or options.methods is not None
    plan = find_plan(options.target, model, options.sampling, options.decode, make=make)
    if plan is None:
        raise Unavailable("found no saved plan for this model and machine, expected one from pass-sampling plan")
    return plan


def _entries(
    options: Bench, model: Transformer, names: Sequence[str]
) -> tuple[list[Entry], dict[str, str], Plan | None]:
    """Return all that take part, the reason of each that does not, and the plan."""
    made, reasons, plan = list[Entry](), dict[str, str](), None
    ends = model.eos_token_ids if options.chat else ()

    @cache
    def load(folder: Path) -> Baseline:
        try:
            return load_peer(folder, model.dtype, model.device)
        except ValueError as error:
            raise Unavailable(str(error)) from None

    for name in names:
        try:
            if name in PEERS:
                made.append(_peer(name, options, model, load))
                continue
            own = {each: value for each, value in options.decode.given.items() if each in _taken(name)}
            decode = DecodeOptions(name, **own) if name != PLANNED else (plan := _plan(options, model)).options
            method = make_method(decode, model, options.sampling.config, options.target.model)
            settings = {"method": decode.method} if name == PLANNED else {}
            made.append(Entry(name, method_writer(method, ends), settings | dict(described(method)), method))
        except Unavailable as error:
            if options.methods is not None:
                raise ValueError(f"--methods {name}: {error}") from None
            reasons[name] = str(error)
    return made, reasons, plan


def _peer(name: str, options: Bench, model: Transformer, load: Callable[[Path], Baseline]) -> Entry:
    """Make a peer, transformers itself, on the folder of the model."""
    depth = (options.decode.num_draft or NUM_DRAFT) if PEERS[name] else 0
    settings: dict[str, Any] = {"num_draft": depth} if depth else {}
    assistant = None
    if name == "transformers-assisted":
        draft = DecodeOptions("draft-model", draft_model=options.decode.draft_model)
        folder = folders_of(draft, options.target.model)["draft_model"]
        assistant = load(folder)
        if (size := assistant.model.config.vocab_size) != model.vocab_size:
            raise Unavailable(f"{folder} has {size} tokens, expected {model.vocab_size}, the model's")
        settings = {"assistant": folder.name, **settings}
    target, ends = load(options.target.model), model.eos_token_ids if options.chat else ()
    return Entry(name, peer_writer(target, options.sampling.config, assistant, depth, ends), settings)


def _questions(options: Bench) -> tuple[str, list[Question]]:
    """Return where the prompts come from, and the prompts themselves, or files that they begin."""
    if options.prompts is not None:
        chosen: dict[str, list[Question]] = {}
        for question in read_prompts(options.prompts):
            for turn in question.turns:
                check_unicode("--prompts", turn)
            chosen.setdefault(question.category, []).append(question)
        return os.fspath(options.prompts), [each for found in chosen.values() for each in found[: options.limit]]
    library = read_library(read_names(HELD_OUT))
    if library:
        return "held-out files of the standard library", [Question((text,)) for text in library.values()]
    return "beginnings that come with the package", [Question((text,)) for text in PROMPTS]  # the library is an archive


def _prompts(
    options: Bench, model: Transformer, tokenizer: Any, questions: Sequence[Question]
) -> tuple[list[list[int]], list[str]]:
    """Return the prompts that all continue, and their categories: in a chat, a prompt for every turn of every question.

    Plain decoding answers the turns in between.
    """
    length, texts = _size(options, "max_new_tokens"), [question.turns[0] for question in questions]
    if options.prompts is None:
        room, count = max(1, min(PROMPT_LENGTH, model.max_position_embeddings - length)), _size(options, "num_prompts")
        return [encode_prompt(tokenizer, text)[:room] for text in pieces(texts, count, room)], []
    if not options.chat:
        prompts = [encode_prompt(tokenizer, text, "--prompts") for text in texts]
        return prompts, [question.category for question in questions]
    plain, decode, prompts, categories = Autoregressive(model, options.sampling.config), decoder_of(tokenizer), [], []
    for question in questions:
        conversation = Conversation(tokenizer, options.target.model)
        for number, turn in enumerate(question.turns, 1):
            tokens, _ = conversation.tokens(turn)
            prompts.append(tokens)
            categories.append(question.category)
            if number < len(question.turns):
                answer = generate(plain, tokens, length, decode=decode, seed=options.sampling.seed)
                conversation.add(turn, answer.text or "")
    return prompts, categories


def _places(
    options: Bench, tokenizer: Any, questions: Sequence[Question], prompts: Texts, room: int
) -> list[list[int]]:
    """Return prefixes of text that the model did not write."""
    if room < 1:
        raise ValueError(
            f"num_draft: found {options.decode.num_draft or NUM_DRAFT}, expected fewer drafts: a step with these "
            "does not fit into the model's context"
        )
    count = _size(options, "num_places")
    if options.prompts is not None:
        return [prefix[:room] for prefix in prefixes_of(prompts, count)]
    length, texts = min(PREFIX_LENGTH, room), [question.turns[0] for question in questions]
    return [encode_prompt(tokenizer, text)[:length] for text in pieces(texts, count, length)]
