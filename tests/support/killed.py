"""Run a program in a process of its own and kill it, so that nothing in it can clean up."""

import os
import random
import subprocess
import sys
import time


def kill_at_random(program: str, *arguments: object, most: int) -> int:
    """Kill a program that prints a line per step somewhere in its first `most` steps; return the line it came to.

    It is killed at a random moment within the step, too; after a failure, the printed moment reproduces it roughly.
    """
    line, delay = random.SystemRandom().randint(1, most), random.SystemRandom().uniform(0.0, 0.02)
    print(f"killed {delay:.4f} s after line {line}")
    command = [sys.executable, "-c", program, *map(str, arguments)]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    with subprocess.Popen(command, stdout=subprocess.PIPE, env=environment, text=True) as process:
        assert process.stdout is not None
        try:
            for _ in range(line):
                assert process.stdout.readline(), "the program ended by itself"
            time.sleep(delay)
        finally:
            process.kill()
    return line
