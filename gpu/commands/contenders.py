"""Who takes part in a comparison: the methods that can run on a checkpoint, and transformers beside them."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING, Any

from .drafting import FLAGS, Unavailable, draft_model_folder, flag_called, num_draft
from .methods import METHODS, method_called, options_of
from .planned import with_plan

if TYPE_CHECKING:
    from pass_sampling.reference.config import SamplingConfig

    from ..bench.peers import Baseline
    from ..bench.plan import Plan
    from ..bench.runs import Entry
    from ..methods import Method
    from ..model.transformer import Transformer

__all__ = ["NAMES", "PLANNED", "chosen_names", "entries_for"]

PLAIN = "autoregressive"
PEERS = {
    "transformers": (),
    "transformers-prompt-lookup": ("num_draft",),
    "transformers-assisted": ("draft_model", "num_draft"),
}
PLANNED = "planned"
NAMES = (*METHODS, PLANNED, *PEERS)


def chosen_names(arguments: argparse.Namespace) -> list[str]:
    """Return the methods to compare, plain decoding first whether or not it was asked for.

    Raises:
        ValueError: a name is none or stands twice, or a flag was given that none of them takes.
    """
    asked = list(NAMES) if arguments.methods is None else [name.strip() for name in arguments.methods.split(",")]
    for name in asked:
        if name not in NAMES:
            raise ValueError(f"--methods: found {name!r:.80}, expected some of {', '.join(NAMES)}, with commas between")
        if asked.count(name) > 1:
            raise ValueError(f"--methods: found {name} twice, expected every method once")
    takes = {flag for name in asked for flag in (METHODS[name].takes if name in METHODS else PEERS.get(name, ()))}
    for flag in FLAGS:
        if getattr(arguments, flag) is not None and flag not in takes:
            raise ValueError(f"{flag_called(flag)}: found it without a method that takes it, expected one in --methods")
    return [PLAIN, *(name for name in asked if name != PLAIN)]


def entries_for(
    names: list[str],
    arguments: argparse.Namespace,
    model: Transformer,
    sampling: SamplingConfig,
    plan: Plan | None = None,
) -> tuple[list[Entry], dict[str, Method], dict[str, str]]:
    """Make the contenders; return the methods among them by name as well, and who is left out, with the reason.

    Raises:
        ValueError: a method that was asked for by name cannot run, or what was given for one does not go together.
    """
    from ..bench.runs import Entry, method_writer

    made: list[Entry] = []
    methods: dict[str, Method] = {}
    left_out: dict[str, str] = {}
    library: dict[str, Any] = {}
    for name in names:
        try:
            if name in METHODS or name == PLANNED:
                methods[name] = _method(name, arguments, model, sampling, plan)
                said = {"method": plan.method} if plan and name == PLANNED else {}
                made.append(Entry(name, method_writer(methods[name]), said | options_of(methods[name])))
            else:
                made.append(_peer(name, arguments, model, sampling, library))
        except Unavailable as error:
            if arguments.methods is not None:
                raise ValueError(f"--methods {name}: {error}") from None
            left_out[name] = str(error)
    return made, methods, left_out


def _method(
    name: str, arguments: argparse.Namespace, model: Transformer, sampling: SamplingConfig, plan: Plan | None
) -> Method:
    if name != PLANNED:
        return method_called(name, arguments, model, sampling)
    if plan is None:
        raise Unavailable("flags say how to decode, expected none of them for a plan")
    return method_called(plan.method, with_plan(arguments, plan), model, sampling)


def _peer(
    name: str,
    arguments: argparse.Namespace,
    model: Transformer,
    sampling: SamplingConfig,
    library: dict[str, Any],
) -> Entry:
    """Make a peer; the models of transformers are loaded once and kept in `library`."""
    from ..bench.peers import load_peer, peer_writer
    from ..bench.runs import Entry

    def load(folder: Any) -> Baseline:
        if str(folder) not in library:
            try:
                library[str(folder)] = load_peer(folder, model.dtype, model.device)
            except ValueError as error:
                raise Unavailable(str(error)) from None
        peer: Baseline = library[str(folder)]
        return peer

    depth = num_draft(arguments) if PEERS[name] else 0
    options: dict[str, Any] = {"num_draft": depth} if depth else {}
    assistant = None
    if name == "transformers-assisted":
        folder = draft_model_folder(arguments)
        assistant = load(folder)
        if assistant.model.config.vocab_size != model.vocab_size:
            raise Unavailable(
                f"{folder} has {assistant.model.config.vocab_size} tokens, expected {model.vocab_size}, the model's"
            )
        options = {"assistant": folder.name, **options}
    return Entry(name, peer_writer(load(arguments.model), sampling, assistant, depth), options)
