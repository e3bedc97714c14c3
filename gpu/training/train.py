"""Look-ahead vectors for a frozen model, and an adapter and a sampler head with them: all that PaSS trains.

Glossary of shapes: N tokens of the training text, M of the held-out one.
"""

from __future__ import annotations

import hashlib
import math
import os
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import torch

from pass_sampling.reference.config import SamplingConfig, check_integer

from ..lookahead.vectors import LookAhead
from ..model.transformer import Transformer
from .acceptance import compared
from .anchors import Windows, anchored_rows, check_tokens, evenly_spaced
from .losses import LOSSES, mean_loss
from .parts import Parts, base_shapes, first_parts, optimizers_for, parts_of, set_learning_rates
from .resume import Progress, check_output, partial_file, peak_memory, settings_digest

if TYPE_CHECKING:
    from ..hf.model import TransformersModel

    Trainable = Transformer | TransformersModel

__all__ = ["TrainConfig", "train"]

Tokens = npt.NDArray[np.int64]
Report = Callable[[dict[str, Any]], None]
EVALUATED = 64  # held-out sequences


@dataclass(frozen=True)
class TrainConfig:
    """What is trained, on what, for how long."""

    num_lookahead: int = 4  # L
    sampling: SamplingConfig = field(default_factory=lambda: SamplingConfig(temperature=0.8, top_k=10))
    loss: str = "kl"
    num_steps: int = 150
    batch_size: int = 8  # sequences per step
    context: int = 256  # tokens of a sequence
    num_anchors: int = 64  # places per sequence after which look-ahead rows hang
    learning_rate: float = 0.05  # of the vectors
    warmup: float = 0.05  # the part of the run in which the learning rate rises; then it falls as a cosine
    seed: int = 0
    adapter_rank: int = 0  # R; 0: no adapter
    head_width: int = 0  # F; 0: no head
    head_alone: bool = False  # the head drafts without look-ahead rows, and the vectors learn nothing
    matrix_learning_rate: float = 0.003  # of adapter and head
    depth_decay: float = 1.0  # what a draft weighs in the loss, over the one before it
    loss_temperature: float | None = None  # default: that of `sampling`, with an adapter or a head 1

    def __post_init__(self) -> None:
        """Refuse settings with which nothing can be trained."""
        if self.loss not in LOSSES:
            raise ValueError(f"loss: found {self.loss!r}, expected one of {', '.join(sorted(LOSSES))}")
        for name in ("num_lookahead", "num_steps", "batch_size", "num_anchors"):
            check_integer(name, getattr(self, name), 1, 2**31)
        for name in ("adapter_rank", "head_width"):
            check_integer(name, getattr(self, name), 0, 2**16)
        check_integer("context", self.context, self.num_lookahead + 2, 2**31)
        check_integer("seed", self.seed, 0, 2**63 - 1)
        for name in ("learning_rate", "matrix_learning_rate", "depth_decay", "loss_temperature"):
            value = getattr(self, name)
            if value is not None and not (math.isfinite(value) and value > 0):
                raise ValueError(f"{name}: found {value}, expected a positive number")
        if not 0 <= self.warmup <= 1:
            raise ValueError(f"warmup: found {self.warmup}, expected a part of the run, 0 to 1")
        if self.depth_decay > 1:
            raise ValueError(f"depth_decay: found {self.depth_decay}, expected at most 1")
        if self.loss_temperature is not None and self.loss == "cross-entropy":
            raise ValueError(
                f"loss_temperature: found {self.loss_temperature} with cross-entropy, expected it with a loss on "
                "distributions"
            )
        if self.head_alone and (self.adapter_rank or not self.head_width):
            found = "with an adapter" if self.adapter_rank else "without a head"
            raise ValueError(
                f"head_alone: found it {found}, expected a head and no adapter, as there are no look-ahead rows"
            )

    @property
    def temperature(self) -> float:
        """The temperature of the distributions that the loss compares."""
        if self.loss_temperature is not None:
            return self.loss_temperature
        return 1.0 if self.adapter_rank or self.head_width else self.sampling.temperature or 1.0


