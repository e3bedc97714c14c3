"""The heart: how many drafted tokens survive, and which token follows them, so that the target's distribution is kept.

Every rule takes the drafts `x_1 .. x_K`, the distributions they were drawn from, and the target's distributions after
the prefix and after each draft, and returns a run of accepted drafts and one final token. Whatever the draft
distributions are, the tokens emitted are distributed as if each had been drawn from the target. Where the last draft
ends the text, the target has no distribution after it: `target_probs` then has K rows, and if all drafts are accepted
no final token is drawn.

Why the token rule does: a token x comes out by acceptance with probability draft(x) min(1, target(x) / draft(x)) =
min(draft(x), target(x)). A rejection has probability 1 - sum(min(draft, target)) = sum(max(0, target - draft)), which
is the denominator of the residual; so a correction adds max(0, target(x) - draft(x)), and together they make
target(x). The same holds at the next position, given what came before.

Glossary of shapes: K drafts, V vocabulary. Row i of `target_probs` is the distribution of the token after i drafts.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from .sampling import Probs
from .uniforms import UniformRow

Tokens = npt.NDArray[np.integer]


@dataclass(frozen=True)
class Verification:
    """The outcome of one verification; `final_token` is a bonus when all drafts were accepted."""

    num_accepted: int
    final_token: int | None
    accept_probs: Probs  # [K]


def accept_probs(
    target_probs: Probs,  # [K+1, V], or [K, V] where the last draft ends the text
    draft_probs: Probs,  # [K, V]
    draft_tokens: Tokens,  # [K]
) -> Probs:  # [K]
    """Return the probability with which each draft token is accepted, should it be reached.

    accept[i] = min(1, target_probs[i, x_i] / draft_probs[i, x_i])

    Raises:
        ValueError: a draft token has probability 0 under its draft distribution, so it was not drawn from it.

    Source: Chen et al. 2023 (arXiv 2302.01318), Algorithm 2; Leviathan et al. 2023 (arXiv 2211.17192), Algorithm 1.
    """
    rows = np.arange(len(draft_tokens))
    target, draft = target_probs[rows, draft_tokens], draft_probs[rows, draft_tokens]
    if np.any(draft <= 0):
        raise ValueError(
            f"draft_probs: found 0 at draft token {int(np.argmin(draft))}, expected a distribution it came from"
        )
    with np.errstate(over="ignore"):  # a denormal draft distribution can push the ratio to inf, which is accepted as 1
        return np.minimum(1.0, target / draft)


def residual_probs(
    target_probs: Probs,  # [V]
    draft_probs: Probs,  # [V]
    weight: float = 1.0,
) -> Probs:  # [V]
    """Return the distribution of the token that replaces a rejected draft.

    residual = max(0, weight target_probs - draft_probs) / sum(max(0, weight target_probs - draft_probs))

    Distributions that differ by rounding alone may leave nothing; a rejection is then itself a rounding event, of
    probability near 2^-53, and the target's row stands in.

    Source: Chen et al. 2023, Eq. 2; Leviathan et al. 2023, Sec. 2.3; with a weight, `block_probs`.
    """
    residual = np.maximum(weight * target_probs - draft_probs, 0.0)
    total = residual.sum()
    return residual / total if total > 0 else target_probs


def verify_token(
    target_probs: Probs,  # [K+1, V], or [K, V] where the last draft ends the text
    draft_probs: Probs,  # [K, V]
    draft_tokens: Tokens,  # [K]
    draws: UniformRow,
) -> Verification:
    """Accept drafts one by one until the first rejection, and replace that one from the residual distribution.

    Source: Chen et al. 2023, Algorithm 2; Leviathan et al. 2023, Algorithm 1.
    """
    accept = accept_probs(target_probs, draft_probs, draft_tokens)
    for i in range(len(draft_tokens)):
        if not draws.accept("accept", float(accept[i]), i):
            correction_token = draws.token("final", residual_probs(target_probs[i], draft_probs[i]))
            return Verification(i, correction_token, accept)
    return _all_accepted(target_probs, draft_tokens, draws, accept)


def verify_block(
    target_probs: Probs,  # [K+1, V], or [K, V] where the last draft ends the text
    draft_probs: Probs,  # [K, V]
    draft_tokens: Tokens,  # [K]
    draws: UniformRow,
) -> Verification:
    """Keep the longest run of drafts that their joint ratio allows, asking from the longest down.

    Never accepts fewer on average than the token rule, and as many at temperature 0. A run that the token rule would
    have given up may survive because of what comes later, so the runs are judged as wholes.

    Source: Sun et al. 2024, "Block Verification Accelerates Speculative Decoding" (arXiv 2403.10444), Algorithm 2.
    """
    weights, accept = block_probs(target_probs, draft_probs, draft_tokens)
    for length in range(len(draft_tokens), 0, -1):
        if draws.accept("accept", float(accept[length - 1]), length - 1):
            break
    else:
        length = 0
    if length == len(draft_tokens):
        return _all_accepted(target_probs, draft_tokens, draws, accept)
    residual = residual_probs(target_probs[length], draft_probs[length], float(weights[length]))
    return Verification(length, draws.token("final", residual), accept)


def block_probs(
    target_probs: Probs,  # [K+1, V], or [K, V] where the last draft ends the text
    draft_probs: Probs,  # [K, V]
    draft_tokens: Tokens,  # [K]
) -> tuple[Probs, Probs]:  # [K+1], [K]
    """Return the weight of every run of drafts, and the probability of keeping it once all longer ones are given up.

    weight[0] = 1, weight[i] = min(1, weight[i-1] target_probs[i-1, x_i] / draft_probs[i-1, x_i])

    accept[i] = r / (r + 1 - weight[i]), r = sum(max(0, weight[i] target_probs[i] - draft_probs[i])); weight[K] for K

    A run of weight 0 has been ruled out, and nothing is asked of the rows after it. Where the target has no
    distribution (NaN), the draft's replaces it. Any distribution would do: the tokens before that row do not depend on
    it, and the text ends there.

    Source: Sun et al. 2024 (arXiv 2403.10444), Eqs. 3 and 4.
    """
    num_draft = len(draft_tokens)
    weights, accept = np.zeros(num_draft + 1), np.zeros(num_draft)
    weights[0] = 1.0
    target_probs = np.where(np.isnan(target_probs[:num_draft]), draft_probs, target_probs[:num_draft])
    for i, token in enumerate(draft_tokens):
        if draft_probs[i, token] <= 0:
            raise ValueError(f"draft_probs: found 0 at draft token {i}, expected a distribution it came from")
        if weights[i] > 0:
            with np.errstate(over="ignore"):
                weights[i + 1] = min(1.0, weights[i] * target_probs[i, token] / draft_probs[i, token])
    for i in range(1, num_draft):
        gained = np.maximum(weights[i] * target_probs[i] - draft_probs[i], 0.0).sum() if weights[i] > 0 else 0.0
        accept[i - 1] = 1.0 if weights[i] == 1 else gained / (gained + 1.0 - weights[i])
    accept[-1:] = weights[-1:]
    return weights, accept


def verify_match(
    target_probs: Probs,  # [K+1, V], or [K, V] where the last draft ends the text
    draft_probs: Probs,  # [K, V]
    draft_tokens: Tokens,  # [K]
    draws: UniformRow,
) -> Verification:
    """Draw each token from the target and go on while the draw equals the draft.

    accept[i] = target_probs[i, x_i]

    Every token emitted is the target's own draw, so the distribution is kept for any draft; the drafts only decide how
    many rows of the pass are used. The acceptance is never above the token rule's, whose draft distribution it does not
    need: the control that a cleverer rule must beat.

    Source: the rule of Stern et al. 2018 (arXiv 1811.03115), Sec. 3, with draws in place of likeliest tokens.
    """
    accept = target_probs[np.arange(len(draft_tokens)), draft_tokens]
    for i, draft_token in enumerate(draft_tokens):
        token = draws.token("accept", target_probs[i], i)
        if token != draft_token:
            return Verification(i, token, accept)
    return _all_accepted(target_probs, draft_tokens, draws, accept)


def _all_accepted(
    target_probs: Probs,  # [K+1, V], or [K, V] where the last draft ends the text
    draft_tokens: Tokens,  # [K]
    draws: UniformRow,
    accept: Probs,  # [K]
) -> Verification:
    """Draw the bonus token after drafts that were all accepted, if the text goes on there."""
    has_bonus_row = len(target_probs) > len(draft_tokens)
    bonus_token = draws.token("final", target_probs[-1]) if has_bonus_row else None
    return Verification(len(draft_tokens), bonus_token, accept)


VerifyRule = Callable[[Probs, Probs, Tokens, UniformRow], Verification]
RULES: dict[str, VerifyRule] = {"token": verify_token, "block": verify_block, "match": verify_match}
