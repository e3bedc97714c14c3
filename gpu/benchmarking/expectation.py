"""How many tokens a cycle yields at places in text that the model did not write, as an expectation.

Of one cycle at each place the drafts are drawn, several times, and what verification makes of them is not: its
outcomes are averaged by their probabilities, which the record holds.

Glossary of shapes: N places.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from ..ending import Ending
from ..methods import FusedPaSS, Method, PaSS, SpeculativeSampling
from ..record import Record
from ..tape import tape

__all__ = ["Expectation", "expected_tokens", "expected_tokens_per_forward"]

MOST_LOGITS = 2**21  # rows times vocabulary that are stepped side by side, for the sake of memory


@dataclass(frozen=True)
class Expectation:
    """Tokens per pass of the target, in a cycle behind text that stands in the cache."""

    tokens_per_forward: float
    standard_error: float | None  # over places; None for a single one
    num_places: int
    num_tapes: int


def expected_tokens(record: Record, rule: str | None) -> float:
    """Return how many tokens a cycle yields on average, given its drafts; nothing may end the text.

    tokens = exact + 1 + sum_i prod_(j<=i) accept[j], or by the block rule

    tokens = exact + 1 + sum_i i accept[i] prod_(j>i) (1 - accept[j])

    Of a cycle whose record says nothing of such probabilities it is the number of tokens that came.

    Source: Leviathan et al. 2023 (arXiv 2211.17192), Eq. 1; block: Sun et al. 2024 (arXiv 2403.10444), Algorithm 2.
    """
    if not record.draft_tokens or rule not in ("token", "match", "block"):
        return float(len(record.tokens))
    accept = np.array(record.accept_probs)
    if rule == "block":
        longer_given_up = np.append(np.cumprod((1.0 - accept)[::-1])[-2::-1], 1.0)
        accepted = float(np.sum(np.arange(1, len(accept) + 1) * accept * longer_given_up))
    else:
        accepted = float(np.cumprod(accept).sum())
    return record.sources.count("exact") + 1.0 + accepted


@torch.inference_mode()
def expected_tokens_per_forward(
    method: Method,
    prefixes: Sequence[Sequence[int]],
    num_tapes: int = 4,
    seed: int = 0,
) -> Expectation:
    """Run one cycle behind every prefix, on several tapes; return tokens over passes of the target.

    A method whose drafts come from the pass before runs another one first, which does not count.

    Raises:
        ValueError: there is no prefix or no tape, or a prefix leaves no room for a cycle in the model's context.
    """
    if not prefixes or num_tapes < 1:
        raise ValueError(f"prefixes: found {len(prefixes)} on {num_tapes} tapes, expected at least one of each")
    before = int(isinstance(method, FusedPaSS))
    ending = Ending((before + 1) * method.num_slots + 1)  # a token needs a uniform: no cycle reaches the end
    rule = method.rule if isinstance(method, (PaSS, FusedPaSS, SpeculativeSampling)) else None
    device = method.model.device
    requests = list(range(len(prefixes) * num_tapes))
    side_by_side = max(1, min(32, MOST_LOGITS // method.model.vocab_size))
    tokens, passes = np.zeros(len(requests)), np.zeros(len(requests))
    for start in range(0, len(requests), side_by_side):
        now = requests[start : start + side_by_side]
        state = method.start_batch([prefixes[request // num_tapes] for request in now], ending)
        for cycle in range(before + 1):
            state, batch = method.step(state, tape(seed, now, cycle, method.num_slots, device=device))
            state.raise_fault()
            state.cache.measure()
        for request, record in zip(now, batch.rows(), strict=True):
            tokens[request], passes[request] = expected_tokens(record, rule), record.num_forward_passes
    tokens, passes = (values.reshape(-1, num_tapes).mean(axis=1) for values in (tokens, passes))
    ratio = float(tokens.sum() / passes.sum())
    spread = np.std(tokens - ratio * passes, ddof=1) if len(tokens) > 1 else None
    error = None if spread is None else float(spread / passes.mean() / np.sqrt(len(tokens)))
    return Expectation(ratio, error, len(prefixes), num_tapes)
