"""Text from disk, and its division into a training side and a held-out side.

Texts are divided by file, never within one, and files that repeat each other stay together: else the held-out loss
would measure memory.
"""

from __future__ import annotations

import hashlib
import os
import sysconfig
from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import Path

__all__ = ["SUFFIXES", "near_duplicates", "read_texts", "split_texts", "standard_library"]

SUFFIXES = (".py", ".txt", ".md", ".rst")
MIN_LINE = 16  # shorter lines, stripped, say nothing about where they were copied from
COMMON = 20  # and lines that stand in more files than this are boilerplate
SHARED = 0.3  # two files are near-duplicates if this part of the shorter one's telling lines stands in the other


def read_texts(
    paths: Iterable[str | os.PathLike[str]],
    suffixes: tuple[str, ...] = SUFFIXES,
    left_out: tuple[str, ...] = (),
) -> dict[str, str]:
    """Read files, and every file with one of the suffixes below folders, in the order of their names.

    Args:
        paths: files and folders.
        suffixes: of the files that are read below folders.
        left_out: beginnings of names that are not read below folders.

    Returns:
        The texts by name: below a folder its path from there with "/", else the file's own name. Files that are not
        UTF-8 and empty ones are left out.

    Raises:
        FileNotFoundError: a path is not there.
        ValueError: a path has no text in it, or two files have the same name.
    """
    texts: dict[str, str] = {}
    for path in map(Path, paths):
        if path.is_dir():
            files = sorted(file for file in path.rglob("*") if file.suffix in suffixes and file.is_file())
            named = [(file.relative_to(path).as_posix(), file) for file in files]
            named = [(name, file) for name, file in named if not name.startswith(left_out)]
        elif path.is_file():
            named = [(path.name, path)]
        else:
            raise FileNotFoundError(f"{path} is not there, expected a text file or a folder of such")
        found = {name: text for name, file in named if (text := _read(file))}
        if not found:
            kinds = ", ".join(suffixes)
            raise ValueError(f"{path} holds no text, expected UTF-8 text (in a folder: {kinds} files)")
        twice = texts.keys() & found.keys()
        if twice:
            raise ValueError(f"{path} holds {min(twice)!r}, found before, expected every name once")
        texts |= found
    if not texts:
        raise ValueError("found no text, expected at least one file or folder")
    return texts


def standard_library() -> dict[str, str]:
    """Read the running Python's standard library, tests included, without what is generated or packaged with it.

    Raises:
        FileNotFoundError: this Python has no library on disk.
    """
    root = Path(sysconfig.get_paths()["stdlib"])
    if not (root / "os.py").is_file():
        raise FileNotFoundError(f"{root} holds no standard library, expected Python's source files there")
    packaged = ("site-packages/", "dist-packages/")
    generated = ("encodings/", "config-", "_sysconfigdata")
    return read_texts([root], (".py",), packaged + generated)


def split_texts(texts: Mapping[str, str], fraction: float = 0.05) -> tuple[list[str], list[str]]:
    """Divide texts by name into a training side and a held-out side.

    A group of near-duplicates goes to one side. Which side follows from its first name alone, so that most texts stay
    on their side when others are added.

    Args:
        texts: by name.
        fraction: about which part of the groups is held out.

    Raises:
        ValueError: there are too few texts to have both sides.
    """
    groups = near_duplicates(texts)
    if len(groups) < 2:
        raise ValueError(
            f"found {len(texts)} texts, too few to hold any out, expected at least 2 that are no copies of one another"
        )
    draws = {group[0]: hashlib.sha256(group[0].encode()).digest()[:8] for group in groups}
    share = {name: int.from_bytes(draw, "little") / 2**64 for name, draw in draws.items()}
    limit = max(fraction, min(share.values()))  # however few there are, one group is held out
    if limit >= max(share.values()):  # and one is not
        limit = min(share.values())
    held_out = [name for group in groups for name in group if share[group[0]] <= limit]
    training = [name for group in groups for name in group if share[group[0]] > limit]
    return sorted(training), sorted(held_out)


def near_duplicates(texts: Mapping[str, str]) -> list[list[str]]:
    """Group texts that share much, directly or through others; most groups have one member.

    Two texts belong together if 30 % of the telling lines of the one with fewer, and at least three, stand in the
    other; or if they are equal. A line is telling if it has at least 16 characters and stands in at most 20 texts.
    """
    lines = {name: {line.strip() for line in text.splitlines()} for name, text in texts.items()}
    homes: dict[str, list[str]] = {}
    for name in sorted(lines):
        for line in lines[name]:
            if len(line) >= MIN_LINE:
                homes.setdefault(line, []).append(name)
    telling: Counter[str] = Counter()
    shared: Counter[tuple[str, str]] = Counter()
    for names in homes.values():
        if len(names) > COMMON:
            continue
        telling.update(names)
        shared.update((one, other) for i, one in enumerate(names) for other in names[i + 1 :])
    leader = {name: name for name in lines}

    def find(name: str) -> str:
        while leader[name] != name:
            leader[name] = name = leader[leader[name]]
        return name

    def join(one: str, other: str) -> None:
        first, second = sorted((find(one), find(other)))
        leader[second] = first

    equal: dict[str, str] = {}
    for name in sorted(texts):
        join(name, equal.setdefault(texts[name].strip(), name))
    for (one, other), count in shared.items():
        if count >= SHARED * min(telling[one], telling[other]) and count >= 3:
            join(one, other)

    groups: dict[str, list[str]] = {}
    for name in sorted(lines):
        groups.setdefault(find(name), []).append(name)
    return [groups[name] for name in sorted(groups)]


def _read(path: Path) -> str:
    try:
        return path.read_bytes().decode("utf-8").replace("\r\n", "\n")
    except (UnicodeDecodeError, OSError):
        return ""
