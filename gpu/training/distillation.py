"""Teach a new model the distributions of another one, its teacher, so that it can draft for it.

A draft x is accepted with the chance min(1, target[x] / draft[x]). So a draft model should have the target's
distributions, not those of the text. Its loss is the cross-entropy of its distributions against the teacher's: their
divergence plus the teacher's own entropy.

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
from .acceptance import batches, shared_mass
from .tokens import evenly_spaced, load_tokenizer

if TYPE_CHECKING:
    from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

SAMPLINGS = (SamplingConfig(), SamplingConfig(temperature=0.8, top_k=10))  # those that acceptance is measured at
TOKENIZER_FILES = (
    *("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json"),
    *("vocab.json", "merges.txt", "tokenizer.model", "chat_template.jinja"),
)
EVALUATED = 128  # held-out windows


@dataclass(frozen=True, eq=False)
class Teacher:
    """A frozen model, and the tokenizer in its folder."""

    model: Transformer
    tokenizer: PreTrainedTokenizerFast
    tokenizer_files: dict[str, bytes]  # by name, to be handed on as they are

    def check(self, vocab_size: int, context: int) -> None:
        """Raise ValueError for another vocabulary than the teacher's, or windows longer than it can read."""
        expected, longest = self.model.vocab_size, self.model.max_position_embeddings
        if vocab_size != expected:
            raise ValueError(f"vocab_size: found {vocab_size}, expected {expected}, the teacher's")
        if context > longest:
            raise ValueError(f"context: found {context}, expected at most {longest}, the teacher's")

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
        rates = [round(draft_acceptance(self, student, windows, sampling), 4) for sampling in SAMPLINGS]
        acceptance = [
            {"temperature": sampling.temperature, "top_k": sampling.top_k, "expected": rate}
            for sampling, rate in zip(SAMPLINGS, rates, strict=True)
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

    The equation is that of `expected_acceptance`, at every place. Both distributions are those of `sampling`.
    """
    total = 0.0
    for tokens in batches(windows, student.device):
        with torch.autocast(tokens.device.type, torch.bfloat16):
            draft_logits = student(tokens, use_cache=False).logits
        total += float(shared_mass(teacher.logits(tokens), draft_logits, sampling).mean(dim=1).sum())
    return total / len(windows)
