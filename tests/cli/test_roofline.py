"""`pass-sampling bench --shape`: what it says of memory, and that it ends at toy size with all of its figures."""

from __future__ import annotations

import pytest

from console import read_strictly, run

pytestmark = pytest.mark.torch
FIGURES = """machine versions shape dtype gigabytes_per_second weights_gigabytes milliseconds_per_pass times_one_row
of_the_limit tokens_per_second overhead transformers times_transformers""".split()


def test_it_ends_at_toy_size_with_every_figure(capsys):
    assert run("bench", "--shape", "tiny", "--repeats", 1, "--json") == 0
    found = read_strictly(capsys.readouterr().out)
    assert list(found) == FIGURES and found["shape"] == "tiny" and found["dtype"] == "bfloat16"
    passes = {int(rows): each for rows, each in found["milliseconds_per_pass"].items()}
    assert list(passes) == [1, 2, 5, 9, 16, 25, 32, 64, 128] and all(each > 0 for each in passes.values())
    assert found["overhead"] < 1 and 0 < found["of_the_limit"] and found["transformers"].keys() == {"eager"}
    assert run("bench", "--shape", "tiny", "--repeats", 1) == 0
    assert "of the memory's speed" in capsys.readouterr().out


@pytest.mark.parametrize("shape", ["1b", "7b"])
def test_the_shapes_are_those_of_known_models(shape):
    """In bfloat16: 1.24 and 6.74 billion parameters."""
    import torch

    from pass_sampling.gpu.bench.roofline import SHAPES
    from pass_sampling.gpu.model.memory import memory_of

    needed = memory_of(SHAPES[shape], torch.bfloat16, 1024, 512)
    assert needed.weights / 2e9 == pytest.approx({"1b": 1.236, "7b": 6.738}[shape], abs=0.001)
    assert needed.cache == {"1b": 2 * 16 * 8 * 64 * 1024 * 2, "7b": 2 * 32 * 32 * 128 * 1024 * 2}[shape]


def test_memory_is_asked_for_as_much_as_is_allocated():
    import torch

    from pass_sampling.gpu.bench.roofline import SHAPES, random_model
    from pass_sampling.gpu.model.memory import memory_of

    model = random_model(SHAPES["tiny"], torch.float32, torch.device("cpu"))
    cache = model.new_cache(100)
    needed = memory_of(SHAPES["tiny"], torch.float32, 100, 1)
    assert needed.cache == cache.keys.nbytes + cache.values.nbytes
    tensors = [model.weights.embedding, model.weights.norm]
    tensors += [each for layer in model.weights.layers for each in vars(layer).values() if each is not None]
    assert needed.weights == sum(tensor.nbytes for tensor in tensors)


def test_what_does_not_fit_is_refused_before_anything_is_allocated():
    import torch

    from pass_sampling.gpu.model.memory import Memory, check_memory

    with pytest.raises(ValueError, match=r"^memory: found .* GB free on cpu, expected 1003000.0: 1000000.0 of"):
        check_memory(Memory(10**15, 2 * 10**12, 10**12), torch.device("cpu"))
