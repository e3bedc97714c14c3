"""Outside this package: the user's cache folder, and the errors of other people's code."""

from __future__ import annotations

import os
import tempfile
from functools import cache
from pathlib import Path

_temporary = cache(tempfile.mkdtemp)


def cache_folder(what: str) -> Path:
    """Return the user's folder for what was measured or made on this machine; it may not be there yet."""
    home = os.environ.get("LOCALAPPDATA") if os.name == "nt" else os.environ.get("XDG_CACHE_HOME")
    try:
        return Path(home or Path.home() / ".cache") / "pass-sampling" / what
    except RuntimeError:  # nobody's home is known: a folder of this process alone
        return Path(_temporary()) / what


def reason_of(error: Exception) -> str:
    """Return the message of an error, on one line."""
    return " ".join(str(error).split())[:200] or type(error).__name__
