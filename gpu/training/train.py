"""Train look-ahead vectors for a frozen model, and an adapter and a sampler head with them: all that PaSS trains.

Glossary of shapes: L look-ahead vectors, D model, N tokens of the training text, M of the held-out one.
"""

from __future__ import annotations

import hashlib
import math
import os
import time
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from pass_sampling.reference.checkpoint.lookahead_folder import ADAPTER, HEAD
from pass_sampling.reference.config import SamplingConfig, check_integer

from ..lookahead.adapter import SIZES, Adapter
from ..lookahead.block_heads import BlockHeads
from ..lookahead.head import SamplerHead
from ..lookahead.vectors import LookAhead
from ..model.transformer import Transformer
from .acceptance import LOSSES, anchored_rows, compared, mean_loss
from .resume import (
    KeptStates,
    Progress,
    Report,
    check_output,
    check_rates,
    partial_file,
    peak_memory,
    settings_digest,
    step_all,
)
from .tokens import Windows, check_tokens, evenly_spaced

if TYPE_CHECKING:
    from ..model.language_model import LanguageModel
    from .acceptance import Trainable

Tokens = npt.NDArray[np.int64]
EVALUATED = 64  # held-out sequences
WEIGHT_DECAY = 0.01  # of matrices


@dataclass(frozen=True)
class TrainConfig:
    """What is trained, on what, for how long."""

    num_lookahead: int = 4  # L
    sampling: SamplingConfig = field(default_factory=lambda: SamplingConfig(temperature=0.8, top_k=10))
    loss: str = "kl"
    num_steps: int = 150
    batch_size: int = 8  # sequences per step
    context: int = 256  # tokens of a sequence
    num_anchors: int = 64  # places per sequence that look-ahead rows follow
    learning_rate: float = 0.05  # of the vectors
    warmup: float = 0.05  # the part of the run in which the learning rate rises; then it falls as a cosine
    seed: int = 0
    adapter_rank: int = 0  # R; 0: no adapter
    head_width: int = 0  # F; 0: no head
    head_alone: bool = False  # the head drafts without look-ahead rows, and the vectors learn nothing
    block_heads: bool = False  # the head is a block of heads, one for each draft, which draft alone
    draft_vocab_size: int = 0  # drafts are among so many tokens, the most frequent of the text; 0: among all
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
        check_integer("draft_vocab_size", self.draft_vocab_size, 0, 2**31 - 1)
        check_integer("context", self.context, self.num_lookahead + 2, 2**31)
        check_integer("seed", self.seed, 0, 2**63 - 1)
        positive = ("learning_rate", "matrix_learning_rate", "depth_decay", "loss_temperature")
        check_rates(self, positive, parts=["warmup"])
        if self.depth_decay > 1:
            raise ValueError(f"depth_decay: found {self.depth_decay}, expected at most 1")
        if self.loss_temperature is not None and self.loss == "cross-entropy":
            raise ValueError(
                f"loss_temperature: found {self.loss_temperature} with cross-entropy, expected it with a loss on "
                "distributions"
            )
        if self.draft_vocab_size and self.loss == "cross-entropy":
            raise ValueError(
                f"draft_vocab_size: found {self.draft_vocab_size} with cross-entropy, expected it with a loss on "
                "distributions"
            )
        if self.block_heads and not self.head_alone:
            raise ValueError("block_heads: found them with look-ahead rows, expected head_alone with them")
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


@dataclass(frozen=True, eq=False)
class Parts:
    """What learns, in float32; an adapter or a head may be missing."""

    vectors: Tensor  # [L, D]
    adapter: Adapter | None = None
    head: SamplerHead | BlockHeads | None = None

    def matrices(self) -> dict[str, Tensor]:
        """Return the parameters of adapter and head by name."""
        parts = [(ADAPTER, self.adapter), (HEAD, self.head)]
        return {begin + name: each for begin, part in parts if part for name, each in part.tensors().items()}

    def parameters(self) -> dict[str, Tensor]:
        """Return all that learns, by name: not the vectors if the head drafts without them."""
        alone = self.head is not None and not self.head.uses_lookahead
        return ({} if alone else {"vectors": self.vectors}) | self.matrices()

    def copy(self) -> Parts:
        """Return other parameters with the same values."""
        adapter = self.adapter and Adapter.of(_leaves(self.adapter.tensors()))
        head = self.head and type(self.head).of(_leaves(self.head.tensors()), self.head.uses_lookahead)
        return Parts(_leaves({"": self.vectors})[""], adapter, head)


