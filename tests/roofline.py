"""What passes cost on models of real shapes with random weights, against the time it takes to read the weights once.

    python tests/roofline.py --shape 1b --device cuda

The limit of a pass over few rows is memory traffic: every weight is read, and the cache. Whether text is good does not
matter for that, so nothing need be downloaded. It prints JSON.
"""

import argparse
import json
import statistics
from collections.abc import Callable
from typing import Any

import torch

from pass_sampling.gpu.bench.report import machine, versions
from pass_sampling.gpu.bench.runs import clock
from pass_sampling.gpu.generation import generate
from pass_sampling.gpu.methods import Autoregressive
from pass_sampling.gpu.model.memory import cache_bytes, check_memory, tensors_of, weight_bytes
from pass_sampling.gpu.model.precision import check_device
from pass_sampling.gpu.model.transformer import Transformer
from pass_sampling.gpu.model.weights import allocate
from pass_sampling.reference.config import SamplingConfig
from pass_sampling.reference.model.config import ModelConfig

CONTEXT = 512  # tokens that stand in the cache while passes are timed
NEW_TOKENS = 64
ROWS = (1, 2, 5, 9, 16, 25, 32, 64, 128)
_COMMON: dict[str, Any] = {"max_position_embeddings": 4096, "rms_norm_eps": 1e-5}
SHAPES = {
    "tiny": ModelConfig(512, 64, 192, 2, 4, 2, 16, tie_word_embeddings=True, **_COMMON),
    "1b": ModelConfig(128256, 2048, 8192, 16, 32, 8, 64, tie_word_embeddings=True, rope_theta=500000.0, **_COMMON),
    "7b": ModelConfig(32000, 4096, 11008, 32, 32, 32, 128, **_COMMON),
}
"""Like Llama-3.2-1B and Llama-2-7B; tiny is to try the benchmark itself."""


def random_model(config: ModelConfig, dtype: torch.dtype, device: torch.device) -> Transformer:
    """Make a model of random weights on a device."""
    weights = allocate(config, dtype, device)
    generator = torch.Generator(device).manual_seed(0)
    for tensor in tensors_of(weights):
        tensor.normal_(0.0, 0.02, generator=generator)
    for layer in weights.layers:
        layer.attention_norm.fill_(1.0)
        layer.mlp_norm.fill_(1.0)
    weights.norm.fill_(1.0)
    return Transformer(config, weights, name="random")


