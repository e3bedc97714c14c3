"""Everything that waits for a GPU, in one run: what is most worth knowing first, a short table last.

    python tests/gpu_session.py --out results
    python tests/gpu_session.py --out results --small --device cpu      the same at toy size, to see that it works

Each step is a process of its own with a time limit; a step that fails or runs out of time does not stop the next. Its
output goes to `results/NAME.log`, what came of it to `results/summary.json`. No network is needed. Where the package is
not installed, it is, without its dependencies.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
COMMAND = [sys.executable, "-m", "pass_sampling.gpu"]
PASS_COST = """
import json, sys, time, torch
import pass_sampling.gpu as port
from pass_sampling.gpu.weights import allocate
device, small = sys.argv[1], sys.argv[2] == "1"
shapes = {"8M": dict(vocab_size=4096, hidden_size=320, intermediate_size=896, num_hidden_layers=6,
                     num_attention_heads=5, num_key_value_heads=1, head_dim=64),
          "1B": dict(vocab_size=128256, hidden_size=2048, intermediate_size=8192, num_hidden_layers=16,
                     num_attention_heads=32, num_key_value_heads=8, head_dim=64),
          "7B": dict(vocab_size=32000, hidden_size=4096, intermediate_size=11008, num_hidden_layers=32,
                     num_attention_heads=32, num_key_value_heads=32, head_dim=128)}
def wait():
    if device != "cpu": torch.cuda.synchronize()
