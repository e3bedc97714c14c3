"""What several tests of the enumeration share: distributions of programs, and of a table's fresh passes."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from pass_sampling.reference import SamplingConfig, probs_from_logits
from pass_sampling.reference.exactness.program import program_distribution

EXACT = 1e-15  # a probability: up to 4 lengths of intervals multiplied, each wrong by 2 roundings of 2^-53 of itself
TENTHS = (0, 0, 2, 2, 2, 2, 2, 3, 3, 3)  # tokens with the probabilities 0.2, 0.0, 0.5 and 0.3
DISTRIBUTION = (0.2, 0.0, 0.5, 0.3)


def distribution_of(program: Callable[[], Any], **options: Any) -> dict[Any, float]:
    """Return the exact distribution of what a program returns."""
    return dict(program_distribution(program, **options).probs)


def close(distribution: dict[Any, float], expected: dict[Any, float], tolerance: float = EXACT) -> bool:
    """Say whether two distributions are the same up to rounding."""
    keys = {*distribution, *expected}
    return all(abs(distribution.get(key, 0.0) - expected.get(key, 0.0)) <= tolerance for key in keys)


def assert_draws(draw: Callable[[], Any], **options: Any) -> None:
    """Assert that a draw has the distribution of `TENTHS`, of which up to 10 cells are added up."""
    assert close(distribution_of(lambda: int(draw()), **options), {0: 0.2, 2: 0.5, 3: 0.3}, 5 * EXACT)


def assert_refused(program: Callable[[], Any], message: str, **options: Any) -> None:
    """Assert that a program is refused in one line that begins with a message and says what was expected."""
    with pytest.raises(ValueError) as refusal:
        program_distribution(program, **options)
    told = str(refusal.value)
    assert told.startswith(message)
    assert "expected" in told and "\n" not in told


def distribution_after(model: Any, tokens: Any, num_lookahead: int = 0) -> np.ndarray:  # [V]
    """Return the distribution of one fresh pass after some tokens, and after look-ahead vectors after them."""
    inputs = np.concatenate([model.embed(tokens), model.lookahead().vectors[:num_lookahead]])
    row = model.logits(model.hidden(inputs, model.new_cache())[-1])
    return probs_from_logits(row, SamplingConfig())
