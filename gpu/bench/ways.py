"""Ways to draft, and how they are made with other settings."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, TypeVar

from ..drafters import PromptLookup
from ..methods import Candidates, FusedCandidates, FusedPaSS, Method, SpeculativeSampling
from ..methods.tree_shape import NumCandidates

__all__ = ["Candidate", "most_drafts", "with_settings"]

Drafting = TypeVar("Drafting", bound=Method)


@dataclass(frozen=True)
class Candidate:
    """One way to draft, at its fullest: as many drafts as it can make, after any number of accepted ones."""

    name: str  # of the method, on the command line
    method: Method
    options: dict[str, Any]  # flags that say what it drafts from

    def tree(self, shape: NumCandidates) -> Candidates | FusedCandidates | None:
        """Return the method that drafts a tree from the same, if there is one."""
        chain = self.method
        if isinstance(chain, SpeculativeSampling) and not isinstance(chain.drafter, PromptLookup):
            return Candidates(chain.model, chain.drafter, chain.sampling, num_candidates=shape)
        if isinstance(chain, FusedPaSS) and chain.refinement.uses_lookahead:
            refinement = chain.refinement
            return FusedCandidates(
                chain.model, chain.lookahead, chain.sampling, refinement=refinement, num_candidates=shape
            )
        return None


def with_settings(method: Drafting, num_draft: int, rule: str, groups: tuple[int, ...] | None = None) -> Drafting:
    """Return a method that drafts so many tokens, verified by a rule, with look-ahead groups where it is said."""
    changes: dict[str, Any] = {"rule": rule}
    if isinstance(method, SpeculativeSampling):
        changes["num_draft"] = num_draft
    else:
        changes["num_lookahead"] = num_draft
    if groups is not None:
        changes["groups"] = groups
    return replace(method, **changes)  # type: ignore[type-var]  # every method is a dataclass


def most_drafts(method: Method) -> int:
    """Return how many tokens a method drafts in a step at most."""
    return method.num_draft if isinstance(method, SpeculativeSampling) else len(method.vectors)  # type: ignore[attr-defined]
