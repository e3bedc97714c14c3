"""The library that most people would use instead: transformers' `generate`, with and without its own drafts.

Its sampling settings, its prompts and the number of its tokens are those of the methods beside it. What its passes are
is counted from outside, by a hook on its models.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from pass_sampling.reference.config import SamplingConfig

from ..hf.model_checks import load_with_transformers
from .runs import Run, Runner

__all__ = ["Baseline", "load_peer", "peer_writer"]


@dataclass(eq=False)
class Baseline:
    """A model of transformers, and how many passes and rows it has been fed."""

    model: Any
    num_forward_passes: int = 0
    num_positions: int = 0

    def count(self, module: Any, arguments: tuple[Any, ...], named: dict[str, Any]) -> None:
        """Count a pass; called before each."""
        fed = named.get("input_ids")
        self.num_forward_passes += 1
        self.num_positions += int((arguments[0] if fed is None else fed).shape[1])


def load_peer(folder: Path, dtype: torch.dtype, device: torch.device) -> Baseline:
    """Load a checkpoint with transformers; neither its suggestions on sampling nor its ends of text are kept.

    Raises:
        ValueError: transformers cannot read it.
    """
    from transformers import GenerationConfig

    peer = Baseline(load_with_transformers(folder, dtype, device))
    peer.model.generation_config = GenerationConfig(pad_token_id=0)  # type: ignore[no-untyped-call]
    peer.model.register_forward_pre_hook(peer.count, with_kwargs=True)
    return peer


def peer_writer(
    target: Baseline,
    sampling: SamplingConfig,
    assistant: Baseline | None = None,
    num_draft: int = 0,
    eos_token_ids: Sequence[int] = (),
) -> Runner:
    """Return what writes with `generate`: plain, with an assistant that drafts, or with drafts looked up in the text.

    Args:
        target: whose text it is.
        sampling: the distribution of its tokens.
        assistant: a smaller model over the same vocabulary.
        num_draft: drafts at most; without an assistant they are looked up, and 0 is plain decoding.
        eos_token_ids: tokens that end a text; default: none.
    """
    settings: dict[str, Any] = {"do_sample": False}
    if eos_token_ids:
        settings["eos_token_id"] = list(eos_token_ids)
    if sampling.temperature > 0:
        settings |= {"do_sample": True, "temperature": sampling.temperature}
        settings |= {"top_k": sampling.top_k, "top_p": sampling.top_p}
    if assistant is not None:
        assistant.model.generation_config.num_assistant_tokens = num_draft
        assistant.model.generation_config.num_assistant_tokens_schedule = "constant"
        settings["assistant_model"] = assistant.model
    elif num_draft:
        settings["prompt_lookup_num_tokens"] = num_draft
    peers = [target] if assistant is None else [target, assistant]
    device = target.model.device

    def write(prompt: Sequence[int], max_new_tokens: int, seed: int, request: int) -> Run:
        for peer in peers:
            peer.num_forward_passes = peer.num_positions = 0
        tokens = torch.tensor([list(prompt)], device=device)
        with torch.random.fork_rng([device] if device.type == "cuda" else []):
            torch.manual_seed((seed * 0x9E3779B97F4A7C15 + request) % 2**63)  # it draws from a global generator
            written = target.model.generate(
                tokens, attention_mask=torch.ones_like(tokens), max_new_tokens=max_new_tokens, **settings
            )
        return Run(
            tuple(written[0, len(prompt) :].tolist()),
            target.num_forward_passes,
            target.num_positions,
            sum(peer.num_forward_passes for peer in peers[1:]),
        )

    return write
