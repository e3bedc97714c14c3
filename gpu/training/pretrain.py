"""Train a small base model from text: the model of the demonstrations, your own, or a draft model for another one.

The model is transformers' Llama and the tokenizer a byte-level BPE, so the folder opens everywhere.

Glossary of shapes: B windows of a batch, T tokens of a window, N tokens of a text or windows.
"""

from __future__ import annotations

import json
import math
import os
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.nn import functional

from pass_sampling.reference.checkpoint.folder import replace_folder
from pass_sampling.reference.config import check_integer

from ..model.precision import check_device
from .acceptance import batches
from .distillation import Teacher, distillation_loss, read_teacher
from .resume import Progress, Report, check_output, check_rates, partial_file, peak_memory, settings_digest, step_all
from .text import split_texts
from .tokens import Windows, check_tokens, encode_texts, evenly_spaced, train_tokenizer

if TYPE_CHECKING:
    from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

RECORD = "pretraining.json"
EVALUATED = 64  # held-out windows looked at during the run; all of the held-out text at its end
EVERY = 200  # steps
SIZES = (
    *("vocab_size", "hidden_size", "intermediate_size"),
    *("num_hidden_layers", "num_attention_heads", "num_key_value_heads"),
)


@dataclass(frozen=True)
class PretrainConfig:
    """The shape of a base model, and how it is trained."""

    vocab_size: int = 4096
    hidden_size: int = 320
    intermediate_size: int = 896
    num_hidden_layers: int = 6
    num_attention_heads: int = 5
    num_key_value_heads: int = 1
    context: int = 512  # the longest sequence it learns to read, in tokens
    num_steps: int = 1600
    batch_size: int = 16  # sequences of `context` tokens per step
    learning_rate: float = 6e-3
    weight_decay: float = 0.1
    warmup: float = 0.03  # the part of the run in which the learning rate rises
    cooldown: float = 0.5  # and the part in which it falls to 0
    seed: int = 0
    compile: bool = False  # through torch.compile, which needs a C++ compiler: about 1.3 times as fast

    def __post_init__(self) -> None:
        """Refuse sizes that make no model."""
        for field in fields(self):
            if field.type == "int" and field.name != "seed":
                check_integer(field.name, getattr(self, field.name), 1, 2**31)
        check_integer("seed", self.seed, 0, 2**63 - 1)
        heads, kv_heads = self.num_attention_heads, self.num_key_value_heads
        if self.hidden_size % (2 * heads):
            raise ValueError(f"hidden_size: found {self.hidden_size}, expected a multiple of twice the {heads} heads")
        if heads % kv_heads:
            raise ValueError(f"num_key_value_heads: found {kv_heads}, expected a divisor of the {heads} heads")
        if self.context < 2:
            raise ValueError(f"context: found {self.context}, expected at least 2, a token and the next")
        check_rates(self, positive=["learning_rate"], parts=["warmup", "cooldown"])
        if not (math.isfinite(self.weight_decay) and self.weight_decay >= 0):
            raise ValueError(f"weight_decay: found {self.weight_decay}, expected a number of at least 0")


class Corpus(NamedTuple):
    """The text in tokens, divided into both sides, and the counts that the record needs."""

    teacher: Teacher | None
    tokenizer: PreTrainedTokenizerFast
    windows: Windows
    held_out: npt.NDArray[np.int64]  # [N]
    num_training_files: int
    held_out_files: list[str]
    held_out_bytes: int


