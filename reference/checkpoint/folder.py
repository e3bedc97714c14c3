"""Read a folder from disk without trusting it, and write one whole or not at all.

File names are plain, JSON is complete, and safetensors headers are checked before memory for a tensor is allocated.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import secrets
import shutil
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

CONFIG = "config.json"
SINGLE = "model.safetensors"
INDEX = "model.safetensors.index.json"
ADAPTER = "adapter_config.json"
MAX_JSON_BYTES = 64 * 2**20

PICKLED = "pickled weights, which may run code when opened"
FORMATS = {  # other formats, by the files that reveal them
    ADAPTER: "a PEFT adapter",
    "*.gguf": "weights in GGUF",
    "*.onnx": "an ONNX graph",
    "onnx/*.onnx": "an ONNX graph",
    "consolidated*.safetensors": "weights in Mistral's own format",
    "*.h5": "weights of TensorFlow",
    "*.msgpack": "weights of Flax",
    **dict.fromkeys(("*.bin", "*.pt", "*.pth", "*.ckpt", "*.pkl"), PICKLED),
    "model_index.json": "a pipeline of diffusers",
    "snapshots/*/config.json": "a cache of models",
}
TOKENIZERS = dict.fromkeys(("tokenizer.json", "tokenizer.model", "vocab.json"), "a tokenizer")


Layout = tuple[str, tuple[int, ...]]  # of a tensor: safetensors' name of its dtype, such as "BF16", and its shape


class StoredTensor(NamedTuple):
    """The file of a tensor, and its header."""

    path: Path
    dtype: str  # safetensors' name, such as "BF16"
    shape: tuple[int, ...]


def open_folder(folder: str | os.PathLike[str]) -> Path:
    """Return the folder's path; raise FileNotFoundError if there is no such folder."""
    path = Path(folder)
    if not path.is_dir():
        raise FileNotFoundError(f"{path} is not a folder, expected one with config.json and {SINGLE}")
    return path


def name_of(folder: Path) -> str:
    """Return the name of a folder: in the hub cache `org/name`, as on the Hub, elsewhere its own name."""
    home = folder.resolve()
    kind, *parts = home.parent.parent.name.split("--")
    return "/".join(parts) if home.parent.name == "snapshots" and kind == "models" and parts else home.name


def file_in(folder: Path, name: str) -> Path:
    """Return the path of a file in the folder itself; raise FileNotFoundError if there is none.

    The name must be plain. A link may not lead out of the folder, except in the hub cache, where
    `snapshots/<revision>/<name>` is a link into the `blobs` folder beside `snapshots`. A folder of another kind is
    refused by what it is.
    """
    if name in ("", ".", "..") or not name.isprintable() or any(character in name for character in "/\\:"):
        raise ValueError(f"{folder}: the file name {name!r:.80} is not plain, expected a name without a path")
    path = folder / name
    if not path.is_file():
        if name == CONFIG and not _has_weights(folder):
            _refuse_other_formats(folder, FORMATS | TOKENIZERS)
        raise FileNotFoundError(f"{path} is missing, expected a file")
    home, real = folder.resolve(), path.resolve()
    roots = [home, home.parent.parent / "blobs"] if home.parent.name == "snapshots" else [home]
    if not any(real.is_relative_to(root) for root in roots):
        raise ValueError(f"{path} is a link that leads to {real}, expected a file in the folder")
    return path


def read_json(path: Path) -> dict[str, Any]:
    """Return the JSON object in a file; raise ValueError if it is too large, half-written or names a key twice."""
    size = path.stat().st_size
    if size > MAX_JSON_BYTES:
        raise ValueError(f"{path} has {size} bytes, expected a JSON file of at most {MAX_JSON_BYTES}")
    return _parse(path, path.read_bytes())


def check_weights(folder: Path) -> None:
    """Raise FileNotFoundError for a folder without weights, ValueError where they are in another format."""
    if not _has_weights(folder):
        _refuse_other_formats(folder, FORMATS)
        raise FileNotFoundError(f"{folder} holds no weights, expected {SINGLE} or {INDEX}")


def _has_weights(folder: Path) -> bool:
    return (folder / SINGLE).exists() or (folder / INDEX).exists()


def _refuse_other_formats(folder: Path, formats: dict[str, str]) -> None:
    """Raise ValueError if a file reveals that the folder holds something else than a model in this format."""
    for pattern, what in formats.items():
        for path in sorted(folder.glob(pattern))[:1]:
            name = path.relative_to(folder).as_posix()
            base = read_json(file_in(folder, name)).get("base_model_name_or_path") if pattern == ADAPTER else None
            what += "" if base is None else f" for {base!r:.80}"
            raise ValueError(f"{folder}: found {what} ({name}), expected {CONFIG} and {SINGLE}")


