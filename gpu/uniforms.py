"""The uniforms, the only source of randomness; see `reference.uniforms`."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from itertools import accumulate

import numpy as np
import torch
from torch import Tensor

from pass_sampling.reference.config import check_integer

from .batch_record import Choices
from .host import constant, is_on_cpu
from .sampling import Probs, cell_edges, draw, one_hot

STEPS_AHEAD = 32  # steps whose uniforms are made at once: a pass evicts the generator's code from the caches
NamedUniforms = Mapping[str, int]
"""The names of a step's uniforms in order, and the number of each, such as {"exact": 1, "draft": 4}."""


def uniform_stream(
    seed: int, request: int | Sequence[int], step: int, num_uniforms: int, *, device: torch.device | str = "cpu"
) -> Tensor:  # [num_uniforms], or [B, num_uniforms] for B requests
    """Return the uniforms of one step of one request or of several: the numbers and errors of the reference."""
    requests = list(request) if isinstance(request, Sequence) else [request]
    rows = uniform_streams(seed, requests, step, 1, num_uniforms, device=device)[0]
    return rows if isinstance(request, Sequence) else rows[0]


def uniform_streams(
    seed: int,
    requests: Sequence[int],
    first: int,
    num_steps: int,
    num_uniforms: int,
    *,
    device: torch.device | str = "cpu",
) -> Tensor:  # [num_steps, B, num_uniforms]
    """Return the uniforms of consecutive steps, as `uniform_stream` of each, but faster."""
    for name, value in (("seed", seed), *(("request", value) for value in requests), ("step", first)):
        check_integer(name, value, 0, 2**64 - 1)
    check_integer("step", int(first) + max(num_steps, 1) - 1, 0, 2**64 - 1)
    counter = np.array([0, first, 0, 0], np.uint64)
    to_next = 2**64 - -(-num_uniforms // 4)  # after the blocks of four that a step has used
    found = np.empty((num_steps, len(requests), num_uniforms))
    for place, request in enumerate(requests):
        philox = np.random.Philox(counter=counter, key=np.array([seed, request], np.uint64))
        generator = np.random.Generator(philox)
        for row in found[:, place]:
            generator.random(out=row)
            philox.advance(to_next)
    return torch.from_numpy(found).to(device)


class UniformRow:
    """One step's uniforms of a batch, used by name; each uniform serves one decision."""

    def __init__(
        self,
        uniforms: Tensor,  # [B, num_uniforms]
        named_uniforms: NamedUniforms,
        trace: bool = False,
    ):
        """Name the uniforms of every row, each in [0, 1); with `trace`, keep what each was compared with."""
        num_uniforms = sum(named_uniforms.values())
        if uniforms.shape[1:] != (num_uniforms,):
            raise ValueError(f"uniforms: found shape {tuple(uniforms.shape[1:])}, expected {(num_uniforms,)}")
        if is_on_cpu(uniforms) and not all(0 <= uniform < 1 for row in uniforms.tolist() for uniform in row):
            raise ValueError(f"uniforms: found {uniforms.tolist()}, expected numbers from 0 to 1, without 1")
        self._uniforms = uniforms
        self._named = named_uniforms
        self._start = dict(zip(named_uniforms, accumulate(named_uniforms.values(), initial=0), strict=False))
        self._used: set[int] = set()
        self.choices: tuple[Choices, ...] | None = () if trace else None  # in order

    def room(self, name: str) -> int:
        """Return how many uniforms a name has."""
        return self._named[name]

    def token(
        self,
        name: str,
        probs: Probs,  # [B, V]
        index: int = 0,
        active: Tensor | None = None,  # [B]
    ) -> Tensor:  # [B]
        """Draw a token from a distribution with the uniform `name[index]`, in each row; only active rows are traced."""
        asked = None if active is None else active.unsqueeze(1)
        return self.tokens(name, probs[:, None], index, asked).squeeze(1)

    def tokens(
        self,
        name: str,
        probs: Probs,  # [B, K, V]
        index: int | Sequence[int] = 0,
        active: Tensor | None = None,  # [B, K]
    ) -> Tensor:  # [B, K]
        """Draw K tokens from K distributions, with the uniforms from `name[index]` on, or with those at K indices."""
        edges = cell_edges(probs)
        columns: slice | tuple[int, ...]
        if isinstance(index, int):
            columns = self._take(name, index, probs.shape[1])
        else:
            columns = tuple(self._take(name, each, 1).start for each in index)
        here = columns if isinstance(columns, slice) else constant(columns, edges.device)
        outcomes = draw(edges, self._uniforms[:, here])
        self._record(lambda made: (*made, *_split(columns, edges, outcomes, active)))
        return outcomes

    def certain(
        self,
        name: str,
        tokens: Tensor,  # [B, K]
        vocab_size: int,
        index: int = 0,
        active: Tensor | None = None,  # [B, K]
    ) -> None:
        """Use K uniforms, from `name[index]` on, to draw tokens from the distributions that are one-hot at them."""
        columns = self._take(name, index, tokens.shape[1])
        self._record(lambda made: (*made, *_split(columns, cell_edges(one_hot(tokens, vocab_size)), tokens, active)))

    def restrict(
        self,
        name: str,
        count: Tensor,  # [B]
    ) -> None:
        """Mark the first `count` draws of a name as needed, once that is known; the trace loses its others."""
        start, end = self._start[name], self._start[name] + self._named[name]

        def is_needed(column: int) -> Tensor | bool:
            return (column - start < count) if start <= column < end else True

        self._record(lambda made: tuple(replace(each, active=each.active & is_needed(each.column)) for each in made))

    def accept(
        self,
        name: str,
        accept_prob: Probs,  # [B, K]
        index: int = 0,
        from_last: bool = False,
    ) -> Tensor:  # [B, K]
        """Accept with the given probabilities: iff the uniform, from `name[index]` on, is strictly below.

        The draws of a row are traced up to its first rejection or, `from_last`, backwards to its first acceptance. A
        probability of NaN marks a draw that is not made.
        """
        columns = self._take(name, index, accept_prob.shape[1])
        accepted = self._uniforms[:, columns] < accept_prob
        self._record(lambda made: (*made, *_asked(columns, accept_prob, accepted, from_last)))
        return accepted

    def _record(self, change: Callable[[tuple[Choices, ...]], tuple[Choices, ...]]) -> None:
        """Change the choices if they are traced; tracing does nothing else."""
        if self.choices is not None:
            self.choices = change(self.choices)

    def _take(self, name: str, index: int, count: int) -> slice:
        start = self._start[name] + index
        columns = range(start, start + count)
        if not 0 <= index <= index + count <= self._named[name]:
            raise RuntimeError(f"uniform {name}[{index + count - 1}] is not among its {self._named[name]} uniforms")
        if not self._used.isdisjoint(columns):
            raise RuntimeError(f"uniform {name}[{index}] would serve two decisions")
        self._used.update(columns)
        return slice(start, start + count)


def _asked(columns: slice, accept_prob: Probs, accepted: Tensor, from_last: bool) -> list[Choices]:
    """Return the choices of some acceptances, in the order in which they were made."""
    continues = ~accepted.flip(1) if from_last else accepted
    asked = torch.cat([torch.ones_like(continues[:, :1]), continues[:, :-1]], dim=1).cumprod(dim=1).bool()
    asked = (asked.flip(1) if from_last else asked) & ~accept_prob.isnan()
    edges = torch.stack([accept_prob, torch.ones_like(accept_prob)], dim=-1)
    return _split(columns, edges, (~accepted).long(), asked)[:: -1 if from_last else 1]


def _split(columns: slice | Sequence[int], edges: Tensor, outcomes: Tensor, active: Tensor | None) -> list[Choices]:
    """Return K choices of a batch, one by one."""
    active = torch.ones_like(outcomes, dtype=torch.bool) if active is None else active
    numbers = range(columns.start, columns.stop) if isinstance(columns, slice) else columns
    return [Choices(column, edges[:, i], outcomes[:, i], active[:, i]) for i, column in enumerate(numbers)]