def pretrain(
    output: str | os.PathLike[str],
    texts: Mapping[str, str],
    config: PretrainConfig | None = None,
    held_out: Sequence[str] | None = None,
    device: torch.device | str = "cpu",
    report: Report | None = None,
    teacher: str | os.PathLike[str] | None = None,
) -> dict[str, Any]:
    """Train a base model and save it as a Hugging Face folder: weights in bfloat16, tokenizer, and a record.

    The same call resumes a run that was killed: until it has ended, its state is in a file next to the output.

    Args:
        output: a path at which there is nothing yet.
        texts: by name, as from `read_texts`.
        config: shape and training.
        held_out: the names to keep out of training; default: about 5 %, near-duplicates on one side.
        device: cpu or cuda.
        report: called after every step with `step`, `num_steps`, `loss` and, when it was measured, `held_out_loss`;
            after the second one of a run, also with `first_step`, `seconds_per_step` and `memory`.
        teacher: the folder of a model to draft for: the new one takes its tokenizer and learns its distributions.

    Returns:
        The record, as in pretraining.json: losses in nats per token, bits per byte, sizes, times, and with a teacher
        the expected acceptance of drafts for it.

    Raises:
        FileNotFoundError: the teacher or one of its files is missing.
        ValueError: the output is taken, the text is too short, the teacher has other sizes, or an unfinished run
            there was another one.
    """
    config = PretrainConfig() if config is None else config
    report = (lambda news: None) if report is None else report
    path, place = Path(output), check_device(device)
    check_output(path, "model")
    tutor = None if teacher is None else read_teacher(teacher, place)
    corpus = _read_corpus(texts, config, held_out, tutor)
    model = new_model(config, int(corpus.tokenizer.eos_token_id))
    model.to(place)  # type: ignore[arg-type]  # transformers hides what it takes
    run = _run(model, corpus, config, path, report)
    windows = evenly_spaced(corpus.held_out, config.context, len(corpus.held_out))
    loss, held_out_tokens = held_out_loss(model, windows), len(corpus.held_out)
    record = {
        "held_out_loss": round(loss, 4),  # nats per token
        "bits_per_byte": round(loss / math.log(2) * held_out_tokens / corpus.held_out_bytes, 4),
        "bytes_per_token": round(corpus.held_out_bytes / held_out_tokens, 3),
        **({} if tutor is None else tutor.record(model, corpus.held_out, config.context)),
        "num_parameters": sum(weight.numel() for weight in model.parameters()),
        "training_files": corpus.num_training_files,
        "training_tokens": len(corpus.windows.tokens),
        "epochs": round(config.num_steps / corpus.windows.batches_per_epoch, 2),
        "held_out_files": corpus.held_out_files,
        "held_out_tokens": held_out_tokens,
        **run,
        "settings": asdict(config),
    }
    files = _saved(corpus.tokenizer) if tutor is None else tutor.tokenizer_files
    files = _saved(model.bfloat16()) | files | {RECORD: (json.dumps(record, indent=2) + "\n").encode()}
    replace_folder(path, files)
    partial_file(path).unlink(missing_ok=True)
    return record


def _read_corpus(
    texts: Mapping[str, str], config: PretrainConfig, held_out: Sequence[str] | None, teacher: Teacher | None
) -> Corpus:
    """Divide the texts, encode both sides by the teacher's tokenizer, else by one trained on the training side."""
    if held_out is None:
        names, kept_out = split_texts(texts)
    else:
        names, kept_out = sorted(set(texts) - set(held_out)), sorted(set(held_out) & set(texts))
    if not kept_out or not names:
        raise ValueError(f"held_out names {len(kept_out)} of the {len(texts)} texts, expected some of them and not all")
    if teacher is None:
        tokenizer = train_tokenizer((texts[name] for name in names), config.vocab_size, config.context)
    else:
        teacher.check(config.vocab_size, config.context)
        tokenizer = teacher.tokenizer
    end = int(tokenizer.eos_token_id)
    order = np.random.default_rng(config.seed).permutation(len(names))
    training = np.concatenate([[end], *encode_texts(tokenizer, [texts[names[i]] for i in order], end)])
    validation = np.concatenate([[end], *encode_texts(tokenizer, [texts[name] for name in kept_out], end)])
    check_tokens("teacher", np.concatenate([training, validation]), config.vocab_size)
    windows = Windows(training, config.context, config.batch_size, config.seed)
    num_bytes = sum(len(texts[name].encode()) for name in kept_out)
    return Corpus(teacher, tokenizer, windows, validation, len(names), kept_out, num_bytes)


