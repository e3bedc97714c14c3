"""Checks of the JSON objects that describe folders: a table of fields for each kind of object."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple


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
