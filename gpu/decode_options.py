"""How to decode, as one frozen object: from the command line, from a plan, or from a program.

    options = DecodeOptions(method="pass-one-call", verify="block")
    method = make_method(options, model, SamplingConfig(0.8, 10), folder)

The methods and drafters are those of the registries `METHODS` and `DRAFTERS`: a method takes the options for which it
has a field. A drafter is called by its name, as if it were a method. An option that is None has the method's default.
"""

from __future__ import annotations

import json
import os
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any

from pass_sampling.reference.checkpoint.folder import name_of
from pass_sampling.reference.config import check_integer
from pass_sampling.reference.drafters import DRAFTERS
from pass_sampling.reference.drafters.schedule import SCHEDULES
from pass_sampling.reference.methods import METHODS, rules_of
from pass_sampling.reference.methods.tree_shape import NumCandidates, check_tree

from .checkpoints import MODEL

RENAMED = {"lookahead": "pass", "lookahead-fused": "pass-one-call"}
NUM_DRAFT = 4
LATTICE = 16
REFINEMENTS = ("none", "ngram", "head", "neural", "lookup")
SOURCES = {"lookahead": "look-ahead vectors", "draft_model": "draft model", "ngram": "n-gram model"}
SOURCES |= {"rescorer": "sampler head"}
"""The options that name what drafts come from."""
FOLDERS = {"draft-model": "draft_model", "ngram": "ngram", "lookup-ngram": "ngram"}
"""Drafters that are read from a folder, and its option."""
FIELDS = {  # the fields of methods that an option sets
    **{name: {name} for name in ("lookahead", "schedule", "groups", "lenience", "accept_top_k")},
    **{name: {"refinement"} for name in ("ngram", "refine", "rescorer", "lattice")},
    **{"num_draft": {"num_draft", "num_lookahead"}, "verify": {"rule"}, "paths": {"num_paths"}},
}
ALL_RULES = tuple(dict.fromkeys(rule for name in METHODS for rule in rules_of(name)))


class Unavailable(ValueError):
    """A method lacks something that it needs on this checkpoint."""


def method_names() -> list[str]:
    """Return the names of methods and drafters that can be asked for."""
    return [name for name in METHODS if not name.startswith("speculative") and not name.endswith("-tree")] + [*DRAFTERS]


def option(default: Any = None, help: str = "", **settings: Any) -> Any:
    """Return a field of an options object; the settings are those of argparse's `add_argument`, and `flag`."""
    return field(default=default, metadata={"help": help, **settings})


def folder_option(help: str) -> Any:
    """Return the field of a folder that drafts come from."""
    return option(None, f"{help}; default: the bundled one", metavar="FOLDER", type=place)


def place(text: str) -> Path:
    """Read a path or a name on the Hub; a text that begins with a dot or ends in a slash is a path."""
    path = Path(text)
    return path.absolute() if text.startswith(".") or text.endswith("/") else path


def numbers(text: str) -> tuple[int, ...]:
    """Read numbers with commas between."""
    try:
        return tuple(int(part) for part in text.split(","))
    except ValueError:
        raise ValueError(f"found {text!r:.80}, expected numbers with commas between") from None


def parse_candidates(text: str) -> NumCandidates:
    """Read the shape of a tree: `3,2,1`, or with a number for each place of a depth `3,2+1+0,1`."""
    try:
        depths = [[int(count) for count in depth.split("+")] for depth in text.split(",")]
    except ValueError:
        raise ValueError(f"found {text!r:.80}, expected numbers, such as 3,2,1 or 3,2+1+0,1") from None
    return check_tree([depth if len(depth) > 1 else depth[0] for depth in depths])


def written_candidates(shape: NumCandidates) -> str:
    """Return the shape of a tree as `parse_candidates` reads it."""
    return ",".join("+".join(map(str, each)) if isinstance(each, tuple) else str(each) for each in shape)


