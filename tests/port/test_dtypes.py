"""Lower precision changes the target, not the exactness: the distribution is that of the rows computed."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest

import pass_sampling.reference as reference
from models import TINY, lookahead, package
from pass_sampling.reference.exactness.distribution import output_distribution

DTYPES = [("reference", "float64"), ("reference", "float32")]
DTYPES += [("gpu", dtype) for dtype in ("float64", "float32", "bfloat16", "float16")]
PROMPT = (1, 0)


def model_in(name: str, dtype: str, **changes: Any) -> tuple[Any, Any]:
    pkg = package(name)
    config = pkg.ModelConfig(**{**TINY, **changes})
    kind: Any = np.dtype(dtype) if pkg is reference else getattr(__import__("torch"), dtype)
    return pkg, pkg.Transformer(config, pkg.Weights.random(config, 3, kind))


@pytest.mark.parametrize(("name", "dtype"), DTYPES)
@pytest.mark.parametrize("rule", ["token", "block", "match"])
def test_the_distribution_stays_normalised_and_near_plain_decoding(name: str, dtype: str, rule: str) -> None:
    """Four tokens differ from plain decoding's by at most four rows' rounding.

    A row's total variation is at most the largest error of its logits: here 4 units in the last place of numbers
    below 4, which is what two passes of different heights through two layers may differ by.
    """
    pkg, model = model_in(name, dtype)
    ending = pkg.Ending(4)
    drafted = output_distribution(pkg.PaSS(model, lookahead(pkg, model), rule=rule), PROMPT, ending, batch=1)
    plain = output_distribution(pkg.Autoregressive(model), PROMPT, ending, batch=1)
    assert abs(sum(drafted.values()) - 1.0) <= 1e-12
    unit = {"float64": 2.0**-53, "float32": 2.0**-24, "bfloat16": 2.0**-8, "float16": 2.0**-11}[dtype]
    assert drafted.total_variation(plain) <= 4 * 4 * 4 * unit


@pytest.mark.parametrize(("name", "dtype"), DTYPES)
def test_a_generation_runs_and_its_record_is_finite(name: str, dtype: str) -> None:
    pkg, model = model_in(name, dtype, vocab_size=60, num_hidden_layers=3)
    for method in (
        pkg.Autoregressive(model, pkg.SamplingConfig(temperature=0.8, top_k=10)),
        pkg.PaSS(model, lookahead(pkg, model, 3), pkg.SamplingConfig(temperature=0.8, top_k=10, top_p=0.9)),
        pkg.PaSS(model, lookahead(pkg, model, 3), pkg.SamplingConfig(temperature=0.0), rule="match"),
    ):
        result = pkg.generate(method, [1, 2, 3], 40, seed=1)
        assert len(result.tokens) == 40
        assert all(math.isfinite(value) and value <= 0 for value in result.log_probs)
