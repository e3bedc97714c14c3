"""Train look-ahead vectors for a frozen model, and an adapter and a sampler head with them: all that PaSS trains.

Glossary of shapes: L look-ahead vectors, D model, N tokens of the training text, M of the held-out one,
W windows, Z bytes of a window's hidden states.
"""

from __future__ import annotations

import math
import os
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from pass_sampling.reference.checkpoint.lookahead_folder import ADAPTER, HEAD

from ..lookahead.adapter import SIZES, Adapter
from ..lookahead.head import BlockHeads, SamplerHead
from ..lookahead.vectors import LookAhead
from ..model.transformer import Transformer
from .acceptance import LOSSES, anchored_rows, compared, mean_loss
from .config import TrainConfig
from .resume import Progress, Report, check_output, process, remove_partial, wait_for_all
from .tokens import Windows, check_tokens, evenly_spaced

if TYPE_CHECKING:
    from ..model.language_model import LanguageModel
    from .acceptance import Trainable

Tokens = npt.NDArray[np.int64]
EVALUATED = 64  # held-out sequences
WEIGHT_DECAY = 0.01  # of matrices
WARMUP = 0.05  # the part of the run in which the learning rate rises; then it falls as a cosine


@dataclass(frozen=True, eq=False)
class Parts:
    """The trained parts, in float32; an adapter or a head may be missing."""

    vectors: Tensor  # [L, D]
    adapter: Adapter | None = None
    head: SamplerHead | BlockHeads | None = None

    def matrices(self) -> dict[str, Tensor]:
        """Return the parameters of adapter and head by name."""
        parts = [(ADAPTER, self.adapter), (HEAD, self.head)]
        return {begin + name: each for begin, part in parts if part for name, each in part.matrices.items()}

    def parameters(self) -> dict[str, Tensor]:
        """Return all that learns, by name: not the vectors if the head drafts without them."""
        alone = self.head is not None and not self.head.uses_lookahead
        return ({} if alone else {"vectors": self.vectors}) | self.matrices()


def first_parts(model: Trainable, config: TrainConfig) -> Parts:
    """Return untrained parts: vectors near the mean embedding, and an adapter and a head that change nothing yet.

    The last matrices of adapters and heads are 0, those before them random.

    Source: Hu et al. 2021 (arXiv 2106.09685), Sec. 4.1.
    """
    adapter = head = None
    if config.adapter_rank:
        sizes = model.config  # type: ignore[union-attr]  # `train` refuses models without one
        tensors = Adapter.random(sizes, config.adapter_rank, config.seed).to(torch.float32, model.device).matrices
        adapter = Adapter({name: _learning(each * (not name.endswith(".up"))) for name, each in tensors.items()})
    if config.head_width:
        sizes = model.hidden_size, config.head_width
        drawn: SamplerHead | BlockHeads = SamplerHead.random(*sizes, config.seed)
        if config.block_heads:
            drawn = BlockHeads.random(*sizes, config.num_lookahead, config.seed)
        drawn = drawn.to(torch.float32, model.device)
        first = {name: _learning(each * (not name.endswith("out"))) for name, each in drawn.matrices.items()}
        head = type(drawn)(first, not config.head_alone)
    return Parts(_learning(first_vectors(model, config.num_lookahead, config.seed)), adapter, head)


def _learning(tensor: Tensor) -> Tensor:
    return tensor.detach().clone().requires_grad_()


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


def schedule(step: int, config: TrainConfig) -> float:
    """Return the part of the learning rate at a step: a straight rise, then half a cosine down to 0."""
    done = (step + 1) / config.num_steps
    return min(done / max(WARMUP, 1 / config.num_steps), 0.5 + 0.5 * math.cos(math.pi * step / config.num_steps))


