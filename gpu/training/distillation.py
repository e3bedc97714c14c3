"""A new model that learns the distributions of another one, its teacher, so that it can draft for it.

A draft x is accepted with the chance min(1, target[x] / draft[x]), so what a draft model should have is the target's
distributions, not the text: its loss is the cross-entropy of its distributions against the teacher's, which is their
divergence up to what the teacher's own entropy is.

Glossary of shapes: B windows, T tokens of a window, N tokens of the held-out text, V vocabulary.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.nn import functional

from pass_sampling.reference.checkpoint.folder import file_in
from pass_sampling.reference.config import SamplingConfig

from ..checkpoint.load import load_model
from ..model.transformer import Transformer
from ..sampling import probs_from_logits
from .anchors import evenly_spaced
from .tokenizer import load_tokenizer

if TYPE_CHECKING:
    from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

    from .pretrain import PretrainConfig

__all__ = ["SAMPLINGS", "Teacher", "distillation_loss", "draft_acceptance", "read_teacher"]

SAMPLINGS = (SamplingConfig(), SamplingConfig(temperature=0.8, top_k=10))  # those that acceptance is measured at
TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "merges.txt",
    "tokenizer.model",
    "chat_template.jinja",
)
EVALUATED = 128  # held-out windows
SEQUENCES = 4  # side by side: what acceptance needs in memory is its rows' distributions, in float64


@dataclass(frozen=True, eq=False)
class Teacher:
    """A frozen model, and the tokenizer that lies beside it."""

    model: Transformer
    tokenizer: PreTrainedTokenizerFast
    tokenizer_files: dict[str, bytes]  # by name, to be handed on as they are

    def check(self, config: PretrainConfig) -> None:
        """Refuse sizes with which a model cannot learn from this one.

        Raises:
            ValueError: the vocabulary is not the teacher's, or the windows are longer than it can read.
        """
        vocab_size, longest = self.model.vocab_size, self.model.max_position_embeddings
        if config.vocab_size != vocab_size:
            raise ValueError(f"vocab_size: found {config.vocab_size}, expected {vocab_size}, the teacher's")
        if config.context > longest:
            raise ValueError(f"context: found {config.context}, expected at most {longest}, the teacher's")

    @torch.no_grad()  # inference mode would make tensors that torch.compile cannot keep for the gradient
    def logits(
        self,
        tokens: Tensor,  # [B, T]
    ) -> Tensor:  # [B, T, V]
        """Return the teacher's logits after every token."""
        return self.model.forward(tokens)

    def record(
        self,
        student: LlamaForCausalLM,
        held_out: npt.NDArray[np.int64],  # [N]
        length: int,
    ) -> dict[str, Any]:
        """Return who taught, and the expected acceptance of the student's drafts on windows of held-out text."""
        windows = evenly_spaced(held_out, length, EVALUATED)
        acceptance = [
            {
                "temperature": sampling.temperature,
                "top_k": sampling.top_k,
                "expected": round(draft_acceptance(self, student, windows, sampling), 4),
            }
            for sampling in SAMPLINGS
        ]
        return {
            "teacher": {"name": self.model.name, "fingerprint": self.model.fingerprint},
            "acceptance": acceptance,
            "acceptance_windows": len(windows),
        }


def read_teacher(folder: str | os.PathLike[str], device: torch.device | str = "cpu") -> Teacher:
    """Read a teacher from a Hugging Face folder, its weights in bfloat16.

    Raises:
        FileNotFoundError: the folder or one of its files is missing.
        ValueError: a file is damaged or unsupported, or there is no tokenizer with an end of text.
    """
    path = Path(folder)
    model = load_model(path, "bfloat16", device)
    tokenizer = load_tokenizer(path)
    if tokenizer.eos_token_id is None:
        raise ValueError(f"teacher: found no end of text in the tokenizer of {path}, expected one to end texts with")
    files = {name: file_in(path, name).read_bytes() for name in TOKENIZER_FILES if (path / name).is_file()}
    return Teacher(model, tokenizer, files)


def distillation_loss(
    student: LlamaForCausalLM,
    tokens: Tensor,  # [B, T]
    teacher_logits: Tensor,  # [B, T, V]
) -> Tensor:  # []
    """Return the mean cross-entropy of the student's distributions against the teacher's, in nats, at temperature 1.

    mean over places of - sum_v teacher[v] log student[v]

    Computed in bfloat16 with weights in float32, as the loss on text is; its least value is the teacher's entropy.

    Source: Hinton et al. 2015 (arXiv 1503.02531); Zhou et al. 2024 (arXiv 2310.08461) for draft models.
    """
    with torch.autocast(tokens.device.type, torch.bfloat16):
        logits = student(tokens, use_cache=False).logits
    target = teacher_logits.flatten(0, 1).float().softmax(dim=-1)
    return functional.cross_entropy(logits.flatten(0, 1).float(), target)


@torch.inference_mode()
def draft_acceptance(
    teacher: Teacher,
    student: LlamaForCausalLM,
    windows: npt.NDArray[np.int64],  # [B, T]
    sampling: SamplingConfig,
) -> float:
    """Return the chance that the teacher accepts a draft of the student's, on average over places of a text.

    acceptance = mean over places of sum_v min(target_probs[v], draft_probs[v])

    Both distributions are those of `sampling`. Deterministic: no draw is made.

    Source: Leviathan et al. 2023 (arXiv 2211.17192), Corollary 3.6.
    """
    total = 0.0
    for first in range(0, len(windows), SEQUENCES):
        tokens = torch.from_numpy(windows[first : first + SEQUENCES]).to(student.device)
        with torch.autocast(tokens.device.type, torch.bfloat16):
            draft_logits = student(tokens, use_cache=False).logits
        target_probs = probs_from_logits(teacher.logits(tokens), sampling)
        draft_probs = probs_from_logits(draft_logits, sampling)
        total += float(torch.minimum(target_probs, draft_probs).sum(dim=-1).mean(dim=1).sum())
    return total / len(windows)
