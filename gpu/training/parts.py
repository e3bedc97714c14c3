"""What is trained beside a frozen model: look-ahead vectors, an adapter, a sampler head; how they begin and learn.

Glossary of shapes: L look-ahead vectors, D model.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from ..adapter import SIZES, Adapter
from ..files.lookahead_folder import ADAPTER, HEAD
from ..sampler_head import SamplerHead
from ..transformer import Transformer

if TYPE_CHECKING:
    from ..train import TrainConfig

__all__ = ["Parts", "base_shapes", "first_parts", "optimizers_for", "set_learning_rates"]

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
        alone = self.head is not None and self.head.alone
        return ({} if alone else {"vectors": self.vectors}) | self.matrices()

    def copy(self) -> Parts:
        """Return other parameters with the same values."""
        adapter = self.adapter and Adapter.of(_leaves(self.adapter.tensors()))
        head = self.head and SamplerHead.of(_leaves(self.head.tensors()), self.head.alone)
        return Parts(_leaves({"": self.vectors})[""], adapter, head)


def _leaves(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: tensor.detach().clone().requires_grad_() for name, tensor in tensors.items()}


def first_parts(model: Transformer, config: TrainConfig) -> Parts:
    """Return untrained parts: vectors at the mean embedding, and an adapter and a head that change nothing yet.

    Each vector is pushed off by noise of a tenth of an embedding's spread. The matrices that adapters and heads end in
    are 0, those before them random, so that the first step moves the former and the next ones all.

    Source: Hu et al. 2021 (arXiv 2106.09685), Sec. 4.1.
    """
    embedding = model.weights.embedding.float()
    noise = np.random.default_rng(config.seed).standard_normal((config.num_lookahead, model.hidden_size))
    spread = 0.1 * embedding.std(dim=0)
    vectors = embedding.mean(dim=0) + spread * torch.from_numpy(noise).float().to(model.device)
    adapter = head = None
    if config.adapter_rank:
        tensors = Adapter.random(model.config, config.adapter_rank, config.seed).to(torch.float32, model.device)
        adapter = Adapter.of(
            {name: 0 * each if name.endswith(".up") else each for name, each in tensors.tensors().items()}
        )
    if config.head_width:
        drawn = SamplerHead.random(model.hidden_size, config.head_width, config.seed).to(torch.float32, model.device)
        head = SamplerHead.of(drawn.tensors() | {"out": 0 * drawn.out}, config.head_alone)
    return Parts(vectors, adapter, head).copy()


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


def base_shapes(model: Transformer) -> dict[str, int]:
    """Return the sizes that say which model this is, under config.json's names."""
    return {name: getattr(model.config, name) for name in ("vocab_size", *SIZES)}
