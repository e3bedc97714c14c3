"""Drafts at many places of a text at once: their logits, the losses that train them, and their expected acceptance.

An anchor is the last token that a draft call has fed. A group of L look-ahead rows follows it, which attend to the text
up to their anchor and to one another, in order. So one masked pass computes the draft calls at all anchors, and
gradients can go through it; the text's own rows are those of the frozen model.

Glossary of shapes: B sequences, T tokens of a sequence, N anchors, L look-ahead vectors, D model, V vocabulary,
N' draft vocabulary, R rows of a pass, S cache positions that are read, G kv-heads, E head size.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.nn import functional

from pass_sampling.reference.config import SamplingConfig
from pass_sampling.reference.theory import expected_tokens

from ..drafters.base import Drafter
from ..lookahead.adapter import Adapter
from ..lookahead.head import BlockHeads, SamplerHead
from ..lookahead.refinement import draft_logits
from ..lookahead.vectors import LookAhead
from ..model.cache import KVCache
from ..model.transformer import Transformer
from ..sampling import largest_logits, probs_from_logits

if TYPE_CHECKING:
    from ..hf.model import TransformersModel

    Trainable = Transformer | TransformersModel

Head = SamplerHead | BlockHeads
ANCHORS = 32  # places per sequence at which acceptance is measured
SAMPLINGS = {"greedy": SamplingConfig(temperature=0.0), "temperature_1": SamplingConfig()}  # and that of training
SEQUENCES = 4  # side by side: a batch needs memory for the distributions of its rows, in float64


class AnchoredRows(NamedTuple):
    """The logits that training compares: draft row i of an anchor drafts the token that target row i predicts."""

    draft_logits: Tensor  # [B, N, L, V], or of the draft vocabulary
    target_logits: Tensor  # [B, N, L, V], the frozen model's own
    next_tokens: Tensor  # [B, N, L], the text's token that both predict


class FrozenCache(KVCache):
    """Keys and values of a text, read only: a pass after them is not written to them, so gradients can flow."""

    def __init__(self, cache: KVCache):
        """Share the cached positions of a batch whose rows are equally long."""
        vars(self).update(vars(cache))
        self.keys, self.values = (each[..., : cache.max_length, :] for each in (cache.keys, cache.values))

    def next_positions(self, num_rows: int) -> Tensor:  # [B, R]
        """Return the positions after the text, which nothing is written to."""
        return self.lengths.unsqueeze(1) + torch.arange(num_rows, device=self.lengths.device)

    def write(
        self,
        layer: int,
        keys: Tensor,  # [B, G, R, E]
        values: Tensor,  # [B, G, R, E]
        next_positions: Tensor,  # [B, R]
    ) -> tuple[Tensor, Tensor]:  # [B, G, S, E], [B, G, S, E]
        """Return the text's keys and values with those of the pass after them."""
        return torch.cat([self.keys[layer], keys], dim=2), torch.cat([self.values[layer], values], dim=2)

    def advance(self, num_rows: int) -> None:
        """Keep nothing of the pass."""


def anchored_rows(
    model: Trainable,
    vectors: Tensor,  # [L, D]
    tokens: Tensor,  # [B, T]
    anchors: Tensor,  # [N]
    adapter: Adapter | None = None,
    head: Head | None = None,
    draft_vocab: Tensor | None = None,  # [N']
    text: Tensor | None = None,  # [B, T, D]
) -> AnchoredRows:
    """Run the frozen model over sequences, and the look-ahead vectors after each anchor.

    With a draft vocabulary both logits are those of its tokens alone, so a draft is compared with the best that it can
    be. `text` are the hidden states of the sequences, if they are known and the head needs no look-ahead rows.
    """
    hidden, target_hidden, next_tokens = anchored_hidden(model, vectors, tokens, anchors, adapter, head, text)
    project = model.logits if draft_vocab is None else partial(model.logits_of, tokens=draft_vocab)
    with torch.no_grad():
        target_logits = project(target_hidden)
    return AnchoredRows(project(hidden), target_logits, next_tokens)


