"""Text that goes round in circles, which makes every drafter look good."""

from __future__ import annotations

from collections.abc import Sequence

__all__ = ["repeated_ngrams"]


def repeated_ngrams(tokens: Sequence[int], size: int = 8) -> float:
    """Return the share of a text's n-grams that stood in it before; 0 for a text too short to have one.

    Source: Welleck et al. 2020, "Neural Text Generation with Unlikelihood Training" (arXiv 1908.04319), Sec. 6.
    """
    ngrams = [tuple(tokens[start : start + size]) for start in range(len(tokens) - size + 1)]
    return (len(ngrams) - len(set(ngrams))) / len(ngrams) if ngrams else 0.0