def _run(model: LlamaForCausalLM, corpus: Corpus, config: PretrainConfig, path: Path, report: Report) -> dict[str, Any]:
    """Train; return the seconds that it took and the curve: pairs of a step and the loss on some held-out text."""
    sample = evenly_spaced(corpus.held_out, config.context, EVALUATED)
    optimizers, teacher = optimizers_for(model, config), corpus.teacher
    settings = {name: value for name, value in asdict(config).items() if name != "compile"}
    settings |= {} if teacher is None else {"teacher": teacher.model.fingerprint}
    digest = settings_digest(settings, corpus.windows.tokens.tobytes())
    progress = Progress(partial_file(path), digest, dict(model.named_parameters()), optimizers)
    first, notes = progress.restore()
    notes.setdefault("seconds", 0.0)
    notes.setdefault("curve", [])
    step_loss: Callable[..., Tensor] = loss_of if teacher is None else distillation_loss
    step_loss = torch.compile(step_loss) if config.compile else step_loss

    def learn(step: int) -> dict[str, Any]:
        began = time.monotonic()
        tokens = torch.from_numpy(corpus.windows.batch(step)).to(model.device)
        loss = step_loss(model, tokens, *([] if teacher is None else [teacher.logits(tokens)]))
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        step_all(optimizers, schedule(step, config))
        news: dict[str, Any] = {"loss": loss.item()}
        if step == first + 1:  # the first one compiles, or warms up
            news |= {"first_step": first, "seconds_per_step": time.monotonic() - began}
            news["memory"] = peak_memory(model.device)
        if (step + 1) % EVERY == 0:
            news["held_out_loss"] = held_out_loss(model, sample)
            notes["curve"].append([step + 1, round(news["held_out_loss"], 4)])
        return news

    progress.run(range(first, config.num_steps), notes, learn, report)
    return {"seconds": round(notes["seconds"]), "curve": notes["curve"]}


def new_model(config: PretrainConfig, end: int) -> LlamaForCausalLM:
    """Return an untrained Llama in float32; `end` is the token that ends a text."""
    from transformers import LlamaConfig, LlamaForCausalLM

    shape = LlamaConfig(
        **{name: getattr(config, name) for name in SIZES},
        head_dim=config.hidden_size // config.num_attention_heads,
        max_position_embeddings=config.context,
        tie_word_embeddings=True,
        bos_token_id=end,
        eos_token_id=end,
        use_cache=True,
    )
    with torch.random.fork_rng(devices=[]):  # the caller's random numbers stay as they are
        torch.default_generator.manual_seed(config.seed)
        return LlamaForCausalLM(shape)


def optimizers_for(model: LlamaForCausalLM, config: PretrainConfig) -> list[torch.optim.Optimizer]:
    """Return Muon for the matrices inside, AdamW for the embedding and the norms.

    Source: Jordan et al. 2024 (Muon); Liu et al. 2025 (arXiv 2502.16982) for the scale that lets both share a learning
    rate and weight decay.
    """
    inside = [weight for name, weight in model.named_parameters() if weight.ndim == 2 and "embed" not in name]
    ids = {id(weight) for weight in inside}
    outside = [weight for weight in model.parameters() if id(weight) not in ids]
    rate, decay = config.learning_rate, config.weight_decay
    return [
        torch.optim.Muon(inside, lr=rate, weight_decay=decay, adjust_lr_fn="match_rms_adamw"),
        torch.optim.AdamW(outside, lr=rate, weight_decay=0.0, betas=(0.9, 0.95), fused=True),
    ]


def schedule(step: int, config: PretrainConfig) -> float:
    """Return the part of the learning rate at a step: a rise, a plateau, a straight fall to 0."""
    done = (step + 1) / config.num_steps
    shortest = 1.0 / config.num_steps  # of a rise or a fall: one step
    fall = (1.0 - done) / max(config.cooldown, shortest) + shortest
    return min(1.0, done / max(config.warmup, shortest), fall)


def loss_of(
    model: LlamaForCausalLM,
    tokens: Tensor,  # [B, T]
) -> Tensor:  # []
    """Return the mean loss, in nats per token, computed in bfloat16 with weights in float32."""
    with torch.autocast(tokens.device.type, torch.bfloat16):
        logits = model(tokens, use_cache=False).logits
    return functional.cross_entropy(logits[:, :-1].flatten(0, 1).float(), tokens[:, 1:].flatten())


@torch.inference_mode()
def held_out_loss(
    model: LlamaForCausalLM,
    windows: npt.NDArray[np.int64],  # [N, T]
) -> float:
    """Return the mean loss over windows, in nats per token."""
    total = sum(float(loss_of(model, part)) * len(part) for part in batches(windows, model.device))
    return total / len(windows)


def _saved(thing: Any) -> dict[str, bytes]:
    """Return the files that `save_pretrained` writes, by name."""
    with tempfile.TemporaryDirectory() as temporary:
        thing.save_pretrained(temporary)
        return {file.name: file.read_bytes() for file in sorted(Path(temporary).iterdir())}