def bandwidth(device: torch.device, num_bytes: int = 2**30) -> float:
    """Return how many bytes per second are read: the sum of a large tensor, the best of several."""
    numbers = torch.ones(num_bytes // 4, dtype=torch.float32, device=device)
    times = [_seconds(numbers.sum, device) for _ in range(8)]
    return numbers.numel() * 4 / min(times)


@torch.inference_mode()
def measure_shape(
    config: ModelConfig,
    dtype: torch.dtype,
    device: torch.device,
    repeats: int = 5,
) -> dict[str, Any]:
    """Measure passes over 1 to 128 rows, plain decoding, and transformers' own.

    `of_the_limit` is the time to read weights and cache once, at the bandwidth measured, over the time of a pass over
    one row; `overhead` is the part of a token of plain decoding that is not such a pass. Raise ValueError if it does
    not fit into the memory that is free.
    """
    workspace = CONTEXT * (4 * dtype.itemsize + 16) * max(2 * config.intermediate_size, config.vocab_size)
    needed = {"weights": weight_bytes(config, dtype), "cache": cache_bytes(config, dtype, CONTEXT + 2 * max(ROWS))}
    check_memory(device, **needed, workspace=workspace)
    speed = bandwidth(device, min(2**30, 64 * needed["weights"]))
    model = random_model(config, dtype, device)
    passes = _passes(model, repeats)
    tokens = _plain(model, repeats)
    read = needed["weights"] - (0 if config.tie_word_embeddings else model.weights.embedding.nbytes)
    read += needed["cache"] * CONTEXT // (CONTEXT + 2 * max(ROWS))
    del model  # the next one takes as much room
    peers = _peers(config, dtype, device, repeats)
    one = passes[1] / 1000
    return {
        "gigabytes_per_second": speed / 1e9,
        "weights_gigabytes": needed["weights"] / 1e9,
        "milliseconds_per_pass": passes,
        "times_one_row": {rows: each / passes[1] for rows, each in passes.items()},
        "of_the_limit": read / speed / one,
        "tokens_per_second": tokens,
        "overhead": 1.0 - one * tokens,
        "transformers": peers,
        "times_transformers": {name: tokens / each for name, each in peers.items()},
    }


def _passes(model: Transformer, repeats: int) -> dict[int, float]:
    """Return the milliseconds of passes after a text that is in the cache."""
    cache = model.new_cache(CONTEXT + 2 * max(ROWS))
    model.hidden(model.embed([[1] * CONTEXT]), cache)
    length = cache.lengths
    times: dict[int, list[float]] = {rows: [] for rows in ROWS}
    for _ in range(2 * repeats + 1):
        for rows in ROWS:
            inputs = model.embed([[1] * rows])
            started = clock(model.device)
            model.logits(model.hidden(inputs, cache))
            times[rows].append(clock(model.device) - started)
            cache.truncate(length)
            cache.measure()
    return {rows: 1000 * statistics.median(each[1:]) for rows, each in times.items()}


def _plain(model: Transformer, repeats: int) -> float:
    """Return tokens per second of plain decoding after a prompt, which does not count."""
    method, prompt = Autoregressive(model, SamplingConfig(temperature=0.0)), [1] * CONTEXT
    times: list[float] = []
    rates = []
    for _ in range(repeats + 1):
        times.clear()
        generate(method, prompt, NEW_TOKENS, (), (), callback=lambda request, record: times.append(clock(model.device)))
        rates.append((len(times) - 1) / (times[-1] - times[0]))
    return statistics.median(rates[1:])


def _peers(config: ModelConfig, dtype: torch.dtype, device: torch.device, repeats: int) -> dict[str, float]:
    """Return tokens per second of transformers' `generate`, and on a GPU of what it compiles for a static cache."""
    from transformers import LlamaConfig, LlamaForCausalLM

    unlike = ("rope_theta", "rope_scaling", "attention_output_bias", "query_key_norm", "sliding_window")
    sizes = {name: value for name, value in vars(config).items() if name not in (*unlike, "sliding_layers")}
    with torch.inference_mode(False), torch.device(device):  # in its dtype from the beginning: it is never wider
        kind: Any = LlamaForCausalLM
        peer = kind._from_config(LlamaConfig(**sizes), dtype=dtype).eval()
    ways: dict[str, dict[str, Any]] = {"eager": {}}
    if device.type == "cuda":
        ways["compiled"] = {"cache_implementation": "static"}
    return {name: _generates(peer, device, repeats, settings) for name, settings in ways.items()}


def _generates(peer: Any, device: torch.device, repeats: int, settings: dict[str, Any]) -> float:
    """Return the tokens per second that a longer text takes more than a short one: the prompt does not count."""
    tokens = torch.ones((1, CONTEXT), dtype=torch.int64, device=device)
    fixed = {"attention_mask": torch.ones_like(tokens), "do_sample": False, "eos_token_id": None, "pad_token_id": 0}

    def write(count: int) -> float:
        return _seconds(lambda: peer.generate(tokens, max_new_tokens=count, **fixed, **settings), device)

    rates = []
    for _ in range(repeats + 1):
        short, long = write(4), write(4 + NEW_TOKENS)
        rates.append(NEW_TOKENS / max(long - short, 1e-9))
    return statistics.median(rates[1:])


def _seconds(run: Callable[[], Any], device: torch.device) -> float:
    started = clock(device)
    run()
    return clock(device) - started


def main() -> None:
    """Measure one shape and print every figure as JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", default="1b", choices=SHAPES)
    parser.add_argument("--dtype", default="bfloat16")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--repeats", type=int, default=5)
    asked = parser.parse_args()
    device = torch.device(check_device(asked.device))
    found = measure_shape(SHAPES[asked.shape], getattr(torch, asked.dtype), device, asked.repeats)
    about = {"machine": machine(device), "versions": versions(), "shape": asked.shape, "dtype": asked.dtype}
    print(json.dumps(about | found, indent=2, allow_nan=False))


if __name__ == "__main__":
    main()
