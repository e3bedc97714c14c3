"""Options of commands as frozen dataclasses, read from argparse once; and the options that several commands share.

A field of a dataclass is an argument, a field that is itself a dataclass is a group of them.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import tempfile
from collections.abc import Sequence
from dataclasses import MISSING, dataclass, field, fields, is_dataclass, replace
from pathlib import Path
from types import NoneType
from typing import TYPE_CHECKING, Any, TypeVar, get_args, get_origin, get_type_hints

from ..checkpoints import HELD_OUT, MODEL
from ..decode_options import flag_of, is_bundled, local, option, place

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    from pass_sampling.reference.config import SamplingConfig

    from ..model.transformer import Transformer
    from ..training.acceptance import Trainable

    Tokens = npt.NDArray[np.int64]

Options = TypeVar("Options")
HELD_OUT_FILES = 20  # with fewer files than this, the end of the text is held out instead of whole files


def add_arguments(
    parser: argparse.ArgumentParser, kind: type[Any], defaults: Any = None, only: Sequence[str] | None = None
) -> None:
    """Add an argument for every field of an options class, or for some.

    Args:
        parser: of the command.
        kind: the class.
        defaults: an instance whose values are the defaults; default: those of the class.
        only: names of fields; default: all.
    """
    hints = get_type_hints(kind)
    for each in fields(kind):
        hint: Any = hints[each.name]
        is_tuple = get_origin(hint) is tuple
        if not is_tuple:  # int | None is int
            hint = next((part for part in get_args(hint) if part is not NoneType), hint)
        default = _default(each) if defaults is None else getattr(defaults, each.name)
        if is_dataclass(hint):
            add_arguments(parser, hint, default, each.metadata.get("only"))  # type: ignore[arg-type]
            continue
        if only is not None and each.name not in only:
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
        if not flag.startswith("-"):
            parser.add_argument(flag, **settings)
            continue
        parser.add_argument(flag, dest=each.name, default=None if is_tuple else default, **settings)


def _default(each: Any) -> Any:
    if each.default_factory is not MISSING:
        return each.default_factory()
    return None if each.default is MISSING else each.default


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
    """Return the options that the arguments give.

    Raises:
        ValueError: an option has no such value.
    """
    hints: dict[str, Any] = get_type_hints(kind)
    found: dict[str, Any] = {}
    for each in fields(kind):  # type: ignore[arg-type]
        if is_dataclass(hint := hints[each.name]):
            found[each.name] = options_from(hint, arguments)  # type: ignore[arg-type]
            continue
        value = getattr(arguments, each.name, None)
        default = _default(each) if value is None else value
        found[each.name] = tuple(default) if get_origin(hint) is tuple else default
    return kind(**found)


def same_fields(kind: type[Any], options: Any) -> dict[str, Any]:
    """Return the values of options that another dataclass has under the same names, but for None."""
    names = {each.name for each in fields(kind)} & {each.name for each in fields(options)}
    return {name: value for name in names if (value := getattr(options, name)) is not None}


@dataclass(frozen=True)
class ModelOptions:
    """A checkpoint, and how it is computed."""

    model: Path = option(
        MODEL,
        "a Hugging Face folder (Llama, Mistral, Qwen2, Qwen3), or org/name on the Hub; default: the bundled model",
        metavar="FOLDER",
        type=place,
    )
    revision: str | None = option(help="branch, tag or commit of --model org/name; default: main", metavar="NAME")
    dtype: str = option(
        "auto",
        "dtype to compute in: float64, float32, bfloat16 or float16; default: auto, that of the checkpoint, but "
        "float32 on a CPU that is slow in it",
    )
    weights: str = option(
        "stored",
        "int8: round the weights to 8 bits, for a CPU whose memory is slow; that is another model, and texts have its "
        "distribution",
        choices=("stored", "int8"),
    )
    device: str = option("cpu", "device to compute on: cpu, cuda or cuda:N")

    def fetched(self) -> ModelOptions:
        """Return the options with a local folder in the place of a name on the Hub."""
        return replace(self, model=local(self.model, "model", self.revision), revision=None)

    def load(self) -> Transformer:
        """Load the model, from a folder."""
        from ..checkpoint.load import load_model

        return load_model(self.model, self.dtype, self.device, weights=self.weights)


@dataclass(frozen=True)
class SamplingOptions:
    """The settings of the target distribution, and the seed."""

    temperature: float = option(0.8, "0 is greedy, 1 the model's own distribution")
    top_k: int = option(10, "keep the K likeliest tokens only, 0 for all", metavar="K")
    top_p: float = option(1.0, "keep the likeliest tokens that make up P only; default: 1, all", metavar="P")
    seed: int = option(0, "the same seed, machine and settings give the same result")

    def __post_init__(self) -> None:
        """Check the settings and the seed, before anything is loaded."""
        from pass_sampling.reference.config import check_integer

        check_integer("seed", self.seed, 0, 2**64 - 1)
        _ = self.config

    @property
    def config(self) -> SamplingConfig:
        """The settings of the target distribution."""
        from pass_sampling.reference.config import SamplingConfig

        return SamplingConfig(self.temperature, self.top_k, self.top_p)


@dataclass(frozen=True)
class TextOptions:
    """Text to train on, and the part of it that is held out."""

    text: tuple[Path, ...] = option(
        (), "text to learn from: files, and folders of .py, .txt, .md and .rst files", metavar="PATH"
    )
    standard_library: bool = option(False, "learn from the source code of the running Python instead")
    held_out_list: Path | None = option(
        help="names of files to hold out, one per line; default: about 5 % of them", metavar="FILE"
    )

    def read(self, instead: str = "--text PATH or --standard-library") -> dict[str, str]:
        """Return the texts by name.

        Raises:
            FileNotFoundError: a path is not there.
            ValueError: no text is asked for, or the paths hold none.
        """
        from ..training.text import read_texts, standard_library

        if self.standard_library:
            if self.text:
                raise ValueError("found both --text and --standard-library, expected one of them")
            return standard_library()
        if not self.text:
            raise ValueError(f"found no text, expected {instead}")
        return read_texts(self.text)

    def divided(self, texts: dict[str, str], model: Path) -> tuple[list[str], list[str]]:
        """Return the names of the texts to learn from and of those held out; of few texts, none is held out.

        Raises:
            ValueError: the list of files to hold out names none of them, or all.
        """
        from ..training.text import split_texts

        listed = self.held_out_list
        if listed is None and self.standard_library and is_bundled(model):
            listed = HELD_OUT
        if listed is None:
            return split_texts(texts) if len(texts) >= HELD_OUT_FILES else (sorted(texts), [])
        held = sorted(set(read_names(listed)) & set(texts))
        if not 0 < len(held) < len(texts):
            raise ValueError(f"{listed} names {len(held)} of the {len(texts)} texts, expected some of them and not all")
        return sorted(set(texts) - set(held)), held


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
    """Read a list of names, one per line; lines that begin with # are comments.

    Raises:
        OSError: the file cannot be read.
        ValueError: it is not UTF-8.
    """
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except UnicodeDecodeError:
        raise ValueError(f"{path} is not UTF-8, expected a text file with a name on each line") from None
    return [line.strip() for line in lines if line.strip() and not line.startswith("#")]


def encoded(tokenizer: Any, texts: list[str], model: Trainable, folder: Path) -> list[Tokens]:
    """Return each text's tokens with the end of text after them.

    Raises:
        ValueError: there is a token that the model does not have.
    """
    from ..training.tokens import encode_texts

    found = encode_texts(tokenizer, texts, model.eos_token_ids[0] if model.eos_token_ids else None)
    most = max((int(tokens.max()) for tokens in found if len(tokens)), default=0)
    if most >= model.vocab_size:
        raise ValueError(
            f"{folder}: its tokenizer gives the token {most}, expected at most {model.vocab_size - 1}, the model's last"
        )
    return found


def check_new_folder(output: Path, what: str) -> None:
    """Refuse an output path that is taken or cannot be written, before hours are spent on its contents.

    Raises:
        OSError: its name is too long.
        ValueError: there is something already, or no folder can be made there.
    """
    from ..training.resume import check_output, partial_file

    check_output(output, what)
    partial = partial_file(output)
    with contextlib.suppress(FileNotFoundError, NotADirectoryError):
        os.lstat(partial.with_name(f".{partial.name}.new"))  # the longest name that will be written
    above = next(folder for folder in partial.parents if os.path.lexists(folder))
    try:
        os.rmdir(tempfile.mkdtemp(prefix=".pass-sampling-", dir=above))  # permissions alone do not tell
    except OSError as error:
        reason = error.strerror or error
        raise ValueError(f"--output: {above} takes no new folder ({reason}), expected one that does") from None


def check_file(flag: str, path: Path | None) -> None:
    """Refuse a file that cannot be written, before minutes are spent on its contents."""
    if path is None:
        return
    if path.is_dir() or not path.parent.is_dir():
        raise ValueError(f"{flag}: {path} cannot be written, expected a file in a folder that is there")
    try:
        if path.exists():
            path.open("ab").close()
        else:
            tempfile.TemporaryFile(dir=path.parent).close()  # permissions alone do not tell
    except OSError as error:
        raise ValueError(f"{flag}: {path} cannot be written ({error.strerror}), expected a place that can") from None
