"""Where what was measured or made on this machine is kept, so that it is not done again."""

from __future__ import annotations

import os
import tempfile
from functools import cache
from pathlib import Path


def cache_folder(what: str) -> Path:
    """Return the folder for things of a kind; it may not be there yet."""
    home = os.environ.get("LOCALAPPDATA") if os.name == "nt" else os.environ.get("XDG_CACHE_HOME")
    try:
        return Path(home or Path.home() / ".cache") / "pass-sampling" / what
    except RuntimeError:  # nobody's home is known: a folder of this process alone
        return Path(_temporary()) / what


_temporary = cache(tempfile.mkdtemp)
