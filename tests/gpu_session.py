"""Everything that waits for a GPU, in one run: what is most worth knowing first, a short table last.

    python tests/gpu_session.py --out results
    python tests/gpu_session.py --out results --small --device cpu      the same at toy size, to see that it works

Each step is a process of its own with a time limit; a step that fails or runs out of time does not stop the next. Its
output goes to `results/NAME.log`, what came of it to `results/summary.json`. No network is needed. Where the package is
not installed, it is, without its dependencies. With `--only` some of the steps run, for a machine that is at hand for
some minutes at a time; the last five make a larger model, and take 25 minutes.
"""

import argparse
import importlib.util
import json
import os
import subprocess
import sys
import sysconfig
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
COMMAND = [sys.executable, "-m", "pass_sampling.gpu"]


def steps(device: str, small: bool, out: Path) -> list[tuple[str, list[str], float]]:
    """Return name, command and time limit in seconds of every step, in order."""
    on = ["--device", device, "--json"]
    quick = ["--repeats", "1"] if small else []
    found: list[tuple[str, list[str], float]] = [
        (
            "tests",
            [sys.executable, "-m", "pytest", "-q", *(["tests/heart/test_uniforms.py"] if small else ["-m", "gpu"])],
            480,
        )
    ]
    for shape in ("tiny",) if small else ("1b", "7b"):
        found.append(
            (f"shape-{shape}", [sys.executable, "tests/roofline.py", "--shape", shape, "--device", device, *quick], 300)
        )
    found.append(("bench", [*COMMAND, "bench", *on, *(["--quick", "--repeats", "1"] if small else [])], 400))
    found.append(("speed", [sys.executable, "tests/speed.py", "--device", device, *quick], 180))
    for dtype in ("bfloat16",) if small else ("bfloat16", "float16", "float32"):
        box = [*COMMAND, "verify", "--model", str(ROOT / "gpu/checkpoints/python-8m"), "--dtype", dtype]
        found.append((f"verify-{dtype}", [*box, *on, "--seconds", "1" if small else "20"], 120))
    return found + larger_model(on, small, out)


def larger_model(on: list[str], small: bool, out: Path) -> list[tuple[str, list[str], float]]:
    """Return the steps that train a model of 300M parameters on the Python code of the machine, and all that drafts."""
    model, vectors, ngram = out / "python-300m", out / "python-300m-lookahead", out / "python-300m-ngram"
    text = ["--text", str(ROOT / "gpu") if small else sysconfig.get_paths()["purelib"], sysconfig.get_paths()["stdlib"]]
    text = [*text[:2]] if small else text
    sizes = "--layers 24 --hidden-size 1024 --intermediate-size 2816 --heads 16 --kv-heads 4 --vocab-size 8192".split()
    steps = "--steps 1500 --batch-size 64 --context 512 --compile".split()
    parts = "--num-lookahead 6 --adapter-rank 32 --head-width 1024 --depth-decay 0.9 --learning-rate 0.03".split()
    learning = "--steps 1500 --batch-size 16 --anchors 48".split()
    if small:
        sizes = "--layers 1 --hidden-size 20 --intermediate-size 24 --heads 2 --kv-heads 1 --vocab-size 400".split()
        steps = "--steps 6 --batch-size 4 --context 64".split()
        parts = "--num-lookahead 2 --adapter-rank 2 --head-width 8".split()
        learning = "--steps 4 --batch-size 2 --context 64 --anchors 8".split()
    own = ["--model", str(model)]
    drafts = ["--lookahead", str(vectors), "--ngram", str(ngram)]
    after = [*own, *drafts, *on, *(["--quick", "--repeats", "1", "--max-new-tokens", "8"] if small else [])]
    return [
        ("pretrain", [*COMMAND, "pretrain", "--output", str(model), *on, *sizes, *steps, *text], 580),
        ("train", [*COMMAND, "train", *own, "--output", str(vectors), *on, *parts, *learning, *text], 480),
        ("ngram", [*COMMAND, "ngram", *own, "--output", str(ngram), "--json", *text], 200),
        ("bench-new", [*COMMAND, "bench", *after], 400),
        ("bench-new-greedy", [*COMMAND, "bench", *after, "--temperature", "0"], 400),
    ]


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
