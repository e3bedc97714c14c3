"""What is trained beside a frozen model: look-ahead vectors, an adapter, a sampler head; how they begin and learn.

Glossary of shapes: L look-ahead vectors, D model.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from pass_sampling.reference.checkpoint.lookahead_folder import ADAPTER, HEAD

from ..lookahead.adapter import SIZES, Adapter
from ..lookahead.head import SamplerHead

if TYPE_CHECKING:
    from ..lookahead.vectors import LookAhead
    from ..model.language_model import LanguageModel
    from .train import Trainable, TrainConfig

__all__ = ["Parts", "base_shapes", "first_parts", "first_vectors", "optimizers_for", "parts_of", "set_learning_rates"]

WEIGHT_DECAY = 0.01  # of matrices


@dataclass(frozen=True, eq=False)
class Parts:
    """Parameters in float32; an adapter or a head may be missing."""

    vectors: Tensor  # [L, D]
    adapter: Adapter | None = None
    head: SamplerHead | None = None

    def matrices(self) -> dict[str, Tensor]:
        """Return the parameters of adapter and head by name."""
        parts = [(ADAPTER, self.adapter), (HEAD, self.head)]
        return {begin + name: each for begin, part in parts if part for name, each in part.tensors().items()}

    def parameters(self) -> dict[str, Tensor]:
        """Return all that learns, by name: not the vectors, where the head drafts without them."""
        alone = self.head is not None and not self.head.uses_lookahead
        return ({} if alone else {"vectors": self.vectors}) | self.matrices()

    def copy(self) -> Parts:
        """Return other parameters with the same values."""
        adapter = self.adapter and Adapter.of(_leaves(self.adapter.tensors()))
        head = self.head and SamplerHead.of(_leaves(self.head.tensors()), self.head.uses_lookahead)
        return Parts(_leaves({"": self.vectors})[""], adapter, head)


def _leaves(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: tensor.detach().clone().requires_grad_() for name, tensor in tensors.items()}


def first_parts(model: Trainable, config: TrainConfig) -> Parts:
    """Return untrained parts: vectors near the mean embedding, and an adapter and a head that change nothing yet.

    The matrices that adapters and heads end in are 0, those before them random, so that the first step moves the former
    and the next ones all.

    Source: Hu et al. 2021 (arXiv 2106.09685), Sec. 4.1.
    """
    vectors = first_vectors(model, config.num_lookahead, config.seed)
    adapter = head = None
    if config.adapter_rank:
        sizes = model.config  # type: ignore[union-attr]  # `train` refuses models without one
        tensors = Adapter.random(sizes, config.adapter_rank, config.seed).to(torch.float32, model.device)
        adapter = Adapter.of(
            {name: 0 * each if name.endswith(".up") else each for name, each in tensors.tensors().items()}
        )
    if config.head_width:
        drawn = SamplerHead.random(model.hidden_size, config.head_width, config.seed).to(torch.float32, model.device)
        head = SamplerHead.of(drawn.tensors() | {"out": 0 * drawn.out}, not config.head_alone)
    return Parts(vectors, adapter, head).copy()


def parts_of(begin: LookAhead, model: Trainable, config: TrainConfig) -> Parts:
    """Return parts that were trained before.

    Raises:
        ValueError: they were trained for another model, or are not those that the settings speak of.
    """
    begin.check(model)
    adapter, head = begin.adapter, begin.head
    found = {
        "num_lookahead": begin.num_lookahead,
        "adapter_rank": adapter.rank if adapter else 0,
        "head_width": head.width if head else 0,
        "head_alone": bool(head and not head.uses_lookahead),
    }
    for name, value in found.items():
        if value != getattr(config, name):
            raise ValueError(f"begin: found {name} {value}, expected {getattr(config, name)}, what is to be trained")
    device = model.device
    adapter, head = adapter and adapter.to(torch.float32, device), head and head.to(torch.float32, device)
    return Parts(begin.vectors.float().to(device), adapter, head).copy()


def first_vectors(model: LanguageModel, num_lookahead: int, seed: int) -> Tensor:  # [L, D]
    """Return vectors at the mean embedding, each pushed off by noise of a tenth of an embedding's spread."""
    embedding = model.embed(torch.arange(model.vocab_size, device=model.device).unsqueeze(0))[0].detach().float()
    noise = np.random.default_rng(seed).standard_normal((num_lookahead, model.hidden_size))
    spread = 0.1 * embedding.std(dim=0)
    return embedding.mean(dim=0) + spread * torch.from_numpy(noise).float().to(model.device)


def optimizers_for(parts: Parts, config: TrainConfig) -> list[torch.optim.Optimizer]:
    """Return AdamW for the vectors and Muon for the matrices.

    Source: Jordan et al. 2024 (Muon); Liu et al. 2025 (arXiv 2502.16982) for the scale of its steps.
    """
    found: list[torch.optim.Optimizer] = []
    if "vectors" in parts.parameters():
        rate = config.learning_rate
        found.append(torch.optim.AdamW([parts.vectors], lr=rate, weight_decay=0.0, betas=(0.9, 0.98)))
    if matrices := list(parts.matrices().values()):
        rate = config.matrix_learning_rate
        found.append(torch.optim.Muon(matrices, lr=rate, weight_decay=WEIGHT_DECAY, adjust_lr_fn="match_rms_adamw"))
    return found


def set_learning_rates(optimizers: list[torch.optim.Optimizer], step: int, config: TrainConfig) -> None:
    """Set each optimizer to the part of its learning rate that is due at a step."""
    part = schedule(step, config)
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            group["lr"] = part * optimizer.defaults["lr"]


def schedule(step: int, config: TrainConfig) -> float:
    """Return the part of the learning rate at a step: a straight rise, then half a cosine down to 0."""
    done = (step + 1) / config.num_steps
    return min(done / max(config.warmup, 1 / config.num_steps), 0.5 + 0.5 * math.cos(math.pi * step / config.num_steps))


def base_shapes(model: Trainable) -> dict[str, int]:
    """Return the sizes that say which model this is, under config.json's names."""
    config: Any = getattr(model, "config", None) or getattr(model, "text_config", None)
    sizes = {name: getattr(config, name, None) for name in SIZES}  # transformers' configs need not name them all
    return {"vocab_size": model.vocab_size} | {name: size for name, size in sizes.items() if type(size) is int}
