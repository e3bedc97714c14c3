"""The decoding method that `DecodeOptions` describe, with what it drafts from; and the description of a method."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields, replace
from pathlib import Path
from types import NoneType
from typing import Any

from pass_sampling.reference.checkpoint.folder import name_of
from pass_sampling.reference.config import SamplingConfig

from . import checkpoints as box
from .checkpoint.gguf import fetched_folder
from .checkpoint.load import load_model
from .decode_options import (
    FOLDERS,
    LATTICE,
    NUM_DRAFT,
    SOURCES,
    DecodeOptions,
    Unavailable,
    flag_of,
    is_bundled,
    options_taken,
    registered,
    shown,
    written_candidates,
)
from .drafters import DRAFTERS, FirstOf, ModelDrafter, NgramModel, PromptLookup
from .drafters.schedule import SCHEDULES, Schedule
from .lookahead.free_first import FreeFirst
from .lookahead.refinement import Refinement, refinement_of
from .lookahead.rescoring import HEAD_WEIGHT, NGRAM_WEIGHT, NgramScores, Rescored
from .lookahead.vectors import LookAhead
from .methods import METHODS, Method, rules_of
from .model.transformer import Transformer
from .training.tokens import load_tokenizer, vocabulary_digest

LOOKUP = (12, 2)  # the longest and the shortest n-gram of prompt lookup before counted n-grams

BUNDLED = dict.fromkeys(("blockwise", "blockwise-paths"), box.BLOCKS)
BUNDLED |= {"pass": box.LOOKAHEAD, "pass-one-call": box.FUSED}
BUNDLED |= {"draft_model": box.DRAFT_MODEL, "ngram": box.NGRAM, "rescorer": box.ALONE}
"""The bundled sources of drafts, by option; look-ahead folders by the method that draws on them."""
FOR_SMOLLM2 = dict.fromkeys(("blockwise", "blockwise-paths"), box.SMOLLM2_BLOCKS)
FOR_SMOLLM2 |= {"pass-one-call": box.SMOLLM2_HEAD, "rescorer": box.SMOLLM2_HEAD, "ngram": box.SMOLLM2_NGRAM}
"""The same for SmolLM2-135M-Instruct."""


def make_method(options: DecodeOptions, model: Transformer, sampling: SamplingConfig, folder: Path) -> Method:
    """Make the method that the options name, for a model that was loaded from a folder.

    Raise Unavailable if what it drafts from is missing or does not suit it, ValueError for options that contradict.
    """
    assert options.method is not None
    tree = options.candidates is not None
    name = registered(options.method, tree)
    kind, settings = METHODS[name], {each.name for each in fields(METHODS[name])}  # type: ignore[arg-type]
    found: dict[str, Any] = {"sampling": sampling}
    for each in ("num_draft", "schedule", "lenience", "accept_top_k"):
        if tree and (value := getattr(options, each)) is not None:
            raise Unavailable(f"{flag_of(each)}: found {value} with --candidates, expected one of them")
    if rules := rules_of(name):
        found["rule"] = options.verify or rules[0]
        if found["rule"] not in rules:
            what = "a tree of candidates" if tree else "drafts without --candidates"
            raise Unavailable(f"--verify: found {options.verify} for {what}, expected one of {', '.join(rules)}")
    if tree:
        found["num_candidates"] = options.candidates
    if "drafter" in settings:
        found["drafter"] = _drafter(options, model, folder)
    if "lookahead" in settings:
        found |= _lookahead(options, model, folder, settings)
    if "num_draft" in settings:
        found["num_draft"] = options.num_draft or NUM_DRAFT
    if "schedule" in settings:
        found["schedule"] = SCHEDULES[options.schedule or "fixed"]()
    kept = {"paths": "num_paths"} | {name: name for name in ("groups", "lenience", "accept_top_k")}
    for each, name in kept.items():
        if name in settings and each in options.given:
            found[name] = options.given[each]
    method: Method = kind(model, **found)  # type: ignore[call-arg]
    if options.method == "draft-model":  # sizes of vocabularies first
        both = folder, _folder("draft_model", options, folder)
        if all((each / "tokenizer.json").is_file() for each in both):
            one, other = (vocabulary_digest(load_tokenizer(each)) for each in both)
            if one != other:
                raise ValueError(f"--draft-model: {both[1]} has another tokenizer than {folder}, expected the same")
    return method


def folders_of(options: DecodeOptions, model: Path) -> dict[str, Path]:
    """Return the folders that a method drafts from, by option, given or bundled; raise Unavailable without one."""
    assert options.method is not None
    needed = {FOLDERS.get(options.method)} | ({"lookahead"} & options_taken(options.method))
    needed |= {name for name, refine in {"ngram": "ngram", "rescorer": "neural"}.items() if options.refine == refine}
    needed |= {"ngram"} if options.refine == "lookup" and _has_ngram(options, model) else set()
    return {name: _folder(name, options, model) for name in SOURCES if name in needed}


def _folder(name: str, options: DecodeOptions, model: Path) -> Path:
    folder: Path | None = getattr(options, name)
    if folder is None:
        bundled = _bundled(model).get(str(options.method) if name == "lookahead" else name)
        folder = bundled if bundled is not None and bundled.is_dir() else None
    if folder is None:
        train = f"pass-sampling train --model {shown(model)} --self --output FOLDER"
        makes = f" ({train} makes them)" if name == "lookahead" else ""
        raise Unavailable(f"found no {SOURCES[name]} for {shown(model)}, expected {flag_of(name)} FOLDER{makes}")
    return folder


def _bundled(model: Path) -> dict[str, Path]:
    """Return what is bundled to draft for a model, which is known by its folder or its name on the Hub."""
    if is_bundled(model):
        return BUNDLED
    if model == fetched_folder("smollm2-135m"):
        return FOR_SMOLLM2
    hub = name_of(model) == "HuggingFaceTB/SmolLM2-135M-Instruct"  # other weights, not rounded: n-grams suit them
    return {"ngram": box.SMOLLM2_NGRAM} if hub else {}


def _lookahead(options: DecodeOptions, model: Transformer, folder: Path, settings: set[str]) -> dict[str, Any]:
    """Return the vectors, and what a method makes of what was trained with them."""
    vectors = LookAhead.load(_folder("lookahead", options, folder), model.device)
    found: dict[str, Any] = {"lookahead": vectors}
    if str(options.method).startswith("blockwise") and getattr(vectors.head, "kind", "") != "block":
        raise Unavailable("found vectors without block heads, expected a folder that `train --block-heads` made")
    if "refinement" in settings:
        found["refinement"] = _refinement(options, vectors, model, folder)
    elif vectors.adapter is not None or vectors.head is not None:
        raise Unavailable("found vectors trained with an adapter or a head, expected --method pass-one-call for them")
    if "num_lookahead" in settings:
        found["num_lookahead"] = options.num_draft
        if (options.num_draft or 0) > (most := vectors.num_lookahead):
            raise Unavailable(f"--num-draft: found {options.num_draft}, expected at most {most}, one per vector")
    return found


def _refinement(options: DecodeOptions, vectors: LookAhead, model: Transformer, folder: Path) -> Refinement:
    """Return the refinement that is asked for; by default the one that was trained with the vectors."""
    refine, width, blockwise = options.refine, options.lattice, str(options.method).startswith("blockwise")
    if refine in ("head", "lookup") and blockwise:
        raise ValueError(f"--refine: found {refine} with block heads, expected none, ngram or neural")
    if refine == "head" and vectors.head is None:
        raise ValueError("--refine: found head with vectors without a head, expected none, ngram or other --lookahead")
    parts = vectors if blockwise or refine in (None, "head", "lookup") else replace(vectors, head=None)
    drafts = refinement_of(parts, model.dtype, model.device)
    if refine == "lookup":
        if width is not None:
            raise ValueError(f"--lattice: found {width} with --refine lookup, expected it without")
        return FreeFirst(_lookup(options, model, folder), drafts)
    rescored = refine in ("ngram", "neural")
    if width is None and blockwise and (rescored or options.method == "blockwise-paths"):
        width = min(LATTICE, model.vocab_size)
    if refine == "ngram":
        return Rescored(drafts, NgramScores(_ngram(options, model, folder)), NGRAM_WEIGHT, width)
    if refine == "neural":
        trained = LookAhead.load(_folder("rescorer", options, folder), model.device)
        trained.check(model)
        if trained.head is None or trained.head.kind != "head":
            raise ValueError("--rescorer: found a folder without a sampler head, expected what train --head-alone made")
        return Rescored(drafts, refinement_of(trained, model.dtype, model.device), HEAD_WEIGHT, width)
    return drafts if width is None else Rescored(drafts, None, 0.0, width)


def _drafter(options: DecodeOptions, model: Transformer, folder: Path) -> Any:
    """Return the drafter that the method is named after; one without a folder is made from the vocabulary's size."""
    assert options.method is not None
    if options.method == "draft-model":
        dtype = str(model.dtype).removeprefix("torch.")  # whatever it is stored in
        return ModelDrafter(load_model(_folder("draft_model", options, folder), dtype, model.device))
    if options.method == "ngram":
        return _ngram(options, model, folder)
    if options.method == "lookup-ngram":
        return _lookup(options, model, folder)
    return DRAFTERS[options.method](model.vocab_size)


