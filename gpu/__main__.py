"""The command line: `pass-sampling`, or `python -m pass_sampling.gpu`."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from importlib import import_module
from typing import NoReturn

__all__ = ["main"]

COMMANDS = ("demo", "generate", "train", "pretrain")
DESCRIPTION = """One frozen language model drafts several tokens at once from a few trained look-ahead vectors,
verifies them itself, and keeps exactly its output distribution."""
EPILOG = """to begin with:
  pass-sampling demo                                   watch the small model in the box write Python
  pass-sampling generate --prompt 'def main():'        continue a text
  pass-sampling train --model FOLDER --text FILES --output VECTORS
                                                       train look-ahead vectors for a model of your own
every command explains itself: pass-sampling COMMAND --help"""
BAD_INPUT, INTERRUPTED = 2, 130


class Parser(argparse.ArgumentParser):
    """A parser whose complaints are one sentence, as all of this program's are."""

    def error(self, message: str) -> NoReturn:
        """Print the complaint and leave."""
        self.exit(BAD_INPUT, f"{self.prog}: {message}; {self.prog} --help explains\n")


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command and return its exit status: 0, 2 for bad input, 130 if interrupted."""
    parser = Parser(
        prog="pass-sampling",
        description=DESCRIPTION,
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    commands = parser.add_subparsers(metavar="COMMAND", required=True)
    for name in COMMANDS:
        module = import_module(f"{__package__}.commands.{name}")
        command = commands.add_parser(
            name,
            help=module.HELP,
            description=module.__doc__,
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
        module.add_arguments(command)
        command.set_defaults(run=module.run, command=name)
    arguments = parser.parse_args(argv)
    try:
        arguments.run(arguments)
        sys.stdout.flush()
    except KeyboardInterrupt:
        return INTERRUPTED
    except BrokenPipeError:  # whoever read the output has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except ModuleNotFoundError as error:
        missing = (error.name or "").partition(".")[0]
        if missing not in ("torch", "transformers", "tokenizers", "tqdm", "pass_sampling"):
            raise
        return _complain(arguments.command, f"found no {missing}, expected it installed: pip install '.[gpu]'")
    except (ValueError, OSError) as error:
        return _complain(arguments.command, str(error))
    return 0


def _complain(command: str, message: str) -> int:
    line = " ".join(message.split())
    print(f"pass-sampling {command}: {line}", file=sys.stderr)
    return BAD_INPUT


if __name__ == "__main__":
    sys.exit(main())
