"""Laws over the few tokens that top-k leaves, in place of the whole vocabulary: what a compiled step computes with.

Top-k leaves k tokens, and more where some share the k-th largest logit: they survive together. A list has some places
for such. If it is too short all the same, the step says that it is not valid, and is run again over all tokens. If not,
it draws what it would draw there, up to rounding: the sums on the way are over the same numbers, but for zeros between
them. Where choices are traced, they are told over all tokens.

Glossary of shapes: B batch, K drafts, N tokens of a list, M tokens or columns that are asked for,
C columns (N+1), V vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

from .config import SamplingConfig
from .sampling import Probs, largest_logits, probs_from_logits

if TYPE_CHECKING:
    from .methods.base import Method

__all__ = ["Beside", "Laws", "Shortlist", "Shortlists", "beside", "joined", "laws_of", "prob_of", "whole"]

LONGEST = 64  # of top-k: the work of putting two lists beside each other grows with the square of their length
SLACK = 4  # places at least for tokens that share the k-th largest logit
MULTIPLE = 8  # of which lists are, for the processor's vectors
CHUNKS = 128  # parts of a vocabulary, of which only those that hold the largest logits are searched


@dataclass(frozen=True, eq=False)
class Shortlist:
    """Laws of which all tokens that are not listed have probability 0."""

    tokens: Tensor  # [..., N], in the order of their ids
    probs: Probs  # [..., N]
    vocab_size: int

    def __getitem__(self, place: tuple[slice | int | None, ...]) -> Shortlist:
        """Return some of the laws."""
        return replace(self, tokens=self.tokens[place], probs=self.probs[place])


Laws = Probs | Shortlist
"""Laws over the whole vocabulary, or lists in their place."""


def prob_of(
    laws: Laws,
    tokens: Tensor,  # [...]
) -> Probs:  # [...]
    """Return the probability of a token in each law."""
    if isinstance(laws, Shortlist):
        return torch.where(laws.tokens == tokens.unsqueeze(-1), laws.probs, 0.0).sum(dim=-1)
    return laws.gather(-1, tokens.unsqueeze(-1)).squeeze(-1)


def joined(laws: Sequence[Laws]) -> Laws:
    """Put the laws of drafts behind one another; beside lists, what stands over the vocabulary is empty."""
    lists = [each for each in laws if isinstance(each, Shortlist)]
    if not lists:
        return torch.cat([each for each in laws if isinstance(each, Tensor)], dim=1)
    tokens, probs = ([getattr(each, name) for each in lists] for name in ("tokens", "probs"))
    return Shortlist(torch.cat(tokens, dim=1), torch.cat(probs, dim=1), lists[0].vocab_size)


def whole(
    laws: Laws,  # [..., V]
) -> Probs:  # [..., V]
    """Return laws over the whole vocabulary."""
    if not isinstance(laws, Shortlist):
        return laws
    nothing = laws.probs.new_zeros((*laws.probs.shape[:-1], laws.vocab_size))
    return nothing.scatter(-1, laws.tokens, laws.probs)


@dataclass(frozen=True, eq=False)
class Shortlists:
    """Makes short lists of logits, where all settings leave few tokens, and remembers which were too short."""

    too_short: list[Tensor] = field(default_factory=list)

    @staticmethod
    def of(method: Method) -> Shortlists | None:
        """Return what makes the lists of a method, or None if there is a setting that leaves too many tokens."""
        settings = [getattr(method, name, None) for name in ("sampling", "draft_sampling")]
        fits = all(_length(each, method.model.vocab_size) for each in settings if each is not None)
        return Shortlists() if fits else None

    def laws(
        self,
        logits: Tensor,  # [..., V]
        sampling: SamplingConfig,
        used: Tensor,  # [...]
    ) -> tuple[Shortlist, Tensor]:  # [..., V], [...]
        """Return the same laws as `probs_from_logits`, as lists, and the largest logits.

        Those laws that are not used may be too short.
        """
        if sampling.temperature == 0:
            token = logits.argmax(dim=-1, keepdim=True)
            largest = logits.gather(-1, token).squeeze(-1)
            return Shortlist(token, torch.ones_like(token, dtype=torch.float64), logits.shape[-1]), largest
        values, found = _largest(logits, _length(sampling, logits.shape[-1]))
        last, shortest = values[..., sampling.top_k - 1, None], values[..., -1:]
        if values.shape[-1] < logits.shape[-1]:
            fits = (shortest < last) | (shortest == float("-inf"))
            self.too_short.append((used & ~fits.squeeze(-1)).any())
        tokens, scaled = _by_token(found, values.double())
        scaled = torch.where(scaled < last, float("-inf"), scaled)
        if sampling.temperature != 1:
            scaled = (scaled - values[..., :1].double()) / sampling.temperature
        return Shortlist(tokens, scaled.softmax(dim=-1), logits.shape[-1]), values[..., 0]

    def some_too_short(self) -> Tensor:  # []
        """Say whether any list does not hold all tokens that it should."""
        return torch.stack(self.too_short).any() if self.too_short else torch.tensor(False)


def laws_of(
    logits: Tensor,  # [..., V]
    sampling: SamplingConfig,
    lists: Shortlists | None,
    used: Tensor,  # [...]
) -> tuple[Laws, Tensor]:  # [..., V], [...]
    """Return the laws that settings make of logits, as short lists in a step that computes with such.

    The largest logits come with them: where one is not finite there is no law, see `largest_logits`.
    """
    if lists is not None:
        return lists.laws(logits, sampling, used)
    return probs_from_logits(logits, sampling), largest_logits(logits)


def _length(sampling: SamplingConfig, vocab_size: int) -> int:
    """Return N, or 0 if the settings leave too many tokens, or are not worth a list."""
    if sampling.temperature == 0:
        return 1
    if not 0 < sampling.top_k <= LONGEST or sampling.top_p < 1:
        return 0
    return min(-(-(sampling.top_k + SLACK) // MULTIPLE) * MULTIPLE, vocab_size)


def _largest(
    logits: Tensor,  # [..., V]
    number: int,
) -> tuple[Tensor, Tensor]:  # [..., N], [..., N]
    """Return the largest logits, the largest first, and whose they are; of a long row only likely parts are searched.

    The largest N stand in the N parts that have the largest maxima.
    """
    size = logits.shape[-1]
    if size % CHUNKS or number * 4 > CHUNKS or size < 8 * CHUNKS:
        found = logits.topk(number, dim=-1)
        return found.values, found.indices
    parts = logits.unflatten(-1, (CHUNKS, -1))
    places = parts.amax(dim=-1).topk(number, dim=-1).indices
    tokens = places.unsqueeze(-1) * parts.shape[-1] + torch.arange(parts.shape[-1], device=logits.device)
    tokens = tokens.flatten(-2)
    found = logits.gather(-1, tokens).topk(number, dim=-1)
    return found.values, tokens.gather(-1, found.indices)


def _by_token(
    tokens: Tensor,  # [..., N], all different
    values: Tensor,  # [..., N]
) -> tuple[Tensor, Tensor]:  # [..., N], [..., N]
    """Put both in the order of the tokens: sums of few comparisons, of which a compiler makes loops."""
    places = (tokens.unsqueeze(-2) < tokens.unsqueeze(-1)).sum(dim=-1)
    return torch.zeros_like(tokens).scatter(-1, places, tokens), torch.zeros_like(values).scatter(-1, places, values)


class Beside(NamedTuple):
    """The target's laws and the drafts' as rules read them: over the same few columns in place of the vocabulary.

    These are the target's list, and the draft itself where it is not on that. No other token can be drawn or accepted,
    and rules ask for none.
    """

    target_probs: Probs  # [B, K+1, V], or [B, K+1, C]
    draft_probs: Probs  # [B, K, V], or [B, K, C]
    draft_columns: Tensor  # [B, K]
    tokens: Tensor | None  # [B, K+1, C], whose column is whose; None: every token has its own

    def tokens_of(
        self,
        columns: Tensor,  # [B, M], of the first M rows
    ) -> Tensor:  # [B, M]
        """Return the tokens of columns."""
        if self.tokens is None:
            return columns
        return self.tokens[:, : columns.shape[1]].gather(-1, columns.unsqueeze(-1)).squeeze(-1)


def beside(
    target: Laws,  # [B, K+1, V]
    draft: Laws,  # [B, K, V]
    draft_tokens: Tensor,  # [B, K]
) -> Beside:
    """Put each of the target's laws beside that of the draft which it judges; the law behind the last is alone."""
    if isinstance(target, Shortlist) and not draft_tokens.shape[1]:
        draft = target[:, :0]
    if not isinstance(target, Shortlist) or not isinstance(draft, Shortlist):
        assert isinstance(target, Tensor) and isinstance(draft, Tensor)
        return Beside(target, draft, draft_tokens, None)
    depth, here = draft_tokens.shape[1], draft_tokens.unsqueeze(-1)
    judging = target[:, :depth]
    same = judging.tokens.unsqueeze(-1) == draft.tokens.unsqueeze(-2)  # [B, K, N, N]
    draft_probs = torch.where(same, draft.probs.unsqueeze(-2), 0.0).sum(dim=-1)
    listed = judging.tokens == here
    is_listed = listed.any(dim=-1, keepdim=True)
    column = torch.where(is_listed, listed.long().argmax(dim=-1, keepdim=True), judging.tokens.shape[2]).squeeze(-1)
    beyond = torch.where(is_listed, 0.0, prob_of(draft, draft_tokens).unsqueeze(-1))
    return Beside(
        functional.pad(target.probs, (0, 1)),
        torch.cat([draft_probs, beyond], dim=-1),
        column,
        torch.cat([target.tokens, functional.pad(here, (0, 0, 0, 1))], dim=-1),
    )
