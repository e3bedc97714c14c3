"""Which dtypes the specification runs in."""

from __future__ import annotations

from typing import Any

import numpy as np

__all__ = ["check_dtype"]


def check_dtype(dtype: Any) -> np.dtype[Any]:
    """Return the NumPy dtype, given as one or by name.

    Raises:
        ValueError: it is none that a model can be loaded in.
    """
    try:
        name = dtype if isinstance(dtype, str) else np.dtype(dtype).name
    except TypeError:
        name = str(dtype)
    if name not in ("float64", "float32"):
        raise ValueError(f"dtype: found {name:.80}, expected float64 or float32")
    return np.dtype(name)
