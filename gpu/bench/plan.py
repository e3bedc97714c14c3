"""A plan: how to decode a model on a machine, resolved once, written down, and done again from a file.

A plan never changes the distribution of a text, only how fast it comes. The same plan, seed and dtype on the same
machine give the same tokens.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

from pass_sampling.reference.checkpoint.folder import read_json, replace_file

__all__ = ["FORMAT_VERSION", "Plan"]

FORMAT_VERSION = 1
FIGURES = {"tokens_per_step", "milliseconds_per_step", "tokens_per_second", "ratio_to_plain"}  # that are predicted
OPTIONS: dict[str, type | tuple[type, ...]] = {
    "lookahead": str,
    "draft_model": str,
    "ngram": str,
    "num_draft": int,
    "verify": str,
    "refine": str,
    "draft_vocab_size": int,
    "groups": list,
    "candidates": str,
}


@dataclass(frozen=True)
class Plan:
    """A method with its options, what it was made for, and what was expected of it."""

    method: str  # its name on the command line
    options: dict[str, Any] = field(default_factory=dict)  # its flags there
    made_for: dict[str, Any] = field(default_factory=dict)  # model, folders, sampling, dtype, machine
    prediction: dict[str, float] = field(default_factory=dict)
    calibration: dict[str, Any] = field(default_factory=dict)  # milliseconds, acceptance, and what else was considered

    def __post_init__(self) -> None:
        """Check what a file may hold.

        Raises:
            ValueError: an option that is none, or is of another kind.
        """
        for name, value in self.options.items():
            if name not in OPTIONS or not isinstance(value, OPTIONS[name]) or isinstance(value, bool):
                raise ValueError(f"plan: found the option {name}={value!r:.80}, expected one of {', '.join(OPTIONS)}")
            numbers = value if isinstance(value, list) else []
            if not all(type(number) is int and 0 <= number < 2**16 for number in numbers):
                raise ValueError(f"plan: found {name}={value!r:.80}, expected small numbers")
        for name, number in self.prediction.items():
            if not (isinstance(number, int | float) and math.isfinite(number)):
                raise ValueError(f"plan: found {name}={number!r:.80} predicted, expected a number")

    def check(self, made_for: Mapping[str, Any]) -> None:
        """Refuse to be used for what it was not made for; sampling, dtype and machine may differ.

        Raises:
            ValueError: the model is another, or a folder that drafts are made from.
        """
        for name, what in (("model", "the model"), ("lookahead", "the look-ahead vectors"),
                           ("draft_model", "the draft model"), ("ngram", "the n-gram model")):  # fmt: skip
            mine, yours = _identity(self.made_for.get(name)), _identity(made_for.get(name))
            if name in self.options and yours is None:
                raise ValueError(f"plan: found no {self.options[name]}, expected {what} it was made with")
            if mine is not None and yours is not None and mine != yours:
                known = _said(self.made_for.get(name)), _said(made_for.get(name))
                raise ValueError(f"plan: found it made for {known[0]}, expected {what} {known[1]}")

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the plan as JSON, whole or not at all.

        Raises:
            OSError: the file cannot be written.
        """
        text = json.dumps({"format_version": FORMAT_VERSION} | asdict(self), indent=2, allow_nan=False) + "\n"
        replace_file(Path(path), text)

    @staticmethod
    def load(path: str | os.PathLike[str]) -> Plan:
        """Read a plan.

        Raises:
            FileNotFoundError: there is no such file.
            ValueError: it holds something else.
        """
        path = Path(path)
        if not path.is_file():
            raise FileNotFoundError(f"{path} is not a file, expected a plan as `pass-sampling plan --output` writes it")
        found = read_json(path)
        names = {each.name for each in fields(Plan)}
        kinds = {name: str if name == "method" else dict for name in names}
        if found.get("format_version") != FORMAT_VERSION or set(found) != names | {"format_version"}:
            raise ValueError(f"{path} is no plan of format_version {FORMAT_VERSION}, expected one")
        for name, kind in kinds.items():
            if not isinstance(found[name], kind):
                raise ValueError(f"{path}: found {name} {found[name]!r:.80}, expected a plan's")
        considered = found["calibration"].get("considered")
        if not FIGURES <= found["prediction"].keys() or not isinstance(considered, list):
            raise ValueError(f"{path} is a plan without what it was chosen from, expected a whole one")
        return Plan(**{name: found[name] for name in names})


def _identity(named: Any) -> Any:
    """Return what tells something from others: its fingerprint, where it has one."""
    return named.get("fingerprint") or named if isinstance(named, dict) else named


def _said(identity: Any) -> str:
    """Return a name and the beginning of a fingerprint."""
    if not isinstance(identity, dict):
        return repr(identity)[:80]
    return f"{str(identity.get('name'))[:80]!r} ({str(identity.get('fingerprint'))[:12]})"
