"""The tensors of a folder of look-ahead vectors; the rules of the folder are the reference's."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from pass_sampling.reference.checkpoint.folder import read_header
from pass_sampling.reference.checkpoint.lookahead_folder import check_header

__all__ = ["read_tensors"]


def read_tensors(path: Path, settings: Mapping[str, Any]) -> dict[str, torch.Tensor]:
    """Return the vectors, and the tensors of the adapter and the head, which must be all that the file holds.

    Raises:
        ValueError: the file is damaged, or holds other tensors, shapes or dtypes.
    """
    from safetensors import safe_open

    check_header(path, read_header(path), settings)
    with safe_open(path, framework="pt") as file:
        return {name: file.get_tensor(name).float() for name in file.keys()}
