"""Trees of candidates on the command line: how their shape is written, by which rules they are verified."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

from .drafting import Unavailable, flag_called

if TYPE_CHECKING:
    from pass_sampling.reference.config import SamplingConfig

    from ..drafters import Drafter
    from ..methods import Method
    from ..methods.tree_shape import NumCandidates
    from ..model.transformer import Transformer

__all__ = ["as_written", "candidates_with", "check_for_a_tree", "parse_candidates", "rule_of"]

OF_A_CHAIN = ("token", "block", "match")
OF_A_TREE = ("without-replacement", "with-replacement", "k-seq", "match")


def parse_candidates(text: str) -> NumCandidates:
    """Return the shape of a tree as it is written: `3,2,1`, or with a number for each place of a depth `3,2+1+0,1`.

    Raises:
        ValueError: that is no tree.
    """
    from pass_sampling.reference.methods.tree_shape import check_tree

    try:
        depths = [[int(count) for count in depth.split("+")] for depth in text.split(",")]
    except ValueError:
        raise ValueError(f"--candidates: found {text!r:.80}, expected numbers, such as 3,2,1 or 3,2+1+0,1") from None
    try:
        return check_tree([depth if len(depth) > 1 else depth[0] for depth in depths])
    except ValueError as error:
        raise ValueError(f"--candidates: {str(error).removeprefix('num_candidates: ')}") from None


def as_written(shape: NumCandidates) -> str:
    """Return the shape of a tree as it is written."""
    return ",".join("+".join(map(str, each)) if isinstance(each, tuple) else str(each) for each in shape)


def rule_of(arguments: argparse.Namespace) -> str:
    """Return the rule by which drafts are verified.

    Raises:
        Unavailable: a tree cannot be verified so, or a chain cannot.
    """
    tree = arguments.candidates is not None
    rule = str(arguments.verify or ("without-replacement" if tree else "token"))
    if rule not in (OF_A_TREE if tree else OF_A_CHAIN):
        rules = ", ".join(OF_A_TREE if tree else OF_A_CHAIN)
        kind = "a tree of candidates" if tree else "drafts without --candidates"
        raise Unavailable(f"--verify: found {rule} for {kind}, expected one of {rules}")
    return rule


def check_for_a_tree(arguments: argparse.Namespace) -> NumCandidates:
    """Return the shape of the tree that was asked for, with nothing that speaks of a chain.

    Raises:
        Unavailable: another flag does.
    """
    for flag in ("num_draft", "schedule", "lenience"):
        found = getattr(arguments, flag)
        if found is not None:
            raise Unavailable(f"{flag_called(flag)}: found {found} with --candidates, a tree, expected it without")
    return parse_candidates(arguments.candidates)


def candidates_with(
    drafter: Drafter, arguments: argparse.Namespace, model: Transformer, sampling: SamplingConfig
) -> Method:
    """Return the method whose tree a drafter drafts."""
    from ..methods import Candidates

    shape = check_for_a_tree(arguments)
    return Candidates(model, drafter, sampling, rule=rule_of(arguments), num_candidates=shape)