def _leaves(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: tensor.detach().clone().requires_grad_() for name, tensor in tensors.items()}


def first_parts(model: Trainable, config: TrainConfig) -> Parts:
    """Return untrained parts: vectors near the mean embedding, and an adapter and a head that change nothing yet.

    The last matrices of adapters and heads are 0, those before them random. So the first step moves the last ones, and
    later steps move all.

    Source: Hu et al. 2021 (arXiv 2106.09685), Sec. 4.1.
    """
    adapter = head = None
    if config.adapter_rank:
        sizes = model.config  # type: ignore[union-attr]  # `train` refuses models without one
        tensors = Adapter.random(sizes, config.adapter_rank, config.seed).to(torch.float32, model.device).tensors()
        adapter = Adapter.of({name: 0 * each if name.endswith(".up") else each for name, each in tensors.items()})
    if config.head_width:
        sizes = model.hidden_size, config.head_width
        drawn: SamplerHead | BlockHeads = SamplerHead.random(*sizes, config.seed)
        if config.block_heads:
            drawn = BlockHeads.random(*sizes, config.num_lookahead, config.seed)
        drawn = drawn.to(torch.float32, model.device)
        first = {name: 0 * each if name.endswith("out") else each for name, each in drawn.tensors().items()}
        head = type(drawn).of(first, not config.head_alone)
    return Parts(first_vectors(model, config.num_lookahead, config.seed), adapter, head).copy()


def parts_of(begin: LookAhead, model: Trainable, config: TrainConfig) -> Parts:
    """Return parts that were trained before.

    Raises:
        ValueError: they were trained for another model, or are not those that the settings ask for.
    """
    begin.check(model)
    adapter, head = begin.adapter, begin.head
    found = {
        "num_lookahead": begin.num_lookahead,
        "adapter_rank": adapter.rank if adapter else 0,
        "head_width": head.width if head else 0,
        "head_alone": bool(head and not head.uses_lookahead),
        "block_heads": head is not None and head.kind == "block",
    }
    for name, value in found.items():
        if value != getattr(config, name):
            raise ValueError(f"begin: found {name} {value}, expected {getattr(config, name)}, what is to be trained")
    device = model.device
    adapter, head = adapter and adapter.to(torch.float32, device), head and head.to(torch.float32, device)
    return Parts(begin.vectors.float().to(device), adapter, head).copy()


def first_vectors(model: LanguageModel, num_lookahead: int, seed: int) -> Tensor:  # [L, D]
    """Return vectors at the mean embedding, each pushed off by noise of a tenth of an embedding's spread."""
    embedding = _embedding(model)
    noise = np.random.default_rng(seed).standard_normal((num_lookahead, model.hidden_size))
    spread = 0.1 * embedding.std(dim=0)
    return embedding.mean(dim=0) + spread * torch.from_numpy(noise).float().to(model.device)


def _embedding(model: LanguageModel) -> Tensor:
    """Return the input vectors of all tokens in float32."""
    return model.embed(torch.arange(model.vocab_size, device=model.device).unsqueeze(0))[0].detach().float()


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
    return min(done / max(config.warmup, 1 / config.num_steps), 0.5 + 0.5 * math.cos(math.pi * step / config.num_steps))


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

    The same call resumes a run that was killed: until it has ended, its state is in a file next to the output.

    Args:
        model: frozen; nothing of it changes. One of transformers is in a `TransformersModel`, without an adapter.
        training: the tokens of the text to learn from.
        held_out: other text, on which acceptance is measured.
        output: a path at which there is nothing yet.
        config: what to train, and how long.
        report: called with `seconds_per_step` and `memory` before the first step, then with `step` and `loss`, at the
            end with what `compared` finds: acceptance, and that of untrained controls.
        begin: parts that were trained before; default: untrained ones.

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
    if config.draft_vocab_size > model.vocab_size:
        raise ValueError(
            f"draft_vocab_size: found {config.draft_vocab_size}, expected at most {model.vocab_size}, the vocabulary"
        )
    windows = Windows(training, config.context, config.batch_size, config.seed, moved=not config.head_alone)
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
    size = config.draft_vocab_size
    draft_vocab = torch.from_numpy(most_frequent(training, model.vocab_size, size)).to(model.device) if size else None
    states = None
    if config.head_alone:  # the text's hidden states are all that it needs of the model
        file, number = path.resolve().with_name(f"{path.name}.{digest[:12]}.states"), len(training) // config.context
        states = KeptStates(file, number, config.context, model.hidden_size, model.dtype)
    text = Text(model, windows, draft_vocab, states)
    report({"first_step": first, "num_steps": config.num_steps} | _estimate(text, parts, config))

    def learn(step: int) -> dict[str, Any]:
        return {"loss": _learn(text, parts, optimizers, step, config)}

    progress.run(range(first, config.num_steps), notes, learn, report)
    with torch.no_grad():  # rounded as it will be stored, before it is measured
        names = (model.name, base_shapes(model), model.fingerprint, config.sampling)
        lookahead = LookAhead(
            parts.vectors.cpu(), *names, adapter=parts.adapter, head=parts.head, draft_vocab=draft_vocab
        )
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
    record |= {} if begin is None else {"began_with": {**begin.training, "held_out": None}}
    lookahead = replace(lookahead, training=record)
    lookahead.save_pretrained(path)
    progress.finish()
    if states is not None:
        states.file.unlink()
    return lookahead


