"""The look-ahead vectors: what PaSS trains, and the folder that keeps them."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from pass_sampling.reference.checkpoint.folder import file_in, open_folder, read_json, replace_folder
from pass_sampling.reference.checkpoint.lookahead_folder import (
    ADAPTER,
    CARD,
    CONFIG,
    FIXED,
    HEAD,
    TENSOR,
    VECTORS,
    may_replace,
    read_details,
)
from pass_sampling.reference.config import SamplingConfig, check_integer

from ..checkpoint.lookahead_folder import read_tensors
from ..hf.hub import local_folder
from ..hf.pretrained import Pretrained
from ..model.precision import check_device
from .adapter import Adapter, sizes_of, tensor_shapes
from .head import SamplerHead

if TYPE_CHECKING:
    from ..model.language_model import LanguageModel

__all__ = ["LookAhead"]


@dataclass(frozen=True, eq=False)
class LookAhead(Pretrained):
    """Look-ahead vectors in the space of `inputs_embeds`, and the model that they were trained for."""

    vectors: torch.Tensor  # [L, D]
    base_model: str = ""  # the name of the model they were trained for
    base_shapes: Mapping[str, int] = field(default_factory=dict)  # its sizes, under config.json's names
    fingerprint: str | None = None  # its fingerprint; None: not known, so not checked
    sampling: SamplingConfig | None = None  # the sampling they were trained for
    training: Mapping[str, Any] = field(default_factory=dict)  # how they were trained, free of form
    adapter: Adapter | None = None  # what look-ahead rows pass through beside the model's layers
    head: SamplerHead | None = None  # what tells drafts of one another

    def __post_init__(self) -> None:
        """Hold the vectors in float32, the dtype they are stored in."""
        vectors = torch.as_tensor(self.vectors).detach().to(torch.float32, copy=True)
        if vectors.ndim != 2 or vectors.shape[1] == 0:
            raise ValueError(f"vectors has shape {list(vectors.shape)}, expected [num_lookahead, hidden_size]")
        if not bool(vectors.isfinite().all()):
            raise ValueError("vectors holds NaN or infinity, expected finite numbers")
        object.__setattr__(self, "vectors", vectors)
        for name in ("adapter", "head"):
            part = getattr(self, name)
            if part is not None:  # as they are stored
                rounded = part.to(torch.bfloat16, vectors.device)
                object.__setattr__(self, name, rounded.to(torch.float32, vectors.device))
        if not all(bool(tensor.isfinite().all()) for tensor in self._parts().values()):
            raise ValueError("adapter or head holds NaN or infinity, expected finite numbers")

    @property
    def num_lookahead(self) -> int:
        """Return how many vectors there are, L."""
        return int(self.vectors.shape[0])

    @property
    def hidden_size(self) -> int:
        """Return the width of a vector, D."""
        return int(self.vectors.shape[1])

    @classmethod
    def random(
        cls,
        num_lookahead: int,
        hidden_size: int,
        seed: int,
        device: torch.device | str = "cpu",
    ) -> LookAhead:
        """Draw untrained vectors of the size of ordinary embeddings; the same in both packages."""
        check_integer("num_lookahead", num_lookahead, 0, 2**16)
        check_integer("hidden_size", hidden_size, 1, 2**20)
        check_integer("seed", seed, 0, 2**64 - 1)
        numbers = 0.02 * np.random.default_rng(seed).standard_normal((num_lookahead, hidden_size))
        return cls(torch.from_numpy(numbers).to(torch.float32).to(check_device(device)))

    def check(self, model: LanguageModel) -> None:
        """Refuse a model that the vectors were not trained for.

        Vectors without a fingerprint fit every model of their width.

        Raises:
            ValueError: the widths differ, or the fingerprints.
        """
        if self.hidden_size != model.hidden_size:
            raise ValueError(
                f"the look-ahead vectors have hidden_size {self.hidden_size}, "
                f"expected {model.hidden_size} as in the model {model.name!r}"
            )
        if self.adapter is not None:
            config = getattr(model, "config", None)
            expected = {} if config is None else tensor_shapes(sizes_of(config), self.adapter.rank)
            if {name: tuple(each.shape) for name, each in self.adapter.tensors().items()} != expected:
                raise ValueError(
                    f"the look-ahead adapter has the shapes of another model, expected those of {model.name!r}"
                )
        if self.fingerprint is not None and model.fingerprint not in (None, self.fingerprint):
            raise ValueError(
                f"the look-ahead vectors were trained for the model {self.base_model!r} "
                f"({self.fingerprint[:12]}), this is {model.name!r} ({str(model.fingerprint)[:12]}), "
                f"expected the same; wrong vectors keep the text exact but make it slow, and "
                f"dataclasses.replace(lookahead, fingerprint=None) uses them all the same"
            )

    def inputs(self, model: LanguageModel, num_lookahead: int | None = None) -> Tensor:  # [L, D]
        """Return the first so many vectors (default: all) as input vectors of a model, in its dtype.

        Raises:
            ValueError: they were trained for another one, are fewer, or too large for the dtype.
        """
        wanted = self.num_lookahead if num_lookahead is None else num_lookahead
        check_integer("num_lookahead", wanted, 0, self.num_lookahead)
        self.check(model)
        vectors = self.vectors[:wanted].detach().to(model.device, model.dtype)
        if not bool(vectors.isfinite().all()):
            dtype = str(vectors.dtype).removeprefix("torch.")
            raise ValueError(f"lookahead: found vectors too large for {dtype}, expected a wider dtype")
        return vectors

    def save(self, folder: str | os.PathLike[str], card: str | None = None) -> None:
        """Write a look-ahead folder, whole or not at all; one that is there already is replaced.

        A card is the text of its README.md; without one, a README.md that is there already is kept.

        Raises:
            ValueError: the path holds something else, or `training` is no plain JSON.
        """
        from safetensors.torch import save

        path = Path(folder)
        if path.exists() and not may_replace(path):
            raise ValueError(f"{path} holds something else, expected a new path or a look-ahead folder")
        refine = self.head and {"kind": "head", "width": self.head.width, "alone": not self.head.uses_lookahead}
        settings = FIXED | {
            "adapter_rank": 0 if self.adapter is None else self.adapter.rank,
            "refine": refine,
            "num_lookahead": self.num_lookahead,
            "hidden_size": self.hidden_size,
            "sampling": None if self.sampling is None else asdict(self.sampling),
            "base_model": {
                "name": self.base_model,
                "shapes": dict(self.base_shapes),
                "fingerprint": self.fingerprint,
            },
            "training": dict(self.training),
        }
        try:
            text = json.dumps(settings, indent=2, allow_nan=False) + "\n"
        except (TypeError, ValueError) as error:
            raise ValueError(f"training is not plain JSON ({error}), expected text, finite numbers and such") from None
        tensors = {name: tensor.detach().cpu().bfloat16() for name, tensor in self._parts().items()}
        tensors[TENSOR] = self.vectors.detach().cpu().contiguous()
        files = {VECTORS: save(tensors), CONFIG: text.encode()}
        if card is not None or (path / CARD).is_file():
            files[CARD] = (path / CARD).read_bytes() if card is None else card.encode()
        replace_folder(path, files)

    def _parts(self) -> dict[str, Tensor]:
        """Return the tensors of adapter and head under the names that they are stored by."""
        parts = [(ADAPTER, self.adapter), (HEAD, self.head)]
        return {begin + name: each for begin, part in parts if part for name, each in part.tensors().items()}

    @classmethod
    def load(
        cls, folder: str | os.PathLike[str], device: torch.device | str = "cpu", revision: str | None = None
    ) -> LookAhead:
        """Read a look-ahead folder, or one on the Hub: as a string `org/name`, perhaps at a revision.

        Raises:
            FileNotFoundError: the folder or one of its files is missing, or cannot be fetched.
            ValueError: a file is damaged, or was made for another version of this package.
        """
        device = check_device(device)
        root = open_folder(local_folder(folder, revision, vectors=True))
        path = file_in(root, CONFIG)
        settings = read_json(path)
        try:
            details = read_details(settings)
        except ValueError as error:
            raise ValueError(f"{path}: {error}") from None
        path = file_in(root, VECTORS)
        tensors = read_tensors(path, settings)
        adapter, head = (
            {name.removeprefix(begin): each.to(device) for name, each in tensors.items() if name.startswith(begin)}
            for begin in (ADAPTER, HEAD)
        )
        details["adapter"] = Adapter.of(adapter) if adapter else None
        details["head"] = SamplerHead.of(head, not settings["refine"]["alone"]) if head else None
        try:
            return cls(tensors[TENSOR].to(device), **details)
        except ValueError as error:
            raise ValueError(f"{path}: {error}") from None
