"""The rules of verification: how many drafts are accepted, and which token follows them.

A rule takes drafts `x[0] .. x[K-1]`, their distributions, and the target's distributions after the prefix and each
draft. Its tokens are distributed as if each had been drawn from the target, whatever the draft distributions are.

Proof for the token rule, at one position and, given the tokens before it, at the next::

    P(x is accepted)        = draft(x) min(1, target(x) / draft(x)) = min(draft(x), target(x))
    P(rejection)            = 1 - sum(min(draft, target)) = sum(max(0, target - draft))
    P(x is the correction)  = P(rejection) residual(x) = max(0, target(x) - draft(x))
    P(x is emitted)         = min(draft(x), target(x)) + max(0, target(x) - draft(x)) = target(x)

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
    """The outcome of one verification; `final_token` is a bonus if all drafts were accepted, else a correction.

    If the last draft ends the text and all were accepted, the target has no row after it, and `final_token` is None.
    """

    num_accepted: int
    final_token: int | None
    accept_probs: Probs  # [K]


def accept_probs(
    target_probs: Probs,  # [K+1, V], or [K, V] where the last draft ends the text
    draft_probs: Probs,  # [K, V]
    draft_tokens: Tokens,  # [K]
) -> Probs:  # [K]
    """Return the probability with which each draft token is accepted, once it is reached.

    accept[i] = min(1, target_probs[i, x[i]] / draft_probs[i, x[i]])

    Raises:
        ValueError: a draft token has probability 0 under its draft distribution, so it was not drawn from it.

    Source: Chen et al. 2023 (arXiv 2302.01318), Algorithm 2; Leviathan et al. 2023 (arXiv 2211.17192), Algorithm 1.
    """
    draft = _drawn_probs(draft_probs, draft_tokens)
    with np.errstate(over="ignore"):  # a denormal draft probability can make the ratio inf, which is accepted as 1
        return np.minimum(1.0, target_probs[np.arange(len(draft_tokens)), draft_tokens] / draft)


def _drawn_probs(draft_probs: Probs, draft_tokens: Tokens) -> Probs:  # [K]
    """Return the draft probability of each draft, which must be above 0."""
    drawn = draft_probs[np.arange(len(draft_tokens)), draft_tokens]
    if np.any(drawn <= 0):
        place = int(np.argmin(drawn))
        raise ValueError(f"draft_probs: found 0 at draft token {place}, expected a distribution it came from")
    return drawn


def residual_probs(
    target_probs: Probs,  # [V]
    draft_probs: Probs,  # [V]
    weight: float = 1.0,
) -> Probs:  # [V]
    """Return the distribution of the token that replaces a rejected draft.

    residual = max(0, weight target_probs - draft_probs) / sum(max(0, weight target_probs - draft_probs))

    The residual of distributions that differ by rounding alone may be 0. A rejection is then itself a rounding event,
    of probability near 2^-53, and the target's row is returned.

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
    """Keep the longest run of drafts that their joint ratio allows, tried from the longest down.

    On average this accepts at least as many drafts as the token rule, and as many at temperature 0. A run may be kept
    because of its later tokens although the token rule would have rejected an earlier one.

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
    """Return the weight of every run of drafts, and the probability of keeping it once all longer ones are rejected.

    weight[0] = 1, weight[i+1] = min(1, weight[i] target_probs[i, x[i]] / draft_probs[i, x[i]])

    accept[i] = r / (r + 1 - weight[i]), r = sum(max(0, weight[i] target_probs[i] - draft_probs[i])); weight[K] for K

    The rows after a run of weight 0 are not used. A target row without a distribution (NaN) is replaced by the draft's.
    Any distribution would do: the tokens before that row do not depend on it, and the text ends there.

    Source: Sun et al. 2024 (arXiv 2403.10444), Eqs. 3 and 4.
    """
    num_draft = len(draft_tokens)
    weights, accept = np.zeros(num_draft + 1), np.zeros(num_draft)
    weights[0] = 1.0
    drawn = _drawn_probs(draft_probs, draft_tokens)
    target_probs = np.where(np.isnan(target_probs[:num_draft]), draft_probs, target_probs[:num_draft])
    for i, token in enumerate(draft_tokens):
        if weights[i] > 0:
            with np.errstate(over="ignore"):
                weights[i + 1] = min(1.0, weights[i] * target_probs[i, token] / drawn[i])
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
    """Draw each token from the target, and continue while the draw equals the draft.

    accept[i] = target_probs[i, x[i]]

    Every emitted token is drawn from the target, so the output is exact for any draft. The drafts only determine how
    many rows of the pass are used. The rule needs no draft distributions, and its acceptance is never above that of the
    token rule. It is the baseline for other rules.

    Source: the rule of Stern et al. 2018 (arXiv 1811.03115), Sec. 3, with draws in place of likeliest tokens.
    """
    accept = target_probs[np.arange(len(draft_tokens)), draft_tokens]
    for i, draft_token in enumerate(draft_tokens):
        token = draws.token("accept", target_probs[i], i)
        if token != draft_token:
            return Verification(i, token, accept)
    return _all_accepted(target_probs, draft_tokens, draws, accept)


def _all_accepted(target_probs: Probs, draft_tokens: Tokens, draws: UniformRow, accept: Probs) -> Verification:
    """Draw the bonus token after drafts that were all accepted, if the text continues there."""
    has_bonus_row = len(target_probs) > len(draft_tokens)
    bonus_token = draws.token("final", target_probs[-1]) if has_bonus_row else None
    return Verification(len(draft_tokens), bonus_token, accept)


VerifyRule = Callable[[Probs, Probs, Tokens, UniformRow], Verification]
RULES: dict[str, VerifyRule] = {"token": verify_token, "block": verify_block, "match": verify_match}
