"""Train a small base model from text: the model of the demonstrations, your own, or a draft model for another one.

The model is transformers' Llama and the tokenizer a byte-level BPE, so the folder opens everywhere. A model that drafts
for another one, its teacher, takes its tokenizer and learns its distributions, not those of the text.

Glossary of shapes: B windows of a batch, T tokens of a window, N tokens of a text or windows, V vocabulary.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.nn import functional

from pass_sampling.reference.checkpoint.folder import file_in, replace_folder
from pass_sampling.reference.checkpoint.model_settings import SIZES
from pass_sampling.reference.config import SamplingConfig

from ..checkpoint.gguf import saved_files
from ..checkpoint.load import load_model
from ..model.precision import check_device
from ..model.transformer import Transformer
from .acceptance import batches, shared_mass
from .config import PretrainConfig
from .resume import Progress, Report, check_output, remove_partial
from .text import split_texts
from .tokens import Windows, check_tokens, encode_texts, evenly_spaced, load_tokenizer, train_tokenizer

if TYPE_CHECKING:
    from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

SAMPLINGS = (SamplingConfig(), SamplingConfig(temperature=0.8, top_k=10))  # those that acceptance is measured at
TOKENIZER_FILES = (
    *("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json"),
    *("vocab.json", "merges.txt", "tokenizer.model", "chat_template.jinja"),
)
MEASURED = 128  # held-out windows for acceptance
RECORD = "pretraining.json"
WEIGHT_DECAY = 0.1
WARMUP, COOLDOWN = 0.03, 0.5  # the parts of the run in which the learning rate rises, and falls to 0


class Teacher(NamedTuple):
    """A frozen model, and the tokenizer in its folder."""

    model: Transformer
    tokenizer: PreTrainedTokenizerFast
    tokenizer_files: dict[str, bytes]  # by name, to be handed on as they are


def read_teacher(folder: str | os.PathLike[str], device: torch.device | str = "cpu") -> Teacher:
    """Read a teacher from a Hugging Face folder, its weights in bfloat16; raise ValueError without an end of text."""
    path = Path(folder)
    model = load_model(path, "bfloat16", device)
    tokenizer = load_tokenizer(path)
    if tokenizer.eos_token_id is None:
        raise ValueError(f"teacher: found no end of text in the tokenizer of {path}, expected one to end texts with")
    files = {name: file_in(path, name).read_bytes() for name in TOKENIZER_FILES if (path / name).is_file()}
    return Teacher(model, tokenizer, files)


class Corpus(NamedTuple):
    """The text in tokens, divided into both sides."""

    tokenizer: PreTrainedTokenizerFast
    windows: Windows
    held_out: npt.NDArray[np.int64]  # [N]
    held_out_files: list[str]


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
        held_out: the names to keep out of training; default: about 5 %, copies on one side.
        device: cpu or cuda.
        report: called after every step with the news of `Progress.run`.
        teacher: the folder of a model to draft for: the new one takes its tokenizer and learns its distributions.

    Returns:
        The record, as in pretraining.json.
    """
    config = PretrainConfig() if config is None else config
    report, path, place = report or bool, Path(output), check_device(device)
    check_output(path, "model")
    tutor = None if teacher is None else read_teacher(teacher, place)
    corpus = _read_corpus(texts, config, held_out, tutor)
    model = new_model(config, int(corpus.tokenizer.eos_token_id))
    model.to(place)  # type: ignore[arg-type]  # transformers hides what it takes
    windows = evenly_spaced(corpus.held_out, config.context, len(corpus.held_out))
    seconds = _run(model, corpus, config, path, report, tutor)
    loss, held_out_tokens = held_out_loss(model, windows), len(corpus.held_out)
    held_out_bytes, taught = sum(len(texts[name].encode()) for name in corpus.held_out_files), dict[str, Any]()
    if tutor is not None:
        measured = evenly_spaced(corpus.held_out, config.context, MEASURED)
        rates = [draft_acceptance(tutor.model, model, measured, sampling) for sampling in SAMPLINGS]
        taught = {"teacher": {"name": tutor.model.name, "fingerprint": tutor.model.fingerprint}}
        taught |= {"acceptance": acceptance_record(SAMPLINGS, rates), "acceptance_windows": len(measured)}
    record = {
        "held_out_loss": round(loss, 4),  # nats per token
        "bits_per_byte": round(loss / math.log(2) * held_out_tokens / held_out_bytes, 4),
        "bytes_per_token": round(held_out_bytes / held_out_tokens, 3),
        **taught,
        "num_parameters": sum(weight.numel() for weight in model.parameters()),
        "training_files": len(texts) - len(corpus.held_out_files),
        "training_tokens": len(corpus.windows.tokens),
        "epochs": round(config.num_steps / corpus.windows.batches_per_epoch, 2),
        "held_out_files": corpus.held_out_files,
        "held_out_tokens": held_out_tokens,
        "seconds": seconds,
        "settings": asdict(config),
    }
    files = saved_files(corpus.tokenizer) if tutor is None else tutor.tokenizer_files
    files = saved_files(model.bfloat16()) | files | {RECORD: (json.dumps(record, indent=2) + "\n").encode()}
    replace_folder(path, files)
    remove_partial(path)
    return record


def acceptance_record(samplings: Sequence[SamplingConfig], rates: Sequence[float]) -> list[dict[str, float]]:
    """Return the acceptance at each sampling as plain values."""
    return [
        {"temperature": each.temperature, "top_k": each.top_k, "expected": round(rate, 4)}
        for each, rate in zip(samplings, rates, strict=True)
    ]


