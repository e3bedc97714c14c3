"""The cache of huggingface_hub on disk, as it leaves it there, and responses of a Hub that is not there."""

import hashlib
import os
import shutil
from pathlib import Path
from typing import Any

COMMIT = "0123456789abcdef0123456789abcdef01234567"


def write_cached(cache: Path, name: str, folder: Path, refs: tuple[str, ...] = ("main",)) -> Path:
    """Put a folder into the cache as a repository: blobs, links to them in a snapshot, refs; return the snapshot."""
    home = cache / f"models--{name.replace('/', '--')}"
    snapshot = home / "snapshots" / COMMIT
    (home / "blobs").mkdir(parents=True, exist_ok=True)
    snapshot.mkdir(parents=True, exist_ok=True)
    for ref in refs:
        (home / "refs" / ref).parent.mkdir(parents=True, exist_ok=True)
        (home / "refs" / ref).write_text(COMMIT)
    for path in folder.iterdir():
        blob = home / "blobs" / hashlib.sha256(path.read_bytes()).hexdigest()
        shutil.copyfile(path, blob)
        place = snapshot / path.name
        try:
            place.symlink_to(os.path.relpath(blob, place.parent))
        except OSError:  # Windows, where not everybody may: then huggingface_hub copies as well
            shutil.copyfile(path, place)
    return snapshot


def error_of(name: str) -> Exception:
    """Return an error of huggingface_hub as it raises it after a response."""
    from huggingface_hub import errors

    kind: Any = getattr(errors, name)
    if issubclass(kind, errors.HfHubHTTPError):
        response = type("Response", (), {"headers": {}, "request": None, "status_code": 404})()
        return kind("404 Client Error.\n\nMany lines.", response=response)
    if issubclass(kind, errors.IncompleteSnapshotError):
        return kind("files are missing", "somewhere")
    return kind("many\nlines")