def anchored_hidden(
    model: Trainable,
    vectors: Tensor,  # [L, D]
    tokens: Tensor,  # [B, T]
    anchors: Tensor,  # [N]
    adapter: Adapter | None = None,
    head: Head | None = None,
    text: Tensor | None = None,  # [B, T, D]
) -> tuple[Tensor, Tensor, Tensor]:  # [B, N, L, D], [B, N, L, D], [B, N, L]
    """Return the hidden states of the drafts after each anchor, of the text's rows beside them, and the tokens there.

    At an anchor a, tokens 0 to a have been fed. Look-ahead vector i (from 1 to L) is at position a + i and drafts the
    token at a + i + 1. So a + L + 1 must be less than T.

    Source: Monea et al. 2023 (arXiv 2311.13581), Sec. 3, for one group; the mask for many is ours.
    """
    depth = torch.arange(1, len(vectors) + 1, device=model.device)  # [L]
    places = anchors.unsqueeze(1) + depth  # [N, L]
    if text is None:
        with torch.no_grad():
            cache = model.new_cache(tokens.shape[1], len(tokens))
            text = model.hidden(model.embed(tokens), cache)
    if head is not None and not head.uses_lookahead:
        hidden = text[:, anchors].unsqueeze(2).expand(-1, -1, len(vectors), -1)
    else:
        groups = vectors.to(model.dtype).repeat(len(anchors), 1).expand(len(tokens), -1, -1)
        if type(cache) is KVCache:  # a pass writes into its arrays; caches of transformers are concatenated anew
            cache = FrozenCache(cache)
        positions = places.flatten().expand(len(tokens), -1)
        visible = _visible(anchors, depth, tokens.shape[1])
        adapter = adapter and adapter.to(model.dtype, model.device)
        hidden = model.hidden(groups, cache, positions, visible, adapter, groups.shape[1]).unflatten(1, places.shape)
    if head is not None:  # it refines a group from left to right, each row given the text's token before its draft
        head, before = head.to(model.dtype, model.device), tokens[:, places]
        embeddings = model.embed(before.flatten(1)).unflatten(1, before.shape[1:])
        memory, rows = head.start(text[:, anchors]), []
        for row, embedding in zip(hidden.unbind(2), embeddings.unbind(2), strict=True):
            refined, memory = head.step(row, embedding, memory)
            rows.append(refined)
        hidden = torch.stack(rows, dim=2)
    return hidden, text[:, places], tokens[:, places + 1]


def _visible(anchors: Tensor, depth: Tensor, length: int) -> Tensor:
    """Return what each look-ahead row attends to, [N*L, T+N*L]: the text up to its anchor, its group up to itself."""
    owner = torch.arange(len(anchors), device=anchors.device).repeat_interleave(len(depth))
    order = depth.repeat(len(anchors))
    text = torch.arange(length, device=anchors.device) <= anchors[owner].unsqueeze(1)
    group = (owner.unsqueeze(1) == owner) & (order <= order.unsqueeze(1))
    return torch.cat([text, group], dim=1)


def kl_loss(rows: AnchoredRows, temperature: float) -> Tensor:  # [B, N, L]
    """Return the divergence of each draft distribution from the frozen model's own, in nats.

    sum_v target[v] (log target[v] - log draft[v]), both at the temperature
    """
    both = rows.draft_logits, rows.target_logits
    draft, target = ((logits.float() / temperature).log_softmax(dim=-1) for logits in both)
    return functional.kl_div(draft, target, reduction="none", log_target=True).sum(dim=-1)


def cross_entropy_loss(rows: AnchoredRows, temperature: float) -> Tensor:  # [B, N, L]
    """Return the loss of the drafts on the text's own tokens, in nats, as in the paper; always at temperature 1.

    Source: Monea et al. 2023 (arXiv 2311.13581), Sec. 3.
    """
    logits = rows.draft_logits.float().flatten(0, 2)
    return functional.cross_entropy(logits, rows.next_tokens.flatten(), reduction="none").view_as(rows.next_tokens)


LOSSES = {"kl": kl_loss, "cross-entropy": cross_entropy_loss}


def mean_loss(
    losses: Tensor,  # [B, N, L]
    depth_decay: float,
) -> Tensor:  # []
    """Return the mean over places; a deeper draft weighs less, as it is reached less often.

    sum_i depth_decay^i mean(losses[..., i]) / sum_i depth_decay^i
    """
    weights = depth_decay ** torch.arange(losses.shape[-1], device=losses.device)
    return (losses.mean(dim=(0, 1)) * (weights / weights.sum())).sum()


@torch.inference_mode()
def acceptance_of(
    model: Trainable,
    vectors: Tensor,  # [L, D]
    sequences: npt.NDArray[np.int64],  # [B, T]
    samplings: Sequence[SamplingConfig],
    adapter: Adapter | None = None,
    head: Head | None = None,
    draft_vocab: Tensor | None = None,  # [N']
) -> Tensor:  # [len(samplings), L]
    """Return the chance that verification accepts the draft at each depth, once it is reached, on average.

    acceptance[i] = mean over places of sum_v min(target_probs[v], draft_probs[v])

    The places are spread evenly over the text; no place in sequences so short raises ValueError. The drafts before i
    are taken to be the text's, for the head as well. No draw is made.

    Source: Leviathan et al. 2023 (arXiv 2211.17192), Corollary 3.6.
    """
    anchors = _places(sequences, len(vectors), model.device)
    total = torch.zeros((len(samplings), len(vectors)), dtype=torch.float64, device=model.device)
    for tokens in batches(sequences, model.device):
        hidden, target_hidden, _ = anchored_hidden(model, vectors, tokens, anchors, adapter, head)
        drafts, targets = draft_logits(model, hidden, draft_vocab), model.logits(target_hidden)
        for i, sampling in enumerate(samplings):
            total[i] += shared_mass(targets, drafts, sampling).mean(dim=1).sum(dim=0)
    return (total / len(sequences)).cpu()


