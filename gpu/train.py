"""Look-ahead vectors for a frozen model: the only thing that PaSS trains.

Glossary of shapes: L look-ahead vectors, D model, V vocabulary, N tokens of the training text, M of the held-out one.
"""

from __future__ import annotations

import hashlib
import math
import os
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.nn import functional

from .config import SamplingConfig, check_integer
from .lookahead import LookAhead
from .training.acceptance import expected_acceptance, fixed_token_vectors
from .training.anchors import AnchoredRows, anchored_rows
from .training.memory import peak_memory
from .training.resume import Progress, check_output, partial_file, settings_digest
from .training.windows import Windows, check_tokens, evenly_spaced
from .transformer import Transformer

__all__ = ["LOSSES", "TrainConfig", "train"]

Tokens = npt.NDArray[np.int64]
Report = Callable[[dict[str, Any]], None]
EVALUATED = 64  # held-out sequences


def kl_loss(rows: AnchoredRows, temperature: float) -> Tensor:  # []
    """Return the mean divergence of the draft laws from the frozen model's own, in nats.

    mean of sum_v target[v] (log target[v] - log draft[v]), both at the temperature of sampling
    """
    target = (rows.target_logits.float() / temperature).log_softmax(dim=-1)
    draft = (rows.draft_logits.float() / temperature).log_softmax(dim=-1)
    return functional.kl_div(draft.flatten(0, 2), target.flatten(0, 2), reduction="batchmean", log_target=True)


def cross_entropy_loss(rows: AnchoredRows, temperature: float) -> Tensor:  # []
    """Return the mean loss of the drafts on the text's own tokens, in nats, as in the paper; at temperature 1.

    Source: Monea et al. 2023 (arXiv 2311.13581), Sec. 3.
    """
    return functional.cross_entropy(rows.draft_logits.float().flatten(0, 2), rows.next_tokens.flatten())


LOSSES = {"kl": kl_loss, "cross-entropy": cross_entropy_loss}


@dataclass(frozen=True)
class TrainConfig:
    """What is trained, on what, for how long."""

    num_lookahead: int = 4  # L
    sampling: SamplingConfig = field(default_factory=lambda: SamplingConfig(temperature=0.8, top_k=10))
    loss: str = "kl"
    num_steps: int = 150
    batch_size: int = 8  # sequences per step
    context: int = 256  # tokens of a sequence
    num_anchors: int = 64  # places per sequence behind which look-ahead rows hang
    learning_rate: float = 0.05
    warmup: float = 0.05  # the part of the run in which the learning rate rises; then it falls as a cosine
    seed: int = 0

    def __post_init__(self) -> None:
        """Refuse settings with which nothing can be trained."""
        if self.loss not in LOSSES:
            raise ValueError(f"loss: found {self.loss!r}, expected one of {', '.join(sorted(LOSSES))}")
        for name in ("num_lookahead", "num_steps", "batch_size", "num_anchors"):
            check_integer(name, getattr(self, name), 1, 2**31)
        check_integer("context", self.context, self.num_lookahead + 2, 2**31)
        check_integer("seed", self.seed, 0, 2**63 - 1)
        if not (math.isfinite(self.learning_rate) and self.learning_rate > 0):
            raise ValueError(f"learning_rate: found {self.learning_rate}, expected a positive number")
        if not 0 <= self.warmup <= 1:
            raise ValueError(f"warmup: found {self.warmup}, expected a part of the run, 0 to 1")


