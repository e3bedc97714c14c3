"""A method beside another: the same in all its fields, with what a compiled method asks of it."""

from __future__ import annotations

from copy import copy
from typing import Any

from ..methods.base import Method

__all__ = ["twin_of"]


def twin_of(method: Method, **attributes: Any) -> Method:
    """Return the same method with other attributes, which are no fields of it."""
    twin = copy(method)
    for name, value in attributes.items():
        object.__setattr__(twin, name, value)
    return twin
