"""--compile: methods whose steps are compiled for this processor."""

from __future__ import annotations

import argparse
import sys
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ..methods import Method

__all__ = ["add_compile", "check_compile", "compiled_if_asked", "said_before_compiling"]


def add_compile(parser: argparse.ArgumentParser) -> None:
    """Add --compile."""
    parser.add_argument(
        "--compile",
        action="store_true",
        help="compile the step for this CPU, for a minute or two the first time, and keep it: the same law, two "
        "to four times as fast for small models; needs a C++ compiler",
    )


def check_compile(arguments: argparse.Namespace) -> None:
    """Refuse what cannot be compiled, before anything is loaded.

    Raises:
        ValueError: there is no compiler, a device is asked for on which steps are captured, or what is asked for
            needs the host in every step.
    """
    from ..compiling.compilers import COMPILERS, has_compiler

    if not arguments.compile:
        return
    if not arguments.device.startswith("cpu"):
        raise ValueError(f"--compile: found --device {arguments.device}, expected cpu")
    if arguments.candidates is not None:
        raise ValueError(f"--compile: found --candidates {arguments.candidates}, expected a chain of drafts")
    if getattr(arguments, "stop_strings", None):
        raise ValueError("--compile: found --stop, for which the host looks at every token, expected one of them")
    if not has_compiler():
        raise ValueError(f"--compile: found no C++ compiler, expected one of {', '.join(COMPILERS)}")


def compiled_if_asked(arguments: argparse.Namespace, method: Method) -> Method:
    """Return the method, compiled if that was asked for.

    Raises:
        ValueError: a plan says that it drafts a tree.
    """
    from ..compiled import Compiled
    from ..methods import Candidates, FusedCandidates

    if not arguments.compile:
        return method
    if isinstance(method, Candidates | FusedCandidates):
        raise ValueError("--compile: found a plan with a tree of candidates, expected --method, or another --plan")
    return Compiled(method, report=None if arguments.json else said_before_compiling)


def said_before_compiling(what: str) -> None:
    """Say what is compiled: it takes a while."""
    print(f"compiling {what}, once for this model and machine: a minute or two", file=sys.stderr, flush=True)
