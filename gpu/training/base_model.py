"""The base model in training: transformers' Llama, two optimizers, a schedule, a loss.

Glossary of shapes: B windows of a batch, T tokens of a window, N windows.
"""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.nn import functional

if TYPE_CHECKING:
    from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

    from ..pretrain import PretrainConfig

__all__ = ["folder_files", "held_out_loss", "loss_of", "new_model", "optimizers_for", "schedule"]


def new_model(config: PretrainConfig, end: int) -> LlamaForCausalLM:
    """Return an untrained Llama in float32; `end` is the token that ends a text."""
    from transformers import LlamaConfig, LlamaForCausalLM

    shape = LlamaConfig(
        vocab_size=config.vocab_size,
        hidden_size=config.hidden_size,
        intermediate_size=config.intermediate_size,
        num_hidden_layers=config.num_hidden_layers,
        num_attention_heads=config.num_attention_heads,
        num_key_value_heads=config.num_key_value_heads,
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
    total = 0.0
    for first in range(0, len(windows), 8):
        part = torch.from_numpy(windows[first : first + 8]).to(model.device)
        total += float(loss_of(model, part)) * len(part)
    return total / len(windows)


def folder_files(model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast | None = None) -> dict[str, bytes]:
    """Return what a Hugging Face folder holds, by file name; the model's weights become bfloat16."""
    model.bfloat16()
    with tempfile.TemporaryDirectory() as temporary:
        model.save_pretrained(temporary)
        if tokenizer is not None:
            tokenizer.save_pretrained(temporary)
        return {file.name: file.read_bytes() for file in sorted(Path(temporary).iterdir())}