found = {}
with torch.inference_mode():
    for name, shape in list(shapes.items())[: 1 if small else 3]:
        config = port.ModelConfig(**shape, max_position_embeddings=4096, tie_word_embeddings=name != "7B")
        weights = allocate(config, torch.bfloat16, device)
        for tensor in [weights.embedding, weights.norm, weights.output, *(t for l in weights.layers
                       for t in (l.attention_norm, l.query_key_value, l.output, l.mlp_norm, l.gate_up, l.down))]:
            tensor.normal_(0, 0.02)
        model = port.Transformer(config, weights)
        times = {}
        for rows in (1, 2, 5, 9, 25) if small else (1, 2, 5, 9, 16, 25, 32, 64, 128):
            cache = model.new_cache(512 + 2 * rows)
            model.hidden(model.embed([[1] * 512]), cache)
            inputs = model.embed([[1] * rows])
            each = []
            for _ in range(5 if small else 30):
                wait(); started = time.perf_counter()
                model.logits(model.hidden(inputs, cache)); wait()
                each.append(1000 * (time.perf_counter() - started))
                cache.truncate(torch.full_like(cache.lengths, 512)); cache.measure()
            times[rows] = sorted(each)[len(each) // 2]
        bytes_read = sum(t.numel() * t.element_size() for t in [weights.embedding, *(t for l in weights.layers
                         for t in (l.query_key_value, l.output, l.gate_up, l.down))])
        found[name] = {"milliseconds": times, "weights_gigabytes": bytes_read / 1e9,
                       "gigabytes_per_second_at_one_row": bytes_read / 1e6 / times[1]}
        del model, weights, cache
print(json.dumps(found, indent=1))
"""


def steps(device: str, small: bool, out: Path) -> list[tuple[str, list[str], float]]:
    """Return name, command and time limit in seconds of every step, in order."""
    model, vectors = out / "python-8m", out / "python-8m-lookahead"
    sizes = ["--steps", "6", "--layers", "1", "--hidden-size", "20", "--intermediate-size", "24", "--context", "64"]
    pretraining = [*sizes, "--batch-size", "4"] if small else ["--steps", "6000", "--batch-size", "32"]
    training = (
        ["--steps", "4", "--context", "64", "--anchors", "8"] if small else ["--steps", "3000", "--batch-size", "32"]
    )
    verify = ["--device", device, "--seconds", "1" if small else "20"]
    learn = ["--standard-library", "--held-out-list", str(ROOT / "gpu/checkpoints/held_out.txt"), "--device", device]
    found: list[tuple[str, list[str], float]] = [
        ("tests", [sys.executable, "-m", "pytest", "-q", *(["-k", "tape"] if small else ["-m", "gpu"])], 480),
        ("cost", [sys.executable, "-c", PASS_COST, device, str(int(small))], 180),
        ("speed", [sys.executable, "tests/speed.py", "--device", device, *(["--repeats", "1"] if small else [])], 180),
        ("demo", [*COMMAND, "demo", "--device", device, "--json", *(["--repeats", "1"] if small else [])], 120),
        ("demo-greedy", [*COMMAND, "demo", "--device", device, "--json", "--temperature", "0"], 120),
    ]
    for dtype in ("bfloat16",) if small else ("bfloat16", "float16", "float32"):
        box = [*COMMAND, "verify", "--model", str(ROOT / "gpu/checkpoints/python-8m"), "--dtype", dtype, "--json"]
        found.append((f"verify-{dtype}", [*box, *verify], 120))
    found.append(("pretrain", [*COMMAND, "pretrain", "--output", str(model), "--json", *pretraining, *learn], 560))
    found.append(
        (
            "train",
            [*COMMAND, "train", "--model", str(model), "--output", str(vectors), "--json", *training, *learn],
            400,
        )
    )
    after = ["--model", str(model), "--lookahead", str(vectors), "--device", device, "--json", "--max-new-tokens", "30"]
    found.append(("demo-new", [*COMMAND, "demo", *after], 120))
    return found


def install() -> None:
    """Make the package importable where it is not."""
    if importlib.util.find_spec("pass_sampling") is None:
        options = ["--no-deps", "--no-build-isolation", "--no-index", "--disable-pip-version-check", "-q"]
        subprocess.run([sys.executable, "-m", "pip", "install", *options, "-e", str(ROOT)], check=True)


def run(name: str, command: list[str], limit: float, out: Path) -> dict[str, Any]:
    """Run one step; return how it ended."""
    started = time.monotonic()
    environment = os.environ | {"PYTHONUNBUFFERED": "1", "HF_HUB_OFFLINE": "1"}
    with open(out / f"{name}.log", "w", encoding="utf-8") as log:
        try:
            done = subprocess.run(
                command, cwd=ROOT, stdout=log, stderr=log, timeout=limit, env=environment, check=False
            )
            ended = "done" if done.returncode == 0 else f"status {done.returncode}"
        except subprocess.TimeoutExpired:
            ended = f"stopped after {limit:.0f} s"
    lines = (out / f"{name}.log").read_text(encoding="utf-8", errors="replace").strip().splitlines()
    return {
        "step": name,
        "ended": ended,
        "seconds": round(time.monotonic() - started, 1),
        "last_line": (lines or [""])[-1],
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="folder for logs, results and what was trained")
    parser.add_argument("--device", default="cuda", help="cuda, or cpu to try it")
    parser.add_argument("--small", action="store_true", help="toy sizes")
    parser.add_argument("--only", nargs="+", default=[], metavar="STEP", help="some of the steps")
    arguments = parser.parse_args()
    arguments.out.mkdir(parents=True, exist_ok=True)
    install()
    results = []
    for name, command, limit in steps(arguments.device, arguments.small, arguments.out.resolve()):
        if arguments.only and name not in arguments.only:
            continue
        results.append(run(name, command, limit, arguments.out))
        (arguments.out / "summary.json").write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
        print(f"... {name}: {results[-1]['ended']}", flush=True)
    print(f"{'step':18}{'ended':22}{'seconds':>8}  last line")
    for result in results:
        print(f"{result['step']:18}{result['ended']:22}{result['seconds']:8}  {result['last_line'][:100]}")
    return int(any(result["ended"] != "done" for result in results))


if __name__ == "__main__":
    sys.exit(main())
