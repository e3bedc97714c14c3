"""Speculative samplers of other makes, run as they are: their distribution is the target's, or is seen not to be."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from transformers.generation.utils import _speculative_sampling

from pass_sampling.gpu.exactness.torch_draws import torch_random
from pass_sampling.reference.exactness.distribution import OutputDistribution
from pass_sampling.reference.exactness.program import numpy_random, program_distribution

VOCAB = 3
DRAFTS = 2
EXACT = 1e-12  # sums of some hundred products of numbers in [0, 1], each wrong by a few times 2^-53

Array = np.ndarray
Rows = dict[tuple[int, ...], Array]


def distributions(seed: int) -> Rows:
    """Return a different distribution after every text of up to two tokens; in some of them a token is impossible."""
    generator = np.random.default_rng(seed)
    rows = {}
    for text in [(), *((one,) for one in range(VOCAB)), *np.ndindex(VOCAB, VOCAB)]:
        row = generator.dirichlet(np.ones(VOCAB))
        if sum(text) % 3 == 2:
            row[generator.integers(VOCAB)] = 0.0
        rows[tuple(map(int, text))] = row / row.sum()
    return rows


def deviation(distribution: OutputDistribution, target: Rows) -> float:
    """Return the largest difference from the target, over first tokens; shorter texts are continued by the target."""
    largest = 0.0
    for length in (1, 2, 3):
        found = dict.fromkeys(np.ndindex(*[VOCAB] * length), 0.0)
        todo = list(distribution.probs.items())
        while todo:
            text, prob = todo.pop()
            if len(text) >= length:
                found[text[:length]] += prob
            else:
                todo += [((*text, token), prob * float(share)) for token, share in enumerate(target[text])]
        for text, prob in found.items():
            largest = max(largest, abs(prob - math.prod(target[text[:i]][token] for i, token in enumerate(text))))
    return largest


def distribution_of(program: Callable[[], Any]) -> OutputDistribution:
    return program_distribution(program, replace=[torch_random, numpy_random])


# --- transformers ---


def hugging_face(target: Rows, draft: Rows, **options: Any) -> Callable[[], tuple[int, ...]]:
    """Return a program: drafts by torch.multinomial, then transformers' own verification, unchanged."""

    def logits(rows: Rows, texts: list[tuple[int, ...]]) -> torch.Tensor:
        return torch.from_numpy(np.stack([rows[text] for text in texts])).log()[None]

    def program() -> tuple[int, ...]:
        text: tuple[int, ...] = ()
        for _ in range(DRAFTS):
            text = (*text, int(torch.multinomial(torch.from_numpy(draft[text]), 1)))
        texts = [text[:place] for place in range(DRAFTS + 1)]
        tokens, matches = _speculative_sampling(
            torch.tensor([[0, *text]]), logits(draft, texts[:-1]), DRAFTS, logits(target, texts), **options
        )
        assert tokens.shape == (1, int(matches) + 1)
        return tuple(tokens[0].tolist())

    return program


# --- A loop in NumPy ---


def chen(
    target: Rows,
    draft: Rows,
    accept: Callable[[Any, float, float], Any] = lambda uniform, p, q: uniform < min(1.0, p / q),
    residual: Callable[[Array, Array], Array] = lambda p, q: np.maximum(p - q, 0.0),
) -> Callable[[], Any]:
    """Return a program in the manner of the tutorials.

    Source: Chen et al. 2023 (arXiv 2302.01318), Algorithm 2.
    """

    def program() -> Any:
        rng = np.random.default_rng(0)
        text: list[int] = []
        for _ in range(DRAFTS):
            text.append(int(rng.choice(VOCAB, p=draft[tuple(text)])))
        output: list[int] = []
        for place, token in enumerate(text):
            p, q = target[tuple(text[:place])], draft[tuple(text[:place])]
            if accept(rng.random(), p[token], q[token]):
                output.append(token)
            else:
                rest = residual(p, q)
                output.append(int(rng.choice(VOCAB, p=rest / rest.sum())))
                return tuple(output), {"accepted": place}
        output.append(int(np.searchsorted(np.cumsum(target[tuple(text)])[:-1], rng.random(), side="right")))
        return tuple(output), {"accepted": DRAFTS}

    return program


