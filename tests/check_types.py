"""Check types with mypy: in a folder where both packages lie under the name by which they import each other."""

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]


def main() -> int:
    """Link the packages below build/types and run mypy there."""
    home = ROOT / "build" / "types" / "pass_sampling"
    home.mkdir(parents=True, exist_ok=True)
    for name in ("reference", "gpu"):
        link = home / name
        if not link.exists():
            os.symlink(ROOT / name, link, target_is_directory=True)
    command = [sys.executable, "-m", "mypy", "-p", "pass_sampling.reference", "-p", "pass_sampling.gpu", *sys.argv[1:]]
    return subprocess.run(command, cwd=ROOT, env=os.environ | {"MYPYPATH": str(home.parent)}).returncode


if __name__ == "__main__":
    sys.exit(main())