def _lookup(options: DecodeOptions, model: Transformer, folder: Path) -> FirstOf:
    """Return prompt lookup, then n-grams; `--refine lookup` uses prompt lookup alone if there are no n-grams."""
    lookup = PromptLookup(model.vocab_size, *LOOKUP)
    if options.refine == "lookup" and not _has_ngram(options, folder):
        return FirstOf((lookup,))
    return FirstOf((lookup, _ngram(options, model, folder)))


def _has_ngram(options: DecodeOptions, folder: Path) -> bool:
    return options.ngram is not None or "ngram" in _bundled(folder)


def _ngram(options: DecodeOptions, model: Transformer, folder: Path) -> NgramModel:
    ngram = NgramModel.load(_folder("ngram", options, folder), model.device)
    ngram.check(model, vocabulary_digest(load_tokenizer(folder)))
    return ngram


def described(method: Method) -> Mapping[str, Any]:
    """Return the settings that tell a method from others of its kind, as plain values."""
    settings: dict[str, Any] = {each.name: getattr(method, each.name) for each in fields(method)}  # type: ignore[arg-type]
    found: dict[str, Any] = {}
    if "drafter" in settings:
        found["drafter"] = settings["drafter"].name
    for each, name in (("num_draft", "num_draft"), ("num_paths", "paths"), ("rule", "verify")):
        if each in settings:
            found[name] = settings[each]
    if "lookahead" in settings:
        found["num_lookahead"] = len(method.vectors)  # type: ignore[attr-defined]
    if "refinement" in settings:
        refinement, lookahead = settings["refinement"], settings["lookahead"]
        found["parts"] = [part for part in ("adapter", "head") if getattr(lookahead, part) is not None]
        found["refine"] = type(refinement).__name__.removesuffix("Refinement").lower()
        if isinstance(refinement, FreeFirst):
            found["refine"], refinement = "lookup", refinement.drafts
        if isinstance(refinement, Rescored):
            found["refine"] = {NgramScores: "ngram", NoneType: "none"}.get(type(refinement.rescorer), "neural")
            found |= {} if refinement.width is None else {"lattice": refinement.width}
            refinement = refinement.drafts
        if refinement.draft_vocab is not None:
            found["draft_vocab_size"] = len(refinement.draft_vocab)
    if "num_candidates" in settings:
        found["candidates"] = written_candidates(settings["num_candidates"])
    if settings.get("groups") is not None:
        found["groups"] = list(settings["groups"])
    if type(settings.get("schedule", Schedule())) is not Schedule:
        found["schedule"] = type(settings["schedule"]).__name__
    lossy = {name: settings.get(name, 1) for name in ("lenience", "accept_top_k")}
    return found | {f"lossy_{name}": value for name, value in lossy.items() if value != 1}