MISTAKES: dict[str, dict[str, Any]] = {
    "accepts where the uniform is above": {"accept": lambda uniform, p, q: uniform >= p / q},
    "accepts by the target's probability": {"accept": lambda uniform, p, q: uniform < p},
    "accepts by the inverse ratio": {"accept": lambda uniform, p, q: uniform < q / max(p, 1e-9)},
    "accepts too much": {"accept": lambda uniform, p, q: 0.9 * uniform < p / q},
    "accepts too little": {"accept": lambda uniform, p, q: uniform * q < p - 0.01},
    "accepts by a squared ratio": {"accept": lambda uniform, p, q: uniform <= (p / q) ** 2},
    "draws again from the target": {"residual": lambda p, q: p},
    "takes the absolute difference": {"residual": lambda p, q: abs(p - q)},
    "takes the difference the wrong way round": {"residual": lambda p, q: np.maximum(q - p, 0.0)},
    "clips at a positive number": {"residual": lambda p, q: np.maximum(p - q, 1e-3)},
}


@pytest.mark.parametrize("mistake", MISTAKES.values(), ids=MISTAKES)
def test_a_loop_with_a_mistake_has_another_distribution(mistake: dict[str, Any]) -> None:
    target, draft = distributions(1), distributions(101)
    assert deviation(distribution_of(chen(target, draft, **mistake)), target) > 1e-4


def test_a_residual_that_is_not_clipped_is_refused_because_it_is_no_distribution() -> None:
    message = r"^draw \d+, probability \d: found -?(\d|inf|nan).*expected a number of at least"
    with pytest.raises(ValueError, match=message):
        distribution_of(chen(distributions(1), distributions(101), residual=lambda p, q: p - q + 1e-3))


# --- gpt-fast ---


def multinomial_sample_one_no_sync(probs: torch.Tensor) -> torch.Tensor:
    """Draw a token without waiting for the device, by exponential noise, as gpt-fast does."""
    noise = torch.empty_like(probs).exponential_(1)
    return torch.argmax(probs / noise, dim=-1, keepdim=True).to(dtype=torch.int)


def gpt_fast(target: Rows, draft: Rows) -> Callable[[], tuple[int, ...]]:
    """Return a program in the manner of gpt-fast's speculative_decode."""

    def program() -> tuple[int, ...]:
        text: tuple[int, ...] = ()
        for _ in range(DRAFTS):
            text = (*text, int(multinomial_sample_one_no_sync(torch.from_numpy(draft[text]))))
        draft_probs = torch.from_numpy(np.stack([draft[text[:place]] for place in range(DRAFTS)]))
        target_probs = torch.from_numpy(np.stack([target[text[:place]] for place in range(DRAFTS + 1)]))
        p = draft_probs[torch.arange(DRAFTS), list(text)]
        q = target_probs[torch.arange(DRAFTS), list(text)]
        accept_draft_prob = torch.minimum(torch.ones(()), q[:DRAFTS] / p)
        rejected_locations = (torch.rand_like(accept_draft_prob) > accept_draft_prob).nonzero()
        if rejected_locations.shape[0] == 0:
            return (*text, int(multinomial_sample_one_no_sync(target_probs[-1])))
        accept_length = int(rejected_locations[0].item())
        new = target_probs[accept_length] - draft_probs[accept_length]
        new = torch.where(new > 0, new, 0.0)
        return (*text[:accept_length], int(multinomial_sample_one_no_sync(new / new.sum())))

    return program


seeds = pytest.mark.parametrize("seed", range(4))


@seeds
@pytest.mark.parametrize("sampler", [hugging_face, chen, gpt_fast])
def test_a_sampler_of_another_make_has_the_targets_distribution(sampler: Any, seed: int) -> None:
    target, draft = distributions(seed), distributions(seed + 100)
    found = distribution_of(sampler(target, draft))
    assert found.executions > 20 and {len(text) for text in found} == {1, 2, 3}
    assert deviation(found, target) <= EXACT
    if found.expected:  # of the loop that counts accepted drafts
        overlap = {text: float(np.minimum(target[text], draft[text]).sum()) for text in target}
        both = sum(min(target[()][x], draft[()][x]) * (1 + overlap[x,]) for x in range(VOCAB))
        assert abs(found.expected["accepted"] - both) <= EXACT


@seeds
def test_transformers_ensemble_verification_deviates_from_the_targets_distribution(seed: int) -> None:
    """Its documentation says so: the bias is the price of more acceptances."""
    target, draft = distributions(seed), distributions(seed + 100)
    assert deviation(distribution_of(hugging_face(target, draft, assistant_ensemble_weight=0.5)), target) > 1e-3