def stored_tensors(folder: Path) -> dict[str, StoredTensor]:
    """Return every tensor of a checkpoint by name, from one safetensors file or all that the index lists.

    Raise FileNotFoundError for missing weights or shards, ValueError for other formats, damage, and a wrong index.
    """
    check_weights(folder)
    if (folder / SINGLE).exists():
        return read_header(file_in(folder, SINGLE))
    index = file_in(folder, INDEX)
    weight_map = read_json(index).get("weight_map")
    if not isinstance(weight_map, dict) or not all(isinstance(name, str) for name in weight_map.values()):
        raise ValueError(f"{index} has no weight_map, expected one from tensor names to file names")
    tensors: dict[str, StoredTensor] = {}
    for shard in sorted(set(weight_map.values())):
        if not shard.endswith(".safetensors"):
            raise ValueError(f"{index} names the file {shard!r:.80}, expected only .safetensors files")
        for name, tensor in read_header(file_in(folder, shard)).items():
            if weight_map.get(name) != shard:
                raise ValueError(
                    f"{tensor.path} holds the tensor {name!r:.80}, expected it only in the file of {INDEX}: "
                    f"{weight_map.get(name)!r:.80}"
                )
            tensors[name] = tensor
    for name, shard in weight_map.items():
        if name not in tensors:
            raise ValueError(f"{folder / shard} lacks the tensor {name!r:.80}, expected it there by {INDEX}")
    return tensors


def read_header(path: Path) -> dict[str, StoredTensor]:
    """Return the tensors in a safetensors file; raise ValueError if it is damaged or names a tensor twice."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="numpy") as file:
            slices = {name: file.get_slice(name) for name in file.keys()}
            tensors = {
                name: StoredTensor(path, part.get_dtype(), tuple(part.get_shape())) for name, part in slices.items()
            }
    except (SafetensorError, OSError) as error:
        reason = str(error).strip()
        raise ValueError(f"{path} is damaged or half-written ({reason}), expected a safetensors file") from None
    with open(path, "rb") as stream:
        _parse(path, stream.read(int.from_bytes(stream.read(8), "little")))  # the library does not refuse twins
    return tensors


def check_layout(path: Path, found: Mapping[str, Layout], expected: Mapping[str, Layout]) -> None:
    """Raise ValueError unless a file holds exactly the tensors that are expected, in dtype and shape."""
    for name in (*expected, *found):
        if found.get(name) != expected.get(name):
            has, wants = (
                f"{some[name][0]} {list(some[name][1])}" if name in some else "nothing" for some in (found, expected)
            )
            raise ValueError(f"{path} holds {has} as {name!r:.80}, expected {wants}")


def _parse(path: Path, text: bytes) -> dict[str, Any]:
    twice: list[str] = []

    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        keys: dict[str, Any] = {}
        for key, value in pairs:
            if key in keys:
                twice.append(key)
            keys[key] = value
        return keys

    try:
        parsed = json.loads(text.decode("utf-8"), object_pairs_hook=unique)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path} is damaged or half-written ({error}), expected a JSON object") from None
    if twice:
        raise ValueError(f"{path} has the key {twice[0]!r:.80} twice, expected every key once")
    if not isinstance(parsed, dict):
        raise ValueError(f"{path} holds a {type(parsed).__name__}, expected a JSON object")
    return parsed


@contextlib.contextmanager
def errors_of(place: str | os.PathLike[str], joint: str = ": ") -> Iterator[None]:
    """Begin the message of a ValueError with the place of what is wrong, such as a file."""
    try:
        yield
    except ValueError as error:
        raise ValueError(f"{place}{joint}{error}") from None


def replace_file(path: Path, content: str | bytes) -> None:
    """Write a file so that its old content or the new is there at every moment."""
    path.parent.mkdir(parents=True, exist_ok=True)
    new = path.with_name(f".{path.name}.{os.getpid()}.new")
    try:
        _write(new, content.encode() if isinstance(content, str) else content)
        os.replace(new, path)
    finally:
        new.unlink(missing_ok=True)


def _write(path: Path, content: bytes) -> None:
    with open(path, "wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())


def replace_folder(folder: Path, files: Mapping[str, bytes]) -> None:
    """Replace whatever is at a path by a folder with exactly these files.

    The files are written to a new folder beside it and flushed to the disk; then the two are renamed. If anything
    fails, the old folder is restored and the new one removed. (A power cut between the two renames leaves both of them,
    complete, under names that begin with a dot.)
    """
    folder = folder.resolve()
    folder.parent.mkdir(parents=True, exist_ok=True)
    stem = folder.parent / f".{folder.name}.{secrets.token_hex(8)}"
    new, old = stem.with_name(stem.name + ".new"), stem.with_name(stem.name + ".old")
    new.mkdir()
    try:
        for name, content in files.items():
            _write(new / name, content)
        _flush(new)
        if folder.exists():
            os.replace(folder, old)
        os.replace(new, folder)
    except BaseException:
        if old.exists() and not folder.exists():
            os.replace(old, folder)
        shutil.rmtree(new, ignore_errors=True)
        raise
    _flush(folder.parent)
    shutil.rmtree(old, ignore_errors=True)


def _flush(folder: Path) -> None:
    """Flush a folder's entries to the disk, where the system can (Windows cannot)."""
    with contextlib.suppress(OSError):
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


