"""The same uniforms through both packages: the same texts and records."""

from dataclasses import fields
from importlib import import_module
from typing import Any

import numpy as np

from pass_sampling.reference.exactness.cases import PROMPT, Configuration

PROMPTS = [PROMPT, (2,), (0, 1, 2, 1), (1,), (0, 0, 2, 1, 2, 0), (2, 1)]


def generations(case: Configuration, method: str, rule: str | None) -> list[list[Any]]:
    """Return a batch of texts by both packages: prompts of different lengths, each with uniforms of its own."""
    found = []
    for name in ("reference", "gpu"):
        package = import_module(f"pass_sampling.{name}")
        running, ending = case.method(package, method, rule), case.ending(package)
        limits = {"eos_token_ids": ending.eos_token_ids, "stop_strings": ending.stop_strings, "decode": ending.decode}
        found.append(package.generate_batch(running, PROMPTS, ending.max_new_tokens, seed=5, trace=True, **limits))
    return found


def assert_same(one: Any, other: Any) -> None:
    """Compare two generations: integers and strings exactly, probabilities to rounding."""
    assert one.tokens == other.tokens
    assert (one.prompt, one.end, one.text) == (other.prompt, other.end, other.text)
    assert len(one.records) == len(other.records)
    for left, right in zip(one.records, other.records, strict=True):
        for field in fields(left):
            mine, yours = getattr(left, field.name), getattr(right, field.name)
            if field.name == "choices":
                assert_same_choices(mine, yours)
            elif field.name.endswith("probs"):
                np.testing.assert_allclose(mine, yours, rtol=1e-9, atol=1e-12, err_msg=field.name)
            else:
                assert mine == yours, field.name


def assert_same_choices(mine: Any, yours: Any) -> None:
    """Compare what every uniform decided: the same outcomes, between the same edges but for rounding.

    The port draws a depth of a tree at once, so there the choices may come in another order.
    """
    assert (mine is None) == (yours is None)
    pairs = [sorted(choices or (), key=lambda choice: choice.column) for choices in (mine, yours)]
    for left, right in zip(*pairs, strict=True):
        assert (left.column, left.outcome) == (right.column, right.outcome)
        np.testing.assert_allclose(left.edges, right.edges, rtol=0, atol=1e-12)
