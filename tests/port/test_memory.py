"""A model, a cache or a pass that does not fit into the free memory is refused by name before it is allocated."""

from typing import Any

import pytest

import pass_sampling.gpu as port
from console import run
from models import TINY, transformer
from pass_sampling.gpu.model import memory


@pytest.fixture
def little(monkeypatch: pytest.MonkeyPatch) -> Any:
    """So much memory is free, and everything is worth asking for."""

    def leave(free: int) -> None:
        monkeypatch.setattr(memory, "ALWAYS_FREE", 0)
        monkeypatch.setattr(memory, "free_memory", lambda device: free)
        monkeypatch.setattr("pass_sampling.gpu.model.transformer.LONG", 8)

    return leave


def test_weights_that_do_not_fit_are_not_loaded(little: Any, box: Any, capsys: pytest.CaptureFixture[str]) -> None:
    """And the process can load them when there is room again."""
    size = port.load_model(box.model).weights.embedding.nbytes
    little(size)
    with pytest.raises(ValueError, match=r"^memory: found 0\.0 GB free on cpu, expected 0\.0: 0\.0 of weights$"):
        port.load_model(box.model)
    assert run("generate", "--model", box.model, "--prompt", "def", "--max-new-tokens", 3) == 2
    assert "memory: found 0.0 GB free on cpu" in capsys.readouterr().err
    little(10**12)
    assert port.load_model(box.model).weights.embedding.nbytes == size


def test_a_cache_that_does_not_fit_is_named(little: Any) -> None:
    """For one text, for many, and for the rows of an engine."""
    method = port.Autoregressive(transformer(port, 4))
    cache = method.model.new_cache(40)
    little(cache.keys.nbytes + cache.values.nbytes)
    assert len(port.generate(method, [1, 2], 30, ()).tokens) == 30
    for start in (
        lambda: port.generate(method, [1, 2], 40, ()),
        lambda: port.generate_batch(method, [[1, 2]] * 5, 9, ()),
        lambda: port.Engine(method, port.Ending(9), num_rows=5, longest_prompt=4),
    ):
        with pytest.raises(ValueError, match=r"of cache$"):
            start()
    assert len(port.generate(method, [1, 2], 30, ()).tokens) == 30


def test_a_long_prompt_whose_pass_does_not_fit_is_named(little: Any) -> None:
    method = port.Autoregressive(transformer(port, 4, max_position_embeddings=400))
    little(50_000)
    assert len(port.generate(method, [1] * 20, 3, ()).tokens) == 3
    with pytest.raises(ValueError, match=r"of workspace$"):
        port.generate(method, [1] * 300, 3, ())


def test_what_is_asked_for_is_what_is_allocated() -> None:
    config = port.ModelConfig(**TINY)
    model = transformer(port, 4)
    cache = model.new_cache(30, 3)
    assert memory.cache_bytes(config, model.dtype, 30, 3) == cache.keys.nbytes + cache.values.nbytes
    assert memory.weight_bytes(config, model.dtype) == sum(tensor.nbytes for tensor in memory.tensors_of(model.weights))