@dataclass(frozen=True)
class DecodeOptions:
    """The method, what it drafts from, how many drafts there are and how they are verified."""

    method: str | None = option(
        None,
        f"how to decode, each method exact: {', '.join(method_names())}; default: by a plan, see pass-sampling plan",
        metavar="NAME",
    )
    lookahead: Path | None = folder_option("look-ahead vectors for the model")
    draft_model: Path | None = folder_option("a smaller model with the same vocabulary, which drafts")
    ngram: Path | None = folder_option("an n-gram model, which drafts")
    num_draft: int | None = option(
        None, f"drafts per verification; default: {NUM_DRAFT}, or one per look-ahead vector", metavar="K"
    )
    candidates: NumCandidates | None = option(
        None,
        "draft a tree; 3,2,1: three candidates, two after each of them, one after each of those; 3,2+1+0,1: a number "
        "for each place of a depth; default: one draft after another",
        metavar="C,C,...",
        type=parse_candidates,
    )
    verify: str | None = option(
        None,
        "the rule that verifies drafts, each exact: token, block, or match, which draws from the model until a draw "
        "differs from the draft; with --candidates: without-replacement, with-replacement, k-seq or match; default: "
        "token, or without-replacement",
        choices=ALL_RULES,
    )
    schedule: str | None = option(
        None,
        "how many tokens a drafter drafts; fixed: always K; heuristic: two more after a step that accepted all, one "
        "fewer after any other; entropy: until its distribution is too flat; default: fixed",
        choices=SCHEDULES,
    )
    refine: str | None = option(
        None,
        "how a draft of look-ahead rows or block heads depends on the drafts before it; none; ngram: by an n-gram "
        "model; head: by the head trained with the vectors; neural: by the head of --rescorer; lookup: prompt lookup "
        "and n-grams draft if they are sure, else the head; default: head, if there is one",
        choices=REFINEMENTS,
    )
    rescorer: Path | None = folder_option("a head from `train --head-alone`, for --refine neural")
    lattice: int | None = option(
        None, f"refine only the N likeliest tokens of each draft; default: {LATTICE} for block heads, else all"
    )
    paths: int | None = option(None, "paths that one pass verifies; default: 4", metavar="P")
    groups: tuple[int, ...] | None = option(
        None,
        "numbers of accepted drafts after which the pass has look-ahead rows; default: after any number",
        metavar="A,B,...",
        type=numbers,
    )
    lenience: float | None = option(
        None,
        "LOSSY below 1: multiply draft probabilities by X in verification, so that more drafts are accepted; no token "
        "becomes more than 1/X times as likely as in the target; default: 1, which is exact",
    )
    accept_top_k: int | None = option(
        None,
        "LOSSY above 1, with temperature 0: accept a draft that is among the model's N likeliest tokens; default: 1, "
        "which is exact",
    )

    def __post_init__(self) -> None:
        if self.method in tuple(RENAMED):
            raise ValueError(f"method: found {self.method!r}, which is called {RENAMED[self.method]!r} now")
        allowed = {"method": method_names(), "verify": ALL_RULES, "schedule": SCHEDULES, "refine": REFINEMENTS}
        for name, values in allowed.items():
            if (found := getattr(self, name)) is not None and found not in values:
                raise ValueError(f"{name}: found {found!r:.80}, expected one of {', '.join(values)}")
        for name in ("num_draft", "lattice", "paths", "accept_top_k"):
            if (number := getattr(self, name)) is not None:
                check_integer(name, number, 1, 2**16)
        for name in ("candidates", "groups"):
            if not isinstance(getattr(self, name), tuple | None):
                raise ValueError(f"{name}: found {getattr(self, name)!r:.80}, expected several numbers")
        for number in self.groups or ():
            check_integer("groups", number, 0, 2**16)
        if self.candidates is not None:
            check_tree(self.candidates)

    @property
    def given(self) -> dict[str, Any]:
        """The options that are not None."""
        return {each.name: value for each in fields(self) if (value := getattr(self, each.name)) is not None}

    @property
    def is_open(self) -> bool:
        """Whether nothing is given but what drafts come from, so that a plan may choose the rest."""
        return not self.given.keys() - SOURCES.keys()

    def fetched(self) -> DecodeOptions:
        """Return the options with local folders in the place of names on the Hub; see `checkpoint.hub.local_folder`."""
        folders: dict[str, Any] = {name: local(value, name) for name, value in self.given.items() if name in SOURCES}
        return replace(self, **folders)

    def checked(self, folder: Path) -> DecodeOptions:
        """Return the options with their method named, for the model in a folder; refuse options it does not take."""
        name = self.method or self._wanted(folder)
        for each, value in self.given.items():
            if each != "method" and each not in options_taken(name):
                takers = [f"--method {other}" for other in method_names() if each in options_taken(other)]
                what = "it" if isinstance(value, Path) else self.text_of(each)
                who = f"--method {name}, which does not take it"
                raise ValueError(f"{flag_of(each)}: found {what} with {who}, expected {' or '.join(takers)}")
        return replace(self, method=name)

    def _wanted(self, folder: Path) -> str:
        """Return the method that the other options ask for; without any, PaSS with the bundled vectors."""
        if self.paths is not None or self.rescorer is not None:
            return "blockwise" if self.paths is None else "blockwise-paths"
        if self.refine is not None:
            return "pass-one-call"
        named = {"lookahead": "pass", "draft_model": "draft-model", "ngram": "ngram"}
        given = [name for name in named if getattr(self, name) is not None]
        if len(given) > 1:
            raise ValueError(f"found {' and '.join(map(flag_of, given))}, expected one of them")
        if self.candidates is not None and given in ([], ["lookahead"]):
            return "pass-one-call"
        if given:
            return named[given[0]]
        return "pass" if is_bundled(folder) else "autoregressive"

    def text_of(self, name: str) -> Any:
        """Return the value of an option as it is written on the command line."""
        value = getattr(self, name)
        return written_candidates(value) if isinstance(value, tuple) else value

    def to_json(self) -> dict[str, Any]:
        """Return what is given as plain values."""
        return dict(json.loads(json.dumps(self.given, default=os.fspath)))  # tuples as lists

    @staticmethod
    def from_json(found: Any) -> DecodeOptions:
        """Return the options that `to_json` wrote; raise ValueError for a name or a value that is none of theirs."""
        names = [each.name for each in fields(DecodeOptions)]
        if not isinstance(found, dict) or not found.keys() <= set(names):
            raise ValueError(f"found the options {found!r:.80}, expected some of {', '.join(names)}")
        values: dict[str, Any] = {name: Path(str(value)) if name in SOURCES else value for name, value in found.items()}
        for name, value in found.items():
            if isinstance(value, list):
                values[name] = tuple(tuple(each) if isinstance(each, list) else each for each in value)
        return DecodeOptions(**values)


