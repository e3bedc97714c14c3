"""Compare every way of decoding on one checkpoint and one set of prompts, with transformers beside them.

  pass-sampling bench
  pass-sampling bench --quick --json --output FILE.json
  pass-sampling bench --model FOLDER --lookahead VECTORS --draft-model FOLDER --prompts FILE.jsonl

All take turns in one process, and every speed is a ratio of paired runs. Tokens per pass are measured in the texts that
a method wrote and, as an exact expectation, at places of text that it did not write, because texts that repeat
themselves flatter. Ctrl-C stops the comparison; what was compared until then is printed and marked as partial.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..checkpoints import HELD_OUT, PROMPTS
from ..decode_options import (
    NUM_DRAFT,
    DecodeOptions,
    Unavailable,
    flag_of,
    method_names,
    option,
    options_taken,
)
from .console import Bar, Conversation, check_unicode, encode_prompt
from .options import ModelOptions, SamplingOptions, check_file, group, json_option, read_names
from .plan import find_plan, plan_option, read_plan

if TYPE_CHECKING:
    from ..bench.peers import Baseline
    from ..bench.plan import Plan
    from ..bench.prompts import Question
    from ..bench.report import Comparison
    from ..bench.runs import Entry, Runs
    from ..methods import Method
    from ..model.transformer import Transformer

__all__ = ["HELP", "Options", "names_of_all", "run"]

HELP = "compare all methods of decoding on one checkpoint"
PLAIN, PLANNED = "autoregressive", "planned"
PEERS = {
    "transformers": set[str](),
    "transformers-prompt-lookup": {"num_draft"},
    "transformers-assisted": {"draft_model", "num_draft"},
}
FULL = {"repeats": 5, "max_new_tokens": 96, "num_prompts": 12, "num_places": 64, "num_streams": 8}
QUICK = {"repeats": 3, "max_new_tokens": 64, "num_prompts": 6, "num_places": 24, "num_streams": 4}
QUICK_SECONDS, RUNS_SHARE = 110, 0.6  # of --quick, with loading; the share of the rest that the runs take
PROMPT_LENGTH, PREFIX_LENGTH = 96, 128  # tokens

Texts = Sequence[Sequence[int]]


def names_of_all() -> list[str]:
    """Return the names of all that can be compared."""
    return [*method_names(), PLANNED, *PEERS]


def _sizes(name: str) -> str:
    return f"default: {FULL[name]} ({QUICK[name]} with --quick)"


def _taken(name: str) -> set[str]:
    """Return the options that a method, a peer or the planned method takes."""
    others = PEERS | {PLANNED: set[str]()}
    return others[name] if name in others else options_taken(name)


@dataclass(frozen=True)
class Options:
    """Options of `pass-sampling bench`."""

    target: ModelOptions = ModelOptions()
    methods: str | None = option(
        help=f"some of {', '.join(names_of_all())}; plain decoding always runs; default: all that can run here",
        metavar="A,B,...",
    )
    decode: DecodeOptions = group(
        DecodeOptions(), [each.name for each in fields(DecodeOptions) if each.name != "method"]
    )
    plan: Path | None = plan_option()
    prompts: Path | None = option(
        help="a JSON object on each line, with a `prompt`, or with `turns` and a `category` as in Spec-Bench's "
        "question.jsonl; default: pieces of those files of Python's standard library "
        "that the bundled model has not seen",
        metavar="FILE.jsonl",
    )
    chat: bool = option(False, "put prompts into the model's chat template, and let the model end its answers")
    limit: int | None = option(help="questions of each category; default: all")
    max_new_tokens: int | None = option(help=f"length of each text; {_sizes('max_new_tokens')}")
    repeats: int | None = option(help=f"paired runs behind each figure; {_sizes('repeats')}")
    quick: bool = option(
        False, "about two minutes, on free cores: fewer runs, prompts and tokens, as many as there is time for"
    )
    shape: str | None = option(
        help="instead of all this, measure passes over random weights of the shape of a model of 1B or 7B parameters "
        "against the memory's speed; default: none",
        choices=("tiny", "1b", "7b"),
    )
    output: Path | None = option(
        help="write the JSON object there as well, after every paired run what there is so far; default: nowhere",
        metavar="FILE.json",
    )
    sampling: SamplingOptions = SamplingOptions()
    json: bool = json_option()

    def __post_init__(self) -> None:
        """Check numbers, names and places for output, before anything is loaded."""
        from pass_sampling.reference.config import check_integer

        check_integer("repeats", self.size("repeats"), 1, 10**6)
        check_integer("max_new_tokens", self.size("max_new_tokens"), 1, 2**30)
        if self.limit is not None:
            check_integer("limit", self.limit, 1, 10**6)
        for name in ("chat", "limit"):
            if getattr(self, name) and self.prompts is None:
                raise ValueError(f"--{name}: found it without --prompts, expected both or neither")
        for name in ("methods", "prompts", "output", "plan", "max_new_tokens"):
            if self.shape is not None and getattr(self, name) is not None:
                raise ValueError(f"{flag_of(name)}: found it with --shape, which has no use for it, expected neither")
        _ = self.names

    def size(self, name: str) -> int:
        """Return a number that may be given, and depends on --quick otherwise."""
        given: int | None = getattr(self, name, None)
        return (QUICK if self.quick else FULL)[name] if given is None else given

    @property
    def names(self) -> list[str]:
        """The methods to compare, plain decoding first whether or not it was asked for.

        Raises:
            ValueError: a name is unknown or given twice, or no method takes an option that is given.
        """
        known = names_of_all()
        asked = known if self.methods is None else [name.strip() for name in self.methods.split(",")]
        for name in asked:
            if name not in known:
                raise ValueError(
                    f"--methods: found {name!r:.80}, expected some of {', '.join(known)}, with commas between"
                )
            if asked.count(name) > 1:
                raise ValueError(f"--methods: found {name} twice, expected every method once")
        takes = set[str]().union(*map(_taken, asked))
        for each in self.decode.given:
            if each not in takes:
                raise ValueError(f"{flag_of(each)}: found it without a method that takes it, expected one in --methods")
        return [PLAIN, *(name for name in asked if name != PLAIN)]


def run(options: Options) -> None:
    """Check, load, compare, print."""
    from pass_sampling.reference.checkpoint.folder import replace_file
    from pass_sampling.reference.ending import Ending

    from ..bench.expectation import expected_tokens_per_forward
    from ..bench.prompts import affordable, room_of
    from ..bench.report import Comparison
    from ..bench.runs import run_all, spare_threads
    from ..training.tokens import load_tokenizer

    if options.shape is not None:
        _run_shape(options)
        return
    began = time.perf_counter()
    check_file("--output", options.output)
    source, questions = _questions(options)
    texts = [question.turns[0] for question in questions]
    target = options.target.fetched()
    options = replace(options, target=target, decode=options.decode.fetched())
    model, tokenizer = target.load(), load_tokenizer(target.model)
    if options.chat:
        prompts, categories = _conversations(options, model, tokenizer, questions)
    else:
        prompts = _prompts(options, tokenizer, texts, model.max_position_embeddings)
        categories = [question.category for question in questions] if options.prompts else []
    if options.quick:
        spare_threads(model.device.type)  # before anything is timed
    plan, left_out = _plan(options, model)
    entries, methods, reasons = _entries(options, model, plan, left_out)
    length = options.size("max_new_tokens")
    for method in methods.values():
        for prompt in prompts:
            method.start(prompt, Ending(length))  # refuses what does not fit, before anything is run
    places = _places(options, tokenizer, texts, prompts, min(map(room_of, methods.values())))

    def seconds_left(share: float = 1.0) -> float | None:
        return max(0.0, share * (QUICK_SECONDS - (time.perf_counter() - began))) if options.quick else None

    asked = {name: options.size(name) for name in FULL} | asdict(options.sampling)
    asked |= {"quick": options.quick, "chat": options.chat, "decode": options.decode.to_json(), "source": source}
    found = Comparison(asked, model, prompts, places, entries, left_out | reasons, plan, categories)

    def save() -> None:
        if options.output is not None and any(found.runs.values()):
            replace_file(options.output, json.dumps(found.result(), indent=2, allow_nan=False) + "\n")

    num_streams, seed = options.size("num_streams"), options.sampling.seed
    try:
        with Bar("writing", unit="text") as bar:

            def written(done: int, total: int, runs: Runs) -> None:
                bar.show(done, total)
                found.runs = runs
                if done % len(entries) == 0:
                    save()

            repeats, seconds = options.size("repeats"), seconds_left(RUNS_SHARE)
            found.runs = run_all(entries, prompts, length, repeats, seed, model.device, written, seconds, options.chat)
        with Bar("expecting", unit="method") as bar:
            found.chosen = [] if options.chat else affordable(methods, places, num_streams, seconds_left())
            for name, method in methods.items() if found.chosen else ():
                found.expectations[name] = expected_tokens_per_forward(method, found.chosen, num_streams, seed)
                bar.show(len(found.expectations), len(methods))
                save()
        found.is_partial = False
    finally:  # also where Ctrl-C has stopped it
        save()
        _show(found, options)


def _show(found: Comparison, options: Options) -> None:
    """Print what there is."""
    from ..bench.report import table_lines

    if not any(found.runs.values()):
        return
    result = found.result()
    print(json.dumps(result, indent=2, allow_nan=False) if options.json else "\n".join(table_lines(result)))
    sys.stdout.flush()


# --- Who takes part ---


def _plan(options: Options, model: Transformer) -> tuple[Plan | None, dict[str, str]]:
    """Return the plan, if one takes part, or the reason why none does.

    --quick makes none, which takes some seconds, unless it is asked for by name.
    """
    if PLANNED not in options.names:
        return None, {}
    if options.plan is not None:
        return read_plan(options.plan, model, options.sampling, options.decode), {}
    if not options.decode.is_open:
        return None, {PLANNED: "flags say how to decode, expected none of them for a plan"}
    make = not options.quick or options.methods is not None
    plan = find_plan(options.target, model, options.sampling, options.decode, make=make)
    why = "found no plan that is kept for this model and machine, expected pass-sampling plan before"
    return plan, {} if plan else {PLANNED: why}


def _entries(
    options: Options, model: Transformer, plan: Plan | None, left_out: Mapping[str, str]
) -> tuple[list[Entry], dict[str, Method], dict[str, str]]:
    """Return all that take part, the methods among them by name, and who is left out, with the reason.

    Raises:
        ValueError: a method that was asked for by name cannot run, or the options for one do not go together.
    """
    from ..bench.runs import Entry, method_writer
    from ..make_method import described, make_method

    made: list[Entry] = []
    methods: dict[str, Method] = {}
    reasons: dict[str, str] = {}
    library: dict[Path, Baseline] = {}
    for name in options.names:
        try:
            if name in left_out:
                raise Unavailable(left_out[name])
            if name in PEERS:
                made.append(_peer(name, options, model, library))
                continue
            own = {each: value for each, value in options.decode.given.items() if each in _taken(name)}
            decode = DecodeOptions(name, **own) if plan is None or name != PLANNED else plan.options
            methods[name] = make_method(decode, model, options.sampling.config, options.target.model)
            settings = {"method": decode.method} if name == PLANNED else {}
            ends = model.eos_token_ids if options.chat else ()
            made.append(Entry(name, method_writer(methods[name], ends), settings | dict(described(methods[name]))))
        except Unavailable as error:
            if options.methods is not None:
                raise ValueError(f"--methods {name}: {error}") from None
            reasons[name] = str(error)
    return made, methods, reasons


def _peer(name: str, options: Options, model: Transformer, library: dict[Path, Baseline]) -> Entry:
    """Make a peer; the models of transformers are loaded once and kept in `library`."""
    from ..bench.peers import load_peer, peer_writer
    from ..bench.runs import Entry
    from ..make_method import folders_of

    def load(folder: Path) -> Baseline:
        if folder not in library:
            try:
                library[folder] = load_peer(folder, model.dtype, model.device)
            except ValueError as error:
                raise Unavailable(str(error)) from None
        return library[folder]

    depth = (options.decode.num_draft or NUM_DRAFT) if PEERS[name] else 0
    ends = model.eos_token_ids if options.chat else ()
    settings: dict[str, Any] = {"num_draft": depth} if depth else {}
    assistant = None
    if name == "transformers-assisted":
        draft = DecodeOptions("draft-model", draft_model=options.decode.draft_model)
        folder = folders_of(draft, options.target.model)["draft_model"]
        assistant = load(folder)
        if assistant.model.config.vocab_size != model.vocab_size:
            raise Unavailable(
                f"{folder} has {assistant.model.config.vocab_size} tokens, expected {model.vocab_size}, the model's"
            )
        settings = {"assistant": folder.name, **settings}
    writer = peer_writer(load(options.target.model), options.sampling.config, assistant, depth, ends)
    return Entry(name, writer, settings)


def _questions(options: Options) -> tuple[str, list[Question]]:
    """Return where the prompts come from, and the prompts themselves, or files that they begin."""
    from ..bench.prompts import Question, read_library, read_prompts

    if options.prompts is not None:
        try:
            prompts = read_prompts(options.prompts)
        except OSError as error:
            raise ValueError(
                f"--prompts: {options.prompts} cannot be read ({error.strerror}), expected JSON lines"
            ) from None
        chosen: dict[str, list[Question]] = {}
        for prompt in prompts:
            for turn in prompt.turns:
                check_unicode("--prompts", turn)
            chosen.setdefault(prompt.category, []).append(prompt)
        return os.fspath(options.prompts), [each for found in chosen.values() for each in found[: options.limit]]
    library = read_library(read_names(HELD_OUT))
    if library:
        return "held-out files of the standard library", [Question((text,)) for text in library.values()]
    return "beginnings that come with the package", [Question((text,)) for text in PROMPTS]  # the library is an archive


def _conversations(
    options: Options, model: Transformer, tokenizer: Any, questions: Sequence[Question]
) -> tuple[list[list[int]], list[str]]:
    """Return a prompt for every turn of every question, and its category; plain decoding answers turns in between."""
    from ..generation import generate
    from ..hf.text_decoder import decoder_of
    from ..methods import Autoregressive

    plain, decode = Autoregressive(model, options.sampling.config), decoder_of(tokenizer)
    prompts, categories, length = [], [], options.size("max_new_tokens")
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


def _prompts(options: Options, tokenizer: Any, texts: list[str], room: int) -> list[list[int]]:
    """Return the prompts that all continue."""
    from ..bench.prompts import pieces

    if options.prompts is not None:
        return [encode_prompt(tokenizer, text, "--prompts") for text in texts]
    length = max(1, min(PROMPT_LENGTH, room - options.size("max_new_tokens")))
    return [encode_prompt(tokenizer, text)[:length] for text in pieces(texts, options.size("num_prompts"), length)]


def _places(options: Options, tokenizer: Any, texts: list[str], prompts: Texts, room: int) -> list[list[int]]:
    """Return prefixes of text that the model did not write."""
    from ..bench.prompts import pieces, prefixes_of

    if room < 1:
        raise ValueError(
            f"num_draft: found {options.decode.num_draft or NUM_DRAFT}, expected fewer drafts: no step of so many fits "
            "into the model's context"
        )
    count = options.size("num_places")
    if options.prompts is not None:
        return [prefix[:room] for prefix in prefixes_of(prompts, count)]
    length = min(PREFIX_LENGTH, room)
    return [encode_prompt(tokenizer, text)[:length] for text in pieces(texts, count, length)]


def _run_shape(options: Options) -> None:
    """Measure a model of a real shape with random weights against the memory's speed, and print it."""
    import torch

    from ..bench.report import machine, shape_lines, versions
    from ..bench.roofline import SHAPES, measure_shape
    from ..model.precision import asked_dtype, check_device

    device = torch.device(check_device(options.target.device))
    dtype = asked_dtype(options.target.dtype) or torch.bfloat16
    with Bar("measuring", unit="part") as bar:
        found = measure_shape(SHAPES[str(options.shape)], dtype, device, options.size("repeats"), bar.show)
    result = {
        "machine": machine(device),
        "versions": versions(),
        "shape": options.shape,
        "dtype": str(dtype).removeprefix("torch."),
        **found,
    }
    print(json.dumps(result, indent=2, allow_nan=False) if options.json else "\n".join(shape_lines(result)))
