"""Texts drawn from end to end, without a trace, and what should come out: a fresh pass per prefix, by brute force.

Softmax, filters and ends are written anew: nothing here is shared with the samplers or with the enumeration but the
model, whose logits are read.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import pass_sampling.reference as reference
from chi_square import Cells, Distribution, Tokens, limit_of, statistic
from pass_sampling.reference.exactness.cases import PROMPT, TINY, Configuration, penalty


def filtered(logits: Sequence[float], temperature: float = 1.0, top_k: int = 0, top_p: float = 1.0) -> dict[int, float]:
    """Return the probability of every token that can come next."""
    ranked = sorted(range(len(logits)), key=lambda token: (-logits[token], token))
    if temperature == 0:
        return {ranked[0]: 1.0}
    if top_k:
        ranked = [token for token in ranked if logits[token] >= logits[ranked[min(top_k, len(ranked)) - 1]]]
    weights = {token: math.exp((logits[token] - logits[ranked[0]]) / temperature) for token in ranked}
    total = math.fsum(weights.values())
    kept: dict[int, float] = {}
    for token in ranked:
        if weights[token] > 0 and (top_p == 1 or math.fsum(kept.values()) < top_p):
            kept[token] = weights[token] / total
    return {token: prob / math.fsum(kept.values()) for token, prob in kept.items()}


def texts(
    logits: Callable[[Tokens], Sequence[float]],
    sampling: dict[str, Any],
    max_new_tokens: int,
    eos_token_ids: Sequence[int] = (),
    stop_strings: Sequence[str] = (),
    alphabet: str = "",
) -> Distribution:
    """Return the probability of every text, drawn token by token; `logits(new_tokens)` is asked once per prefix."""
    distribution: Distribution = {}
    going: list[tuple[Tokens, float]] = [((), 1.0)]
    while going:
        tokens, prob = going.pop()
        for token, chance in filtered(logits(tokens), **sampling).items():
            text = (*tokens, token)
            shown = "".join(alphabet[each] for each in text) if alphabet else ""
            stopped = token in eos_token_ids or any(stop in shown for stop in stop_strings)
            if stopped or len(text) == max_new_tokens:
                distribution[text] = prob * chance
            else:
                going.append((text, prob * chance))
    return distribution


@dataclass(frozen=True)
class Setting:
    """A model with the settings of its texts, small enough to list all of them."""

    case: Configuration
    stop_strings: tuple[str, ...] = ()
    alphabet: str = "abcde"

    @cache  # noqa: B019  (settings are few)
    def probs(self) -> Distribution:
        """Return the probability of every text, by brute force over the specification's model."""
        model, case = self.case.model(reference), self.case

        def logits(tokens: Tokens) -> list[float]:
            prefix = (*PROMPT, *tokens)
            row = model.logits(model.hidden(model.embed(prefix), model.new_cache()))[-1]
            return (row if case.processor is None else case.processor(prefix, row)).tolist()

        return texts(logits, case.sampling, case.max_new_tokens, case.eos_token_ids, self.stop_strings, self.alphabet)

    def _ends(self) -> tuple[Any, ...]:
        """Return where texts end, as the arguments of `Ending`."""

        def decode(tokens: Tokens) -> str:
            return "".join(self.alphabet[token] for token in tokens)

        return self.case.max_new_tokens, self.case.eos_token_ids, self.stop_strings, decode

    def draw(self, pkg: Any, method: Any, num_texts: int, seed: int = 1) -> list[Tokens]:
        """Draw texts by `generate_batch`: one after another in the reference, side by side in the port."""
        results = pkg.generate_batch(method, [PROMPT] * num_texts, *self._ends(), seed=seed)
        return [result.tokens for result in results]

    def draw_in_engine(self, pkg: Any, method: Any, num_texts: int, seed: int = 1) -> list[Tokens]:
        """Draw texts by the engine, through a few rows."""
        engine = pkg.Engine(method, pkg.Ending(*self._ends()), num_rows=32, longest_prompt=len(PROMPT), seed=seed)
        return [result.tokens for _, result in engine.run(pkg.Request(i, PROMPT) for i in range(num_texts))]

    def misfit(self, drawn: list[Tokens]) -> float:
        """Return Pearson's statistic over what a right sampler exceeds once in a thousand million times."""
        if not self.probs().keys() >= set(drawn):
            return float("inf")
        cells = Cells.of(self.probs(), len(drawn))
        return statistic(cells.count(drawn), cells.probs) / limit_of(cells.degrees)


SETTINGS = {
    "filters and a penalty": Setting(
        Configuration(
            "filters and a penalty",
            seed=3,
            vocab_size=5,
            sampling={"temperature": 0.8, "top_k": 3, "top_p": 0.9},
            draft_sampling={"temperature": 1.2},
            eos_token_ids=(4,),
            max_new_tokens=4,
            processor=penalty,
        )
    ),
    "stop strings in a transformer": Setting(
        Configuration("stop strings", TINY, seed=5, eos_token_ids=(), max_new_tokens=5), ("ba", "cc", "abc")
    ),
}
