"""The settings of each kind of training, as frozen dataclasses; their fields are options of the commands."""

from __future__ import annotations

import math
from dataclasses import dataclass, field, fields

from pass_sampling.reference.checkpoint.ngram_folder import MAX_ORDER, MAX_VOCAB_SIZE
from pass_sampling.reference.config import SamplingConfig, check_integer

from ..decode_options import option

LOSSES = ("kl", "cross-entropy")


@dataclass(frozen=True)
class TrainConfig:
    """The settings of `pass-sampling train`."""

    num_lookahead: int = option(4, "how many vectors", metavar="L")
    sampling: SamplingConfig = field(default_factory=lambda: SamplingConfig(temperature=0.8, top_k=10))
    adapter_rank: int = option(0, "rank of an adapter at look-ahead rows; default: none", metavar="R")
    head_width: int = option(0, "width of a sampler head; default: none", metavar="F")
    head_alone: bool = option(False, "train a head that drafts without look-ahead rows")
    block_heads: bool = option(False, "with --head-alone, train one head for each draft (blockwise parallel decoding)")
    draft_vocab_size: int = option(0, "draft only the N most frequent tokens of the text; default: all")
    loss: str = option(
        "kl", "kl: divergence from the model; cross-entropy: on the text, as in the paper", choices=LOSSES
    )
    depth_decay: float = option(1.0, "weight of a draft in the loss, relative to that of the draft before it")
    num_steps: int = option(150, "steps of training", flag="--steps")
    batch_size: int = option(8, "sequences per step")
    context: int = option(256, "tokens per sequence")
    num_anchors: int = option(64, "places in each sequence to draft after", flag="--anchors")
    learning_rate: float = option(0.05, "the largest step size of vectors")
    matrix_learning_rate: float = option(0.003, "the largest step size of adapter and head")
    seed: int = 0

    def __post_init__(self) -> None:
        if self.loss not in LOSSES:
            raise ValueError(f"loss: found {self.loss!r}, expected one of {', '.join(LOSSES)}")
        for name in ("num_lookahead", "num_steps", "batch_size", "num_anchors"):
            check_integer(name, getattr(self, name), 1, 2**31)
        for name in ("adapter_rank", "head_width"):
            check_integer(name, getattr(self, name), 0, 2**16)
        check_integer("draft_vocab_size", self.draft_vocab_size, 0, 2**31 - 1)
        check_integer("context", self.context, self.num_lookahead + 2, 2**31)
        check_integer("seed", self.seed, 0, 2**63 - 1)
        for name in ("learning_rate", "matrix_learning_rate", "depth_decay"):
            check_rate(name, getattr(self, name))
        if self.depth_decay > 1:
            raise ValueError(f"depth_decay: found {self.depth_decay}, expected at most 1")
        if (size := self.draft_vocab_size) and self.loss == "cross-entropy":
            raise ValueError(f"draft_vocab_size: found {size} with cross-entropy, expected the loss kl")
        if self.block_heads and not self.head_alone:
            raise ValueError("block_heads: found them with look-ahead rows, expected head_alone with them")
        if self.head_alone and (self.adapter_rank or not self.head_width):
            found = "with an adapter" if self.adapter_rank else "without a head"
            raise ValueError(f"head_alone: found it {found}, expected a head and no adapter")

    @property
    def temperature(self) -> float:
        """The temperature of the distributions that the loss compares."""
        return 1.0 if self.adapter_rank or self.head_width else self.sampling.temperature or 1.0


@dataclass(frozen=True)
class PretrainConfig:
    """The shape of a base model, and how it is trained."""

    vocab_size: int = 4096
    hidden_size: int = option(320, "width of the model")
    intermediate_size: int = option(896, "width of the MLP")
    num_hidden_layers: int = option(6, "layers", flag="--layers")
    num_attention_heads: int = option(5, "query heads", flag="--heads")
    num_key_value_heads: int = option(1, "key and value heads", flag="--kv-heads")
    context: int = option(512, "the longest sequence, in tokens")
    num_steps: int = option(1600, "steps of training", flag="--steps")
    batch_size: int = option(16, "sequences per step")
    learning_rate: float = option(0.006, "the largest step size")
    seed: int = option(0, "the same seed, machine and settings give the same result")
    compile: bool = option(False, "use torch.compile, which is faster and needs a C++ compiler")

    def __post_init__(self) -> None:
        for each in fields(self):
            if each.type == "int" and each.name != "seed":
                check_integer(each.name, getattr(self, each.name), 1, 2**31)
        check_integer("seed", self.seed, 0, 2**63 - 1)
        heads, kv_heads = self.num_attention_heads, self.num_key_value_heads
        if self.hidden_size % (2 * heads):
            raise ValueError(f"hidden_size: found {self.hidden_size}, expected a multiple of twice the {heads} heads")
        if heads % kv_heads:
            raise ValueError(f"num_key_value_heads: found {kv_heads}, expected a divisor of the {heads} heads")
        if self.context < 2:
            raise ValueError(f"context: found {self.context}, expected at least 2, a token and the next")
        check_rate("learning_rate", self.learning_rate)


@dataclass(frozen=True)
class NgramConfig:
    """How an n-gram model is counted, and how large it may become."""

    order: int = option(4, "tokens of the longest n-grams, 1 to 4")
    min_counts: tuple[int, ...] = option(
        (2,), "leave out rarer n-grams: a number for each order from 2 on, or one; default: 2", flag="--min-count"
    )
    max_successors: int = option(256, "tokens that each context proposes at most")

    def __post_init__(self) -> None:
        check_integer("order", self.order, 1, MAX_ORDER)
        check_integer("max_successors", self.max_successors, 1, MAX_VOCAB_SIZE)
        for count in self.min_counts:
            check_integer("min_counts", count, 1, 2**31)
        if (found_counts := len(self.min_counts)) not in (1, self.order - 1):
            each = f"{self.order - 1}, one for each order from 2 to {self.order}"
            raise ValueError(f"min_counts: found {found_counts} numbers, expected one, or {each}")


def check_rate(name: str, value: float) -> None:
    """Raise ValueError unless a setting is a positive number."""
    if not (math.isfinite(value) and value > 0):
        raise ValueError(f"{name}: found {value}, expected a positive number")