def train(
    model: Trainable,
    training: Tokens,  # [N]
    held_out: Tokens,  # [M]
    output: str | os.PathLike[str],
    config: TrainConfig | None = None,
    report: Report | None = None,
) -> LookAhead:
    """Train look-ahead vectors for a frozen model, and what else is asked for, and save a look-ahead folder.

    The same call resumes a run that was killed: until it has ended, its state is in a file next to the output. In a
    process group (see `torch.distributed`) every process makes this call, and takes its part of each batch.

    Args:
        model: frozen; nothing of it changes. One of transformers is in a `TransformersModel`, without an adapter.
        training: the tokens of the text to learn from.
        held_out: other text, on which acceptance is measured.
        output: a path at which there is nothing yet, else ValueError is raised.
        config: what to train, and how long.
        report: called after every step with the news of `Progress.run`, at the end with the result of `compared`.
    """
    config = TrainConfig() if config is None else config
    report, path = report or bool, Path(output)
    check_output(path, "look-ahead vectors")
    config.sampling.check(model.vocab_size)
    if config.adapter_rank and not isinstance(model, Transformer):
        raise ValueError(f"adapter_rank: found {config.adapter_rank} with a model of transformers, expected 0")
    if config.context > (most := model.max_position_embeddings):
        raise ValueError(f"context: found {config.context}, expected at most {most}, the model's")
    size = config.draft_vocab_size
    if size > model.vocab_size:
        raise ValueError(f"draft_vocab_size: found {size}, expected at most {model.vocab_size}, the vocabulary")
    rank, count = process()
    if config.batch_size % count:
        raise ValueError(f"batch_size: found {config.batch_size}, expected a multiple of {count}, the processes")
    mine = slice(rank, None, count)  # of each batch
    windows = Windows(training, config.context, config.batch_size, config.seed, moved=not config.head_alone)
    sequences = evenly_spaced(held_out, config.context, EVALUATED)
    check_tokens("training", training, model.vocab_size)
    check_tokens("held_out", held_out, model.vocab_size)

    parts = first_parts(model, config)
    optimizers = optimizers_for(parts, config)
    run = asdict(config) | {"fingerprint": model.fingerprint, "dtype": str(model.dtype)}
    progress = Progress(path, run, [training.tobytes(), held_out.tobytes()], parts.parameters(), optimizers)
    draft_vocab = torch.from_numpy(most_frequent(training, model.vocab_size, size)).to(model.device) if size else None
    states = hidden_states_file(progress, path, model, config, len(training)) if config.head_alone else None
    wait_for_all()  # the first process may be the first to save

    @torch.no_grad()
    def hidden_states(step: int, tokens: Tensor) -> Tensor | None:
        if states is None:
            return None
        places = windows.starts(step)[mine] // config.context
        if len(missing := np.flatnonzero(states[places, 0] == 0)):
            made = model.hidden(model.embed(tokens[missing]), model.new_cache(config.context, len(missing)))
            states[places[missing], 1:] = made.cpu().flatten(1).contiguous().view(torch.uint8).numpy()
            states[places[missing], 0] = 1
        found: Tensor = torch.from_numpy(states[places, 1:]).view(model.dtype).unflatten(1, (config.context, -1))
        return found.to(model.device)

    def learn(step: int) -> Tensor:
        generator = np.random.Generator(np.random.Philox(key=config.seed + 1, counter=step << 64))  # low word: draws
        places = config.context - config.num_lookahead - 1
        anchors = np.sort(generator.choice(places, min(config.num_anchors, places), replace=False))
        tokens, after = (torch.from_numpy(each).to(model.device) for each in (windows.batch(step)[mine], anchors))
        more = draft_vocab, hidden_states(step, tokens)
        rows = anchored_rows(model, parts.vectors, tokens, after, parts.adapter, parts.head, *more)
        loss = mean_loss(LOSSES[config.loss](rows, config.temperature), config.depth_decay)
        loss.backward()
        return loss

    notes = progress.run(config.num_steps, learn, lambda step: schedule(step, config), report)
    with torch.no_grad():  # rounded as it will be stored, before it is measured
        names = (model.name, base_shapes(model), model.fingerprint, config.sampling)
        others: Any = {"adapter": parts.adapter, "head": parts.head, "draft_vocab": draft_vocab}
        lookahead = LookAhead(parts.vectors.cpu(), *names, **others)
    outcome = compared(model, lookahead, sequences, config.sampling, config.seed)
    report(outcome)
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
        "settings": {name: value for name, value in asdict(config).items() if name != "sampling"},
    }
    lookahead = replace(lookahead, training=record)
    if rank == 0:
        lookahead.save(path)
        remove_partial(path)
    wait_for_all()
    return lookahead


def hidden_states_file(
    progress: Progress, output: Path, model: Trainable, config: TrainConfig, num_tokens: int
) -> npt.NDArray[np.uint8]:  # [W, 1+Z]
    """Open the file of the text's hidden states, all that a head alone needs of the model: computed once, then read.

    Each window has a byte that is 1 if the window is known, then its numbers.
    """
    rank, count = process()
    part = f".{rank}-of-{count}" if count > 1 else ""
    file = progress.file.with_name(f"{output.resolve().name}.{progress.digest[:12]}{part}.states")
    shape = num_tokens // config.context, 1 + config.context * model.hidden_size * model.dtype.itemsize
    begun = file.exists() and file.stat().st_size == math.prod(shape)
    file.parent.mkdir(parents=True, exist_ok=True)
    return np.memmap(file, np.uint8, "r+" if begun else "w+", shape=shape)


def base_shapes(model: Trainable) -> dict[str, int]:
    """Return the sizes that identify the model, under config.json's names."""
    config: Any = getattr(model, "config", None) or getattr(model, "text_config", None)
    sizes = {name: getattr(config, name, None) for name in SIZES}  # transformers' configs need not name them all
    return {"vocab_size": model.vocab_size} | {name: size for name, size in sizes.items() if type(size) is int}


def most_frequent(
    tokens: Tokens,  # [M]
    vocab_size: int,
    number: int,  # N
) -> Tokens:  # [N]
    """Return the most frequent tokens of a text, the lowest ids among equals, in the order of their ids."""
    return np.sort(np.argsort(-np.bincount(tokens, minlength=vocab_size), kind="stable")[:number])
