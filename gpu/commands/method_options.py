"""What tells a method from others of its kind, as reports say it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from .candidates import as_written

if TYPE_CHECKING:
    from ..methods import Method

__all__ = ["options_of"]


def options_of(method: Method) -> dict[str, Any]:
    """Return the settings of a method that tell it from others of its kind."""
    from ..drafters.schedule import Schedule
    from ..methods import Candidates, FusedCandidates, FusedPaSS, PaSS, SpeculativeSampling

    if isinstance(method, Candidates):
        shape = as_written(method.num_candidates)
        return {"drafter": method.drafter.name, "candidates": shape, "verify": method.rule}
    if isinstance(method, FusedPaSS | FusedCandidates):
        parts = [part for part in ("adapter", "head") if getattr(method.lookahead, part) is not None]
        refined = type(method.refinement).__name__.removesuffix("Refinement").lower()
        found = {"num_lookahead": len(method.vectors), "parts": parts, "refine": refined, "verify": method.rule}
        draft_vocab_size = getattr(method.refinement, "draft_vocab_size", None)
        found |= {} if draft_vocab_size is None else {"draft_vocab_size": draft_vocab_size}
        found |= {} if method.groups is None else {"groups": list(method.groups)}
        if isinstance(method, FusedCandidates):
            found["candidates"] = as_written(method.num_candidates)
        return found
    if isinstance(method, PaSS):
        return {"num_lookahead": len(method.vectors), "verify": method.rule}
    if isinstance(method, SpeculativeSampling):
        found = {"drafter": method.drafter.name, "num_draft": method.num_draft, "verify": method.rule}
        if type(method.schedule) is not Schedule:
            found["schedule"] = type(method.schedule).__name__
        return found if method.lenience == 1 else found | {"lossy_lenience": method.lenience}
    return {}
