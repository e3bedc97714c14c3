"""The speeds that the project promises on two CPU cores; `python -m pytest -m slow tests/repository/test_speed.py`."""

import pytest

pytestmark = [pytest.mark.slow, pytest.mark.torch]


def test_plain_decoding_beats_transformers_and_numpy_is_quick() -> None:
    from speed import measure

    rows = {row["method"]: row for row in measure("bfloat16", repeats=5)["rows"]}
    assert rows["gpu autoregressive"]["ratio_to_transformers"] >= 1.2, rows
    assert rows["reference autoregressive, float32"]["tokens_per_second"] >= 100, rows
