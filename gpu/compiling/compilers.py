"""Whether there is a C++ compiler, which PyTorch's own needs behind it."""

from __future__ import annotations

import os
import shutil

__all__ = ["COMPILERS", "has_compiler"]

COMPILERS = ("c++", "g++", "clang++", "cl")


def has_compiler() -> bool:
    """Say whether there is one, under a name that PyTorch looks for."""
    return any(map(shutil.which, (os.environ.get("CXX") or "c++", *COMPILERS)))
