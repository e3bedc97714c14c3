"""What texts should come out, by brute force: a fresh pass per prefix, and softmax, filters and ends written anew.

Nothing here is shared with the samplers or with the enumeration but the model, whose logits are read.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

Tokens = tuple[int, ...]
Law = dict[Tokens, float]


def filtered(logits: Sequence[float], temperature: float = 1.0, top_k: int = 0, top_p: float = 1.0) -> dict[int, float]:
    """Return the probability of every token that can come next."""
    ranked = sorted(range(len(logits)), key=lambda token: (-logits[token], token))
    if temperature == 0:
        return {ranked[0]: 1.0}
    if top_k:
        ranked = [token for token in ranked if logits[token] >= logits[ranked[min(top_k, len(ranked)) - 1]]]
    weights = {token: math.exp((logits[token] - logits[ranked[0]]) / temperature) for token in ranked}
    total = math.fsum(weights.values())
    kept: dict[int, float] = {}
    for token in ranked:
        if weights[token] > 0 and (top_p == 1 or math.fsum(kept.values()) < top_p):
            kept[token] = weights[token] / total
    return {token: prob / math.fsum(kept.values()) for token, prob in kept.items()}


def texts(
    logits: Callable[[Tokens], Sequence[float]],
    sampling: dict[str, Any],
    max_new_tokens: int,
    eos_token_ids: Sequence[int] = (),
    stop_strings: Sequence[str] = (),
    alphabet: str = "",
) -> Law:
    """Return the probability of every text, drawn token by token; `logits(new_tokens)` is asked once per prefix."""
    distribution: Law = {}
    going: list[tuple[Tokens, float]] = [((), 1.0)]
    while going:
        tokens, prob = going.pop()
        for token, chance in filtered(logits(tokens), **sampling).items():
            text = (*tokens, token)
            shown = "".join(alphabet[each] for each in text) if alphabet else ""
            stopped = token in eos_token_ids or any(stop in shown for stop in stop_strings)
            if stopped or len(text) == max_new_tokens:
                distribution[text] = prob * chance
            else:
                going.append((text, prob * chance))
    return distribution