def base_shapes(model: Trainable) -> dict[str, int]:
    """Return the sizes that say which model this is, under config.json's names."""
    config: Any = getattr(model, "config", None) or getattr(model, "text_config", None)
    sizes = {name: getattr(config, name, None) for name in SIZES}  # transformers' configs need not name them all
    return {"vocab_size": model.vocab_size} | {name: size for name, size in sizes.items() if type(size) is int}


def _fingerprint(model: Trainable) -> str:
    """Return what tells the model from others; one that came from no checkpoint is known by its embedding."""
    return model.fingerprint or hashlib.sha256(_embedding(model).cpu().numpy().tobytes()).hexdigest()


class Text(NamedTuple):
    """What is learned from: a text under a frozen model."""

    model: Trainable
    windows: Windows
    draft_vocab: Tensor | None = None  # [N]
    states: KeptStates | None = None  # hidden states of the windows, where they are all that is needed

    def hidden(
        self,
        step: int,
        tokens: Tensor,  # [B, T]
    ) -> Tensor | None:  # [B, T, D]
        """Return the hidden states of a step's windows, if they are kept."""
        if self.states is None:
            return None
        model, numbers = self.model, (self.windows.starts(step) // self.windows.length).tolist()

        @torch.no_grad()
        def compute(missing: list[int]) -> Tensor:
            return model.hidden(model.embed(tokens[missing]), model.new_cache(tokens.shape[1], len(missing)))

        return self.states.of(numbers, compute).to(model.device)


def most_frequent(
    tokens: Tokens,  # [M]
    vocab_size: int,
    number: int,  # N
) -> Tokens:  # [N]
    """Return the most frequent tokens of a text, the lowest ids among equals, in the order of their ids."""
    return np.sort(np.argsort(-np.bincount(tokens, minlength=vocab_size), kind="stable")[:number])


def _learn(
    text: Text,
    parts: Parts,
    optimizers: list[torch.optim.Optimizer],
    step: int,
    config: TrainConfig,
) -> float:
    """Take one step and return its loss; its sequences and anchors follow from the seed and the step alone."""
    generator = np.random.Generator(np.random.Philox(key=config.seed + 1, counter=step << 64))  # low word: the draws
    places = config.context - config.num_lookahead - 1
    anchors = np.sort(generator.choice(places, min(config.num_anchors, places), replace=False))
    model = text.model
    tokens, places_after = (torch.from_numpy(each).to(model.device) for each in (text.windows.batch(step), anchors))
    known = text.hidden(step, tokens)
    rows = anchored_rows(model, parts.vectors, tokens, places_after, parts.adapter, parts.head, text.draft_vocab, known)
    loss = mean_loss(LOSSES[config.loss](rows, config.temperature), config.depth_decay)
    loss.backward()
    step_all(optimizers, schedule(step, config))
    return loss.item()


def _estimate(text: Text, parts: Parts, config: TrainConfig) -> dict[str, Any]:
    """Take the first step twice on a copy, and say what the second took; the first one warms up."""
    copy = parts.copy()
    optimizers = optimizers_for(copy, config)
    for _ in range(2):
        started = time.monotonic()
        _learn(text, copy, optimizers, 0, config)
    return {"seconds_per_step": time.monotonic() - started, "memory": peak_memory(text.model.device)}
