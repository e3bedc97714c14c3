"""How many tokens a step yields at places in text that the model did not write, as an expectation.

Of one step at each place the drafts are drawn, several times, and what verification makes of them is not: its
outcomes are averaged by their probabilities, which the record holds.

Glossary of shapes: N places.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch

from pass_sampling.reference.ending import Ending
from pass_sampling.reference.record import Record

from ..methods import BlockwisePaths, Method, PaSSOneCallTree, SpeculativeTree
from ..methods.pass_one_call import OneCall
from ..methods.tree_rules import RULES
from ..state import State
from ..uniforms import UniformRow, uniform_stream

TREES = (SpeculativeTree, PaSSOneCallTree)
MOST_LOGITS = 2**21  # rows times vocabulary that are stepped side by side, for the sake of memory


@dataclass(frozen=True)
class Expectation:
    """Tokens per pass of the target, in a step after text that stands in the cache."""

    tokens_per_forward: float
    standard_error: float | None  # over places; None for a single one


def expected_tokens(record: Record, rule: str | None) -> float:
    """Return how many tokens a step yields on average, given its drafts; nothing may end the text.

    tokens = exact + 1 + sum_i prod_(j<=i) accept[j], or by the block rule

    tokens = exact + 1 + sum_i i accept[i] prod_(j>i) (1 - accept[j]), or of a tree

    tokens = 1 + sum_i reach[i], reach[i] = reach[parent] accept[i] prod_(siblings before) (1 - accept[j])

    By match of a tree it is reach[parent] accept[i]. A tree's probabilities must be complete, see `steps_after`. Of a
    step whose record says nothing of such probabilities it is the number of tokens that came.

    Source: Leviathan et al. 2023 (arXiv 2211.17192), Eq. 1; block: Sun et al. 2024 (arXiv 2403.10444), Algorithm 2.
    """
    if not record.draft_tokens or rule is None:
        return float(len(record.tokens))
    if record.draft_parents:
        return 1.0 + sum(reach_of(record, rule))
    accept = np.array(record.accept_probs)
    if rule == "block":
        longer_given_up = np.append(np.cumprod((1.0 - accept)[::-1])[-2::-1], 1.0)
        accepted = float(np.sum(np.arange(1, len(accept) + 1) * accept * longer_given_up))
    else:
        accepted = float(np.cumprod(accept).sum())
    return record.sources.count("exact") + 1.0 + accepted


def reach_of(record: Record, rule: str | None) -> list[float]:
    """Return the chance that verification accepts each draft of a tree, and so all on its path."""
    reach: list[float] = []
    going: dict[int, float] = {-1: 1.0}  # that it comes to a place, and to the candidate after it that is next
    for parent, accept in zip(record.draft_parents, record.accept_probs, strict=True):
        reach.append(going[parent] * accept)
        going[len(reach) - 1] = reach[-1]
        if rule != "match":
            going[parent] *= 1.0 - accept
    return reach


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
    spread = np.std(tokens - ratio * passes, ddof=1) if len(tokens) > 1 else None
    error = None if spread is None else float(spread / passes.mean() / np.sqrt(len(tokens)))
    return Expectation(ratio, error)


@torch.inference_mode()
def steps_after(method: Method, prefixes: Sequence[Sequence[int]], num_streams: int, seed: int = 0) -> list[Record]:
    """Run one step after every prefix, on several uniform streams; return the records, those of a prefix together.

    The record of a tree then has the chance of every draft, once reached, also where verification did not come. Raise
    ValueError if a prefix leaves no room for a step in the model's context.
    """
    if not prefixes or num_streams < 1:
        raise ValueError(
            f"prefixes: found {len(prefixes)} on {num_streams} uniform streams, expected at least one of each"
        )
    before = int(isinstance(method, OneCall))  # steps before the first that has drafts to verify
    num_rows = method.tree.num_drafts + 1 if isinstance(method, TREES) else 1
    ending = Ending(most_new_tokens(method))
    requests = list(range(len(prefixes) * num_streams))
    side_by_side = max(1, min(32, MOST_LOGITS // (method.model.vocab_size * num_rows)))
    records: list[Record] = []
    for start in range(0, len(requests), side_by_side):
        now = requests[start : start + side_by_side]
        state = method.start_batch([prefixes[request // num_streams] for request in now], ending)
        chances: list[tuple[float, ...]] = []
        for step in range(before + 1):
            uniforms = uniform_stream(seed, now, step, method.num_uniforms, device=method.model.device)
            if step == before and isinstance(method, TREES):
                chances = _chances(method, state.copy(), UniformRow(uniforms, method.named_uniforms))
            state, batch = method.step(state, uniforms)
            state.raise_fault()
            state.cache.measure()
        rows = batch.rows()
        records += (
            [replace(row, accept_probs=each) for row, each in zip(rows, chances, strict=True)] if chances else rows
        )
    return records


def most_new_tokens(method: Method) -> int:
    """Return a number of new tokens that two steps do not reach, nor a third one for which they look ahead."""
    if isinstance(method, TREES):
        return 3 * (len(method.tree.num_candidates) + 2)
    return 2 * method.num_uniforms + 1  # a token needs a uniform


def _chances(method: SpeculativeTree | PaSSOneCallTree, state: State, draws: UniformRow) -> list[tuple[float, ...]]:
    """Return the chance of every draft that a step would verify, once reached, in the order of its record."""
    _, drafts, real, *_ = method.propose(state, draws)
    logits, tree = method.model.logits(real), drafts.tree
    accept = torch.zeros_like(drafts.probs[:, :, 0])
    for place, children in enumerate(tree.children):
        if children:
            path, here = drafts.tokens[:, tree.path(place)], slice(children.start, children.stop)
            used = drafts.used[:, here]
            distributions, _ = method.chain_probs(state, logits[:, place : place + 1], used[:, :1], path, path.shape[1])
            assert isinstance(distributions, torch.Tensor)  # a tree is not written down
            ignored = UniformRow(
                torch.zeros(used.shape, dtype=torch.float64, device=used.device), {"accept": len(children)}
            )
            verify, count = RULES[method.rule].verify, used.sum(dim=1)
            candidates = drafts.probs[:, here], drafts.tokens[:, here]
            accept[:, here] = verify(distributions[:, 0], *candidates, ignored, 0, count, count > 0).accept_probs
    return [tuple(row[1:][used[1:]].tolist()) for row, used in zip(accept, drafts.used, strict=True)]
