"""Measure which way of decoding is the fastest for a model on this machine, keep what was found, and find it again."""

from __future__ import annotations

import contextlib
import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from ..bench.plan import Candidate, Plan, most_drafts, predict
from ..bench.prompts import context_of, pieces, read_library
from ..bench.report import machine, versions
from ..bench.runs import MOST_REPEATED, repeated_ngrams
from ..checkpoints import HELD_OUT, PROMPTS, QUESTIONS
from ..decode_options import SOURCES, DecodeOptions, Unavailable, flag_of, method_names, options_taken, registered
from ..generation import generate_batch
from ..make_method import folders_of, make_method
from ..methods import Autoregressive, LanguageModel, Method
from ..model.transformer import Transformer
from ..outside import cache_folder
from ..training.tokens import load_tokenizer
from . import commands
from .console import Bar, Conversation, encode_prompt, print_json
from .options import ModelOptions, SamplingOptions, read_names

NUM_PREFIXES, PREFIX_LENGTH = 32, 96  # places in text that are continued, and their tokens
MOST_DRAFTS = 6  # of drafters that could go on


def run_plan(options: commands.Plan) -> None:
    """Measure, choose, print."""
    target, sources = options.target.fetched(), options.sources.fetched()
    plan = find_plan(target, target.load(), options.sampling, sources, options.again, quiet=options.json)
    assert plan is not None
    if options.json:
        print_json(plan.to_json())
    else:
        _print(plan)


def find_plan(
    target: ModelOptions,
    model: Transformer,
    sampling: SamplingOptions,
    sources: DecodeOptions,
    again: bool = False,
    make: bool = True,
    quiet: bool = False,
    check: Callable[[], Any] = bool,
) -> Plan | None:
    """Return the plan that was kept for the same, else make one and keep it, or None if none is to be made.

    Before anything is measured, `check` may refuse what would not be decoded.
    """
    ways = _ways(target, sources)
    path = cache_folder("plans") / f"{_digest(model, sampling, ways)}.json"
    if not again:
        with contextlib.suppress(OSError, ValueError):
            return Plan.load(path)
    if not make:
        return None
    plain = Autoregressive(model, sampling.config)
    places, candidates = _places(target, plain), _candidates(target, model, sampling, ways)
    check()
    with Bar("measuring which way of drafting is fastest, once", unit="round", quiet=quiet) as bar:
        found = predict(plain, candidates, places, report=bar.show)
    rate = next(each.tokens_per_second for each in found if each.options.method == "autoregressive")
    considered = [{"options": each.options.to_json(), **each.figures(rate)} for each in found]
    plan = Plan(found[0].options, found[0].figures(rate), considered)
    with contextlib.suppress(OSError):  # a plan that cannot be kept is made again
        plan.save(path)
    return plan


def _ways(target: ModelOptions, sources: DecodeOptions) -> list[DecodeOptions]:
    """Return every way of drafting that the sources allow, with its folders; without sources, all for the model."""
    found = []
    for name in method_names():
        taken = options_taken(name)
        if "num_draft" not in taken or (sources.given and not sources.given.keys() & taken):
            continue
        given: dict[str, Any] = {source: path for source, path in sources.given.items() if source in taken}
        for given["refine"] in (None, "lookup") if name == "pass-one-call" else (None,):
            with contextlib.suppress(Unavailable):
                folders: Any = folders_of(DecodeOptions(name, **given), target.model)
                places = {each: folder.resolve() for each, folder in folders.items()}
                found.append(DecodeOptions(name, **places, refine=given["refine"]))
    return found


def _candidates(
    target: ModelOptions, model: Transformer, sampling: SamplingOptions, ways: Sequence[DecodeOptions]
) -> list[Candidate]:
    """Return the ways of drafting with their methods, as many drafts as each can make; leave out what does not suit."""
    found = []
    for options in ways:
        num_draft = MOST_DRAFTS if registered(str(options.method)) == "speculative" else None
        with contextlib.suppress(Unavailable):
            method = make_method(replace(options, num_draft=num_draft), model, sampling.config, target.model)
            fitting = (context_of(method) - _prefix_length(model)) // 4 - 2  # for which there are three steps
            most = min(most_drafts(method), fitting)
            if most > 0:
                changes: Any = {"num_draft" if hasattr(method, "num_draft") else "num_lookahead": most}
                found.append(Candidate(options, replace(method, **changes)))  # type: ignore[type-var]  # a dataclass
    return found


def _places(target: ModelOptions, plain: Method) -> Sequence[Sequence[int]]:
    """Return prompts that every machine has, each continued by the model itself.

    They are pieces of Python's standard library or, for a model with a chat template, questions. Drafts are verified in
    text of the model's own. Texts that repeat themselves are left out: look-ups seem fast there.
    """
    tokenizer, length = load_tokenizer(target.model), _prefix_length(plain.model)
    texts = list(read_library(read_names(HELD_OUT)).values()) or list(PROMPTS)
    begun = [encode_prompt(tokenizer, text)[: (length + 1) // 2] for text in pieces(texts, NUM_PREFIXES, length)]
    if getattr(tokenizer, "chat_template", None):
        talks = [Conversation(tokenizer, target.model).tokens(question)[0] for question in QUESTIONS]
        begun = [talk for talk in talks if len(talk) <= length] or begun
    written = generate_batch(plain, begun, max(1, length // 2), eos_token_ids=(), stop_strings=())
    fresh = [each for each in written if repeated_ngrams(each.tokens, 4) <= MOST_REPEATED]
    return [[*each.prompt, *each.tokens] for each in fresh or written]


def _prefix_length(model: LanguageModel) -> int:
    return max(1, min(PREFIX_LENGTH, model.max_position_embeddings // 4))


def _digest(model: Transformer, sampling: SamplingOptions, ways: Sequence[DecodeOptions]) -> str:
    """Return a digest of all that a plan depends on: model, folders, sampling, machine."""
    settings: list[Any] = [repr(model.config), model.fingerprint, str(model.dtype), asdict(sampling.config), versions()]
    settings += [machine(model.device) | {"load": 0}, [way.method for way in ways]]
    for folder in (path for way in ways for path in way.given.values() if isinstance(path, Path)):
        for path in sorted([*folder.glob("*.safetensors"), *folder.glob("config.json")]):
            settings.append([str(path), path.stat().st_size, path.stat().st_mtime_ns])
    return hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()[:32]


def _print(plan: Plan) -> None:
    print(f"{'expected of':16}{'tokens':>8}{'ms':>8}{'tokens':>9}{'times':>7}")
    print(f"{'':16}{'a step':>8}{'a step':>8}{'per s':>9}{'plain':>7}  settings")
    for each in plan.considered:
        options = DecodeOptions.from_json(each["options"])
        print(
            f"{options.method:16}{each['tokens_per_step']:8.2f}{each['milliseconds_per_step']:8.2f}"
            f"{each['tokens_per_second']:9.0f}{each['ratio_to_plain']:7.2f}  {as_flags(options)}".rstrip()
        )
    print(f"plan: {plan.options.method} {as_flags(plan.options)}".rstrip())


def as_flags(options: DecodeOptions) -> str:
    """Return settings of drafts as flags."""
    shown = [name for name in options.given if name not in ("method", *SOURCES)]
    return " ".join(f"{flag_of(name)} {options.text_of(name)}" for name in shown)