# --- Folders of config.json and model.safetensors that keep what drafts ---


def save_folder(
    folder: str | os.PathLike[str], what: str, fixed: Mapping[str, Any], settings: Mapping[str, Any], weights: bytes
) -> None:
    """Write such a folder, whole or not at all; one with the same `fixed` settings is replaced.

    Raise ValueError if the path holds something else than `what`, or `training` is not plain JSON.
    """
    path = Path(folder)
    if path.exists() and not _may_replace(path, fixed):
        raise ValueError(f"{path} holds something else, expected a new path or {what}")
    try:
        packed = json.dumps({**fixed, **settings}, indent=2, allow_nan=False) + "\n"
    except (TypeError, ValueError) as error:
        raise ValueError(f"training is not plain JSON ({error}), expected text, finite numbers and such") from None
    replace_folder(path, {SINGLE: weights, CONFIG: packed.encode()})


def _may_replace(path: Path, fixed: Mapping[str, Any]) -> bool:
    """Return whether a path is an empty folder, or one of such a kind and with no other files."""
    try:
        found = {entry.name for entry in path.iterdir()}
        return not found or (found <= {CONFIG, SINGLE} and fixed.keys() <= read_json(path / CONFIG).keys())
    except (OSError, ValueError):
        return False


def read_folder(
    folder: str | os.PathLike[str], read_details: Callable[[dict[str, Any]], dict[str, Any]]
) -> tuple[dict[str, Any], dict[str, Any], Path]:
    """Return the settings of such a folder, what `read_details` makes of them after its checks, and the weights' file.

    Raise FileNotFoundError for a missing file, ValueError for a damaged one or another version's.
    """
    root = open_folder(folder)
    path = file_in(root, CONFIG)
    settings = read_json(path)
    with errors_of(path):
        details = read_details(settings)
    return settings, details, file_in(root, SINGLE)


class Field(NamedTuple):
    """The values that a key may have."""

    is_valid: Callable[[Any], bool]
    expected: str  # the same in words


def integer(low: int, high: int) -> Field:
    """Return the field of an integer between two limits, both included."""
    return Field(lambda value: type(value) is int and low <= value <= high, f"an integer from {low} to {high}")


def _is_digest(value: Any) -> bool:
    return value is None or (isinstance(value, str) and re.fullmatch("[0-9a-f]{64}", value) is not None)


TEXT = Field(lambda value: isinstance(value, str), "text")
FLAG = Field(lambda value: isinstance(value, bool), "true or false")
OBJECT = Field(lambda value: isinstance(value, dict), "an object")
DIGEST = Field(_is_digest, "64 hexadecimal digits or null")


def check_fields(values: Mapping[str, Any], fields: Mapping[str, Field], owner: str = "") -> None:
    """Raise ValueError for the first field whose value is not valid; the message begins with the owner's name."""
    for name, field in fields.items():
        value = values.get(name)
        if not field.is_valid(value):
            raise ValueError(f"{owner}{name}: found {value!r:.80}, expected {field.expected}")


def check_format(
    settings: Mapping[str, Any], fixed: Mapping[str, Any], fields: Mapping[str, Field], folder: str
) -> None:
    """Raise ValueError unless a config.json has exactly the fixed values and the valid fields of a kind of folder."""
    for name, value in fixed.items():
        if name not in settings:
            raise ValueError(f"{name} is missing, expected {folder}")
        if settings[name] != value or type(settings[name]) is not type(value):
            raise ValueError(f"{name}: found {settings[name]!r:.80}, expected {value!r}")
    keys = (*fixed, *fields)
    for name in (*keys, *settings):
        if name not in settings or name not in keys:
            raise ValueError(f"the key {name!r:.80} is missing or unknown, expected exactly {', '.join(keys)}")
    check_fields(settings, fields)
