"""The command line as a process: help without torch, interruption, pipes that close, its name."""

import argparse
import os
import shutil
import signal
import subprocess
import sys
from contextlib import contextmanager
from pathlib import Path

import pytest

from console import buffered
from folders import edit_json
from pass_sampling.gpu.cli.commands import COMMANDS
from pass_sampling.gpu.cli.options import add_arguments

posix = pytest.mark.skipif(os.name != "posix", reason="needs signals, pipes and descriptors as on POSIX")


@pytest.mark.parametrize("name", COMMANDS)
def test_every_flag_has_a_help_text_that_states_its_default(name):
    kind, parser = COMMANDS[name], argparse.ArgumentParser()
    add_arguments(parser, kind)
    for action in parser._actions:
        optional = not action.required and action.nargs != 0 and not action.dest.startswith("prompt")
        assert action.help and ("default: " in action.help or not optional), action
    assert f"pass-sampling {name}" in kind.__doc__


def test_help_and_complaints_need_no_torch():
    script = f"""
import sys
sys.modules["torch"] = sys.modules["transformers"] = None
from pass_sampling.gpu.__main__ import main
statuses = [main(argv) for argv in [["--help"], *([name, "--help"] for name in {tuple(COMMANDS)!r}), ["train"], []]]
print(statuses)
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, env=buffered())
    assert done.stdout.splitlines()[-1] == str([0] * (1 + len(COMMANDS)) + [2, 2]) and done.stderr.count("\n") == 2
    assert done.stdout.count("usage: ") == 1 + len(COMMANDS) and "examples:" in done.stdout


@contextmanager
def endless(box, tmp_path, *more):
    """Run a process that writes a text without an end."""
    model = shutil.copytree(box.model, tmp_path / "model")
    edit_json(model / "config.json", eos_token_id=..., bos_token_id=..., max_position_embeddings=2**20)
    command = [sys.executable, "-m", "pass_sampling.gpu", "generate", "--model", str(model), "--max-new-tokens"]
    with subprocess.Popen(
        [*command, "100000", "--method", "autoregressive", *more],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=buffered(),
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # tests in the background ignore it
    ) as process:
        yield process


@posix
@pytest.mark.parametrize("end", ["interrupt", "close"])
def test_a_long_text_can_be_interrupted_and_its_reader_may_leave(end, box, tmp_path):
    with endless(box, tmp_path, "--prompt", "def") as process:
        assert process.stdout.read(1)
        if end == "interrupt":
            process.send_signal(signal.SIGINT)
        else:
            process.stdout.close()
        assert process.stderr.read() == b""
        assert process.wait(timeout=60) == (130 if end == "interrupt" else 0)


@posix
def test_ctrl_c_ends_an_interactive_text_and_then_the_program(box, tmp_path):
    with endless(box, tmp_path, "--interactive") as process:
        process.stdin.write(b"def\n")
        process.stdin.flush()
        assert process.stdout.read(1)
        process.send_signal(signal.SIGINT)
        assert process.stderr.readline() == b"stopped; press Ctrl-C again to leave\n"
        process.send_signal(signal.SIGINT)
        assert process.wait(timeout=60) == 130
        assert process.stderr.read() == b""


@posix
def test_a_standard_output_that_was_closed_from_the_start_is_no_crash():
    command = f"{sys.executable} -m pass_sampling.gpu --help >&-"
    done = subprocess.run(["sh", "-c", command], capture_output=True, text=True, env=buffered())
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_the_command_is_installed_under_its_name():
    script = Path(sys.executable).with_name("pass-sampling" + (".exe" if os.name == "nt" else ""))
    if not script.exists():
        pytest.skip("the package is not installed beside this Python")
    done = subprocess.run([script, "dance"], capture_output=True, text=True, env=buffered())
    assert done.returncode == 2 and "'dance'" in done.stderr
