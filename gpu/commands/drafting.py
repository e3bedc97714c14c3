"""What drafts come from, on the command line: the flags, and what stands in for one that was not given."""

from __future__ import annotations

import argparse
from pathlib import Path

from ..checkpoints import DRAFT_MODEL
from .options import add_lookahead, is_bundled
from .places import place, said

__all__ = [
    "FLAGS",
    "HOW",
    "Unavailable",
    "add_drafting",
    "check_drafting",
    "check_same_tokens",
    "draft_model_folder",
    "flag_called",
    "folder_for",
    "num_draft",
    "numbers",
]

HOW = ("num_draft", "candidates", "verify", "schedule", "lenience", "refine", "draft_vocab_size", "groups")
FLAGS = ("lookahead", "draft_model", "ngram", *HOW)  # of methods that draft
NUM_DRAFT = 4


class Unavailable(ValueError):
    """A method has not what it needs on this checkpoint."""


def add_drafting(parser: argparse.ArgumentParser) -> None:
    """Add what drafts come from, how many there are and how they are verified."""
    add_lookahead(parser)
    parser.add_argument(
        "--draft-model",
        type=place,
        metavar="FOLDER",
        help="a smaller model over the same vocabulary, which drafts; default: the bundled one",
    )
    parser.add_argument(
        "--ngram", type=place, metavar="FOLDER", help="an n-gram model, which drafts; default: the bundled one"
    )
    parser.add_argument(
        "--num-draft",
        type=int,
        metavar="K",
        help=f"drafts per verification; default: {NUM_DRAFT}, or as many as there are look-ahead vectors",
    )
    parser.add_argument(
        "--candidates",
        metavar="C,C,...",
        help="draft a tree, with so many candidates after everything at each depth: 3,2,1; or with a number for each "
        "place of a depth: 3,2+1+0,1; default: one draft after another",
    )
    parser.add_argument(
        "--verify",
        choices=("token", "block", "match", "without-replacement", "with-replacement", "k-seq"),
        help="how drafts are verified, each way exact: token by token, as a block, or by drawing from the model until "
        "a draw misses the draft (match); of --candidates by how they are drawn, without replacement or with, by k-seq "
        "or match; default: token, or without-replacement",
    )
    parser.add_argument(
        "--schedule",
        choices=("fixed", "heuristic", "entropy"),
        help="how many tokens a drafter drafts: always K, two more after a step that was accepted whole and one fewer "
        "after any other, or until its distribution is too flat; default: fixed",
    )
    parser.add_argument(
        "--refine",
        choices=("none", "ngram", "head"),
        help="what tells drafts from look-ahead rows of one another: nothing, an n-gram model, or the head that was "
        "trained with the vectors; default: the head where there is one",
    )
    parser.add_argument(
        "--draft-vocab-size",
        type=int,
        metavar="N",
        help="with a head: draft only among the N tokens that the look-ahead row alone finds likeliest, so that no "
        "draft is scored over the whole vocabulary; default: among all",
    )
    parser.add_argument(
        "--groups",
        type=numbers,
        metavar="A,B,...",
        help="after how many accepted drafts look-ahead rows hang in the pass; default: after any number",
    )
    parser.add_argument(
        "--lenience",
        type=float,
        metavar="X",
        help="LOSSY below 1: judge drafts as if they had been only X times as likely, so that more are accepted and "
        "no token comes out more than 1/X times as often as it should; default: 1, which is exact",
    )


def numbers(text: str) -> tuple[int, ...]:
    """Read numbers with commas between."""
    try:
        return tuple(int(part) for part in text.split(","))
    except ValueError:
        raise argparse.ArgumentTypeError(f"found {text!r:.80}, expected numbers with commas between") from None


def check_drafting(arguments: argparse.Namespace) -> None:
    """Refuse a number of drafts or a tree that cannot be, before anything is loaded."""
    from pass_sampling.reference.config import check_integer

    if arguments.num_draft is not None:
        check_integer("num_draft", arguments.num_draft, 1, 2**16)
    if arguments.candidates is not None:
        from .candidates import parse_candidates

        parse_candidates(arguments.candidates)


def num_draft(arguments: argparse.Namespace) -> int:
    """Return how many tokens to draft where nothing else says so."""
    return NUM_DRAFT if arguments.num_draft is None else int(arguments.num_draft)


def draft_model_folder(arguments: argparse.Namespace) -> Path:
    """Return the folder of the draft model: the one given, or for the bundled model its own.

    Raises:
        Unavailable: there is neither.
    """
    return folder_for(arguments, "draft_model", DRAFT_MODEL, "draft model")


def folder_for(arguments: argparse.Namespace, flag: str, bundled: Path, what: str) -> Path:
    """Return the folder that a flag names, or for the bundled model its own.

    Raises:
        Unavailable: there is neither.
    """
    folder: Path | None = getattr(arguments, flag)
    if folder is None and is_bundled(arguments.model) and bundled.is_dir():
        folder = bundled
    if folder is None:
        raise Unavailable(f"found no {what} for {said(arguments.model)}, expected {flag_called(flag)} FOLDER")
    return folder


def flag_called(name: str) -> str:
    """Return a flag as it is written."""
    return "--" + name.replace("_", "-")


def check_same_tokens(model: Path, draft_model: Path) -> None:
    """Refuse a draft model whose tokens mean something else, where both folders hold a tokenizer.

    Raises:
        ValueError: the vocabularies differ.
    """
    from ..training.tokens import load_tokenizer, vocabulary_digest

    if all((folder / "tokenizer.json").is_file() for folder in (model, draft_model)):
        digests = [vocabulary_digest(load_tokenizer(folder)) for folder in (model, draft_model)]
        if digests[0] != digests[1]:
            raise ValueError(f"--draft-model: {draft_model} has another tokenizer than {model}, expected the same")
