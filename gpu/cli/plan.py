"""Measure which way of decoding is the fastest for a model on this machine, and write it down.

  pass-sampling plan
  pass-sampling plan --model FOLDER --lookahead VECTORS --output plan.json
  pass-sampling generate --model FOLDER --plan plan.json --prompt 'def main():'

Every available way of drafting writes short texts, with few drafts and with many, in turn with plain decoding. If no
way is faster, the plan is plain decoding. `generate` without a method makes a plan once, for 200 tokens or more, and
keeps it. A plan never changes the distribution of a text.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..checkpoints import HELD_OUT, PROMPTS, QUESTIONS
from ..decode_options import (
    SOURCES,
    DecodeOptions,
    Unavailable,
    flag_of,
    method_names,
    option,
    options_taken,
    registered,
    text_of,
)
from .console import Bar, Conversation, encode_prompt
from .options import ModelOptions, SamplingOptions, check_file, group, json_option, read_names

if TYPE_CHECKING:
    from ..bench.plan import Candidate, Plan, Prediction
    from ..methods import LanguageModel, Method
    from ..model.transformer import Transformer

__all__ = ["Options", "as_flags", "find_plan", "plan_option", "read_plan", "run"]

HELP = "measure which way of decoding is the fastest here"
NUM_PREFIXES, PREFIX_LENGTH = 32, 96  # places in text that are continued, and their tokens
MOST_DRAFTS = 6  # of drafters that could go on


@dataclass(frozen=True)
class Options:
    """Options of `pass-sampling plan`."""

    target: ModelOptions = ModelOptions()
    sources: DecodeOptions = group(DecodeOptions(), tuple(SOURCES))
    again: bool = option(False, "measure again what was measured before")
    output: Path | None = option(help="write the plan here as well; default: nowhere", metavar="FILE")
    sampling: SamplingOptions = SamplingOptions()
    json: bool = json_option()


def run(options: Options) -> None:
    """Measure, choose, print."""
    check_file("--output", options.output)
    target = options.target.fetched()
    sources = options.sources.fetched()
    plan = find_plan(target, target.load(), options.sampling, sources, options.again, quiet=options.json)
    assert plan is not None
    if options.output is not None:
        plan.save(options.output)
    if options.json:
        print(json.dumps(plan.to_json(), indent=2, allow_nan=False))
        return
    _print(plan)
    if options.output is not None:
        print(f"saved in {options.output}")


def plan_option() -> Any:
    """Return the field of --plan."""
    return option(
        help="decode by a plan that `pass-sampling plan --output FILE` wrote; default: by what was measured on this "
        "machine, if no other option says how to decode",
        metavar="FILE",
    )


def read_plan(path: Path, model: Transformer, sampling: SamplingOptions, decode: DecodeOptions) -> Plan:
    """Read the plan in a file, and check that it is for this model and what it drafts from.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is no plan or was made for something else, or other options say how to decode.
    """
    from ..bench.plan import Plan

    if decode.given:
        raise ValueError(f"--plan: found it with {flag_of(next(iter(decode.given)))}, expected one of them")
    plan = Plan.load(path)
    if plan.options.method is None:
        raise ValueError(f"{path}: found a plan without a method, expected one of {', '.join(method_names())}")
    plan.check(_made_for(model, sampling, plan.options))
    return plan


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
    from ..bench.plan import Plan
    from ..checkpoint.cache_folder import cache_folder

    ways = _ways(target, sources)
    each = [[options.method, _identities(options)] for options in ways]
    wanted = [repr(model.config), _made_for(model, sampling, DecodeOptions()), each]
    digest = hashlib.sha256(json.dumps(wanted, sort_keys=True).encode())
    path = cache_folder("plans") / f"{digest.hexdigest()[:32]}.json"
    if not again:
        with contextlib.suppress(OSError, ValueError):
            return Plan.load(path)
    if not make:
        return None
    plan = _measured(target, model, sampling, ways, check, quiet)
    with contextlib.suppress(OSError):  # a plan that cannot be kept is made again
        path.parent.mkdir(parents=True, exist_ok=True)
        plan.save(path)
    return plan


def _ways(target: ModelOptions, sources: DecodeOptions) -> list[DecodeOptions]:
    """Return every way of drafting that the sources allow, with its folders; without sources, all for the model."""
    from ..make_method import folders_of

    found = []
    for name in method_names():
        taken = options_taken(name)
        if "num_draft" not in taken or (sources.given and not sources.given.keys() & taken):
            continue
        given: dict[str, Any] = {source: path for source, path in sources.given.items() if source in taken}
        with contextlib.suppress(Unavailable):
            folders: Any = folders_of(DecodeOptions(name, **given), target.model)
            found.append(DecodeOptions(name, **{each: folder.resolve() for each, folder in folders.items()}))
    return found


def _candidates(
    target: ModelOptions, model: Transformer, sampling: SamplingOptions, ways: Sequence[DecodeOptions]
) -> list[Candidate]:
    """Return the ways of drafting with their methods, as many drafts as each can make; leave out what does not suit."""
    from ..bench.plan import Candidate, most_drafts
    from ..bench.prompts import context_of
    from ..make_method import make_method

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


def _measured(
    target: ModelOptions,
    model: Transformer,
    sampling: SamplingOptions,
    ways: Sequence[DecodeOptions],
    check: Callable[[], Any],
    quiet: bool,
) -> Plan:
    """Measure every candidate on this machine, and plan the fastest."""
    from ..bench.plan import Plan, predict
    from ..methods import Autoregressive

    plain = Autoregressive(model, sampling.config)
    places = _places(target, plain)
    candidates = _candidates(target, model, sampling, ways)
    check()
    if not quiet:
        print("measuring which way of drafting pays here, once for this model and machine", file=sys.stderr)
    with Bar("measuring", unit="round", quiet=quiet) as bar:
        found = predict(plain, candidates, places, report=bar.show)
    rate = next(each.tokens_per_second for each in found if each.options.method == "autoregressive")
    return Plan(
        found[0].options,
        _made_for(model, sampling, found[0].options),
        _figures(found[0], rate),
        [{"options": each.options.to_json(), **_figures(each, rate)} for each in found],
    )


def _figures(prediction: Prediction, plain: float) -> dict[str, float]:
    return {
        "tokens_per_step": round(prediction.tokens_per_step, 3),
        "milliseconds_per_step": round(prediction.milliseconds_per_step, 3),
        "tokens_per_second": round(prediction.tokens_per_second, 1),
        "ratio_to_plain": round(prediction.tokens_per_second / plain, 3),
    }


def _places(target: ModelOptions, plain: Method) -> Sequence[Sequence[int]]:
    """Return prompts that every machine has, each continued by the model itself.

    They are pieces of Python's standard library or, for a model with a chat template, questions. Drafts are verified in
    text of the model's own. Texts that repeat themselves are left out: look-ups seem fast there.
    """
    from ..bench.figures import MOST_REPEATED, repeated_ngrams
    from ..bench.prompts import pieces, read_library
    from ..generation import generate_batch
    from ..training.tokens import load_tokenizer

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


def _made_for(model: Transformer, sampling: SamplingOptions, options: DecodeOptions) -> dict[str, Any]:
    """Return what a plan depends on."""
    from ..bench.report import machine, versions

    return {
        "model": {"name": model.name, "fingerprint": model.fingerprint},
        **_identities(options),
        "dtype": str(model.dtype).removeprefix("torch."),
        "sampling": asdict(sampling.config),
        "machine": {name: value for name, value in machine(model.device).items() if name != "load"},
        "versions": versions(),
    }


def _identities(options: DecodeOptions) -> dict[str, dict[str, str]]:
    """Return the identity of every folder that is there, by option."""
    folders = {name: folder for name, folder in options.given.items() if name in SOURCES and folder.is_dir()}
    return {name: _identity(folder) for name, folder in folders.items()}


def _identity(folder: Path) -> dict[str, str]:
    """Return the name of a folder, and a digest of its tensors and settings."""
    digest = hashlib.sha256()
    for path in sorted([*folder.glob("*.safetensors"), *folder.glob("config.json")]):
        digest.update(f"{path.name} {path.stat().st_size}".encode())
        with path.open("rb") as file:
            digest.update(hashlib.file_digest(file, "sha256").digest())
    return {"name": folder.name, "fingerprint": digest.hexdigest()}


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
    shown = {name: text_of(value) for name, value in options.given.items() if name not in ("method", *SOURCES)}
    return " ".join(f"{flag_of(name)} {text}" for name, text in shown.items())
