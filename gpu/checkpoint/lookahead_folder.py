"""The tensors of a look-ahead folder; the rules of the folder are the reference's."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from pass_sampling.reference.checkpoint import lookahead_folder as reference


def read_tensors(path: Path, settings: Mapping[str, Any]) -> dict[str, torch.Tensor]:
    """Return the checked vectors, and the tensors of the adapter and the head, in float32."""
    return {name: torch.from_numpy(array) for name, array in reference.read_tensors(path, settings).items()}