def train(
    model: Trainable,
    training: Tokens,  # [N]
    held_out: Tokens,  # [M]
    output: str | os.PathLike[str],
    config: TrainConfig | None = None,
    report: Report | None = None,
    begin: LookAhead | None = None,
) -> LookAhead:
    """Train look-ahead vectors for a frozen model, and what else is asked for, and save a look-ahead folder.

    A run that was killed is resumed by the same call: its state lies beside the output until it has ended.

    Args:
        model: frozen; nothing of it changes. One of transformers stands in a `TransformersModel`, without an adapter.
        training: the tokens of the text to learn from.
        held_out: other text, on which acceptance is measured.
        output: a path at which there is nothing yet.
        config: what to train, and how long.
        report: called with what is known: `seconds_per_step` and `memory` before the first step, then `step` and
            `loss`, at the end what `compared` finds: acceptance, and that of untrained controls.
        begin: what to go on from, instead of parts that know nothing yet.

    Raises:
        ValueError: the output is taken, a text is too short or not this model's, or what was begun is another run.
    """
    config = TrainConfig() if config is None else config
    report = (lambda news: None) if report is None else report
    path = Path(output)
    check_output(path, "look-ahead vectors")
    config.sampling.check(model.vocab_size)
    if config.adapter_rank and not isinstance(model, Transformer):
        raise ValueError(
            f"adapter_rank: found {config.adapter_rank} with a model of transformers, expected 0: an adapter stands "
            "inside the layers of this package's own Transformer"
        )
    if config.context > model.max_position_embeddings:
        raise ValueError(
            f"context: found {config.context}, expected at most {model.max_position_embeddings}, the model's"
        )
    windows = Windows(training, config.context, config.batch_size, config.seed)
    sequences = evenly_spaced(held_out, config.context, EVALUATED)
    check_tokens("training", training, model.vocab_size)
    check_tokens("held_out", held_out, model.vocab_size)

    parts = first_parts(model, config) if begin is None else parts_of(begin, model, config)
    optimizers = optimizers_for(parts, config)
    run = asdict(config) | {"fingerprint": _fingerprint(model), "dtype": str(model.dtype)}
    known = [] if begin is None else [each.detach().cpu().numpy().tobytes() for each in parts.parameters().values()]
    digest = settings_digest(run, training.tobytes(), held_out.tobytes(), *known)
    progress = Progress(partial_file(path), digest, parts.parameters(), optimizers)
    first, notes = progress.restore()
    report({"first_step": first, "num_steps": config.num_steps} | _estimate(model, parts, windows, config))
    started, before = time.monotonic(), float(notes.get("seconds", 0.0))
    for step in range(first, config.num_steps):
        value = _learn(model, parts, optimizers, windows, step, config)
        if not math.isfinite(value):
            raise ValueError(f"the loss at step {step + 1} is {value}, expected a number; lower learning_rate")
        notes = {"seconds": before + time.monotonic() - started, "loss": value}
        report({"step": step + 1, "num_steps": config.num_steps, "loss": value})
        progress.save(step + 1, notes, now=step + 1 == config.num_steps)

    with torch.no_grad():  # rounded as it will be stored, before it is measured
        names = (model.name, base_shapes(model), model.fingerprint, config.sampling)
        lookahead = LookAhead(parts.vectors.cpu(), *names, adapter=parts.adapter, head=parts.head)
    outcome = compared(model, lookahead, sequences, config.sampling, config.seed)
    report(outcome)
    settings = asdict(config)
    settings.pop("sampling")
    record = {
        "held_out": outcome,
        "training_tokens": len(training),
        "held_out_tokens": len(held_out),
        "parameters": sum(parameter.numel() for parameter in parts.parameters().values()),
        "loss": round(float(notes.get("loss", math.nan)), 4),
        "seconds": round(float(notes.get("seconds", 0.0))),
        "dtype": str(model.dtype).removeprefix("torch."),
        "device": model.device.type,
        "torch": torch.__version__,
        "settings": settings,
    }
    record |= {} if begin is None else {"began_with": {**begin.training, "held_out": None}}
    lookahead = replace(lookahead, training=record)
    lookahead.save_pretrained(path)
    progress.finish()
    return lookahead


def _fingerprint(model: Trainable) -> str:
    """Return what tells the model from others; one that came from no checkpoint is known by its embedding."""
    if model.fingerprint is not None:
        return model.fingerprint
    embedding = model.embed(torch.arange(model.vocab_size, device=model.device).unsqueeze(0))
    return hashlib.sha256(embedding.float().cpu().numpy().tobytes()).hexdigest()


def _learn(
    model: Trainable,
    parts: Parts,
    optimizers: list[torch.optim.Optimizer],
    windows: Windows,
    step: int,
    config: TrainConfig,
) -> float:
    """Take one step and return its loss; its sequences and anchors follow from the seed and the step alone."""
    stream = np.random.Philox(key=config.seed + 1, counter=step << 64)  # the low word counts within a step
    generator = np.random.Generator(stream)
    places = config.context - config.num_lookahead - 1
    anchors = np.sort(generator.choice(places, min(config.num_anchors, places), replace=False))
    tokens = torch.from_numpy(windows.batch(step)).to(model.device)
    behind = torch.from_numpy(anchors).to(model.device)
    rows = anchored_rows(model, parts.vectors, tokens, behind, parts.adapter, parts.head)
    loss = mean_loss(LOSSES[config.loss](rows, config.temperature), config.depth_decay)
    loss.backward()
    set_learning_rates(optimizers, step, config)
    for optimizer in optimizers:
        optimizer.step()
        optimizer.zero_grad()
    return loss.item()


def _estimate(model: Trainable, parts: Parts, windows: Windows, config: TrainConfig) -> dict[str, Any]:
    """Take the first step twice on a copy, and say what the second took; the first one warms up."""
    copy = parts.copy()
    optimizers = optimizers_for(copy, config)
    for _ in range(2):
        started = time.monotonic()
        _learn(model, copy, optimizers, windows, 0, config)
    return {"seconds_per_step": time.monotonic() - started, "memory": peak_memory(model.device)}