def train(
    model: Transformer,
    training: Tokens,  # [N]
    held_out: Tokens,  # [M]
    output: str | os.PathLike[str],
    config: TrainConfig | None = None,
    report: Report | None = None,
) -> LookAhead:
    """Train look-ahead vectors for a frozen model and save them as a look-ahead folder.

    A run that was killed is resumed by the same call: its state lies beside the output until it has ended.

    Args:
        model: frozen; nothing of it changes.
        training: the tokens of the text to learn from.
        held_out: other text, on which acceptance is measured.
        output: a path at which there is nothing yet.
        config: what to train, and how long.
        report: called with what is known: `seconds_per_step` and `memory` before the first step, then `step` and
            `loss`, at the end `acceptance`, and beside it that of small random vectors and of the paper's fixed token.

    Raises:
        ValueError: the output is taken, a text is too short or not this model's, or an unfinished run there was
            another one.
    """
    config = TrainConfig() if config is None else config
    report = (lambda news: None) if report is None else report
    path = Path(output)
    check_output(path, "look-ahead vectors")
    config.sampling.check(model.vocab_size)
    if config.context > model.max_position_embeddings:
        raise ValueError(
            f"context: found {config.context}, expected at most {model.max_position_embeddings}, the model's"
        )
    windows = Windows(training, config.context, config.batch_size, config.seed)
    sequences = evenly_spaced(held_out, config.context, EVALUATED)
    check_tokens("training", training, model.vocab_size)
    check_tokens("held_out", held_out, model.vocab_size)

    vectors = _first_vectors(model, config).requires_grad_()
    optimizer = torch.optim.AdamW([vectors], lr=config.learning_rate, weight_decay=0.0, betas=(0.9, 0.98))
    run = asdict(config) | {"fingerprint": _fingerprint(model), "dtype": str(model.dtype)}
    digest = settings_digest(run, training.tobytes(), held_out.tobytes())
    progress = Progress(partial_file(path), digest, {"vectors": vectors}, [optimizer])
    first, notes = progress.restore()
    report({"first_step": first, "num_steps": config.num_steps} | _estimate(model, vectors, windows, config))
    started, before = time.monotonic(), float(notes.get("seconds", 0.0))
    for step in range(first, config.num_steps):
        for group in optimizer.param_groups:
            group["lr"] = config.learning_rate * _schedule(step, config)
        loss = _loss(model, vectors, windows, step, config)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        value = loss.item()
        if not math.isfinite(value):
            raise ValueError(f"the loss at step {step + 1} is {value}, expected a number; lower learning_rate")
        notes = {"seconds": before + time.monotonic() - started, "loss": value}
        report({"step": step + 1, "num_steps": config.num_steps, "loss": value})
        progress.save(step + 1, notes, now=step + 1 == config.num_steps)

    acceptance = expected_acceptance(model, vectors.detach(), sequences, config.sampling)
    fixed = fixed_token_vectors(model, config.num_lookahead)
    baseline = expected_acceptance(model, fixed, sequences, config.sampling)
    small = LookAhead.random(config.num_lookahead, model.hidden_size, config.seed, model.device).vectors
    untrained = expected_acceptance(model, small, sequences, config.sampling)
    outcome = {
        "acceptance": _rounded(acceptance),
        "random_acceptance": _rounded(untrained),
        "fixed_token_acceptance": _rounded(baseline),
    }
    report(outcome)
    settings = asdict(config)
    settings.pop("sampling")
    record = {
        "held_out": outcome,
        "training_tokens": len(training),
        "held_out_tokens": len(held_out),
        "loss": round(float(notes.get("loss", math.nan)), 4),
        "seconds": round(float(notes.get("seconds", 0.0))),
        "dtype": str(model.dtype).removeprefix("torch."),
        "device": model.device.type,
        "torch": torch.__version__,
        "settings": settings,
    }
    lookahead = LookAhead(
        vectors.detach().cpu(), model.name, _shapes(model), model.fingerprint, config.sampling, record
    )
    lookahead.save(path)
    progress.finish()
    return lookahead


def _fingerprint(model: Transformer) -> str:
    """Return what tells the model from others; one that came from no checkpoint is known by its embedding."""
    if model.fingerprint is not None:
        return model.fingerprint
    return hashlib.sha256(model.weights.embedding.float().cpu().numpy().tobytes()).hexdigest()


def _first_vectors(model: Transformer, config: TrainConfig) -> Tensor:  # [L, D]
    """Begin at the mean embedding, each vector pushed off by noise of a tenth of an embedding's spread."""
    embedding = model.weights.embedding.float()
    noise = np.random.default_rng(config.seed).standard_normal((config.num_lookahead, model.hidden_size))
    spread = 0.1 * embedding.std(dim=0)
    return embedding.mean(dim=0) + spread * torch.from_numpy(noise).float().to(model.device)


def _loss(model: Transformer, vectors: Tensor, windows: Windows, step: int, config: TrainConfig) -> Tensor:  # []
    """Return the loss of one step: its sequences and anchors follow from the seed and the step alone."""
    stream = np.random.Philox(key=config.seed + 1, counter=step << 64)  # the low word counts within a step
    generator = np.random.Generator(stream)
    places = config.context - config.num_lookahead - 1
    anchors = np.sort(generator.choice(places, min(config.num_anchors, places), replace=False))
    tokens = torch.from_numpy(windows.batch(step)).to(model.device)
    rows = anchored_rows(model, vectors, tokens, torch.from_numpy(anchors).to(model.device))
    return LOSSES[config.loss](rows, config.sampling.temperature or 1.0)


def _schedule(step: int, config: TrainConfig) -> float:
    """Return the part of the learning rate at a step: a straight rise, then half a cosine down to 0."""
    done = (step + 1) / config.num_steps
    return min(done / max(config.warmup, 1 / config.num_steps), 0.5 + 0.5 * math.cos(math.pi * step / config.num_steps))


def _estimate(model: Transformer, vectors: Tensor, windows: Windows, config: TrainConfig) -> dict[str, Any]:
    """Run the first step twice without learning from it, and say what the second took; the first one warms up."""
    for _ in range(2):
        started = time.monotonic()
        _loss(model, vectors, windows, 0, config).backward()
        vectors.grad = None
    return {"seconds_per_step": time.monotonic() - started, "memory": peak_memory(model.device)}


def _shapes(model: Transformer) -> dict[str, int]:
    """Return the sizes that say which model this is, under config.json's names."""
    names = ("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads")
    return {name: getattr(model.config, name) for name in names}


def _rounded(values: Tensor) -> list[float]:  # [L]
    return [round(float(value), 4) for value in values]