@torch.inference_mode()
def drafter_acceptance(
    model: Transformer,
    drafter: Drafter,
    sequences: npt.NDArray[np.int64],  # [B, T]
    samplings: Sequence[SamplingConfig],
) -> list[float]:
    """Return, for each sampling, the chance that a first draft is accepted, of a drafter without a cache.

    The equation, the places and the error are those of `acceptance_of`; where it proposes nothing, nothing is accepted.
    """
    anchors, length = _places(sequences, 0, model.device), sequences.shape[1]
    total = torch.zeros(len(samplings), dtype=torch.float64, device=model.device)
    for tokens in batches(sequences, model.device):
        hidden = model.hidden(model.embed(tokens), model.new_cache(length, len(tokens)))
        target_logits = model.logits(hidden[:, anchors]).flatten(0, 1)
        lengths = (anchors + 1).repeat(len(tokens))
        draft_logits = drafter.logits(tokens.repeat_interleave(len(anchors), dim=0), None, lengths, length)
        proposed = largest_logits(draft_logits).isfinite()
        for i, sampling in enumerate(samplings):
            total[i] += shared_mass(target_logits, draft_logits, sampling)[proposed].sum() / len(anchors)
    return (total / len(sequences)).tolist()


def _places(sequences: npt.NDArray[np.int64], depth: int, device: torch.device) -> Tensor:  # [N]
    """Return anchors from the first place of a sequence to the last one; raise ValueError if it has no room."""
    length = sequences.shape[1]
    if length < depth + 2 or not len(sequences):
        raise ValueError(f"sequences: found {len(sequences)} of {length} tokens, expected some of at least {depth + 2}")
    return torch.linspace(0, length - depth - 2, min(ANCHORS, length - depth - 1), device=device).long()


def batches(
    sequences: npt.NDArray[np.int64],  # [B, T]
    device: torch.device,
) -> list[Tensor]:
    """Return the sequences a few at a time, on a device."""
    return list(torch.from_numpy(sequences).to(device).split(SEQUENCES))


def shared_mass(
    target_logits: Tensor,  # [..., V]
    draft_logits: Tensor,  # [..., V]
    sampling: SamplingConfig,
) -> Tensor:  # [...]
    """Return the chance that each draft is accepted: sum_v min(target_probs[v], draft_probs[v])."""
    probs = (probs_from_logits(logits, sampling) for logits in (target_logits, draft_logits))
    return torch.minimum(*probs).sum(dim=-1)


def compared(
    model: Trainable,
    lookahead: LookAhead,
    sequences: npt.NDArray[np.int64],  # [B, T]
    sampling: SamplingConfig,
    seed: int,
) -> dict[str, Any]:
    """Return expected acceptance and tokens of what was trained and of two controls, at three samplings, for a record.

    The controls are small random vectors and the paper's fixed token, both without adapter and head.
    """
    depth, named = lookahead.num_lookahead, {"": sampling} | SAMPLINGS
    samplings, vectors = list(named.values()), lookahead.vectors.to(model.device)
    small = LookAhead.random(depth, model.hidden_size, seed).vectors.to(model.device)
    parts = lookahead.adapter, lookahead.head, lookahead.draft_vocab
    found = {
        "": acceptance_of(model, vectors, sequences, samplings, *parts),
        "random_": acceptance_of(model, small, sequences, samplings),
        "fixed_token_": acceptance_of(model, fixed_token_vectors(model, depth), sequences, samplings),
    }
    record: dict[str, Any] = {}
    for i, name in enumerate(named):
        place = record.setdefault(name, {}) if name else record
        for kind, rates in found.items():
            place[f"{kind}acceptance"] = [round(float(rate), 4) for rate in rates[i]]
            place[f"{kind}expected_tokens"] = round(expected_tokens(rates[i].numpy(), depth), 4)
    return record


def fixed_token_vectors(model: Trainable, num_lookahead: int) -> Tensor:  # [L, D]
    """Return the paper's untrained baseline: one token's embedding in the place of every look-ahead vector."""
    return model.embed([[0] * num_lookahead])[0]
