"""The decoding methods by their names on the command line: what each needs, and which flags it takes."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from ..checkpoints import FUSED, LOOKAHEAD, NGRAM
from .candidates import candidates_with, check_for_a_tree, rule_of
from .drafting import FLAGS, Unavailable, check_same_tokens, draft_model_folder, flag_called, folder_for, num_draft
from .method_options import options_of
from .options import is_bundled, load_vectors, no_vectors

if TYPE_CHECKING:
    from pass_sampling.reference.config import SamplingConfig

    from ..drafters import Drafter, NgramModel
    from ..lookahead.vectors import LookAhead
    from ..methods import FusedPaSS, Method, PaSS
    from ..model.transformer import Transformer

Kind = TypeVar("Kind", "PaSS", "FusedPaSS")
RENAMED = {"lookahead": "pass", "lookahead-fused": "pass-one-call"}
__all__ = ["METHODS", "folders_of", "method_called", "method_for", "method_name", "options_of"]


@dataclass(frozen=True)
class Entry:
    """How a method is made, and which flags it takes."""

    build: Callable[[argparse.Namespace, Transformer, SamplingConfig], Method]
    takes: tuple[str, ...] = ()


def method_name(text: str) -> str:
    """Read the name of a method."""
    if text in RENAMED:
        raise argparse.ArgumentTypeError(f"found {text!r}, which is called {RENAMED[text]!r} now")
    if text not in METHODS:
        raise argparse.ArgumentTypeError(f"found {text!r:.80}, expected one of {', '.join(METHODS)}")
    return text


def method_for(arguments: argparse.Namespace, model: Transformer, sampling: SamplingConfig) -> tuple[str, Method]:
    """Return the method that was asked for, by name or by what it needs: else PaSS where there are vectors.

    Raises:
        ValueError: it cannot be made, or a flag was given that it does not take.
    """
    name = arguments.method or _wanted(arguments)
    for flag in FLAGS:
        found = getattr(arguments, flag)
        if found is not None and flag not in METHODS[name].takes:
            raise ValueError(_not_taken(flag, found, name))
    try:
        return name, method_called(name, arguments, model, sampling)
    except Unavailable as error:
        raise ValueError(f"--method {name}: {error}") from None


def _wanted(arguments: argparse.Namespace) -> str:
    """Return the method that the flags speak of."""
    if arguments.refine is not None or arguments.draft_vocab_size is not None:
        return "pass-one-call"
    sources = {"lookahead": "pass", "draft_model": "draft-model", "ngram": "ngram"}
    given = [flag for flag in sources if getattr(arguments, flag) is not None]
    if len(given) > 1:
        raise ValueError(f"found {' and '.join(map(flag_called, given))}, expected one of them")
    if arguments.candidates is not None and given in ([], ["lookahead"]):
        return "pass-one-call"
    if given:
        return sources[given[0]]
    return "pass" if is_bundled(arguments.model) else "autoregressive"


def _not_taken(flag: str, found: Any, name: str) -> str:
    who = f"--method {name}, which has no use for it"
    if name == "autoregressive":
        who = "plain decoding (--method autoregressive), which drafts nothing"
    takers = [f"--method {other}" for other, entry in METHODS.items() if flag in entry.takes]
    what = "it" if isinstance(found, Path) else found
    return f"{flag_called(flag)}: found {what} with {who}, expected {' or '.join(takers)}"


def method_called(name: str, arguments: argparse.Namespace, model: Transformer, sampling: SamplingConfig) -> Method:
    """Make a method.

    Raises:
        Unavailable: what it needs was neither given nor is bundled.
        ValueError: what was given does not go together.
    """
    return METHODS[name].build(arguments, model, sampling)


def folders_of(name: str, arguments: argparse.Namespace) -> dict[str, Path]:
    """Return the folders that a method drafts from, by their flags, given or bundled.

    Raises:
        Unavailable: there is none where one is needed.
    """
    found: dict[str, Path] = {}
    if "lookahead" in METHODS[name].takes:
        bundled = FUSED if name == "pass-one-call" and FUSED.is_dir() else LOOKAHEAD
        found["lookahead"] = folder_for(arguments, "lookahead", bundled, "look-ahead vectors")
    if name == "draft-model":
        found["draft_model"] = draft_model_folder(arguments)
    if name == "ngram" or arguments.refine == "ngram":
        found["ngram"] = folder_for(arguments, "ngram", NGRAM, "n-gram model")
    return found


def _autoregressive(arguments: argparse.Namespace, model: Transformer, sampling: SamplingConfig) -> Method:
    from ..methods import Autoregressive

    return Autoregressive(model, sampling)


def _lookahead(arguments: argparse.Namespace, model: Transformer, sampling: SamplingConfig) -> Method:
    from ..methods import PaSS

    return _with_vectors(PaSS, arguments, model, sampling)


def _lookahead_fused(arguments: argparse.Namespace, model: Transformer, sampling: SamplingConfig) -> Method:
    from ..lookahead.refinement import HeadRefinement, NgramRefinement, Unrefined
    from ..methods import FusedCandidates, FusedPaSS

    method: FusedPaSS | FusedCandidates
    if arguments.candidates is None:
        method = _with_vectors(FusedPaSS, arguments, model, sampling)
    else:
        lookahead, shape = _vectors(FUSED, arguments, model), check_for_a_tree(arguments)
        method = FusedCandidates(model, lookahead, sampling, rule=rule_of(arguments), num_candidates=shape)
    if arguments.groups is not None:
        method = replace(method, groups=arguments.groups)
    if arguments.draft_vocab_size is not None:
        if arguments.refine not in (None, "head"):
            raise ValueError(
                f"--draft-vocab-size: found {arguments.draft_vocab_size} with --refine {arguments.refine}, expected "
                "--refine head"
            )
        if not isinstance(method.refinement, HeadRefinement):
            raise ValueError(
                f"--draft-vocab-size: found {arguments.draft_vocab_size}, and vectors without a head, expected another "
                "--lookahead"
            )
        return replace(method, refinement=replace(method.refinement, draft_vocab_size=arguments.draft_vocab_size))
    if arguments.refine == "none":
        return replace(method, refinement=Unrefined())
    if arguments.refine == "ngram":
        return replace(method, refinement=NgramRefinement(_ngram_model(arguments, model)))
    if arguments.refine == "head" and method.lookahead.head is None:
        raise ValueError("--refine: found head, and vectors without one, expected none, ngram or another --lookahead")
    return method


def _with_vectors(
    kind: type[Kind], arguments: argparse.Namespace, model: Transformer, sampling: SamplingConfig
) -> Kind:
    from ..methods import FusedPaSS

    lookahead = _vectors(FUSED if kind is FusedPaSS else LOOKAHEAD, arguments, model)
    if kind is not FusedPaSS and (lookahead.adapter is not None or lookahead.head is not None):
        raise Unavailable("found vectors trained with an adapter or a head, expected --method pass-one-call for them")
    if arguments.num_draft is not None and arguments.num_draft > lookahead.num_lookahead:
        raise Unavailable(
            f"--num-draft: found {arguments.num_draft}, expected at most {lookahead.num_lookahead}, one per look-ahead "
            "vector"
        )
    rule = rule_of(argparse.Namespace(verify=arguments.verify, candidates=None))
    return kind(model, lookahead, sampling, rule=rule, num_lookahead=arguments.num_draft)


def _vectors(bundled: Path, arguments: argparse.Namespace, model: Transformer) -> LookAhead:
    lookahead = load_vectors(arguments, model, bundled)
    if lookahead is None:
        raise Unavailable(no_vectors(arguments.model))
    return lookahead


def _draft_model(arguments: argparse.Namespace, model: Transformer, sampling: SamplingConfig) -> Method:
    from ..checkpoint.load import load_model
    from ..drafters import ModelDrafter

    folder, dtype = draft_model_folder(arguments), str(model.dtype).removeprefix("torch.")  # whatever it is stored in
    drafter = ModelDrafter(load_model(folder, dtype, arguments.device))
    method = _speculative(drafter, arguments, model, sampling)  # sizes of vocabularies first
    check_same_tokens(arguments.model, folder)
    return method


def _prompt_lookup(arguments: argparse.Namespace, model: Transformer, sampling: SamplingConfig) -> Method:
    from ..drafters import PromptLookup

    return _speculative(PromptLookup(model.vocab_size), arguments, model, sampling)


def _ngram(arguments: argparse.Namespace, model: Transformer, sampling: SamplingConfig) -> Method:
    return _speculative(_ngram_model(arguments, model), arguments, model, sampling)


def _ngram_model(arguments: argparse.Namespace, model: Transformer) -> NgramModel:
    from ..drafters import NgramModel
    from ..training.tokens import load_tokenizer, vocabulary_digest

    ngram = NgramModel.load(folder_for(arguments, "ngram", NGRAM, "n-gram model"), model.device)
    ngram.check(model, vocabulary_digest(load_tokenizer(arguments.model)))
    return ngram


def _speculative(
    drafter: Drafter, arguments: argparse.Namespace, model: Transformer, sampling: SamplingConfig
) -> Method:
    from ..drafters.schedule import SCHEDULES
    from ..methods import SpeculativeSampling

    if arguments.candidates is not None:
        return candidates_with(drafter, arguments, model, sampling)
    return SpeculativeSampling(
        model,
        drafter,
        sampling,
        rule=rule_of(arguments),
        num_draft=num_draft(arguments),
        schedule=SCHEDULES[arguments.schedule or "fixed"](),
        lenience=1.0 if arguments.lenience is None else arguments.lenience,
    )


OF_DRAFTERS = ("num_draft", "candidates", "verify", "schedule", "lenience")
METHODS = {
    "autoregressive": Entry(_autoregressive),
    "pass": Entry(_lookahead, ("lookahead", "num_draft", "verify")),
    "pass-one-call": Entry(
        _lookahead_fused,
        ("lookahead", "num_draft", "candidates", "verify", "refine", "draft_vocab_size", "groups", "ngram"),
    ),
    "draft-model": Entry(_draft_model, ("draft_model", *OF_DRAFTERS)),
    "prompt-lookup": Entry(_prompt_lookup, OF_DRAFTERS),
    "ngram": Entry(_ngram, ("ngram", *OF_DRAFTERS)),
}
