"""The look-ahead vectors: what PaSS trains, and the folder that keeps them."""

from __future__ import annotations

import os
from dataclasses import dataclass

import torch
from torch import Tensor

from pass_sampling.reference.checkpoint.lookahead_folder import DRAFT_VOCAB, TENSOR
from pass_sampling.reference.lookahead.vectors import TrainedVectors, check_draft_vocab

from ..checkpoint.hub import local_folder
from ..model.language_model import LanguageModel
from ..model.precision import check_device
from .adapter import Adapter
from .head import BlockHeads, SamplerHead


@dataclass(frozen=True, eq=False)
class LookAhead(TrainedVectors):
    """Look-ahead vectors in the space of `inputs_embeds`, and the model that they were trained for."""

    vectors: torch.Tensor  # [L, D]
    adapter: Adapter | None = None
    head: SamplerHead | BlockHeads | None = None
    kinds = Adapter, {"head": SamplerHead, "block": BlockHeads}

    def __post_init__(self) -> None:
        """Hold the vectors in float32, and the other parts as they are stored."""
        vectors = torch.as_tensor(self.vectors).detach().to(torch.float32, copy=True)
        object.__setattr__(self, "vectors", vectors)
        if self.draft_vocab is not None:
            tokens = check_draft_vocab(torch.as_tensor(self.draft_vocab).cpu().numpy())
            object.__setattr__(self, "draft_vocab", torch.from_numpy(tokens).to(vectors.device))
        for name in ("adapter", "head"):
            part = getattr(self, name)
            stored = part and part.to(torch.bfloat16, vectors.device).to(torch.float32, vectors.device)
            object.__setattr__(self, name, stored)
        self._check_numbers()

    def inputs(self, model: LanguageModel, num_lookahead: int | None = None) -> Tensor:  # [L, D]
        """Return the first `num_lookahead` vectors (default: all) as input vectors of a model; see the reference."""
        vectors = self.vectors[: self._checked_number(model, num_lookahead)].detach().to(model.device, model.dtype)
        if not bool(vectors.isfinite().all()):
            dtype = str(vectors.dtype).removeprefix("torch.")
            raise ValueError(f"lookahead: found vectors too large for {dtype}, expected a wider dtype")
        return vectors

    def _packed(self) -> bytes:
        """Return the content of model.safetensors."""
        from safetensors.torch import save

        tensors = {name: tensor.detach().cpu().bfloat16() for name, tensor in self._parts().items()}
        if self.draft_vocab is not None:
            tensors[DRAFT_VOCAB] = self.draft_vocab.cpu().int()
        return save({**tensors, TENSOR: self.vectors.detach().cpu().contiguous()})

    @classmethod
    def load(cls, folder: str | os.PathLike[str], device: torch.device | str = "cpu") -> LookAhead:
        """Read a look-ahead folder, or one on the Hub: as a string `org/name` or `org/name@revision`.

        Raise FileNotFoundError for a missing file, ValueError for one that is damaged or of another version.
        """
        device = check_device(device)
        return cls._read(local_folder(folder, vectors=True), lambda array: torch.from_numpy(array).to(device))