def registered(name: str, tree: bool = False) -> str:
    """Return the name in the registry of what is asked for by a method's or a drafter's name."""
    return ("speculative" if name in DRAFTERS else name) + ("-tree" if tree else "")


def options_taken(name: str) -> set[str]:
    """Return the options that a method takes, which is asked for by name."""
    names = {each.name for each in fields(METHODS[registered(name)])}  # type: ignore[arg-type]
    found = {each for each, sets in FIELDS.items() if sets & names}
    found |= {"candidates"} if registered(name, tree=True) in METHODS else set()
    return found | ({FOLDERS[name]} if name in FOLDERS else set())


def is_bundled(folder: Path) -> bool:
    """Return whether a path is that of the bundled model, however it is written."""
    return os.path.realpath(folder) == os.path.realpath(MODEL)


def local(folder: Path, name: str) -> Path:
    """Return the folder that a path or a name on the Hub stands for; see `checkpoint.hub.local_folder`."""
    from .checkpoint.hub import local_folder

    return local_folder(folder.as_posix(), name == "lookahead", f"{flag_of(name)} FOLDER")


def shown(folder: Path) -> str:
    """Return a folder by its name on the Hub, or as a path."""
    name = name_of(folder)
    return name if "/" in name else str(folder)


def flag_of(name: str) -> str:
    """Return an option as it is written on the command line."""
    return "--" + name.replace("_", "-")
