"""Texts drawn from end to end, without a trace: by the loops, the engine and their streams of uniforms."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import Any

import pass_sampling.reference as reference
from brute_force import Law, Tokens, texts
from chi_square import Cells, limit_of, statistic
from pass_sampling.reference.exactness.cases import PROMPT, TINY, Configuration, penalty


@dataclass(frozen=True)
class Setting:
    """A model with the settings of its texts, small enough to list all of them."""

    case: Configuration
    stop_strings: tuple[str, ...] = ()
    alphabet: str = "abcde"

    @cache  # noqa: B019  (settings are few)
    def probs(self) -> Law:
        """Return the probability of every text, by brute force over the specification's model."""
        model, case = self.case.model(reference), self.case

        def logits(tokens: Tokens) -> list[float]:
            prefix = (*PROMPT, *tokens)
            row = model.logits(model.hidden(model.embed(prefix), model.new_cache()))[-1]
            return (row if case.processor is None else case.processor(prefix, row)).tolist()

        ends = case.max_new_tokens, case.eos_token_ids, self.stop_strings, self.alphabet
        return texts(logits, case.sampling, *ends)

    def ending(self, pkg: Any) -> Any:
        """Return where texts end."""
        case = self.case
        return pkg.Ending(case.max_new_tokens, case.eos_token_ids, self.stop_strings, self._decode)

    def draw(self, pkg: Any, method: Any, num_texts: int, seed: int = 1) -> list[Tokens]:
        """Draw texts by `generate_batch`: one after another in the reference, side by side in the port."""
        case, prompts = self.case, [PROMPT] * num_texts
        ends = case.max_new_tokens, case.eos_token_ids, self.stop_strings, self._decode
        return [result.tokens for result in pkg.generate_batch(method, prompts, *ends, seed=seed)]

    def draw_in_engine(self, pkg: Any, method: Any, num_texts: int, seed: int = 1) -> list[Tokens]:
        """Draw texts by the engine, through a few rows."""
        engine = pkg.Engine(method, self.ending(pkg), num_rows=32, longest_prompt=len(PROMPT), seed=seed)
        return [result.tokens for _, result in engine.run(pkg.Request(i, PROMPT) for i in range(num_texts))]

    def misfit(self, drawn: list[Tokens]) -> float:
        """Return Pearson's statistic over what a right sampler exceeds once in a thousand million times."""
        if not self.probs().keys() >= set(drawn):
            return float("inf")
        cells = Cells.of(self.probs(), len(drawn))
        return statistic(cells.count(drawn), cells.probs) / limit_of(cells.degrees)

    def _decode(self, tokens: Any) -> str:
        return "".join(self.alphabet[token] for token in tokens)


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
