"""How many tokens a step yields at places in text that the model did not write, as an expectation.

Of one step at each place the drafts are drawn, several times, and what verification makes of them is not: its
outcomes are averaged by their probabilities, which the record holds.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch

from pass_sampling.reference.ending import Ending
from pass_sampling.reference.record import Record

from ..methods import BlockwisePaths, Method, PaSSOneCallTree, SpeculativeTree
from ..methods.pass_one_call import OneCall
from ..uniforms import uniform_stream

TREES = (SpeculativeTree, PaSSOneCallTree)
MOST_LOGITS = 2**21  # rows times vocabulary that are stepped side by side, for the sake of memory


class Expectation(NamedTuple):
    """Tokens per pass of the target, in a step after text that is in the cache."""

    tokens_per_forward: float | None
    standard_error: float | None  # over places; None for a single one, or where there is none


def expected_tokens(record: Record, rule: str | None) -> float:
    """Return how many tokens a step yields on average, given its drafts; nothing may end the text.

    tokens = exact + 1 + sum_i prod_(j<=i) accept[j], or by the block rule

    tokens = exact + 1 + sum_i i accept[i] prod_(j>i) (1 - accept[j])

    Of a tree, and of a step whose record has no such probabilities, it is the number of new tokens.

    Source: Leviathan et al. 2023 (arXiv 2211.17192), Eq. 1; block: Sun et al. 2024 (arXiv 2403.10444), Algorithm 2.
    """
    if not record.draft_tokens or record.draft_parents or rule is None:
        return float(len(record.tokens))
    accept = np.array(record.accept_probs)
    if rule == "block":
        longer_given_up = np.append(np.cumprod((1.0 - accept)[::-1])[-2::-1], 1.0)
        accepted = float(np.sum(np.arange(1, len(accept) + 1) * accept * longer_given_up))
    else:
        accepted = float(np.cumprod(accept).sum())
    return record.sources.count("exact") + 1.0 + accepted


def expected_tokens_per_forward(
    method: Method, prefixes: Sequence[Sequence[int]], num_streams: int = 4, seed: int = 0
) -> Expectation:
    """Run one step after every prefix, on several uniform streams; return tokens over passes of the target.

    A method whose drafts come from the pass before runs another one first, which does not count.
    """
    rule = None if isinstance(method, BlockwisePaths) else getattr(method, "rule", None)  # paths share beginnings
    records = steps_after(method, prefixes, num_streams, seed)
    each = [(expected_tokens(record, rule), record.num_forward_passes) for record in records]
    tokens, passes = np.array(each, np.float64).T.reshape(2, -1, num_streams).mean(axis=2)
    ratio = float(tokens.sum() / passes.sum())
    if len(tokens) == 1:
        return Expectation(ratio, None)
    return Expectation(ratio, float(np.std(tokens - ratio * passes, ddof=1) / passes.mean() / np.sqrt(len(tokens))))


@torch.inference_mode()
def steps_after(method: Method, prefixes: Sequence[Sequence[int]], num_streams: int, seed: int = 0) -> list[Record]:
    """Run one step after every prefix, on several uniform streams; return the records, those of a prefix together.

    Raise ValueError if a prefix leaves no room for a step in the model's context.
    """
    ending, records, requests = Ending(most_new_tokens(method)), list[Record](), range(len(prefixes) * num_streams)
    num_rows = method.tree.num_drafts + 1 if isinstance(method, TREES) else 1
    side_by_side = max(1, min(32, MOST_LOGITS // (method.model.vocab_size * num_rows)))
    for start in range(0, len(requests), side_by_side):
        now = list(requests[start : start + side_by_side])
        state = method.start_batch([prefixes[request // num_streams] for request in now], ending)
        for step in range(1 + isinstance(method, OneCall)):  # the first has no drafts to verify
            uniforms = uniform_stream(seed, now, step, method.num_uniforms, device=method.model.device)
            state, batch = method.step(state, uniforms)
            state.raise_fault()
            state.cache.measure()
        records += batch.rows()
    return records


def most_new_tokens(method: Method) -> int:
    """Return a number of new tokens that two steps do not reach, nor a third one for which they look ahead."""
    if isinstance(method, TREES):
        return 3 * (len(method.tree.num_candidates) + 2)
    return 2 * method.num_uniforms + 1  # a token needs a uniform
