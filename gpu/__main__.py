"""The command line: `pass-sampling`, or `python -m pass_sampling.gpu`."""

from __future__ import annotations

import argparse
import contextlib
import inspect
import os
import re
import sys
from collections.abc import Sequence
from importlib import import_module
from importlib.metadata import version
from typing import Any, NoReturn

from .cli.commands import COMMANDS, HOMES
from .cli.options import add_arguments, options_from

DESCRIPTION = """One frozen language model drafts several tokens at once from a few trained look-ahead vectors,
verifies them itself, and keeps exactly its output distribution."""
EPILOG = """examples:
  pass-sampling demo                                   watch the bundled small model write Python
  pass-sampling generate --prompt 'def main():'        continue a text
  pass-sampling train --model FOLDER --text FILES --output VECTORS
                                                       train look-ahead vectors for your model
  pass-sampling bench                                  compare all ways of decoding, and transformers

pass-sampling COMMAND --help describes a command"""
EXTRA = ("torch", "transformers", "tokenizers", "huggingface_hub", "tqdm")  # what the gpu extra installs
NO_MEMORY = re.compile("out of memory|allocate memory|not enough memory")
BAD_INPUT, INTERRUPTED = 2, 130


class Parser(argparse.ArgumentParser):
    """A parser that takes whole flags only, and reports an error in one sentence."""

    def __init__(self, **settings: Any):
        super().__init__(formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False, **settings)

    def error(self, message: str) -> NoReturn:
        """Print the complaint and leave."""
        self.exit(_complain(self.prog, f"{message}; see {self.prog} --help"))

    def print_help(self, file: Any = None) -> None:
        """Print the help text, and fail where that fails."""
        (file or sys.stdout).write(self.format_help())

    def flagged(self, message: str) -> str:
        """Return a complaint about an argument of the package, "top_k: found ...", with the flag in its place."""
        name, found, rest = message.partition(": found ")
        flags = [action.option_strings[-1] for action in self._actions if name == action.dest and action.option_strings]
        return flags[0] + found + rest if flags and found else message


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command and return its exit status: 0, 2 for bad input, 130 if interrupted."""
    _mend_streams()
    try:
        status = _run(argv)
        sys.stdout.flush()
        return status
    except (KeyboardInterrupt, OSError) as error:  # what is on its way to standard output is dropped
        with contextlib.suppress(OSError, ValueError):  # it may be no file
            nowhere = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nowhere, sys.stdout.fileno())
            os.close(nowhere)
        if isinstance(error, KeyboardInterrupt | BrokenPipeError):  # whoever read the output has seen enough
            return INTERRUPTED if isinstance(error, KeyboardInterrupt) else 0
        reason = error.strerror or error
        return _complain("pass-sampling", f"standard output cannot be written ({reason}), expected room for the result")


def _run(argv: Sequence[str] | None) -> int:
    """Run a command; turn its errors, but not those of standard output, into one sentence and a status."""
    parser = Parser(prog="pass-sampling", description=DESCRIPTION, epilog=EPILOG)
    parser.add_argument("--version", action="version", version=f"%(prog)s {version('pass-sampling')}")
    commands = parser.add_subparsers(metavar="COMMAND", required=True)
    for name, kind in COMMANDS.items():
        description = inspect.cleandoc(kind.__doc__)
        command = commands.add_parser(name, help=re.split("[,;:.]", description)[0], description=description)
        add_arguments(command, kind)
        command.set_defaults(command=name, parser=command)
    try:
        arguments, unknown = parser.parse_known_args(argv)
        command, kind = arguments.parser, COMMANDS[arguments.command]
        if unknown:
            command.error(f"unrecognized arguments: {' '.join(unknown)}")
    except SystemExit as left:  # after a complaint, or after --help
        return int(left.code or 0)
    try:
        options = options_from(kind, arguments)
        home = HOMES.get(arguments.command, arguments.command)
        getattr(import_module(f"{__package__}.cli.{home}"), f"run_{arguments.command}")(options)
    except ModuleNotFoundError as error:
        missing = (error.name or "").partition(".")[0]
        if missing not in EXTRA:
            raise
        return _complain(command.prog, f"found no {missing}, expected it installed: pip install '.[gpu]'")
    except OSError as error:
        place = error.filename or getattr(arguments, "output", None)
        if error.errno is None:  # a sentence of this package
            return _complain(command.prog, str(error))
        if isinstance(error, BrokenPipeError) or place is None:  # standard output
            raise
        reason = error.strerror or type(error).__name__
        told = f"{os.fsdecode(place)} cannot be used ({reason}), expected a path that can be read or written"
        return _complain(command.prog, told)
    except ValueError as error:
        return _complain(command.prog, command.flagged(str(error)))
    except (MemoryError, RuntimeError) as error:
        if isinstance(error, RuntimeError) and not NO_MEMORY.search(str(error)):
            raise
        reason = str(error).partition("\n")[0][:200] or "MemoryError"
        return _complain(command.prog, f"found too little memory ({reason}), expected a smaller model, batch or length")
    return 0


def _complain(who: str, message: str) -> int:
    print(" ".join(f"{who}: {message}".split()), file=sys.stderr)
    return BAD_INPUT


def _mend_streams() -> None:
    """Replace streams that are closed; show characters that a stream cannot encode as escapes."""
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if stream is None:  # closed before Python began
            setattr(sys, name, open(os.devnull, "w", encoding="utf-8"))
        elif hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")


if __name__ == "__main__":
    sys.exit(main())
