"""Write docs/cli.md from the options of the command line: `python docs/make_cli.py`."""

import argparse
import inspect
import re
from pathlib import Path
from typing import Any

from pass_sampling.gpu.__main__ import Parser
from pass_sampling.gpu.cli.commands import COMMANDS
from pass_sampling.gpu.cli.options import add_arguments

PAGE = Path(__file__).resolve().parent / "cli.md"
BEGINNING = """# The command line

Every command of `pass-sampling`, with its options. `pass-sampling COMMAND --help` prints the same. The exit status is
0, 2 for bad input with one sentence on standard error, or 130 after Ctrl-C. `python docs/make_cli.py` writes this page.
"""


def page() -> str:
    """Return the page."""
    contents = "\n".join(f"- [`{name}`](#{name}): {_summary(kind)}" for name, kind in COMMANDS.items())
    return "\n".join([BEGINNING, contents, "", *(_command(name, kind) for name, kind in COMMANDS.items())])


def _summary(kind: Any) -> str:
    return re.split("[,;:.]", inspect.cleandoc(kind.__doc__))[0]


def _command(name: str, kind: Any) -> str:
    """Return the part of one command: its description, and a table of its options."""
    parser = Parser(prog=name, add_help=False)
    add_arguments(parser, kind)
    rows = [f"| {_name(action)} | {_text(action)} |" for action in parser._actions]
    return "\n".join([f"## {name}", "", _description(kind), "", "| option | what it does |", "|---|---|", *rows, ""])


def _description(kind: Any) -> str:
    """Return a description; lines that are indented are commands, and become blocks."""
    lines: list[str] = []
    for line in inspect.cleandoc(kind.__doc__).splitlines():
        is_code, was_code = line.startswith("  "), bool(lines) and lines[-1].startswith("    ")
        if is_code != was_code and line and lines and lines[-1]:
            lines.append("")
        lines.append(f"  {line}" if is_code else _marked(line))
    return "\n".join(lines)


def _name(action: argparse.Action) -> str:
    """Return an option and its value as they are written."""
    value = "{" + ",".join(map(str, action.choices)) + "}" if action.choices else action.metavar
    value = value or ("" if action.nargs == 0 else action.dest.upper())
    value += " ..." if action.nargs == "+" else ""
    written = " ".join(part for part in (*action.option_strings[-1:], str(value)) if part)
    return f"`{written.replace('|', chr(92) + '|')}`"


def _text(action: argparse.Action) -> str:
    """Return what an option does, in a cell of a table; a name in angle brackets is no HTML there."""
    text = (action.help or "").replace("%%", "%").replace("|", r"\|").replace("<", "&lt;").replace("*", r"\*")
    return _marked(text) + ("; required" if action.required and action.option_strings else "")


def _marked(text: str) -> str:
    """Mark options as code, where they are not part of code already."""
    parts = text.split("`")
    parts[::2] = [re.sub(r"(?<![\w-])--[a-z][a-z-]*", r"`\g<0>`", part) for part in parts[::2]]
    return "`".join(parts)


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
