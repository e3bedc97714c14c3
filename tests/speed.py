"""Measure decoding speed against transformers' generate, in paired, alternating runs; prints JSON.

    python tests/speed.py --dtype bfloat16 --device cpu --repeats 7

The model is a random Llama of about 8M parameters (6 layers, width 320, vocabulary 4,096), so the text means nothing
and drafts are rarely accepted: what is measured is the cost of a pass and of everything around it.
"""

import argparse
import json
import os
import platform
import statistics
import time
from collections.abc import Callable
from typing import Any

WIDTH, LAYERS, VOCABULARY, PROMPT, NEW_TOKENS = 320, 6, 4096, 32, 128


def measure(
    dtype: str = "bfloat16", device: str = "cpu", repeats: int = 7, new_tokens: int = NEW_TOKENS
) -> dict[str, Any]:
    """Return medians and paired ratios to transformers for plain decoding, PaSS and the NumPy reference."""
    import numpy as np
    import torch
    import transformers

    import pass_sampling.gpu as port
    import pass_sampling.reference as reference

    prompt = list(range(1, PROMPT + 1))
    settings = {"temperature": 0.8, "top_k": 10}
    config = dict(
        vocab_size=VOCABULARY,
        hidden_size=WIDTH,
        intermediate_size=3 * WIDTH,
        num_hidden_layers=LAYERS,
        num_attention_heads=8,
        num_key_value_heads=4,
        head_dim=WIDTH // 8,
        max_position_embeddings=2048,
        tie_word_embeddings=True,
    )
    torch.manual_seed(0)
    peer = transformers.LlamaForCausalLM(transformers.LlamaConfig(**config)).eval().to(device, getattr(torch, dtype))
    shape = port.ModelConfig(**config)
    model = port.Transformer(shape, port.Weights.random(shape, 0, getattr(torch, dtype), device))
    small = reference.ModelConfig(**config)
    specification = reference.Transformer(small, reference.Weights.random(small, 0, np.float32))
    sampling = port.SamplingConfig(**settings)
    plain = port.Autoregressive(model, sampling)
    lookahead = port.PaSS(model, port.LookAhead.random(4, WIDTH, 0), sampling)
    numpy_plain = reference.Autoregressive(specification, reference.SamplingConfig(**settings))
    ids = torch.tensor([prompt], device=device)

    def run_peer() -> None:
        peer.generate(
            ids,
            attention_mask=torch.ones_like(ids),
            max_new_tokens=new_tokens,
            min_new_tokens=new_tokens,
            do_sample=True,
            pad_token_id=0,
            **settings,
        )

    passes: dict[str, int] = {}

    def runner(name: str, package: Any, method: Any) -> Callable[[], None]:
        def run() -> None:
            result = package.generate(method, prompt, new_tokens, eos_token_ids=())
            passes[name] = result.num_forward_passes
            assert len(result.tokens) == new_tokens

        return run

    runs = {
        "transformers generate": run_peer,
        "gpu autoregressive": runner("gpu autoregressive", port, plain),
        "gpu PaSS, random vectors": runner("gpu PaSS, random vectors", port, lookahead),
        "reference autoregressive, float32": runner("reference autoregressive, float32", reference, numpy_plain),
    }
    for run in runs.values():
        run()
    seconds = {name: [] for name in runs}
    for _ in range(repeats):
        for name, run in runs.items():
            start = time.perf_counter()
            run()
            if device != "cpu":
                torch.cuda.synchronize()
            seconds[name].append(time.perf_counter() - start)
    baseline = seconds["transformers generate"]
    rows = [
        {
            "method": name,
            "tokens_per_second": round(new_tokens / statistics.median(values), 1),
            "spread": [round(new_tokens / max(values), 1), round(new_tokens / min(values), 1)],
            "ratio_to_transformers": round(statistics.median(b / v for b, v in zip(baseline, values, strict=True)), 3),
            "num_forward_passes": passes.get(name, new_tokens),
        }
        for name, values in seconds.items()
    ]
    versions = {"python": platform.python_version(), "torch": torch.__version__, "numpy": np.__version__}
    return {
        "machine": f"{platform.machine()}, {os.cpu_count()} cores, {torch.get_num_threads()} threads, {device}",
        "versions": versions | {"transformers": transformers.__version__},
        "settings": {"dtype": dtype, "prompt": PROMPT, "new_tokens": new_tokens, "repeats": repeats, **settings},
        "parameters": sum(p.numel() for p in peer.parameters()),
        "rows": rows,
    }


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dtype", default="bfloat16", choices=["float64", "float32", "bfloat16", "float16"])
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--new-tokens", type=int, default=NEW_TOKENS)
    arguments = parser.parse_args()
    result = measure(arguments.dtype, arguments.device, arguments.repeats, arguments.new_tokens)
    print(json.dumps(result, indent=2))
