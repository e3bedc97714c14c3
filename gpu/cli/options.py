"""Options of commands as frozen dataclasses, read from argparse once; and the options that several commands share.

A field of a dataclass is an argument, a field that is itself a dataclass is a group of them.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import MISSING, dataclass, field, fields, is_dataclass, replace
from pathlib import Path
from types import NoneType
from typing import TYPE_CHECKING, Any, TypeVar, get_args, get_origin, get_type_hints

from pass_sampling.reference.config import SamplingConfig, check_integer

from ..checkpoints import MODEL
from ..decode_options import flag_of, local, option, place

if TYPE_CHECKING:
    from ..model.transformer import Transformer

Options = TypeVar("Options")


def add_arguments(
    parser: argparse.ArgumentParser, kind: type[Any], defaults: Any = None, only: Sequence[str] | None = None
) -> None:
    """Add an argument for every field of an options class, or for some; the values of `defaults` are the defaults."""
    hints = get_type_hints(kind)
    for each in fields(kind):
        hint: Any = hints[each.name]
        is_tuple = get_origin(hint) is tuple
        if not is_tuple:  # int | None is int
            hint = next((part for part in get_args(hint) if part is not NoneType), hint)
        default = each.default if defaults is None else getattr(defaults, each.name)
        if is_dataclass(hint):
            add_arguments(parser, hint, default, each.metadata.get("only"))  # type: ignore[arg-type]
            continue
        if not each.metadata.get("help") or (only is not None and each.name not in only):
            continue
        settings: dict[str, Any] = dict(each.metadata)
        flag = settings.pop("flag", flag_of(each.name))
        if hint is bool:
            settings["action"] = "store_true"
        elif "default:" not in settings["help"] and not settings.get("required") and flag.startswith("-"):
            settings["help"] += f"; default: {'none' if default in (None, ()) else default}"
        if is_tuple and "action" not in settings:
            settings |= {"nargs": "+", "type": get_args(hint)[0]}
        elif hint in (int, float, Path):
            settings.setdefault("type", hint)
        if hint in (int, float):
            settings.setdefault("metavar", "N" if hint is int else "X")
        if "type" in settings:
            settings["type"] = _reader(settings["type"])
        settings["help"] = settings["help"].replace("%", "%%")
        if flag.startswith("-"):
            settings |= {"dest": each.name, "default": None if is_tuple else default}
        parser.add_argument(flag, **settings)


def _reader(read: Any) -> Any:
    """Return a function for argparse, which shows the sentence of an ArgumentTypeError and no other."""
    if read in (int, float):
        return read

    def reader(text: str) -> Any:
        try:
            return read(text)
        except ValueError as error:
            raise argparse.ArgumentTypeError(str(error)) from None

    return reader


def options_from(kind: type[Options], arguments: argparse.Namespace) -> Options:
    """Return the options that the arguments give."""
    hints: dict[str, Any] = get_type_hints(kind)
    found: dict[str, Any] = {}
    for each in fields(kind):  # type: ignore[arg-type]
        if is_dataclass(hint := hints[each.name]):
            found[each.name] = options_from(hint, arguments)  # type: ignore[arg-type]
            continue
        value = getattr(arguments, each.name, None)
        default: Any = each.default if value is None and each.default is not MISSING else value
        found[each.name] = tuple(default) if get_origin(hint) is tuple else default
    return kind(**found)


@dataclass(frozen=True)
class ModelOptions:
    """A checkpoint, and how it is computed."""

    model: Path = option(
        MODEL,
        "a Hugging Face folder (Llama, Mistral, Qwen2, Qwen3), or org/name[@revision] on the Hub; default: the bundled "
        "model",
        metavar="FOLDER",
        type=place,
    )
    dtype: str = option(
        "auto",
        "dtype to compute in: float64, float32, bfloat16 or float16; default: auto, that of the checkpoint, but "
        "float32 on a CPU without units for it",
    )
    device: str = option("cpu", "device to compute on: cpu, cuda or cuda:N")

    def fetched(self) -> ModelOptions:
        """Return the options with a local folder in the place of a name on the Hub."""
        return replace(self, model=local(self.model, "model"))

    def load(self) -> Transformer:
        """Load the model, from a folder."""
        from ..checkpoint.load import load_model

        return load_model(self.model, self.dtype, self.device)


@dataclass(frozen=True)
class SamplingOptions:
    """The settings of the target distribution, and the seed."""

    temperature: float = option(0.8, "0 is greedy, 1 the model's own distribution")
    top_k: int = option(10, "keep the K likeliest tokens only, 0 for all", metavar="K")
    top_p: float = option(
        1.0, "keep the likeliest tokens until their probabilities add up to P; default: 1, all", metavar="P"
    )
    seed: int = option(0, "the same seed, machine and settings give the same result")

    def __post_init__(self) -> None:
        check_integer("seed", self.seed, 0, 2**64 - 1)
        _ = self.config

    @property
    def config(self) -> SamplingConfig:
        """The settings of the target distribution."""
        return SamplingConfig(self.temperature, self.top_k, self.top_p)


@dataclass(frozen=True)
class TextOptions:
    """Text to train on, the part of it that is held out, or how the model writes it itself."""

    text: tuple[Path, ...] = option(
        (), "text to learn from: files, and folders of .py, .txt, .md and .rst files", metavar="PATH"
    )
    standard_library: bool = option(False, "learn from the source code of Python's standard library instead")
    held_out_list: Path | None = option(
        help="a list of files to hold out, one name per line; default: about 5 % of the files", metavar="FILE"
    )
    own: bool = option(False, "learn from text that the model writes itself instead", flag="--self")
    self_tokens: int = option(100_000, "how many tokens the model writes for --self")
    prompts: Path | None = option(
        help="prompts that the model continues for --self: a JSON object on each line, as for `pass-sampling bench`; "
        "default: none, the model begins its own texts, or with --chat writes its own questions",
        metavar="FILE",
    )
    chat: bool = option(False, "with --self, put prompts into the model's chat template")

    def __post_init__(self) -> None:
        if self.own + bool(self.text) + self.standard_library > 1:
            raise ValueError("found several texts, expected one of --self, --text and --standard-library")
        check_integer("self_tokens", self.self_tokens, 1, 2**40)
        for name in ("self_tokens", "prompts", "chat"):
            if getattr(self, name) != getattr(TextOptions, name) and not self.own:
                raise ValueError(f"{flag_of(name)}: found it without --self, expected both or neither")


def group(options: Any, only: Sequence[str]) -> Any:
    """Return a field for some of the options of a class."""
    return field(default=options, metadata={"only": only})


def json_option() -> Any:
    """Return the field of --json."""
    return option(False, "print one JSON object, and nothing else on standard output")


def output_option(what: str) -> Any:
    """Return the field of --output, a new folder."""
    return field(metadata={"help": f"a new folder for the {what}", "metavar": "FOLDER", "required": True})


def read_names(path: Path) -> list[str]:
    """Read a list of names, one per line; lines that begin with # are comments."""
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except UnicodeDecodeError:
        raise ValueError(f"{path} is not UTF-8, expected a text file with a name on each line") from None
    return [line.strip() for line in lines if line.strip() and not line.startswith("#")]
