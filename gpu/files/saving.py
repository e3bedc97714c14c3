"""Write a file or a folder so that it is there complete or not at all."""

from __future__ import annotations

import contextlib
import os
import secrets
import shutil
from collections.abc import Mapping
from pathlib import Path

__all__ = ["replace_file", "replace_folder"]


def replace_file(path: Path, text: str) -> None:
    """Write a text file, whole or not at all.

    Raises:
        OSError: the file cannot be written.
    """
    new = path.with_name(f".{path.name}.{os.getpid()}.new")
    try:
        new.write_text(text, encoding="utf-8")
        os.replace(new, path)
    finally:
        new.unlink(missing_ok=True)


def replace_folder(folder: Path, files: Mapping[str, bytes]) -> None:
    """Put a folder with exactly these files in the place of whatever is there.

    The files are written to a new folder beside it and flushed to the disk; then the two change places by
    renaming. If anything fails, the old folder is back in its place and nothing else is left behind. (A power
    cut between the two renames leaves both of them, complete, under names that begin with a dot.)
    """
    folder = folder.resolve()
    folder.parent.mkdir(parents=True, exist_ok=True)
    stem = folder.parent / f".{folder.name}.{secrets.token_hex(8)}"
    new, old = stem.with_name(stem.name + ".new"), stem.with_name(stem.name + ".old")
    new.mkdir()
    try:
        for name, content in files.items():
            with open(new / name, "wb") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
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