def _read_corpus(
    texts: Mapping[str, str], config: PretrainConfig, held_out: Sequence[str] | None, teacher: Teacher | None
) -> Corpus:
    """Divide the texts, encode both sides by the teacher's tokenizer, else by one trained on the training side."""
    names, kept_out = split_texts(texts, held_out=held_out)
    if teacher is None:
        tokenizer = train_tokenizer((texts[name] for name in names), config.vocab_size, config.context)
    else:
        expected, longest = teacher.model.vocab_size, teacher.model.max_position_embeddings
        if config.vocab_size != expected:
            raise ValueError(f"vocab_size: found {config.vocab_size}, expected {expected}, the teacher's")
        if config.context > longest:
            raise ValueError(f"context: found {config.context}, expected at most {longest}, the teacher's")
        tokenizer = teacher.tokenizer
    end = int(tokenizer.eos_token_id)
    names = [names[i] for i in np.random.default_rng(config.seed).permutation(len(names))]
    training, validation = (
        np.concatenate([[end], *encode_texts(tokenizer, [texts[name] for name in side], end)])
        for side in (names, kept_out)
    )
    check_tokens("teacher", np.concatenate([training, validation]), config.vocab_size)
    windows = Windows(training, config.context, config.batch_size, config.seed)
    return Corpus(tokenizer, windows, validation, kept_out)


def _run(
    model: LlamaForCausalLM, corpus: Corpus, config: PretrainConfig, path: Path, report: Report, teacher: Teacher | None
) -> int:
    """Train; return the seconds that it took."""
    settings = {name: value for name, value in asdict(config).items() if name != "compile"}
    settings |= {} if teacher is None else {"teacher": teacher.model.fingerprint}
    texts, parameters = [corpus.windows.tokens.tobytes()], dict(model.named_parameters())
    progress = Progress(path, settings, texts, parameters, optimizers_for(model, config))
    step_loss: Callable[..., Tensor] = torch.compile(loss_of) if config.compile else loss_of

    def learn(step: int) -> Tensor:
        tokens = torch.from_numpy(corpus.windows.batch(step)).to(model.device)
        with torch.no_grad():  # inference mode would make tensors that torch.compile cannot keep for the gradient
            taught = [] if teacher is None else [teacher.model.forward(tokens)]
        loss = step_loss(model, tokens, *taught)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        return loss

    notes = progress.run(config.num_steps, learn, lambda step: schedule(step, config), report)
    return round(float(notes["seconds"]))


def new_model(config: PretrainConfig, end: int) -> LlamaForCausalLM:
    """Return an untrained Llama in float32; `end` is the token that ends a text."""
    from transformers import LlamaConfig, LlamaForCausalLM

    shape = LlamaConfig(
        **{name: getattr(config, name) for name in (*SIZES, "num_key_value_heads")},
        head_dim=config.hidden_size // config.num_attention_heads,
        max_position_embeddings=config.context,
        tie_word_embeddings=True,
        bos_token_id=end,
        eos_token_id=end,
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
    outside = [weight for weight in model.parameters() if all(weight is not each for each in inside)]
    rate = config.learning_rate
    return [
        torch.optim.Muon(inside, lr=rate, weight_decay=WEIGHT_DECAY, adjust_lr_fn="match_rms_adamw"),
        torch.optim.AdamW(outside, lr=rate, weight_decay=0.0, betas=(0.9, 0.95), fused=True),
    ]


def schedule(step: int, config: PretrainConfig) -> float:
    """Return the part of the learning rate at a step: a rise, a plateau, a straight fall to 0."""
    done, shortest = (step + 1) / config.num_steps, 1.0 / config.num_steps  # of a rise or a fall: one step
    return min(1.0, done / max(WARMUP, shortest), (1.0 - done) / max(COOLDOWN, shortest) + shortest)


def loss_of(
    model: LlamaForCausalLM,
    tokens: Tensor,  # [B, T]
    teacher_logits: Tensor | None = None,  # [B, T, V]
) -> Tensor:  # []
    """Return the mean loss, in nats per token, computed in bfloat16 with weights in float32.

    With a teacher, it is the cross-entropy against the teacher's distributions at temperature 1:

    mean over places of - sum_v teacher[v] log student[v]

    Source: Hinton et al. 2015 (arXiv 1503.02531); Zhou et al. 2024 (arXiv 2310.08461) for draft models.
    """
    with torch.autocast(tokens.device.type, torch.bfloat16):
        logits = model(tokens, use_cache=False).logits
    if teacher_logits is None:
        return functional.cross_entropy(logits[:, :-1].flatten(0, 1).float(), tokens[:, 1:].flatten())
    return functional.cross_entropy(logits.flatten(0, 1).float(), teacher_logits.flatten(0, 1).float().softmax(dim=-1))


@torch.inference_mode()
def draft_acceptance(
    teacher: Transformer,
    student: LlamaForCausalLM,
    windows: npt.NDArray[np.int64],  # [B, T]
    sampling: SamplingConfig,
) -> float:
    """Return the chance that the teacher accepts a draft of the student's, as `acceptance_of`, at every place."""
    total = 0.0
    for tokens in batches(windows, student.device):
        with torch.autocast(tokens.device.type, torch.bfloat16):
            draft_logits = student(tokens, use_cache=False).logits
        total += float(shared_mass(teacher.forward(tokens), draft_logits, sampling).mean(dim=1).sum())
    return total / len(windows)


@torch.inference_mode()
def held_out_loss(
    model: LlamaForCausalLM,
    windows: npt.NDArray[np.int64],  # [N, T]
) -> float:
    """Return the mean loss over windows, in nats per token."""
    total = sum(float(loss_of(model, part)) * len(part) for part in batches(windows, model.device))
    return total / len(windows)
